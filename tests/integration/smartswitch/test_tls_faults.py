"""TLS that cannot be trusted or does not come to an end: nothing is sent over it, and it says why."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import gc
import ssl
import warnings
from collections.abc import Awaitable, Callable

import pytest
import trustme

from dlr_buffer.smartswitch.answers import Answer, Outage
from tests.integration.smartswitch.conftest import acknowledge, receipt, serving, talking

pytestmark = pytest.mark.anyio

AUTHORITY = trustme.CA()
PATIENCE_S = 20
STEP = 61
"""Bytes of the handshake between two places where it is cut; prime, so that no structure is always met alike."""


def trust() -> ssl.SSLContext:
    """Make what the client uses in place of the system's trust store."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


@functools.cache
def identity() -> ssl.SSLContext:
    """Make a server's context that a client with `trust` accepts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    return context


async def send_to_raw(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    timeout_ms: int = 20_000,
) -> Answer:
    """Send one receipt by https to a server that answers TCP with ``serve``."""
    served: list[asyncio.Task[None]] = []

    async def serve_to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.create_task(serve_to_the_end(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        talking(port, scheme="https", host="localhost", ssl_context=trust(), timeout_ms=timeout_ms) as client,
    ):
        outcome = await client.send([receipt(1)])
    # Each ends when the client has closed its connection: one that it forgot would keep the test waiting.
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*served, return_exceptions=True)
    return outcome


def flight(hello: bytes) -> bytes:
    """Return all that a sound server says to the client's first words."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    side = identity().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(hello)
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake ended too early")


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_an_outdated_version(version: str) -> None:
    """A server that speaks only TLS 1.0 or 1.1 gets no request."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        theirs.minimum_version = theirs.maximum_version = ssl.TLSVersion[version]
    theirs.set_ciphers("ALL:@SECLEVEL=0")
    async with (
        serving(acknowledge(1), tls=theirs) as server,
        talking(server.port, scheme="https", host="localhost", ssl_context=trust()) as client,
    ):
        outcome = await client.send([receipt(1)])
        assert isinstance(outcome, Outage)
        assert outcome.cause == "tls"
        assert not server.requests


def untrusted() -> dict[str, trustme.LeafCert]:
    """Certificates that each lack one thing to be trusted."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    return {
        # It only calls itself like a trusted one.
        "another authority": trustme.CA().issue_cert("localhost"),
        "expired": AUTHORITY.issue_cert("localhost", not_before=now - 2 * day, not_after=now - day),
        "not valid yet": AUTHORITY.issue_cert("localhost", not_before=now + day),
        "another host": AUTHORITY.issue_cert("localhost.example.com", "example.com"),
        "the address only": AUTHORITY.issue_cert("127.0.0.1"),
    }


@pytest.mark.parametrize("lacks", sorted(untrusted()))
async def test_a_certificate_that_is_not_to_be_trusted(lacks: str) -> None:
    """Of another authority, of another time or for another host: it is TLS that failed, and no request was made."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    untrusted()[lacks].configure_cert(theirs)
    async with (
        serving(acknowledge(1), tls=theirs) as server,
        talking(server.port, scheme="https", host="localhost", ssl_context=trust()) as client,
    ):
        outcome = await client.send([receipt(1)])
        assert isinstance(outcome, Outage)
        assert outcome.cause == "tls"
        assert not server.requests


async def test_a_handshake_cut_at_many_bytes() -> None:
    """Wherever the server ends the connection in the handshake, it is TLS that failed."""
    lengths: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = flight(await reader.read(65536))
        lengths.append(len(whole))
        writer.write(whole[: STEP * (len(lengths) - 1)])
        writer.write_eof()
        await reader.read()
        writer.close()

    causes = []
    while not lengths or STEP * len(lengths) < lengths[-1]:
        outcome = await send_to_raw(serve)
        assert isinstance(outcome, Outage)
        causes.append(outcome.cause)
    assert set(causes) == {"tls"}
    assert len(causes) > 10


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_a_handshake_that_hangs(share: float) -> None:
    """A server that falls silent in the handshake, or after its own part of it, is under the time limit."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = flight(await reader.read(65536))
        writer.write(whole[: int(share * len(whole))])
        while await reader.read(65536):
            pass
        writer.close()

    outcome = await send_to_raw(serve, timeout_ms=100)
    assert isinstance(outcome, Outage)
    assert outcome.cause == "timeout"


async def test_a_handshake_that_hangs_leaves_nothing_open() -> None:
    """When time is up in the handshake the connection is closed at once, not when its memory is collected."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        ended.set()
        writer.close()

    gc.disable()
    try:
        assert isinstance(await send_to_raw(serve, timeout_ms=100), Outage)
        assert ended.is_set()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x16\x03\x03\xff\xff" + bytes(70_000),
        bytes(100),
    ],
    ids=["plain-http", "an-alert", "a-giant-record", "zeros"],
)
async def test_nonsense_in_the_handshake(said: bytes) -> None:
    """What is no handshake is a TLS failure with a word on what came, and no credential was said."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65536))
        writer.write(said)
        writer.write_eof()
        while piece := await reader.read(65536):
            heard.extend(piece)
        writer.close()

    outcome = await send_to_raw(serve)
    assert isinstance(outcome, Outage)
    assert outcome.cause == "tls"
    assert b"_password" not in heard
    assert b"POST" not in heard
