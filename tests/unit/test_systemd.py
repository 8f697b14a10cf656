"""What the daemon tells systemd, on a real datagram socket."""

from __future__ import annotations

import os
import re
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from dlr_buffer.errors import DlrBufferError
from dlr_buffer.systemd import Notifier, listen_sockets


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A socket as systemd's, which never waits: what was sent is there at once."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(address)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        yield sock


def received(sock: socket.socket) -> list[str]:
    """Every datagram that came."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture
def address() -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="dlr") as folder:
        yield str(Path(folder) / "notify")


def test_the_life_of_a_daemon(address: str) -> None:
    """Readiness, a reload with its time, and the end are one datagram each, in sd_notify(3)'s words."""
    with listening(address) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.reloading()
        notifier.ready()
        notifier.stopping()
        ready, reloading, again, stopping = received(sock)
    assert (ready, again, stopping) == ("READY=1", "READY=1", "STOPPING=1")
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)


def test_the_status_is_sent_when_it_changes(address: str) -> None:
    """The same line is not sent twice in a row."""
    with listening(address) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        for line in ("3 pending", "3 pending", "2 pending", "3 pending"):
            notifier.status(line)
        assert received(sock) == ["STATUS=3 pending", "STATUS=2 pending", "STATUS=3 pending"]


def test_an_abstract_socket_is_found() -> None:
    """A leading @ stands for Linux's abstract namespace, as systemd's containers use it."""
    name = f"dlr-test-{secrets.token_hex(8)}"
    with listening(f"\0{name}") as sock:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert received(sock) == ["READY=1"]


def test_without_systemd_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """No socket named: silence, not an error."""
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        Notifier(environ).ready()
    assert not caplog.records


def test_a_systemd_that_does_not_listen_is_no_reason_to_fail(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the socket is gone the daemon says so and goes on."""
    Notifier({"NOTIFY_SOCKET": address}).ready()
    assert "systemd could not be told" in caplog.text


def fill(sock: socket.socket, address: str) -> None:
    """Send to a socket of systemd's until no more finds room; its queue is as after a while without being read."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other, suppress(BlockingIOError):
        other.connect(address)
        other.setblocking(False)  # noqa: FBT003 - the standard library's signature
        while True:
            other.send(b"old")


def test_a_systemd_that_does_not_read_holds_nobody_up(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it has no room for is said once in the log, and the newest status told as soon as there is room."""
    with listening(address) as sock:
        fill(sock, address)
        notifier = Notifier({"NOTIFY_SOCKET": address})

        def go_on() -> None:
            for line in ("1 pending", "2 pending", "3 pending"):
                notifier.status(line)
            notifier.extend_timeout(1)
            notifier.ping()

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert [record.getMessage() for record in caplog.records] == [
            "systemd does not read what it is told (STATUS); it is told again in a few seconds"
        ]
        assert set(received(sock)) == {"old"}
        notifier.status("3 pending")
        assert received(sock) == ["STATUS=3 pending", "EXTEND_TIMEOUT_USEC=1000000"]
        notifier.status("3 pending")
        assert received(sock) == []


def test_a_change_of_state_is_told_again(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """One that found no room is logged, and told before whatever is told next; of two reloads the last is enough."""
    with listening(address) as sock:
        fill(sock, address)
        notifier = Notifier({"NOTIFY_SOCKET": address}, patience_s=0)
        for _ in range(2):
            notifier.reloading()
            notifier.ready()
        assert "(RELOADING, READY)" in caplog.text
        notifier.stopping()
        assert "(RELOADING, READY, STOPPING)" in caplog.text
        received(sock)
        notifier.ping()
        assert [each.partition("=")[0] for each in received(sock)] == [
            "RELOADING",
            "READY",
            "STOPPING",
            "WATCHDOG",
        ]


def test_a_change_of_state_waits_for_room(address: str) -> None:
    """A systemd that reads again a moment later is told at once."""
    with listening(address) as sock:
        fill(sock, address)
        notifier = Notifier({"NOTIFY_SOCKET": address}, patience_s=30)
        thread = threading.Thread(target=notifier.ready, daemon=True)
        thread.start()
        sock.settimeout(30)
        while sock.recv(4096) != b"READY=1":
            pass
        thread.join(30)
        assert not thread.is_alive()


def test_more_time_and_pings(address: str) -> None:
    """Timeouts are extended in microseconds; a ping is a word of its own."""
    with listening(address) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.extend_timeout(2.5)
        notifier.ping()
        assert received(sock) == ["EXTEND_TIMEOUT_USEC=2500000", "WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_whether_systemd_watches(environ: dict[str, str], seconds: float | None) -> None:
    """Only a watchdog that is meant for this process counts, and none without a socket to ping."""
    assert Notifier({"NOTIFY_SOCKET": "@x"} | environ).watchdog_s == seconds
    assert Notifier(environ).watchdog_s is None


NAMES = frozenset({"client", "admin"})


@contextmanager
def handed_over(
    *sockets: socket.socket, names: str, pid: int | None = None
) -> Iterator[tuple[dict[str, str], int]]:
    """Descriptors one after another, as systemd hands them over, and the variables that tell of them."""
    # High enough that nothing else has them.
    first = 700
    for descriptor, sock in enumerate(sockets, first):
        os.dup2(sock.fileno(), descriptor)
    try:
        yield (
            {
                "LISTEN_PID": str(pid or os.getpid()),
                "LISTEN_FDS": str(len(sockets)),
                "LISTEN_FDNAMES": names,
                "PATH": "/bin",
            },
            first,
        )
    finally:
        for descriptor, _ in enumerate(sockets, first):
            with suppress(OSError):
                os.close(descriptor)


@contextmanager
def unix_socket(address: str) -> Iterator[socket.socket]:
    """A Unix socket that listens."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(address)
        sock.listen(5)
        yield sock


def test_sockets_are_taken_over_by_name(address: str) -> None:
    """Each is found by its name, does not block, is not inherited by children, and the variables are gone."""
    with (
        unix_socket(address) as admin,
        unix_socket(address + "2") as client,
        handed_over(admin, client, names="admin:client") as (environ, first),
    ):
        sockets = listen_sockets(environ, NAMES, first=first)
        assert {name: sock.getsockname() for name, sock in sockets.items()} == {
            "admin": address,
            "client": address + "2",
        }
        for sock in sockets.values():
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            sock.close()
        assert environ == {"PATH": "/bin"}


def test_sockets_of_another_process_are_left_alone(address: str) -> None:
    """Variables that a parent left are no news for us; they are removed all the same. Without any, there is nothing."""
    with (
        unix_socket(address) as sock,
        handed_over(sock, names="client", pid=os.getpid() + 1) as (environ, first),
    ):
        assert listen_sockets(environ, NAMES, first=first) == {}
        assert environ == {"PATH": "/bin"}
    assert listen_sockets({}, NAMES) == {}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("web", "called 'web': set FileDescriptorName= to admin or client"),
        ("", "called 'unknown': set FileDescriptorName="),
        ("client:client", "two sockets called 'client'"),
        ("client", "LISTEN_FDNAMES has 1 names"),
    ],
)
def test_a_name_that_means_nothing_is_an_error(address: str, names: str, said: str) -> None:
    """A name that is unknown, missing or used twice is told with what to write."""
    count = 1 if names in {"web", ""} else 2
    with (
        unix_socket(address) as sock,
        handed_over(*[sock] * count, names=names) as (environ, first),
        pytest.raises(DlrBufferError, match=said),
    ):
        listen_sockets(environ, NAMES, first=first)


def test_what_is_no_listening_unix_socket_is_an_error(address: str) -> None:
    """A datagram socket, one of the internet, one that does not listen, and no socket at all are told apart."""
    kinds = [
        (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "ListenStream="),
        (socket.create_server(("127.0.0.1", 0)), "ListenStream="),
        (socket.socket(socket.AF_UNIX), "Accept=no"),
    ]
    for sock, said in kinds:
        with (
            sock,
            handed_over(sock, names="client") as (environ, first),
            pytest.raises(DlrBufferError, match=said),
        ):
            listen_sockets(environ, NAMES, first=first)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "client"}
    with pytest.raises(DlrBufferError, match="descriptor 999"):
        listen_sockets(environ, NAMES, first=999)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}
    with pytest.raises(DlrBufferError, match="is no number"):
        listen_sockets(environ, NAMES)
