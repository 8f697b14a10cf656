"""The server on raw sockets: pipelining, garbage, half-closed clients, and stopping while requests are in work."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from dlr_buffer.local_api import ApiServer, create_app
from dlr_buffer.local_api import server as server_module
from tests.integration.local_api.harness import Api, ScriptedExpiry, connect

REGISTER = b'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{"message_id":"%b"}'
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def everything(raw: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b"".join(iter(lambda: raw.recv(65536), b""))
    raw.close()
    return received


def until(raw: socket.socket, mark: bytes, count: int) -> bytes:
    """Read until a mark came so often."""
    received = b""
    while received.count(mark) < count:
        piece = raw.recv(65536)
        assert piece, received
        received += piece
    return received


@pytest.fixture
def gate(api: Api) -> asyncio.Event:
    """Let commits wait until the gate is opened."""
    api.store.gate = asyncio.Event()
    return api.store.gate


def held(api: Api) -> socket.socket:
    """Send a registration, and return once it waits for its commit."""
    raw = connect(api.paths["client"])
    api.store.entered.clear()
    raw.sendall(REGISTER % b"a")
    assert api.store.entered.wait(30)
    return raw


def stop_later(api: Api, grace_ms: int) -> Future[None]:
    """Begin to stop the client socket's server; returns once it takes no new connections."""
    stopping = asyncio.run_coroutine_threadsafe(api.servers["client"].stop(grace_ms), api.loop)
    api.run(asyncio.sleep(0))
    return stopping


def test_pipelined_requests_are_answered_in_order(api: Api) -> None:
    """Many requests in one write get as many answers, in order, and all are carried out."""
    raw = connect(api.paths["client"])
    raw.sendall(b"".join(REGISTER % b"%d" % (n % 7) for n in range(50)) + HEALTH)
    received = until(raw, b'{"status":"ok"}', 1)
    raw.close()
    assert received.count(b"HTTP/1.1 201 ") == 7
    assert received.count(b"HTTP/1.1 200 ") == 44
    assert received.endswith(b'{"status":"ok"}')


def test_answers_have_no_needless_headers(api: Api) -> None:
    """Neither date nor server tells anything that is worth its bytes here."""
    reply = api.call("GET", "/healthz")
    assert reply.headers.keys() == {"content-length", "content-type"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 2_000_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000_000,
    ],
)
def test_what_is_not_http_is_400_as_a_problem(api: Api, garbage: bytes) -> None:
    """Requests that cannot be parsed, and heads without end, get the same kind of problem, then the end."""
    raw = connect(api.paths["client"])
    sender = threading.Thread(target=_send_what_goes, args=(raw, garbage))
    sender.start()
    received = b""
    try:
        while piece := raw.recv(65536):
            received += piece
    except ConnectionResetError:
        pass  # the rest of the garbage was not read
    sender.join()
    raw.close()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in received
    assert b'"code":"malformed"' in received


def _send_what_goes(raw: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):  # the server may have had enough of it
        raw.sendall(content)


def test_garbage_behind_a_request_does_not_take_its_answer(api: Api, gate: asyncio.Event) -> None:
    """The request that came whole is answered first; the garbage behind it only ends the connection."""
    raw = held(api)
    raw.sendall(b"\x00garbage\r\n\r\n")
    api.loop.call_soon_threadsafe(gate.set)
    received = everything(raw)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert received.count(b"HTTP/1.1") == 1


def test_a_client_that_closes_its_sending_side_gets_its_answer(api: Api, gate: asyncio.Event) -> None:
    """Half-closing after a request (as nc -N does) is no reason to keep the answer back."""
    raw = held(api)
    raw.shutdown(socket.SHUT_WR)
    api.loop.call_soon_threadsafe(gate.set)
    received = everything(raw)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert received.endswith(b"}")


def test_a_client_that_vanishes_leaves_the_others_alone(api: Api, gate: asyncio.Event) -> None:
    """A connection that is gone before its answer does no harm, and what it asked for is carried out."""
    held(api).close()
    api.loop.call_soon_threadsafe(gate.set)
    api.store.gate = None
    assert api.call("GET", "/healthz").status == 200
    assert api.call("GET", "/v1/messages/a").status == 200


def test_stopping_answers_what_is_in_work(api: Api, gate: asyncio.Event) -> None:
    """During a stop the socket is gone, idle connections close, and the request in work is answered whole."""
    idle = connect(api.paths["client"])
    idle.sendall(HEALTH)
    until(idle, b'{"status":"ok"}', 1)
    raw = held(api)
    stopping = stop_later(api, 20_000)
    assert everything(idle) == b""
    assert not api.paths["client"].exists()
    with pytest.raises(FileNotFoundError):
        connect(api.paths["client"])
    assert not stopping.done()
    api.loop.call_soon_threadsafe(gate.set)
    received = everything(raw)
    stopping.result(30)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in received
    assert received.endswith(b'"receipts":[]}')


def test_stopping_does_not_wait_for_ever(api: Api, gate: asyncio.Event) -> None:
    """After the grace a request that is still in work is told so with a whole 503, not cut off."""
    raw = held(api)
    stopping = stop_later(api, 50)
    received = everything(raw)
    stopping.result(30)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 5" in received
    assert received.endswith(b"}")


def test_stopping_ends_a_body_that_is_still_coming(api: Api) -> None:
    """A body in the middle of its way is given up after the grace, and nothing of it is stored."""
    raw = connect(api.paths["client"])
    raw.sendall(b'POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{"mess')
    while api.room.held_bytes == 0:
        api.call("GET", "/healthz")
    stop_later(api, 50).result(30)
    received = everything(raw)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert not api.store.rows
    assert api.room.held_bytes == 0


def test_stopping_does_not_hang_on_a_client_that_does_not_read(api: Api) -> None:
    """An answer that nobody reads is dropped after the grace."""
    api.call("POST", "/v1/messages", [{"message_id": f"{n}".ljust(200, "x")} for n in range(700)])
    raw = connect(api.paths["admin"])
    raw.sendall(b"GET /v1/messages?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    until(raw, b"HTTP/1.1 200 ", 1)
    api.run(api.servers["admin"].stop(50))
    raw.close()


def test_stopping_twice_is_harmless(api: Api) -> None:
    """A second stop finds nothing to do."""
    api.run(api.servers["client"].stop(1000))
    api.run(api.servers["client"].stop(1000))


class Shared:
    """A listening socket that outlives the servers that serve it, as systemd's does; one server at a time."""

    def __init__(self, api: Api, folder: Path) -> None:
        """Listen."""
        self.path = folder / "shared.sock"
        self._api = api
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(100)

    def serve(self) -> ApiServer:
        """Start a server that serves it."""
        handed_over = self._listening.dup()
        handed_over.setblocking(False)  # noqa: FBT003 - the standard library's signature
        app = create_app(
            self._api.queue,
            accounts=self._api.daemon,
            expiry=ScriptedExpiry(self._api.daemon),
            vitals=self._api.daemon,
            clock=self._api.clock,
            admin=False,
        )
        server = ApiServer(app, handed_over, express=app.express)
        self._api.run(server.start())
        return server

    def stop(self, server: ApiServer, grace_ms: int = 20_000) -> Future[None]:
        """Begin to stop; returns once nothing is accepted any more."""
        stopping = asyncio.run_coroutine_threadsafe(server.stop(grace_ms), self._api.loop)
        self._api.run(asyncio.sleep(0))
        return stopping

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()


@pytest.fixture
def shared(api: Api, folder: Path) -> Iterator[Shared]:
    """A socket as systemd hands it over."""
    shared = Shared(api, folder)
    yield shared
    shared.close()


def test_who_comes_during_a_restart_waits(shared: Shared) -> None:
    """A connection that is made, and a request that is sent, while nobody serves is answered by the next server."""
    shared.stop(shared.serve()).result(30)
    raw = connect(shared.path)
    raw.sendall(REGISTER % b"a")
    server = shared.serve()
    assert until(raw, b"}", 1).startswith(b"HTTP/1.1 201 ")
    raw.close()
    shared.stop(server).result(30)
    assert shared.path.exists()


@pytest.mark.parametrize("express", ["the short way", ""])
def test_a_kept_connection_is_used_once_more_and_told_to_close(
    shared: Shared, express: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server stops, a client that keeps its connection still gets an answer, which says that it is the last."""
    monkeypatch.setattr(server_module, "_ONCE_MORE_S", 20)
    server = shared.serve()
    raw = connect(shared.path)
    request = REGISTER % b"a" if express else HEALTH
    for _ in range(2):
        raw.sendall(request)
        until(raw, b"}", 1)
    stopping = shared.stop(server)
    raw.sendall(request)
    received = everything(raw)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in received
    stopping.result(30)


def test_a_new_connection_is_waited_for(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was accepted just before the stop, and whose request comes after it, is answered."""
    monkeypatch.setattr(server_module, "_ONCE_MORE_S", 0)
    server = shared.serve()
    raw = connect(shared.path)
    stopping = shared.stop(server)
    raw.sendall(REGISTER % b"a")
    received = everything(raw)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in received
    stopping.result(30)


def test_a_request_that_meets_the_end_is_answered_or_not_sent(api: Api, shared: Shared) -> None:
    """When an idle connection is closed, what came before is answered; later nothing of a request can be sent.

    So no client can be in doubt whether its request was acted on.
    """
    server = shared.serve()
    raws = [connect(shared.path) for _ in range(2)]
    for raw in raws:
        raw.sendall(HEALTH)
        until(raw, b'{"status":"ok"}', 1)
    early, late = raws

    async def send_and_end() -> None:
        # In one turn of the loop: what is sent has come, but was not read.
        early.sendall(REGISTER % b"e")
        server._state.stop()
        server._end_idle(lambda _connection: True)
        with pytest.raises(BrokenPipeError):
            late.sendall(REGISTER % b"l")

    api.run(send_and_end())
    assert everything(late) == b""
    received = everything(early)
    assert received.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in received
    assert api.call("GET", "/v1/messages/l").status == 404
    shared.stop(server).result(30)


def test_many_who_connect_during_a_stop_are_all_answered(api: Api, shared: Shared) -> None:
    """Whoever was accepted is answered by the server that stops, all others by the next one, and none is cut off."""
    server = shared.serve()
    raws = []
    for number in range(60):
        raw = connect(shared.path)
        raw.sendall(REGISTER % b"%d" % (number % 10))
        raws.append(raw)
        if number == 40:
            stopping = shared.stop(server)
    stopping.result(30)
    server = shared.serve()
    for raw in raws:
        assert until(raw, b"}", 1).startswith(b"HTTP/1.1 20")
        raw.close()
    shared.stop(server).result(30)


def test_who_waits_to_be_accepted_by_a_socket_of_ours_is_answered(api: Api) -> None:
    """A server that takes its socket away first accepts whoever has connected, and answers."""

    async def connect_and_stop() -> socket.socket:
        # In one turn of the loop: it has connected, but was not accepted.
        raw = connect(api.paths["client"])
        raw.sendall(REGISTER % b"a")
        stopping.append(asyncio.ensure_future(api.servers["client"].stop(20_000)))
        return raw

    stopping: list[asyncio.Future[None]] = []
    received = everything(api.run(connect_and_stop()))
    assert received.startswith(b"HTTP/1.1 201 ")
