"""An answer that stops at any one of its bytes: nothing is acknowledged before the last that matters.

All places are tried side by side, each on a connection of its own; the request_id says where the server stops.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable

import pytest
import trustme

from dlr_buffer.flusher.judgement import outcome_of
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.smartswitch.conftest import (
    ENOUGH_MS,
    Act,
    React,
    hang,
    receipt,
    reset,
    respond,
    serving,
    talking,
)
from tests.integration.smartswitch.misconduct import chunked, framed, good_body, http

pytestmark = pytest.mark.anyio

AUTHORITY = trustme.CA()
BASE = 100_000
"""The request_id of the answer that stops before its first byte; all ids have as many digits."""
FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: http(body, b"Content-Type: application/vnd.api+json"),
    "chunks": lambda body: framed(
        chunked(body, end=b"0\r\nA: b\r\n\r\n"), b"Server: x", b"Transfer-Encoding: chunked"
    ),
    "hints": lambda body: b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + http(body),
    "until-closed": lambda body: framed(body, b"Connection: close"),
}


def whole(framing: str, request_id: int = BASE) -> bytes:
    """Write a sound answer."""
    return FRAMINGS[framing](good_body([request_id]))


def places(framing: str) -> range:
    """Give every number of bytes after which an answer may stop, from none to all."""
    return range(len(whole(framing)) + 1)


def head_length(framing: str) -> int:
    """Return at which byte the body begins."""
    answer = whole(framing)
    return answer.index(b"\r\n\r\n", answer.index(b"HTTP/1.1 200")) + 4


def stopping(framing: str, stop: Callable[[bytes], Act]) -> React:
    """Send as many bytes as the request_id is above `BASE`, then ``stop``."""

    def react(request: bytes) -> Act:
        found = re.search(rb"request_id=(\d+)", request)
        assert found
        request_id = int(found[1])
        return stop(whole(framing, request_id)[: request_id - BASE])

    return react


def end(raw: bytes) -> Act:
    """Send ``raw`` and end the connection properly."""
    return respond(raw, close=True)


def end_without_notice(raw: bytes) -> Act:
    """Send ``raw`` and end TCP below TLS, without TLS's own end."""

    async def act(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        sock: socket.socket = writer.get_extra_info("socket")
        sock.shutdown(socket.SHUT_WR)

    return act


async def outcomes(
    framing: str, stop: Callable[[bytes], Act], tls: ssl.SSLContext | None = None
) -> list[str]:
    """Stop at every place and return what came of each; after that, time is up for those that still wait."""
    trust = None
    if tls is not None:
        trust = ssl.create_default_context()
        AUTHORITY.configure_trust(trust)
    many = len(places(framing))
    all_asked = asyncio.Event()
    react = stopping(framing, stop)

    def count(request: bytes) -> Act:
        if len(server.requests) == many:
            all_asked.set()
        return react(request)

    async with (
        serving(tls=tls, react=count) as server,
        talking(
            server.port,
            scheme="http" if tls is None else "https",
            host="localhost" if tls else "127.0.0.1",
            ssl_context=trust,
            concurrency=many,
        ) as client,
    ):
        sending = [asyncio.create_task(client.send([receipt(BASE + place)])) for place in places(framing)]
        if stop is hang:
            await all_asked.wait()
            if framing != "until-closed":
                await sending[-1]
            _let_time_pass(ENOUGH_MS)
        answers: list[Answer] = await asyncio.gather(*sending)
        assert len(server.requests) == many
    for place, answer in enumerate(answers):
        if outcome_of(answer) == "acknowledged":
            assert f"request_id={BASE + place}," in repr(answer)
    return [outcome_of(answer) for answer in answers]


def _let_time_pass(by_ms: int) -> None:
    """Move the clock of the event loop, so that a test of a time limit need not wait for it."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + by_ms / 1000  # type: ignore[method-assign]


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_hang_at_every_byte(framing: str) -> None:
    """Where the server falls silent is all the same: only the whole answer acknowledges, else it times out."""
    *stopped, complete = await outcomes(framing, hang)
    assert set(stopped) == {"timeout"}
    # Without a length only the end of the connection says that nothing follows.
    assert complete == ("timeout" if framing == "until-closed" else "acknowledged")


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_an_end_at_every_byte(framing: str) -> None:
    """A connection that ends in the head is a reset, in the body a truncated answer, and never an answer."""
    *stopped, complete = await outcomes(framing, end)
    head = head_length(framing)
    assert set(stopped[:head]) == {"reset"}
    assert set(stopped[head:]) == {"not-json" if framing == "until-closed" else "truncated"}
    assert complete == "acknowledged"


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_reset_at_every_byte(framing: str) -> None:
    """A TCP reset before the last byte is a reset, even where the end of the connection would end the answer."""
    assert set((await outcomes(framing, reset))[:-1]) == {"reset"}


@pytest.mark.parametrize("framing", ["length", "until-closed"])
async def test_an_end_without_notice_at_every_byte_within_tls(framing: str) -> None:
    """TLS that ends without close_notify may have been cut by anybody: only what is complete in itself counts."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(theirs)
    *stopped, complete = await outcomes(framing, end_without_notice, theirs)
    assert "acknowledged" not in stopped
    assert set(stopped) <= {"reset", "truncated", "not-json"}
    assert complete == "acknowledged"
