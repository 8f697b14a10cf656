"""Which connection a request goes over, and when idle ones are closed."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from dlr_buffer.smartswitch.transport import Connection, NoAnswer, Progress, Transport
from tests.loops import on_loop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEPT_S = 4.0


@dataclass
class Server:
    """Answers each request when it is let, and knows its connections."""

    port: int = 0
    connections: int = 0
    closed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each connection that its client closed."""
    came: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each request."""
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.came.release()
                await self.goes_on.wait()
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.release()
            writer.close()


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Server, Transport]]:
    """A server on IPv4 only, and a transport."""
    server, transport = Server(), Transport(None)
    server.goes_on.set()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        try:
            yield server, transport
        finally:
            await transport.aclose()


async def ask(transport: Transport, port: int, host: str = "127.0.0.1") -> None:
    """One exchange, which has to go well."""
    answer = await transport.handle_async_request(httpx.Request("POST", f"http://{host}:{port}/"))
    assert await answer.aread() == b"ok"
    await answer.aclose()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The transport's clock: its only item."""
    times = [0.0]
    monkeypatch.setattr(Connection, "_now", staticmethod(lambda: times[0]))
    return times


@on_loop
async def test_an_idle_connection_is_used_for_some_seconds(now: list[float]) -> None:
    """Up to four seconds later a request goes over the same connection; after that it is closed, and a new one made."""
    async with served() as (server, transport):
        await ask(transport, server.port)
        now[0] += KEPT_S
        await ask(transport, server.port)
        assert server.connections == 1
        now[0] += KEPT_S + 0.001
        await ask(transport, server.port)
        assert server.connections == 2
        await server.closed.acquire()


@on_loop
async def test_connections_that_are_needed_no_more_are_closed(now: list[float]) -> None:
    """While one connection does all the work, the others are closed as they become too old."""
    async with served() as (server, transport):
        server.goes_on.clear()
        asking = [asyncio.create_task(ask(transport, server.port)) for _ in range(3)]
        for _ in range(3):
            await server.came.acquire()
        server.goes_on.set()
        await asyncio.gather(*asking)
        for _ in range(3):
            now[0] += KEPT_S / 2
            await ask(transport, server.port)
        assert server.connections == 3
        await server.closed.acquire()
        await server.closed.acquire()


@on_loop
async def test_a_name_with_several_addresses() -> None:
    """If one address of a name refuses, the next is tried; if all do, that is said with the system's number."""
    families = {found[0] for found in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}
    async with served() as (server, transport):
        await ask(transport, server.port, "localhost")
        assert server.connections == 1
    with pytest.raises(httpx.ConnectError) as refused:
        await ask(transport, server.port, "localhost")
    cause = refused.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ECONNREFUSED, families


@on_loop
async def test_closing_waits_for_the_sockets() -> None:
    """Once the transport is closed, the server has seen the end of every connection."""
    async with served() as (server, transport):
        await ask(transport, server.port)
        await transport.aclose()
        await server.closed.acquire()


class Fickle:
    """Answers the first request of a connection; what it does with the next one is ``then``'s."""

    def __init__(self, then: bytes = b"", *, reset: bool = False) -> None:
        """Say ``then``, and close (by a TCP reset, if so)."""
        self.requests = 0
        self._then = then
        self._reset = reset

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            writer.write(ANSWER)
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            writer.write(self._then)
            await writer.drain()
            if self._reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def ask_twice(fickle: Fickle) -> tuple[str, Progress]:
    """Ask a server for the second time over the connection of the first; returns the answer, and how far it came."""
    transport, progress = Transport(None), Progress()
    async with await asyncio.start_server(fickle.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        try:
            await ask(transport, port)
            request = httpx.Request("POST", f"http://127.0.0.1:{port}/", extensions={"progress": progress})
            answer = await transport.handle_async_request(request)
            return (await answer.aread()).decode(), progress
        finally:
            await transport.aclose()


@pytest.mark.parametrize("reset", [False, True])
@on_loop
async def test_a_connection_that_the_server_closes_as_a_request_goes_over_it(*, reset: bool) -> None:
    """Idle before, and ended without a byte of an answer: the request goes once more over a new one, which is told."""
    fickle = Fickle(reset=reset)
    assert await ask_twice(fickle) == ("ok", Progress(connected=True, repeated=True))
    assert fickle.requests == 3


@pytest.mark.parametrize("then", [b"H", b"HTTP/1.1 200 OK\r\n"])
@on_loop
async def test_an_answer_that_has_begun_is_not_asked_for_again(then: bytes) -> None:
    """The request was taken: whether it is sent again is not the transport's to say."""
    fickle = Fickle(then)
    with pytest.raises(NoAnswer):
        await ask_twice(fickle)
    assert fickle.requests == 2


@on_loop
async def test_a_new_connection_that_is_closed_is_no_reason_to_try_another() -> None:
    """A server that closes whatever comes is asked once a request."""
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        transport = Transport(None)
        with pytest.raises(NoAnswer):
            await ask(transport, listening.sockets[0].getsockname()[1])
        await transport.aclose()
    assert requests == 1
