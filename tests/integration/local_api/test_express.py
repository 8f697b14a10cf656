"""Single registrations and reports on the short way: the same answers as on the long way, whatever comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.local_api import server as server_module
from dlr_buffer.local_api.connections import ConnectionLimits
from dlr_buffer.local_api.express import MAX_BODY_BYTES, Express, Reply
from tests.integration.local_api.harness import Api, connect

ACCOUNTS = frozenset({"default", "other"})


@dataclass(frozen=True, slots=True)
class Came:
    """One answer, apart from the order of its headers."""

    status: bytes
    headers: frozenset[bytes]
    body: bytes


def post(path: str, body: bytes, *lines: str) -> bytes:
    """One request."""
    head = "".join(f"{line}\r\n" for line in ("Host: x", f"Content-Length: {len(body)}", *lines))
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def registration(message_id: str, *lines: str) -> bytes:
    """Register one message."""
    return post("/v1/messages", json.dumps({"message_id": message_id}).encode(), *lines)


def report(message_id: str, *lines: str) -> bytes:
    """Report one as delivered."""
    item = {"message_id": message_id, "message_state": "delivered"}
    return post("/v1/receipts", json.dumps(item).encode(), *lines)


class Peer:
    """A client that sends bytes and reads answers."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.raw = connect(path)
        self._unread = b""

    def answers(self, request: bytes, number: int = 1) -> list[Came]:
        """Send, and read so many answers (fewer if the server closes)."""
        with contextlib.suppress(BrokenPipeError):  # then it has answered already
            self.raw.sendall(request)
        found: list[Came] = []
        while len(found) < number and (came := self._answer()) is not None:
            found.append(came)
        return found

    def rest(self) -> bytes:
        """Read until the server closes."""
        received, self._unread = self._unread, b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.raw.recv(65536):
                received += piece
        return received

    def _answer(self) -> Came | None:
        while b"\r\n\r\n" not in self._unread:
            if not self._more():
                return None
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        length = next(int(each.split(b": ")[1]) for each in headers if each.startswith(b"content-length: "))
        while len(self._unread) < length:
            assert self._more(), "the server closed in the middle of a body"
        body, self._unread = self._unread[:length], self._unread[length:]
        return Came(status, frozenset(headers), body)

    def _more(self) -> bool:
        try:
            piece = self.raw.recv(65536)
        except ConnectionResetError:
            return False
        self._unread += piece
        return bool(piece)


@contextmanager
def serving(*, express: bool = True, connections: ConnectionLimits | None = None) -> Iterator[Api]:
    """The API over an empty store."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        folder = Path(name)
        with Api(folder, accounts=ACCOUNTS, express=express, connections=connections) as api:
            yield api


@contextmanager
def peer(api: Api, name: str = "client") -> Iterator[Peer]:
    """A client of one socket."""
    found = Peer(api.paths[name])
    with found.raw:
        yield found


@pytest.fixture
def taken() -> Iterator[list[bytes]]:
    """The paths of requests that went the short way, as they come."""
    found: list[bytes] = []
    take = Express.take

    def noted(self: Express, path: bytes, body: bytes, reply: Reply) -> bool:
        went = take(self, path, body, reply)
        found.extend([path] * went)
        return went

    with patch.object(Express, "take", noted):
        yield found


@pytest.mark.parametrize("name", ["client", "admin"])
def test_the_second_of_a_kind_goes_the_short_way(name: str, taken: list[bytes]) -> None:
    """A head is read by the parser once; requests with the same one go the short way from then on."""
    with serving() as api, peer(api, name) as app:
        for number in range(3):
            assert app.answers(registration(f"m{number}"))[0].status == b"HTTP/1.1 201 Created"
            assert len(taken) == number
        taken.clear()
        for number in range(3):
            assert app.answers(report(f"m{number}"))[0].status == b"HTTP/1.1 202 Accepted"
            assert len(taken) == number
        assert set(taken) == {b"/v1/receipts"}
        with peer(api, name) as another:
            another.answers(report("m0"))
            assert len(taken) == 3


ids = st.sampled_from(["a", "b", "c", "final", "", "x" * 255, "x" * 256, "\u20ac", 7, None, "a b", "\ud800"])
items: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"message_id": ids},
    optional={
        "message_state": st.sampled_from(["delivered", "enroute", "expired", "lost", 3, None]),
        "account": st.sampled_from(["default", "other", "nobody", 1, None]),
        "validity_period": st.sampled_from([1, 60, 0, -1, 2**40, "60", None, 1.5]),
        "more": st.just(1),
    },
)
bodies = (
    items.map(lambda item: json.dumps(item).encode())
    | st.lists(items, max_size=2).map(lambda found: json.dumps(found).encode())
    | st.sampled_from(
        [b"", b" ", b"{", b"null", b"7", b'"a"', b"[[]]", b"\xff", b'{"message_id":"a","message_id":"b"}']
    )
)
calls = st.tuples(
    st.sampled_from(["/v1/messages", "/v1/receipts"]),
    bodies,
    st.sampled_from(
        [(), (), ("Content-Type: application/json",), ("Content-Type: application/x-ndjson",), ("X-A: 1",)]
    ),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(calls, min_size=1, max_size=12))
def test_both_ways_answer_alike(asked: list[tuple[str, bytes, tuple[str, ...]]]) -> None:
    """Each of a row of requests is answered with the same bytes on both ways, and leaves the same messages."""
    with serving() as short, serving(express=False) as long, peer(short) as one, peer(long) as other:
        for path, body, lines in asked:
            # Sent twice: the parser reads the first, and the second goes the short way if it may.
            for request in [post(path, body, *lines)] * 2:
                assert one.answers(request) == other.answers(request)
        assert short.store.rows == long.store.rows
        assert short.store.receipts == long.store.receipts


def test_lines_are_not_one_item(taken: list[bytes]) -> None:
    """NDJSON is a bulk request even with one line, whatever came before."""
    with serving() as api, peer(api) as app:
        for number in range(3):
            lines = post(
                "/v1/messages", b'{"message_id":"n%d"}' % number, "Content-Type: application/x-ndjson"
            )
            assert json.loads(app.answers(lines)[0].body)["registered"] == 1
        assert not taken


KNOWN = registration("a")
CHUNKED = (
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'12\r\n{"message_id":"b"}\r\n0\r\n\r\n'
)
LONG_ID = json.dumps({"message_id": "a", "more": "x" * MAX_BODY_BYTES}).encode()


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (KNOWN.replace(b"HTTP/1.1", b"HTTP/1.0"), 1),
        (registration("a", "Connection: close"), 1),
        (
            registration("a", "Expect: 100-continue").replace(b"Expect: 100-continue", b"X-Expect: 100-cont"),
            1,
        ),
        (CHUNKED, 1),
        (KNOWN.replace(b"/v1/messages", b"/v1/messages?a=b"), 1),
        (KNOWN.replace(b"/v1/messages", b"/v1/message"), 1),
        (KNOWN.replace(b"POST", b"PUT"), 1),
        (registration("a", "Content-Length: 18"), 1),
        (registration("a", "Content-Length: 17"), 1),
        (KNOWN.replace(b"Host: x\r\n", b"Host: x\n"), 1),
        (KNOWN.replace(b"Host: x", b"Host : x"), 1),
        (post("/v1/messages", LONG_ID), 1),
        (registration("a", "Content-Length : 18"), 1),
        (registration("a", "X: \x00"), 1),
        (KNOWN + registration("b"), 2),
        (KNOWN + report("a") + KNOWN, 3),
        (KNOWN + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 2),
        (KNOWN + b"garbage\r\n\r\n", 2),
        (KNOWN + KNOWN[:20], 1),
    ],
)
def test_what_is_not_plain(request_: bytes, number: int, taken: list[bytes]) -> None:
    """Sent again and again, alone or behind plain ones, odd requests are answered as on the long way."""
    with serving() as short, serving(express=False) as long:
        before: list[tuple[bytes, int]]
        for before in ([], [(KNOWN, 1), (KNOWN, 1)], [(request_, number)]):
            with peer(short) as one, peer(long) as other:
                for each, answers in before:
                    assert one.answers(each, answers) == other.answers(each, answers)
                taken.clear()
                assert one.answers(request_, number) == other.answers(request_, number)
                assert not taken
                for client in (one, other):
                    with contextlib.suppress(OSError):  # the server has closed it
                        client.raw.shutdown(socket.SHUT_WR)
                assert one.rest() == other.rest()
        assert short.store.rows == long.store.rows


@pytest.mark.parametrize(
    "at", [3, 30, KNOWN.index(b"\r\n\r\n") + 2, KNOWN.index(b"\r\n\r\n") + 4, len(KNOWN) - 1]
)
def test_a_request_in_two_pieces(at: int) -> None:
    """A known head that does not come whole, or comes without its body, is waited for."""
    with serving() as api, peer(api) as app:
        assert app.answers(registration("b"))
        app.answers(KNOWN[:at], 0)
        with peer(api) as another:  # the server has seen the first piece when it has answered this
            another.answers(registration("c"))
        assert app.answers(KNOWN[at:])[0].status == b"HTTP/1.1 201 Created"
        assert app.answers(KNOWN)[0].status == b"HTTP/1.1 200 OK"


def closed_gate(api: Api) -> None:
    """Let commands of the store wait."""

    async def close() -> None:
        api.store.gate = asyncio.Event()

    api.run(close())


def open_gate(api: Api) -> None:
    """Let them go on."""

    async def set_it() -> None:
        assert api.store.gate is not None
        api.store.gate.set()

    api.run(set_it())


def test_a_second_request_waits_for_its_turn(taken: list[bytes]) -> None:
    """What comes while a short request is in work is answered after it."""
    with serving() as api, peer(api) as app:
        app.answers(KNOWN)
        closed_gate(api)
        app.answers(registration("b"), 0)
        assert api.store.entered.wait(30)
        assert taken
        app.answers(registration("c") + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 0)
        open_gate(api)
        found = app.answers(b"", 3)
        assert [json.loads(each.body).get("message_id") for each in found] == ["b", "c", None]


def test_a_client_that_goes_away(taken: list[bytes]) -> None:
    """Its registration counts all the same, and one that only stops sending gets its answer."""
    with serving() as api:
        with peer(api) as app, peer(api) as half:
            app.answers(KNOWN)
            closed_gate(api)
            app.answers(registration("b"), 0)
            half.answers(registration("c"), 0)
            half.raw.shutdown(socket.SHUT_WR)
            assert api.store.entered.wait(30)
            app.raw.close()
            open_gate(api)
            assert half.answers(b"")[0].status == b"HTTP/1.1 201 Created"
            assert half.rest() == b""
            assert taken
        assert api.call("GET", "/v1/messages/b").status == 200


@pytest.mark.parametrize("ends", [True, False])
def test_a_stop(ends: bool, taken: list[bytes]) -> None:  # noqa: FBT001 - a parameter of the test
    """A short request in work is answered if it ends within the grace, and refused with 503 if not."""
    with serving() as api, peer(api) as app:
        app.answers(KNOWN)
        closed_gate(api)
        app.answers(registration("b"), 0)
        assert api.store.entered.wait(30)
        assert taken
        stopping = asyncio.run_coroutine_threadsafe(
            api.servers["client"].stop(30_000 if ends else 1), api.loop
        )
        if ends:
            open_gate(api)
        (answer,) = app.answers(b"")
        assert app.rest() == b""
        stopping.result(30)
        assert answer.status.split()[1] == (b"201" if ends else b"503")
        assert b"connection: close" in answer.headers
        if not ends:
            assert json.loads(answer.body)["code"] == "overloaded"
            open_gate(api)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (StorageFull("full"), 507, "storage-full"),
        (Overloaded("much"), 503, "overloaded"),
        (StoreUnavailable("gone"), 503, "overloaded"),
        (RuntimeError("what nobody foresaw"), 500, "internal"),
    ],
)
def test_a_store_that_fails(fault: Exception, status: int, code: str, taken: list[bytes]) -> None:
    """Failures are the same problems as on the long way, with Retry-After where it helps, and none ends anything."""
    with serving() as short, serving(express=False) as long, peer(short) as one, peer(long) as other:
        for client in (one, other):
            client.answers(KNOWN)
        # What nobody foresaw is met on the short way first, and then on the long one, which answers it.
        short.store.faults = [fault] if isinstance(fault, DlrBufferError) else [fault, fault]
        long.store.faults = [fault]
        (answer,) = one.answers(registration("b"))
        assert [answer] == other.answers(registration("b"))
        assert bool(taken) == isinstance(fault, DlrBufferError)
        problem = json.loads(answer.body)
        assert (problem["status"], problem["code"]) == (status, code)
        assert any(each.startswith(b"retry-after: ") for each in answer.headers) == (status in {503, 507})
        assert one.answers(registration("b"))[0].status == b"HTTP/1.1 201 Created"


def test_known_heads_are_bounded() -> None:
    """A client that makes up heads fills no memory."""
    with serving() as api, peer(api) as app:
        for number in range(server_module._MAX_KNOWN_HEADS * 2 + 3):
            assert app.answers(registration("a", f"User-Agent: {number}"))
        known = api.servers["client"]._state.known_heads
        assert 0 < len(known) <= server_module._MAX_KNOWN_HEADS


def test_idle_connections_are_closed_after_short_requests(taken: list[bytes]) -> None:
    """A connection whose last request went the short way is idle: it makes room for a new one."""
    with serving(connections=ConnectionLimits(connections=1, idle_spared_s=0.0)) as api, peer(api) as app:
        app.answers(KNOWN)
        app.answers(registration("b"))
        assert taken
        with peer(api) as another:
            assert another.answers(registration("c"))[0].status == b"HTTP/1.1 201 Created"
            assert app.rest() == b""
