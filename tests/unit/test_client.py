"""The client library against a scripted server on a real Unix socket."""

from __future__ import annotations

import errno
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.client import ApiError, BulkSummary, Client, DaemonUnreachable, ItemError
from tests.unit.cli.scripted_daemon import DROPPED, Reply, ScriptedDaemon, problem

SUMMARY = Reply(document={"registered": 0, "queued": 0, "duplicates": 0, "errors": []})


@pytest.fixture
def path() -> Iterator[Path]:
    """A place for a socket, short enough to be bound."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        yield Path(name) / "client.sock"


class Naps:
    """Records the waits between tries instead of waiting."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Do ``meanwhile`` at each wait."""
        self.seconds: list[float] = []
        self._meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        """Be waited for."""
        self.seconds.append(seconds)
        self._meanwhile()


def test_singles_send_only_what_is_given_over_one_connection(path: Path) -> None:
    """Fields that were left out are not sent, the answer is returned, and the connection is kept."""
    with ScriptedDaemon(path, [Reply(201, {"message_id": "007"})]) as daemon, Client(path) as client:
        assert client.register("007") == {"message_id": "007"}
        client.register("007", account="a", validity_period=60)
        client.report("007", "delivered", account="a")
    assert [(asked.method, asked.target, asked.json) for asked in daemon.requests] == [
        ("POST", "/v1/messages", {"message_id": "007"}),
        ("POST", "/v1/messages", {"message_id": "007", "account": "a", "validity_period": 60}),
        ("POST", "/v1/receipts", {"message_id": "007", "message_state": "delivered", "account": "a"}),
    ]
    assert daemon.connections == 1


def test_many_are_cut_into_chunks_and_errors_keep_their_place(path: Path) -> None:
    """2,500 registrations are three NDJSON requests, the sums add up, and an error's index counts over all of them."""
    bad = {"index": 3, "code": "invalid", "detail": "no"}
    replies = [
        Reply(document={"registered": 1000, "duplicates": 0, "errors": []}),
        Reply(document={"registered": 900, "duplicates": 99, "errors": [bad]}),
        Reply(document={"registered": 500, "duplicates": 0, "errors": []}),
    ]
    with ScriptedDaemon(path, replies) as daemon, Client(path) as client:
        summary = client.register_many(str(number) for number in range(2500))
    assert summary == BulkSummary(2400, 99, (ItemError(1003, "invalid", "no"),))
    assert [len(asked.lines) for asked in daemon.requests] == [1000, 1000, 500]
    assert {asked.content_type for asked in daemon.requests} == {"application/x-ndjson"}
    assert daemon.requests[2].lines[0] == {"message_id": "2000"}


def test_many_large_items_are_cut_by_size(path: Path) -> None:
    """Items of a megabyte go four to a request at most, so that the daemon's 16 MiB are never reached."""
    with ScriptedDaemon(path, [SUMMARY]) as daemon, Client(path) as client:
        client.register_many({"message_id": "x" * 1_000_000} for _ in range(9))
    assert [len(asked.lines) for asked in daemon.requests] == [4, 4, 1]


def test_reports_come_as_pairs_or_objects(path: Path) -> None:
    """A pair and an object are the same item, and an empty input asks for nothing."""
    with ScriptedDaemon(path, [SUMMARY]) as daemon, Client(path) as client:
        client.report_many([("1", "delivered"), {"message_id": "2", "message_state": "unknown"}])
        assert client.report_many([]) == BulkSummary(0, 0, ())
    (asked,) = daemon.requests
    assert asked.lines == [
        {"message_id": "1", "message_state": "delivered"},
        {"message_id": "2", "message_state": "unknown"},
    ]


def test_an_id_that_is_no_utf8_spoils_only_its_own_line(path: Path) -> None:
    """A lone surrogate (an argument that was not UTF-8) is sent as an escape on a line of its own."""
    with ScriptedDaemon(path, [SUMMARY]) as daemon, Client(path) as client:
        client.register_many(["good", "bad\udcff"])
    assert daemon.requests[0].body.splitlines() == [
        b'{"message_id": "good"}',
        b'{"message_id": "bad\\udcff"}',
    ]


def test_an_overloaded_daemon_is_asked_again_after_its_retry_after(path: Path) -> None:
    """503 with Retry-After is waited out for at least that long, each time, and then the answer counts."""
    naps = Naps()
    busy = problem(503, "overloaded", Retry_After="7")
    with ScriptedDaemon(path, [busy, busy, Reply(201)]) as daemon, Client(path, sleep=naps) as client:
        client.register("1")
    assert len(daemon.requests) == 3
    assert len(naps.seconds) == 2
    assert min(naps.seconds) >= 7


@pytest.mark.parametrize(
    "reply",
    [problem(503, "overloaded"), problem(507, "storage-full", Retry_After="30"), problem(409, "conflict")],
)
def test_other_problems_are_raised_at_once(path: Path, reply: Reply) -> None:
    """A full disk, a conflict or a 503 that promises nothing is the caller's to know, not to be tried again."""
    naps = Naps()
    with (
        ScriptedDaemon(path, [reply]) as daemon,
        Client(path, sleep=naps) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.register("1")
    assert (caught.value.status, caught.value.code) == (reply.status, reply.document["code"])
    assert caught.value.problem == reply.document
    assert str(caught.value) == f"because of {reply.document['code']} ({reply.document['code']})"
    assert len(daemon.requests) == 1
    assert naps.seconds == []


def test_registering_survives_a_lost_answer(path: Path) -> None:
    """Registering is idempotent: when the connection breaks before the answer, it is sent again."""
    with (
        ScriptedDaemon(path, [DROPPED, Reply(200, {"ok": 1})]) as daemon,
        Client(path, sleep=Naps()) as client,
    ):
        assert client.register("1") == {"ok": 1}
    assert [asked.target for asked in daemon.requests] == ["/v1/messages"] * 2


def test_an_action_is_not_repeated_once_it_was_sent(path: Path) -> None:
    """Deleting is not sent twice: the error says that the daemon may have done it."""
    with (
        ScriptedDaemon(path, [DROPPED, Reply()]) as daemon,
        Client(path, sleep=Naps()) as client,
        pytest.raises(DaemonUnreachable) as caught,
    ):
        client.request("POST", "/v1/receipts/delete", {"request_ids": ["1"]})
    assert caught.value.request_sent
    assert len(daemon.requests) == 1


def test_an_action_notices_that_its_idle_connection_was_closed(path: Path) -> None:
    """A daemon that restarted between two calls costs nothing: the second call uses a new connection."""
    with (
        ScriptedDaemon(path, [Reply(hang_up=True), Reply()]) as daemon,
        Client(path, retry_for_s=0) as client,
    ):
        client.request("GET", "/healthz")
        assert daemon.closed.wait(10)
        client.request("POST", "/v1/receipts/delete", {"request_ids": ["1"]})
    assert len(daemon.requests) == 2
    assert daemon.connections == 2


def test_a_daemon_that_starts_meanwhile_is_found(path: Path) -> None:
    """Without a socket the call waits and tries again, and goes through once the daemon is there."""
    daemon = ScriptedDaemon(path, [Reply(201, {"ok": 1})])
    naps = Naps(meanwhile=lambda: daemon.__enter__() if len(naps.seconds) == 2 else None)
    try:
        with Client(path, sleep=naps) as client:
            assert client.register("1") == {"ok": 1}
    finally:
        daemon.__exit__()
    assert len(naps.seconds) == 2


def test_giving_up_says_which_socket_and_why(path: Path) -> None:
    """When the time for retrying is over, the error names the socket, the reason and the errno."""
    with Client(path, retry_for_s=0.05, sleep=Naps()) as client, pytest.raises(DaemonUnreachable) as missing:
        client.register("1")
    assert (missing.value.socket, missing.value.errno) == (path, errno.ENOENT)
    assert str(missing.value) == f"no daemon answers at {path}: there is no such socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))  # bound but not listening, as a dead daemon leaves it
    with Client(path, retry_for_s=0) as client, pytest.raises(DaemonUnreachable, match="refused") as refused:
        client.connect()
    assert not refused.value.request_sent


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke off"),
    ],
)
def test_torn_and_foreign_answers_are_no_answers(path: Path, raw: bytes, reason: str) -> None:
    """An answer that is cut off or is not HTTP never passes for a success."""
    with (
        ScriptedDaemon(path, [Reply(raw=raw, hang_up=True)]),
        Client(path, retry_for_s=0) as client,
        pytest.raises(DaemonUnreachable, match=reason),
    ):
        client.register("1")


def test_a_silent_daemon_is_given_up_after_the_timeout(path: Path) -> None:
    """A daemon that accepts and never answers is reported with the time that was waited."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            Client(path, timeout_s=0.05, retry_for_s=0) as client,
            pytest.raises(DaemonUnreachable, match=r"no answer within 0\.05 s"),
        ):
            client.register("1")


def test_an_answer_before_the_body_was_read_is_understood(path: Path) -> None:
    """A 413 that comes while the body is still being sent is raised as that, not as a broken connection."""
    with (
        ScriptedDaemon(path, [Reply(413, {"code": "too-large", "detail": "d"}, unread=True)]),
        Client(path, retry_for_s=0) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.register("x" * 3_000_000)
    assert caught.value.status == 413


def test_a_message_is_asked_for_by_its_exact_id(path: Path) -> None:
    """Slashes, percent signs, spaces and non-ASCII letters of an id are encoded; an empty id is refused here."""
    with ScriptedDaemon(path, [Reply()]) as daemon, Client(path) as client:
        client.message("a/b %41ü?", account="x y")
        with pytest.raises(ValueError, match="empty"):
            client.message("")
    assert [asked.target for asked in daemon.requests] == ["/v1/messages/a%2Fb%20%2541%C3%BC%3F?account=x+y"]


def test_a_forked_child_does_not_share_its_parents_connection(path: Path) -> None:
    """When the process id is another one than at the last call, a connection of one's own is made."""
    with ScriptedDaemon(path) as daemon, Client(path) as client:
        client.request("GET", "/healthz")
        parents = client._connection
        client._pid = -1
        client.request("GET", "/healthz")
        assert client._connection is not parents
        parents.close()
    assert daemon.connections == 2


def test_answers_without_json_are_returned_or_raised_as_text(path: Path) -> None:
    """Metrics come back as text, and an error without a problem document still has a status and a reason."""
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndlr_up 1"
    page = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"
    with ScriptedDaemon(path, [Reply(raw=text), Reply(raw=page)]), Client(path) as client:
        answer: Any = client.request("GET", "/metrics")
        assert answer == "dlr_up 1"
        with pytest.raises(ApiError, match=r"Bad Gateway \(http-502\)"):
            client.request("GET", "/metrics")
