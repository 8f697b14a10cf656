"""What a server sends after an answer is never taken for the answer to the next request.

Else a receipt would count as acknowledged (or refused, or too large) before it was sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from dlr_buffer.receipts import Acknowledged
from dlr_buffer.smartswitch.answers import Answered
from dlr_buffer.smartswitch.client import SmartswitchClient
from tests.integration.smartswitch.conftest import (
    Act,
    ScriptedServer,
    acknowledge,
    receipt,
    respond,
    serving,
    talking,
)
from tests.integration.smartswitch.misconduct import chunked, framed, good_body, http

pytestmark = pytest.mark.anyio

AUTHORITY = trustme.CA()
FIRST = http(good_body([1]))
"""Sound, and whole: whatever follows is too much."""
READ_AT_ONCE = 65_536
"""What httpcore takes from anyio at once: of more, the rest waits in anyio."""
LEFTOVERS = {
    "an answer": http(good_body([2])),
    "half an answer": http(good_body([2]))[:30],
    "a refusal": http(b"", status=b"400 Bad"),
    "an outage": http(b"", status=b"503 Later"),
    "too large": http(b"", status=b"413 Large"),
    "an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "a newline": b"\r\n",
    "rubbish": b"}",
    "twice the limit": b" " * 8 * 1024**2,
}


@asynccontextmanager
async def scene(*script: Act, tls: bool) -> AsyncIterator[tuple[ScriptedServer, SmartswitchClient]]:
    """Run a server with ``script`` and a client with one connection."""
    theirs = ours = None
    if tls:
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("localhost").configure_cert(theirs)
        ours = ssl.create_default_context()
        AUTHORITY.configure_trust(ours)
    scheme = "https" if tls else "http"
    async with (
        serving(*script, tls=theirs) as server,
        talking(server.port, scheme=scheme, host="localhost", ssl_context=ours, concurrency=1) as client,
    ):
        yield server, client


def acknowledged(request_id: int, response_id: str = "1561370632713") -> Answered:
    """Make the outcome of a sound answer."""
    return Answered((Acknowledged(request_id, response_id),), (), 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("leftover", LEFTOVERS)
async def test_what_comes_with_an_answer(leftover: str, *, tls: bool) -> None:
    """What arrives together with an answer harms neither it nor the next: that is asked on a new connection."""
    async with scene(respond(FIRST + LEFTOVERS[leftover]), acknowledge(2), tls=tls) as (server, client):
        assert await client.send([receipt(1)]) == acknowledged(1)
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert len(server.requests) == server.connections == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_answer_in_a_tls_record_of_its_own(*, tls: bool) -> None:
    """A second answer that was received with the first but is not decrypted yet counts as left over, too."""

    async def two_records(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(FIRST)
        writer.write(LEFTOVERS["an answer"])
        await writer.drain()

    async with scene(two_records, acknowledge(2), tls=tls) as (server, client):
        assert await client.send([receipt(1)]) == acknowledged(1)
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert len(server.requests) == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_an_answer_as_long_as_a_read(over: int, *, tls: bool) -> None:
    """A second answer does not hide behind a first that fills what is read at once, to the byte."""
    body = good_body([1])
    first = http(body + b" " * (READ_AT_ONCE - len(http(body + b" " * 60_000)) + 60_000 + over))
    assert len(first) == READ_AT_ONCE + over
    async with scene(respond(first + LEFTOVERS["an answer"]), acknowledge(2), tls=tls) as (server, client):
        assert await client.send([receipt(1)]) == acknowledged(1)
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert len(server.requests) == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("leftover", ["an answer", "a newline", "half an answer"])
async def test_what_comes_while_the_connection_is_idle(leftover: str, *, tls: bool) -> None:
    """What arrives between two requests ends the connection before the second is sent."""
    async with scene(respond(FIRST), acknowledge(2), tls=tls) as (server, client):
        assert await client.send([receipt(1)]) == acknowledged(1)
        server.writers[0].write(LEFTOVERS[leftover])
        await server.writers[0].drain()
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert len(server.requests) == 2


async def test_an_end_that_comes_after_the_chunks() -> None:
    """A chunked answer with a superfluous last chunk is whole; the superfluous one is left over."""
    raw = framed(chunked(good_body([1]), end=b"0\r\n\r\n0\r\n\r\n"), b"Transfer-Encoding: chunked")
    async with scene(respond(raw), acknowledge(2), tls=False) as (server, client):
        assert await client.send([receipt(1)]) == acknowledged(1)
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert server.connections == 2


@pytest.mark.parametrize(
    "outage",
    [http(good_body([7])), http(b"", status=b"503 Later"), http(b"{}"), http(b"", status=b"302 Found")],
    ids=["names-none", "503", "neither", "redirect"],
)
async def test_after_an_outage_the_connection_is_not_used_again(outage: bytes) -> None:
    """An answer that may have been meant for another request, though sound as HTTP, ends its connection."""
    async with scene(respond(outage), acknowledge(2), tls=False) as (server, client):
        await client.send([receipt(1)])
        assert await client.send([receipt(2)]) == acknowledged(2, "r2")
        assert server.connections == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_without_leftovers_the_connection_is_kept(*, tls: bool) -> None:
    """Sound answers, long and chunked ones and refusals included, do not cost a connection each."""
    script = [
        respond(FIRST),
        respond(http(good_body([1]) + b" " * 300_000)),
        respond(framed(chunked(good_body([1])), b"Transfer-Encoding: chunked")),
        respond(http(b"", status=b"400 Bad")),
        respond(b"HTTP/1.1 103 Early Hints\r\n\r\n" + FIRST),
        acknowledge(1),
    ]
    async with scene(*script, tls=tls) as (server, client):
        for _ in range(6):
            await client.send([receipt(1)])
        assert len(server.requests) == 6
        assert server.connections == 1
