"""Room for connections: the shares of the open files, and the order in which connections have to go."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from dlr_buffer.errors import DlrBufferError
from dlr_buffer.local_api.connections import (
    MAX_ADMIN_CONNECTIONS,
    MAX_CLIENT_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    ConnectionLimits,
    ConnectionRoom,
    Phase,
    raise_descriptor_limit,
    share_descriptors,
)

LIMITS = [160, 200, 256, 512, 1024, 4096, 16_384, 1 << 30]
LEAST = RESERVED_DESCRIPTORS + 32


@pytest.mark.parametrize("upstream", [0, 8, 100])
@pytest.mark.parametrize("limit", LIMITS)
def test_shares_fit_into_the_limit(limit: int, upstream: int) -> None:
    """Whatever the limit, both sockets have room, the admins at least a few, and all together fits."""
    shares = share_descriptors(max(limit, LEAST + upstream), upstream)
    assert RESERVED_DESCRIPTORS + upstream + shares.client + shares.admin <= max(limit, LEAST + upstream)
    assert 16 <= shares.client <= MAX_CLIENT_CONNECTIONS
    assert 16 <= shares.admin <= MAX_ADMIN_CONNECTIONS


@pytest.mark.parametrize("upstream", [0, 8, 100])
@pytest.mark.parametrize("limit", [0, 64, LEAST - 1])
def test_a_limit_that_is_too_low_is_refused(limit: int, upstream: int) -> None:
    """The error says how many are allowed, how many are needed, and where to raise the limit."""
    with pytest.raises(
        DlrBufferError, match=f"may open {limit} files, but {LEAST + upstream} are needed.*LimitNOFILE="
    ):
        share_descriptors(limit, upstream)


def test_the_usual_limit_gives_everybody_the_most() -> None:
    """With the unit's limit nothing is cut short."""
    shares = share_descriptors(16_384, 2 * 256)
    assert (shares.client, shares.admin) == (MAX_CLIENT_CONNECTIONS, MAX_ADMIN_CONNECTIONS)


@pytest.mark.parametrize(("soft", "hard", "raised"), [(64, 512, 512), (64, 64, 64), (300, 19_000, 16_384)])
def test_the_soft_limit_is_raised_as_far_as_allowed(soft: int, hard: int, raised: int) -> None:
    """The soft limit goes up to the hard one, or to what is useful; the hard one stays."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine allows fewer open files")
    program = (
        "import resource\n"
        "from dlr_buffer.local_api.connections import raise_descriptor_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(raised), str(raised), str(hard)]


def test_a_high_soft_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enough already, or unlimited, is not touched."""

    def never(*_limits: object) -> None:
        raise AssertionError

    monkeypatch.setattr(resource, "setrlimit", never)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100_000, 100_000))
    assert raise_descriptor_limit() == 100_000
    monkeypatch.setattr(
        resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert share_descriptors(raise_descriptor_limit(), 0).client == MAX_CLIENT_CONNECTIONS


def room(**limits: float) -> ConnectionRoom[str]:
    """Make room with two places."""
    return ConnectionRoom(ConnectionLimits(connections=2, idle_s=75, head_s=30, answer_s=120, **limits))  # type: ignore[arg-type]


def test_each_phase_has_its_time() -> None:
    """A connection is overdue when it was too long in one phase; a new phase begins a new time."""
    places = room()
    assert places.next_deadline_s() is None
    assert places.admit("a", 0.0) == (True, None)
    places.move("a", None, Phase.IDLE, 0.0)
    assert places.admit("b", 1.0) == (True, None)
    places.move("b", None, Phase.HEAD, 1.0)
    assert places.next_deadline_s() == 31.0
    assert places.overdue(30.9) == []
    assert places.overdue(31.0) == [("b", Phase.HEAD)]
    places.move("b", Phase.HEAD, None, 31.0)
    assert places.next_deadline_s() == 75.0
    places.move("a", Phase.IDLE, Phase.ANSWER, 74.0)
    assert places.next_deadline_s() == 194.0
    assert places.waiting(Phase.ANSWER) == ("a",)
    places.leave("a", Phase.ANSWER)
    assert (places.next_deadline_s(), places.open) == (None, 1)


def test_who_gives_way_when_the_room_is_full() -> None:
    """The longest idle one gives way, unless it became idle just now; who is in work never does."""
    places = room(idle_spared_s=2.0)
    for name, now_s in (("a", 0.0), ("b", 1.0)):
        assert places.admit(name, now_s) == (True, None)
        places.move(name, None, Phase.IDLE, now_s)
    assert places.admit("c", 1.9) == (False, None)
    assert places.admit("c", 2.0) == (True, "a")
    places.leave("a", Phase.IDLE)
    assert places.open == 2
    places.move("b", Phase.IDLE, None, 3.0)
    assert places.admit("d", 100.0) == (False, None)
    assert places.refused == 2


def test_the_room_counts_as_full_for_a_minute() -> None:
    """The alarm outlasts the refusal by a minute, so that somebody sees it."""
    places = room()
    assert not places.is_full(0.0)
    for name in "ab":
        places.admit(name, 0.0)
    assert not places.is_full(1.0)
    places.admit("c", 5.0)
    assert places.is_full(64.9)
    assert not places.is_full(65.0)
