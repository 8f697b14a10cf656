"""Answers without end: each is cut off by size or by time, and the daemon's memory does not follow them."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.acceptance.harness import Site, eventually
from tests.acceptance.upstream.memory import peak_kib
from tests.acceptance.upstream.raw_server import Asked, Misbehave, RawServer
from tests.integration.smartswitch.misconduct import good_body

GIBIBYTE = 1024**3
PIECE = 65_536
ACCOUNTS = ("default", "b", "c", "d")
"""Several, so that several endless answers come at a time."""
BOUND_KIB = 64 * 1024
"""By how much the daemon's memory may grow at most: four answers of 4 MiB, and what Python makes of them."""
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def without_end(begin: bytes, again: bytes, *, at_most: int = GIBIBYTE) -> Misbehave:
    """Send ``begin``, then ``again`` and again, up to 1 GiB."""
    piece = again * (PIECE // len(again) + 1)

    async def misbehave(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        for _ in range(at_most // len(piece)):
            writer.write(piece)
            await writer.drain()

    return misbehave


async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Send a good answer so slowly that it never ends in time, though no pause is long."""
    body = good_body(asked.ids)
    for byte in HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


ENDLESS: dict[str, Misbehave] = {
    "body": without_end(HEAD + b"\r\n", b" "),
    "announced body": without_end(HEAD + b"Content-Length: 1073741824\r\n\r\n", b" "),
    "text": without_end(HEAD + b'\r\n{"data":[{"attributes":{"status":"', b"ok"),
    "body of an error": without_end(b"HTTP/1.1 404 No\r\n\r\n", b"<p>"),
    "chunks": without_end(CHUNKED, b"10000\r\n" + b" " * 65_536 + b"\r\n"),
    "smallest chunks": without_end(CHUNKED, b"1\r\n \r\n"),
    "one chunk": without_end(CHUNKED + b"40000000\r\n", b" "),
    "chunk size": without_end(CHUNKED, b"0"),
    "chunk extension": without_end(CHUNKED + b"1;", b"a"),
    "trailers": without_end(CHUNKED + b"0\r\n", b"A: b\r\n"),
    "headers": without_end(HEAD, b"A: b\r\n"),
    "header": without_end(HEAD + b"A: ", b"b"),
    "folded header": without_end(HEAD + b"A: b\r\n", b" b\r\n"),
    "status line": without_end(b"HTTP/1.1 200 ", b"O"),
    "interim answers": without_end(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "empty lines": without_end(b"", b"\r\n"),
    "values": without_end(HEAD + b'\r\n{"data":[', b"{},", at_most=4 * 1024**2 - 200_000),
    "numbers": without_end(HEAD + b'\r\n{"data":[', b"1,", at_most=300_000),
    "depth": without_end(HEAD + b"\r\n", b"[", at_most=4 * 1024**2 - 200_000),
    "drip": drip,
}


@pytest.mark.timeout(180)
def test_endless_answers(site: Site) -> None:
    """Four accounts get endless answers at once: memory stays bounded, nothing counts, then everything goes out."""
    script = [ENDLESS[kind] for kind in ENDLESS for _ in range(2)]
    with RawServer(*script) as server:
        site.configure(
            server.url(),
            account={"timeout": "400ms"},
            retry={"initial": "1ms", "max": "5ms"},
            others={name: {"url": server.url(), "timeout": "400ms"} for name in ACCOUNTS[1:]},
        )
        daemon = site.start()
        before = peak_kib(daemon.pid)
        with site.client() as app:
            app.report_many(
                [
                    {"message_id": f"m{number}", "message_state": "delivered", "account": account}
                    for account, number in itertools.product(ACCOUNTS, range(5))
                ]
            )
        server.wait_for_the_end_of_the_script()
        counts = site.ask("GET", "/v1/status")["accounts"]
        assert [account["receipts"]["pending"] for account in counts] == [5] * len(ACCOUNTS)

        server.mend()
        eventually(
            lambda: [
                account["receipts"]["acknowledged"] for account in site.ask("GET", "/v1/status")["accounts"]
            ],
            lambda acknowledged: acknowledged == [5] * len(ACCOUNTS),
        )
        grown = peak_kib(daemon.pid) - before
        assert grown < BOUND_KIB, f"the daemon's memory grew by {grown} KiB"
        assert daemon.terminate() == 0
