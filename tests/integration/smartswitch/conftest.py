"""A raw HTTP server that does exactly what a test scripts, byte for byte, and a client to talk to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from dlr_buffer.clock import SystemClock
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Receipt, ReceiptStatus
from dlr_buffer.smartswitch.client import SmartswitchClient, UpstreamSettings

LOGIN = "canary login/ä"
PASSWORD = "canary+p&ss=wörd"
ENOUGH_MS = 20_000
"""A time limit that only ends a test that hangs."""

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What the server does after it has read a request; the connection stays open unless the act closes it."""


@pytest.fixture
def anyio_backend() -> str:
    """Run the tests on asyncio, as the daemon does."""
    return "asyncio"


React = Callable[[bytes], Act]
"""Chooses the act by the request."""


@dataclass(slots=True)
class ScriptedServer:
    """Reads whole requests and acts the script, one act per request; after its end ``react`` chooses.

    Without ``react`` it is an error to ask more often.
    """

    script: list[Act]
    react: React | None = None
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a request has come."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a client has ended its connection."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_content_length(head))
                self.requests.append(head + body)
                self.asked.set()
                act = self.react(head + body) if self.react and not self.script else self.script.pop(0)
                await act(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


def _content_length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)


@asynccontextmanager
async def serving(
    *script: Act, tls: ssl.SSLContext | None = None, react: React | None = None
) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on loopback."""
    server = ScriptedServer(list(script), react)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for writer in server.writers:
            writer.transport.abort()


@asynccontextmanager
async def talking(
    port: int,
    *,
    scheme: str = "http",
    host: str = "127.0.0.1",
    form: bool = False,
    timeout_ms: int = ENOUGH_MS,
    concurrency: int = 2,
    login: str = LOGIN,
    password: str = PASSWORD,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[SmartswitchClient]:
    """Open a client for ``port`` and close it afterwards."""
    url = f"{scheme}://{host}:{port}/api/dlr"
    settings = UpstreamSettings(url, login, password, form, timeout_ms, concurrency)
    client = SmartswitchClient(settings, SystemClock(), ssl_context)
    try:
        yield client
    finally:
        await client.aclose()


def receipt(request_id: int, message_id: str = "1561370632513") -> Receipt:
    """Make a receipt that waits to be sent."""
    return Receipt(
        request_id,
        "default",
        message_id,
        MessageState.DELIVERED,
        ReceiptStatus.PENDING,
        0,
        0,
        created_at_ms=0,
    )


# --- acts


def respond(raw: bytes, *, close: bool = False) -> Act:
    """Send ``raw`` as it is."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if close:
            writer.close()

    return act


def answer(body: bytes | str, status: str = "200 OK", headers: str = "", *, close: bool = False) -> Act:
    """Send a sound HTTP answer with ``body``."""
    content = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    return respond(head.encode() + content, close=close)


def acknowledge(*request_ids: int) -> Act:
    """Answer ok for each, as the seed's examples do."""
    entries = ",".join(
        f'{{"attributes":{{"status":"ok"}},"id":"r{i}","meta":{{"request_id":"{i}"}},"type":"dlr"}}'
        for i in request_ids
    )
    return answer(f'{{"data":[{entries}]}}')


def hang(raw: bytes = b"") -> Act:
    """Send ``raw`` and then nothing more until the client gives up."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if await reader.read() == b"":
            raise ConnectionError

    return act


def reset(raw: bytes = b"") -> Act:
    """Send ``raw``, then break the connection off with a TCP reset."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return act
