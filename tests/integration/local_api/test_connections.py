"""Connections that misuse a socket: too many, too slow, never reading, ahead of their turn. The others are served."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dlr_buffer.local_api import BodyLimits
from dlr_buffer.local_api.connections import ConnectionLimits
from tests.integration.local_api.harness import LIMITS, Api, checked, connect

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
LIST = b"GET /v1/messages?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b'{"status":"ok"}'
BETWEEN_BYTES_S = 0.01


@contextmanager
def serving(
    folder: Path, connections: ConnectionLimits | None = None, bodies: BodyLimits = LIMITS
) -> Iterator[Api]:
    """Run the API with limits of its own."""
    with Api(folder, accounts=frozenset({"default"}), limits=bodies, connections=connections) as api:
        yield api


def ask(raw: socket.socket, request: bytes = HEALTH, end: bytes = OK) -> bytes:
    """Send a request and read its answer, which ends as said."""
    raw.sendall(request)
    received = b""
    while not received.endswith(end):
        piece = raw.recv(65536)
        assert piece, received
        received += piece
    return received


def rest(raw: socket.socket) -> bytes:
    """Read until the server closes, or drops the connection."""
    received = b""
    try:
        while piece := raw.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    raw.close()
    return received


def until(api: Api, socket: str, good: Callable[[int], bool]) -> None:
    """Keep asking on the other socket until this one has so many connections; else the time limit ends the test."""
    while not good(api.servers[socket].connections):
        api.call("GET", "/healthz", socket="client" if socket == "admin" else "admin")


def alarm(api: Api, name: str) -> str | None:
    """The alarm of a socket, looked at from within its loop."""

    async def look() -> str | None:
        return api.servers[name].alarm

    return api.run(look())


def test_connections_beyond_the_limit_are_answered_503(folder: Path) -> None:
    """Who comes when the room is full gets a problem with Retry-After; those inside and the admins go on."""
    with serving(folder, ConnectionLimits(connections=3, idle_spared_s=600.0)) as api:
        inside = [connect(api.paths["client"]) for _ in range(3)]
        for raw in inside:
            ask(raw)
        assert alarm(api, "client") is None
        for _ in range(5):
            raw = connect(api.paths["client"])
            head, _, body = rest(raw).partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            assert lines[0].startswith("HTTP/1.1 503 ")
            assert headers["connection"] == "close"
            assert headers["retry-after"] == "5"
            reply = checked("client", "GET", "/healthz", 503, headers, body)
            assert reply.json["code"] == "overloaded"
        for raw in inside:
            ask(raw)
        assert api.call("GET", "/healthz").status == 200  # the admin socket has room of its own
        assert (api.servers["client"].connections, api.servers["client"].refused) == (3, 5)
        assert "beyond 3 are answered 503 (5 so far)" in str(alarm(api, "client"))
        assert alarm(api, "admin") is None
        inside.pop().close()
        until(api, "client", lambda count: count == 2)
        assert api.call("GET", "/healthz", socket="client").status == 200
        for raw in inside:
            raw.close()


def test_who_connects_does_not_keep_back_who_is_connected(folder: Path) -> None:
    """While hundreds knock at once, each request of one who is connected has to wait for a few of them only."""
    knocking, requests = 600, 10

    async def ask_in_a_throng(path: Path, raw: socket.socket, opened: ExitStack) -> int:
        for _ in range(knocking):
            opened.enter_context(connect(path))
        for _ in range(requests):
            raw.sendall(HEALTH)
            # Each sleep is one turn of the server's loop.
            while not select.select([raw], [], [], 0)[0]:  # noqa: ASYNC110 - turns are counted, not time
                await asyncio.sleep(0)
            assert raw.recv(65536).endswith(OK)
        return api.servers["client"].connections

    with serving(folder) as api, ExitStack() as opened:
        raw = opened.enter_context(connect(api.paths["client"]))
        ask(raw)
        let_in = api.run(ask_in_a_throng(api.paths["client"], raw, opened)) - 1
        assert let_in <= 20 * requests
        until(api, "client", lambda count: count == knocking + 1)


def test_the_longest_idle_connection_makes_room(folder: Path) -> None:
    """When the room is full the connection that has been idle for longest is closed, and no other."""
    with serving(folder, ConnectionLimits(connections=3, idle_spared_s=0.0)) as api:
        api.store.gate = asyncio.Event()
        busy = connect(api.paths["client"])
        busy.sendall(POST + b'Content-Length: 18\r\n\r\n{"message_id":"a"}')
        assert api.store.entered.wait(30)
        first, second = connect(api.paths["client"]), connect(api.paths["client"])
        ask(first)
        ask(second)
        ask(first)
        third = connect(api.paths["client"])
        ask(third)
        assert rest(second) == b""
        ask(first)
        api.loop.call_soon_threadsafe(api.store.gate.set)
        assert busy.recv(65536).startswith(b"HTTP/1.1 201 ")
        assert api.servers["client"].refused == 0
        for raw in (busy, first, third):
            raw.close()


def test_idle_connections_are_closed_and_busy_ones_are_not(folder: Path) -> None:
    """Who says nothing, from the start or after an answer, is disconnected; who waits for an answer is not."""
    with serving(folder, ConnectionLimits(idle_s=0.1)) as api:
        api.store.gate = asyncio.Event()
        busy = connect(api.paths["client"])
        busy.sendall(POST + b'Content-Length: 18\r\n\r\n{"message_id":"a"}')
        assert api.store.entered.wait(30)
        silent, kept = connect(api.paths["client"]), connect(api.paths["client"])
        ask(kept)
        assert rest(kept) == b""
        assert rest(silent) == b""
        api.loop.call_soon_threadsafe(api.store.gate.set)
        answer = rest(busy)  # it idles in its turn afterwards
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert answer.endswith(b"}")


def drip(raw: socket.socket, content: bytes) -> bytes:
    """Send a byte at a time until the server answers; returns the answer to its end."""
    for number in range(len(content)):
        if select.select([raw], [], [], BETWEEN_BYTES_S)[0]:
            return rest(raw)
        raw.sendall(content[number : number + 1])
    raise AssertionError("it was never refused")


def go_on_sending(raw: socket.socket) -> None:
    """Send a byte at a time, whatever comes back, until the connection is gone."""
    while True:
        select.select([], [], [], BETWEEN_BYTES_S)
        raw.sendall(b" ")


def test_a_head_that_drips_is_given_up(folder: Path) -> None:
    """A head that comes a byte at a time ends with 400 when its time is over, though it never stops coming."""
    with serving(folder, ConnectionLimits(head_s=0.3, idle_s=600.0)) as api:
        raw = connect(api.paths["client"])
        answer = drip(raw, b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 2000)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"did not come whole within 0.3 s" in answer
        raw = connect(api.paths["client"])  # nor is a second request on a connection that was good once
        ask(raw)
        assert drip(raw, HEALTH[:-2] + b"X: " + b"x" * 2000).startswith(b"HTTP/1.1 400 ")
        assert api.servers["client"].connections == 0


def test_a_body_that_drips_is_given_up(folder: Path) -> None:
    """A body that comes a byte at a time, never silent, ends with 400; nothing is stored, its room is given back."""
    with serving(folder, bodies=BodyLimits(silence_s=30.0, whole_s=0.3)) as api:
        raw = connect(api.paths["client"])
        raw.sendall(POST + b"Content-Length: 2000\r\n\r\n")
        answer = drip(raw, b'{"message_id":"a"}'.ljust(1999))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"too slowly" in answer
        assert api.room.held_bytes == 0
        assert not api.store.rows


def large_list(api: Api) -> None:
    """Make a page of messages large enough for no socket's buffer."""
    api.call("POST", "/v1/messages", [{"message_id": f"{n}".ljust(150, "x")} for n in range(900)])


def test_an_answer_that_nobody_reads_is_dropped(folder: Path) -> None:
    """A client that asks for much and never reads is disconnected, and its memory given back."""
    with serving(folder, ConnectionLimits(answer_s=0.2)) as api:
        large_list(api)
        raw = connect(api.paths["admin"])
        raw.sendall(LIST * 5)
        assert raw.recv(1) == b"H"
        until(api, "admin", lambda count: count == 0)
        assert rest(raw).count(b"HTTP/1.1 200 ") < 5


def test_the_last_answer_is_dropped_as_well(folder: Path) -> None:
    """A connection that ends with its answer does not wait for ever for a client that never reads it."""
    with serving(folder, ConnectionLimits(answer_s=0.2)) as api:
        large_list(api)
        raw = connect(api.paths["admin"])
        raw.sendall(LIST.replace(b"Host: x", b"Connection: close"))
        assert raw.recv(1) == b"H"
        until(api, "admin", lambda count: count == 0)
        raw.close()


def test_unsent_answers_are_bounded_together(folder: Path) -> None:
    """Of many clients that do not read, those that wait longest lose their answers; the last may take its time."""
    with serving(folder, ConnectionLimits(unsent_bytes=200_000)) as api:
        large_list(api)
        slow = []
        for _ in range(6):
            raw = connect(api.paths["admin"])
            raw.sendall(LIST * 4)
            assert raw.recv(1) == b"H"
            slow.append(raw)
        until(api, "admin", lambda count: count <= 3)
        answers = [rest_of_lists(raw) for raw in slow]
        assert answers[0] < 4
        assert answers[-1] == 4


def rest_of_lists(raw: socket.socket) -> int:
    """Read up to four lists; returns how many came whole."""
    received = b""
    try:
        while received.count(b'"next_cursor":null}') < 4 and (piece := raw.recv(1 << 20)):
            received += piece
    except ConnectionResetError:
        pass
    raw.close()
    return received.count(b'"next_cursor":null}')


def test_requests_sent_ahead_wait_as_bytes(folder: Path) -> None:
    """A client that sends requests without end and reads nothing is not read on; all that it sent is answered."""
    count = 20_000
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        sender = threading.Thread(target=raw.sendall, args=(HEALTH * count + LAST,))
        sender.start()
        answered = waiting = 0
        while answered < count + 1:
            for connection in list(api.servers["client"]._state.connections):
                assert isinstance(waiting, int)
                waiting = max(waiting, len(connection.pipeline))  # type: ignore[union-attr]
            piece = raw.recv(1500)
            assert piece
            answered += piece.count(b"HTTP/1.1 200 ")
            if answered > 50:
                answered += rest(raw).count(b"HTTP/1.1 200 ")
                break
        sender.join()
        # One piece of input holds fifty such requests; a lost split mark at the seam of two reads is not counted.
        assert waiting < 100
        assert count - 50 <= answered <= count + 1


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /v1/messages", 413),
        (b"PUT /v1/messages", 405),
        (b"POST /v1/nowhere", 404),
        (b"GET /healthz", 200),
        (b"POST /v1/accounts/default/pause", 404),
    ],
)
def test_a_huge_body_is_not_waited_for(folder: Path, request_line: bytes, status: int) -> None:
    """Ten GiB announced: whatever the answer, it comes at once and is the last, before any of the body."""
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        raw.sendall(request_line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\r\n")
        answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in answer


def test_a_chunked_body_without_end_is_cut_at_the_bound(folder: Path) -> None:
    """Chunks without end: 413 as soon as they are too many, and little is read behind that."""
    with serving(folder, ConnectionLimits(linger_bytes=100_000)) as api:
        raw = connect(api.paths["client"])
        raw.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
        sent = 0
        try:
            while True:
                raw.sendall(chunk)
                sent += len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert rest(raw).startswith(b"HTTP/1.1 413 ")
        assert sent < LIMITS.body_bytes + 2_000_000  # the rest lies in the kernel's buffers
        assert api.room.held_bytes == 0


@pytest.mark.parametrize("length", [LIMITS.body_bytes + 1, 10 * LIMITS.body_bytes])
def test_who_reads_only_after_sending_gets_the_refusal(folder: Path, length: int) -> None:
    """A client that sends all of a body that is too long, as most do, finds the answer; then the connection ends."""
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        raw.sendall(POST + b"Content-Length: %d\r\n\r\n" % length)
        for _ in range(length // 1000):
            raw.sendall(b" " * 1000)
        raw.sendall(b" " * (length % 1000) + REGISTER_EVIL)
        answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        until(api, "client", lambda count: count == 0)
        assert not api.store.rows


def test_lingering_has_an_end(folder: Path) -> None:
    """A client that goes on sending a refused body, however slowly, is disconnected after a while."""
    with serving(folder, ConnectionLimits(linger_s=0.2)) as api:
        raw = connect(api.paths["client"])
        raw.sendall(POST + b"Content-Length: 10737418240\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            go_on_sending(raw)
        assert rest(raw).startswith(b"HTTP/1.1 413 ")


def test_after_a_body_that_came_whole_the_connection_is_good(folder: Path) -> None:
    """Refusals do not end a connection if nothing of the request is left on it."""
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        ask(raw, b"PUT /v1/messages HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"}")
        ask(raw, POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n{", b"}")
        ask(raw)
        raw.close()


REGISTER_EVIL = b'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 21\r\n\r\n{"message_id":"evil"}'
SHAPES = {
    "both lengths": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, the other way round": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 93\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length beyond 64 bits": POST + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "a blank before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a folded length": POST + b"Content-Length:\r\n 2\r\n\r\n{}",
    "a folded header": POST + b"X-A: b\r\n c: d\r\nContent-Length: 2\r\n\r\n{}",
    "no coding of ours": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, but not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "no coding at all": POST + b"Transfer-Encoding: identity\r\n\r\n{}",
    "bare line feeds": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "one bare line feed": b"GET /healthz HTTP/1.1\r\nHost: x\n\r\n",
    "bare carriage returns": b"GET /healthz HTTP/1.1\rHost: x\r\r",
    "chunks with bare line feeds": POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "a chunk beyond 64 bits": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a NUL": b"GET /healthz HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade with a body": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "a target that is no path": b"GET http://x?y HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII": b"GET /v1/messages/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "ten thousand headers": b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_two_parsers_might_read_differently_is_refused(folder: Path, shape: str) -> None:
    """Requests in doubtful shapes get one 400 and the end; a request smuggled in behind them is never carried out."""
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        try:
            raw.sendall(SHAPES[shape] + REGISTER_EVIL)
        except BrokenPipeError:
            assert shape == "ten thousand headers"
        answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"\r\n\r\n") == 1
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert json.loads(body)["code"] == "malformed"
        assert not api.store.rows


def test_an_upgrade_with_a_body_is_told_what_is_wrong(api: Api) -> None:
    """Its body would be lost, so the client is told to send it without asking for more than HTTP/1.1."""
    raw = connect(api.paths["client"])
    raw.sendall(SHAPES["an upgrade with a body"])
    assert b"send it without Upgrade" in rest(raw)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_upgrade_is_answered_in_http_1_and_ends_there(folder: Path, protocol: bytes) -> None:
    """A request that would rather speak something else gets its answer, and nothing behind it is read as HTTP."""
    with serving(folder) as api:
        raw = connect(api.paths["client"])
        raw.sendall(
            b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n" % protocol + REGISTER_EVIL
        )
        answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(OK)
        assert b"connection: close" in answer
        assert not api.store.rows


class _Turnstile(asyncio.Event):
    """A gate that lets so many through before it is closed."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes = passes
        self.closed = threading.Event()

    async def wait(self) -> bool:  # type: ignore[override]  # always True, as the Event's
        self.passes -= 1
        if self.passes >= 0:
            return True
        self.closed.set()
        return await super().wait()


@pytest.mark.parametrize(
    ("path", "members", "word"),
    [("/v1/messages", "", "registered"), ("/v1/receipts", ',"message_state":"delivered"', "queued")],
)
def test_a_bulk_request_that_a_stop_breaks_off_tells_how_far_it_came(
    api: Api, path: str, members: str, word: str
) -> None:
    """When the daemon stops in mid-bulk, the 503 carries the counts and errors of the chunks that are committed."""
    gate = _Turnstile(2)
    api.store.gate = gate
    items = [f'{{"message_id":"{n}"{members}}}' if n != 7 else '{"message_id":7}' for n in range(2500)]
    body = "\n".join(items).encode()
    raw = connect(api.paths["client"])
    raw.sendall(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), len(body), body)
    )
    assert gate.closed.wait(30)
    stopping = asyncio.run_coroutine_threadsafe(api.servers["client"].stop(50), api.loop)
    head, _, content = rest(raw).partition(b"\r\n\r\n")
    stopping.result(30)
    problem = json.loads(content)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 5" in head
    assert (problem["code"], problem[word], problem["duplicates"]) == ("overloaded", 1999, 0)
    assert [error["index"] for error in problem["errors"]] == [7]
    assert len(api.store.rows) == 1999
