"""Who may do what: callers as the kernel knows them, audit lines, lists of users, and an account that is full.

The tests run as one user, so lists name or leave out that one; other users connect from a child process where the tests
run as root.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import pwd
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.local_api.audit import admin_in, named
from dlr_buffer.local_api.peers import MOST_USERS, AllowList, CallCounts, Peer, peer_of, program_of
from dlr_buffer.logs import AUDIT, Event
from dlr_buffer.receipt_queue.queue import CHUNK
from dlr_buffer.receipts import ReceiptStatus
from tests.integration.local_api.harness import Api, connect

ME = os.getuid()
NAME = pwd.getpwuid(ME).pw_name
NOBODY_ELSE = AllowList(frozenset({ME + 1}), "[api] client_allow")
ROOT = pytest.mark.skipif(
    ME != 0 or not Path("/usr/bin/python3").exists(),
    reason="becoming another user takes root and /usr/bin/python3",
)


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Any]]:
    """The audit lines so far."""
    caplog.set_level(logging.INFO, AUDIT)
    return lambda: [record for record in caplog.records if record.name == AUDIT]


def report(api: Api, *ids: str) -> None:
    """Report messages as delivered."""
    items = [{"message_id": each, "message_state": "delivered"} for each in ids]
    assert api.call("POST", "/v1/receipts", items).json["queued"] == len(ids)


def me() -> str:
    """How history and log name these tests."""
    return f"{NAME} (uid {ME}, process {os.getpid()}, {program_of(os.getpid())})"


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """What a line is about."""
    found: dict[str, Any] = record.__dict__["facts"]
    return found


# Who it is


def test_the_kernel_says_who_connected(api: Api) -> None:
    """Process, user and program of the other end are those of the process that connected."""
    with connect(api.paths["admin"]) as raw:
        assert peer_of(raw).pid == os.getpid()
    comm = Path(f"/proc/{os.getpid()}/comm").read_text().rstrip("\n")
    assert program_of(os.getpid()) == comm
    assert program_of(2**22 + 1) == "?"


@pytest.mark.parametrize(
    ("action", "status"),
    [("hold", "pending"), ("retry", "dead"), ("release", "held")],
)
def test_an_action_is_written_down_with_who_did_it(
    api: Api, audit: Callable[[], list[Any]], action: str, status: str
) -> None:
    """One line for all its rows: who, what, which, how many; and the same name in the history of each receipt."""
    report(api, "1", "2", "3")
    for number in (1, 2):
        api.store.receipts[number] = replace(api.store.receipts[number], status=ReceiptStatus(status))
    api.store.receipts[3] = replace(api.store.receipts[3], status=ReceiptStatus.ACKNOWLEDGED)
    assert api.call("POST", f"/v1/receipts/{action}", {"request_ids": ["1", "2", "3"]}).json["changed"] == 2
    (line,) = audit()
    assert line.getMessage() == (
        f"{me()}: {action} receipts (3 ids: 1 2 3): 2 changed, 1 skipped, 0 left alone in flight"
    )
    assert facts(line) == {
        "action": f"{action} receipts",
        "selection": "3 ids: 1 2 3",
        "peer_uid": ME,
        "peer_user": NAME,
        "peer_pid": os.getpid(),
        "peer_program": program_of(os.getpid()),
        "changed": 2,
        "skipped": 1,
        "in_flight": 0,
    }
    assert line.event is Event.ADMIN_ACTION
    for number in (1, 2):
        (entry,) = api.call("GET", f"/v1/receipts/{number}").json["history"]
        assert (entry["event"], entry["detail"]) == (action, f"by {me()}")


@pytest.mark.parametrize(
    ("agent", "program"),
    [("curl/8.0 (x)", "curl/8.0"), ("", "?"), ("a" * 100, "a" * 64), ("a\x07b\xe9", "a?b\xe9")],
)
def test_a_program_that_cannot_be_seen_is_what_it_says(
    monkeypatch: pytest.MonkeyPatch, agent: str, program: str
) -> None:
    """Where /proc is hidden from the daemon, the request's User-Agent names the program, cut and made printable."""
    monkeypatch.setattr("dlr_buffer.local_api.audit.program_of", lambda _pid: "?")
    scope = {"headers": [(b"user-agent", agent.encode("latin-1"))] if agent else [], "state": {}}
    assert asyncio.run(admin_in(scope)).program == program


def test_an_action_by_filter_is_one_line(api: Api, audit: Callable[[], list[Any]]) -> None:
    """However many rows it takes, over however many transactions."""
    report(api, *(str(number) for number in range(2 * CHUNK + 5)))
    order = {"filter": {"account": "default", "status": "pending"}}
    api.call("POST", "/v1/receipts/hold", order)
    (line,) = audit()
    assert facts(line)["selection"] == "filter account=default status=pending"
    assert (facts(line)["account"], facts(line)["changed"]) == ("default", 2 * CHUNK + 5)


def test_expiring_says_by_whom(api: Api, audit: Callable[[], list[Any]]) -> None:
    """The receipt that tells of an expiry before its time knows who asked for it."""
    api.call("POST", "/v1/messages", {"message_id": "m"})
    api.call("POST", "/v1/messages/expire", {"message_ids": ["m"]})
    (receipt,) = api.call("GET", "/v1/messages/m").json["receipts"]
    assert [entry["detail"] for entry in receipt["history"]] == [f"by {me()}"]
    assert audit()[0].getMessage().startswith(f"{me()}: expire messages (1 id: m): 1 changed")


def test_what_is_deleted_is_named_whole(api: Api, audit: Callable[[], list[Any]]) -> None:
    """No history is left of it, so every id stands in the log: announced before, and in as many lines as it takes."""
    ids = [str(number) for number in range(1, 2_501)]
    report(api, *ids)
    api.call("POST", "/v1/receipts/delete", {"request_ids": ids})
    lines = audit()
    assert " begins: delete receipts (2500 ids: 1 2 3" in lines[0].getMessage()
    done = next(line for line in lines if "changed" in facts(line))
    assert facts(done)["changed"] == 2_500
    told = [facts(line)["selection"].partition(": ")[2] for line in lines[lines.index(done) :]]
    assert " ".join(told).split() == ids
    assert api.store.receipts == {}


def test_a_deletion_by_filter_is_announced(api: Api, audit: Callable[[], list[Any]]) -> None:
    """A daemon that is killed in the middle has said what it was about."""
    report(api, "1")
    api.call("POST", "/v1/messages/delete", {"filter": {"all": True}})
    begins, done = audit()
    assert begins.getMessage() == f"{me()} begins: delete messages (filter all)"
    assert done.getMessage().startswith(f"{me()}: delete messages (filter all): 1 changed")


def test_counting_is_not_written_down(api: Api, audit: Callable[[], list[Any]]) -> None:
    """A dry run, a look and a request that can't be read change nothing."""
    report(api, "1")
    api.call("POST", "/v1/receipts/delete", {"request_ids": ["1"], "dry_run": True})
    api.call("POST", "/v1/receipts/delete", {"request_ids": ["x"]})
    api.call("POST", "/v1/accounts/nobody/pause")
    api.call("GET", "/v1/status")
    assert audit() == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/v1/accounts/other/pause", "pause account (other)"),
        ("/v1/accounts/other/resume", "resume account (other)"),
        ("/v1/expiry/resume", "resume expiry"),
    ],
)
def test_what_has_no_rows_is_written_down_too(
    api: Api, audit: Callable[[], list[Any]], target: str, words: str
) -> None:
    """Pausing and resuming an account, and trusting the clock, name who did it."""
    assert api.call("POST", target).status == 200
    (line,) = audit()
    assert line.getMessage() == f"{me()}: {words}"
    assert facts(line)["peer_uid"] == ME


def test_an_action_that_breaks_off_says_how_far_it_came(api: Api, audit: Callable[[], list[Any]]) -> None:
    """If the store fails in a later transaction, the answer and the log have what is done, and why no more is."""
    report(api, *(str(number) for number in range(CHUNK + 1)))
    api.store.faults = [None, StoreUnavailable("the disk is gone")]
    answer = api.call("POST", "/v1/receipts/hold", {"filter": {"all": True}})
    assert (answer.status, answer.json["changed"], answer.json["code"]) == (503, CHUNK, "overloaded")
    (line,) = audit()
    assert line.getMessage().endswith(
        f"{CHUNK} changed, 0 skipped, 0 left alone in flight; then it failed: the disk is gone"
    )


def test_ids_are_worded_in_parts() -> None:
    """No part is longer than a line may be; where not every id is needed, there is one; the number is right."""
    ids = ["x" * 255] * 100
    parts = named("id", ids, every=True)
    assert len(parts) > 1
    assert all(part.startswith("100 ids: ") and len(part) < 8_500 for part in parts)
    assert sum(len(part.split()) - 2 for part in parts) == 100
    assert named("id", ids, every=False) == parts[:1]
    assert named("id", [], every=True) == ("0 ids",)


# Who called how often


@pytest.mark.parametrize("express", [True, False])
def test_calls_are_counted_by_user(folder: Path, *, express: bool) -> None:
    """Each request counts once, on a connection that is open still and on one that has ended, pipelined or not."""
    with Api(folder, accounts=frozenset({"default"}), express=express) as api:
        server = api.servers["client"]
        for number in range(3):
            api.call("POST", "/v1/messages", {"message_id": f"m{number}"}, socket="client")
        with connect(api.paths["client"]) as raw:
            body = json.dumps({"message_id": "again"}).encode()
            request = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
            for times in (1, 1, 3):
                raw.sendall(request * times)
                answers = b""
                while answers.count(b"HTTP/1.1 20") < times or not answers.endswith(b"}"):
                    answers += raw.recv(1 << 16)

            async def counted() -> dict[str, int]:
                return server.calls()

            assert api.run(counted()) == {str(ME): 8}
            assert api.run(counted()) == {str(ME): 8}


def test_users_beyond_the_first_are_counted_together() -> None:
    """The metric's label can't be made to grow without end; those who are known stay so."""
    calls = CallCounts()
    for uid in range(1000):
        calls.add(Peer(1, uid, uid), 2)
    calls.add(Peer(1, 0, 0), 1)
    calls.add(Peer(0, -1, -1), 0)
    counted = calls()
    assert len(counted) == MOST_USERS + 1
    assert counted["0"] == 3
    assert counted["other"] == 2 * (1000 - MOST_USERS)


# Who may come in


def test_a_user_whom_the_list_leaves_out_is_told_so(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """403 with the key to look at, before anything is read; counted each time, logged once a minute."""
    server = api.servers["client"]
    admit(api, "client", NOBODY_ELSE)
    for _ in range(30):
        answer = api.call("GET", "/healthz", socket="client")
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
        assert "[api] client_allow" in answer.json["detail"]
    assert server.forbidden == 30
    lines = [record for record in caplog.records if getattr(record, "event", None) is Event.PEER_REFUSED]
    assert len(lines) == 1
    assert f"uid {ME}, process {os.getpid()}" in lines[0].getMessage()
    assert api.call("GET", "/healthz", socket="admin").status == 200
    admit(api, "client", AllowList(frozenset({ME})))
    assert api.call("GET", "/healthz", socket="client").status == 200


def test_an_empty_list_admits_nobody(api: Api) -> None:
    """It is not the same as none at all."""
    admit(api, "client", AllowList(frozenset()))
    assert api.call("GET", "/healthz", socket="client").status == 403
    admit(api, "client", AllowList(None))
    assert api.call("GET", "/healthz", socket="client").status == 200


def test_a_reload_ends_connections_that_are_not_admitted_any_more(api: Api) -> None:
    """An idle one at once, one with a request in work after its answer; one that is admitted goes on."""
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with connect(api.paths["client"]) as idle, connect(api.paths["admin"]) as other:
        for raw in (idle, other):
            raw.sendall(request)
            assert _answer(raw).startswith(b"HTTP/1.1 200")
        api.store.gate = gate = asyncio.Event()
        with connect(api.paths["client"]) as busy:
            body = b'{"message_id": "m"}'
            busy.sendall(
                b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert api.store.entered.wait(30)
            admit(api, "client", NOBODY_ELSE)
            assert idle.recv(1) == b""
            api.loop.call_soon_threadsafe(gate.set)
            answer = b""
            while piece := busy.recv(1 << 16):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 201")
        other.sendall(request)
        assert _answer(other).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("express", [True, False])
@pytest.mark.parametrize("read", ["nothing", "half a head"])
def test_a_request_that_was_begun_is_the_last_of_who_is_not_admitted_any_more(
    folder: Path, read: str, *, express: bool
) -> None:
    """Whether the daemon had read some of it or none as the list changed, its answer ends the connection."""
    body = b'{"message_id": "m"}'
    request = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with (
        Api(folder, accounts=frozenset({"default"}), express=express) as api,
        connect(api.paths["client"]) as raw,
    ):
        server = api.servers["client"]
        for _ in range(2):
            raw.sendall(request)
            assert b"connection: close" not in _answer(raw)

        async def begin_and_admit() -> None:
            if read == "half a head":
                raw.sendall(request[:20])
                (connection,) = server._state.connections
                while not connection._head_bytes:  # type: ignore[union-attr]  # noqa: ASYNC110 - a turn or two
                    await asyncio.sleep(0)
            else:
                raw.sendall(request)
            server.admit(NOBODY_ELSE)

        api.run(begin_and_admit())
        if read == "half a head":
            raw.sendall(request[20:])
        answer = b""
        while piece := raw.recv(1 << 16):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer


def test_many_who_are_kept_out_take_no_room(api: Api) -> None:
    """However many connect and stay, the others' room is theirs, and all but a few connections are ended at once."""
    admit(api, "client", NOBODY_ELSE)
    raws = [connect(api.paths["client"]) for _ in range(100)]
    try:
        for raw in raws:
            answer = b""
            while piece := raw.recv(1 << 16):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 403")
        assert api.servers["client"].connections == 0
    finally:
        for raw in raws:
            raw.close()


@ROOT
def test_another_user_is_another_user(api: Api) -> None:
    """A list that names one user admits a process of that user, and keeps root's own out."""
    user = pwd.getpwnam("nobody")
    for path in (api.paths["client"], api.paths["client"].parent):
        path.chmod(0o777)
    admit(api, "client", AllowList(frozenset({user.pw_uid})))
    program = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "s.sendall(b'GET /healthz HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')\nprint(s.recv(100)[:12].decode())"
    )
    # The tests' own Python may lie where that user can't go.
    command = ["/usr/bin/python3", "-c", program, str(api.paths["client"])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=user.pw_uid,
        group=user.pw_gid,
        env={},
    )
    assert done.stdout == "HTTP/1.1 200\n", done.stderr
    assert api.call("GET", "/healthz", socket="client").status == 403


def _answer(raw: socket.socket) -> bytes:
    """Read one answer of JSON that has no object within."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += raw.recv(1 << 16)
    return answer


def admit(api: Api, name: str, allowed: AllowList) -> None:
    """Let only these in, as a reload does."""

    async def change() -> None:
        api.servers[name].admit(allowed)

    api.run(change())


# What does not fit


@pytest.mark.parametrize("express", [True, False])
def test_a_full_account_answers_503(folder: Path, *, express: bool) -> None:
    """With Retry-After, for a registration and for a report that would register; as an item error in bulk."""
    with Api(folder, accounts=frozenset({"default"}), express=express) as api:
        api.queue.settings = dataclasses.replace(api.queue.settings, max_waiting={"default": 2})
        for name in ("a", "b"):
            assert api.call("POST", "/v1/messages", {"message_id": name}, socket="client").status == 201
        for path, item in (
            ("/v1/messages", {"message_id": "c"}),
            ("/v1/receipts", {"message_id": "c", "message_state": "enroute"}),
        ):
            for _ in range(2):
                answer = api.call("POST", path, item, socket="client")
                assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (
                    503,
                    "overloaded",
                    "10",
                )
        assert api.call("POST", "/v1/messages", {"message_id": "a"}, socket="client").status == 200
        many = api.call(
            "POST", "/v1/messages", [{"message_id": "b"}, {"message_id": "c"}], socket="client"
        ).json
        assert (many["duplicates"], [(each["index"], each["code"]) for each in many["errors"]]) == (
            1,
            [(1, "overloaded")],
        )
        done = {"message_id": "a", "message_state": "delivered"}
        assert api.call("POST", "/v1/receipts", done, socket="client").status == 202
        assert api.call("POST", "/v1/messages", {"message_id": "c"}, socket="client").status == 201
