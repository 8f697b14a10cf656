"""The daemon and servers whose TLS is not to be trusted, then one that is: no request before that."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import warnings
from contextlib import ExitStack

import trustme

from tests.acceptance.harness import Site
from tests.acceptance.test_09_secrets import LOGIN, PASSWORD, check_clean
from tests.acceptance.upstream.raw_server import Greet, RawServer

BADLY_GREETED = 2
"""How many connections of each account meet bad TLS."""


def showing(certificate: trustme.LeafCert, authority: trustme.CA | None = None) -> ssl.SSLContext:
    """Make a server's context with this certificate; ``authority`` is sent along."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = certificate.private_key_and_cert_chain_pem.bytes()
    with trustme.Blob(chain + (authority.cert_pem.bytes() if authority else b"")).tempfile() as path:
        context.load_cert_chain(path)
    return context


def outdated(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let it speak nothing newer than TLS 1.1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def handshake(context: ssl.SSLContext) -> Greet:
    """Begin TLS."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(context)

    return greet


def say(raw: bytes, heard: bytearray) -> Greet:
    """Say something else than TLS, then nothing until the client goes; what it says comes to ``heard``."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if raw:
            writer.write_eof()
        while piece := await reader.read(65536):
            heard.extend(piece)
        raise ConnectionError

    return greet


def test_no_request_goes_over_tls_that_is_not_to_be_trusted(site: Site) -> None:
    """Each failure of TLS is an outage that is told; nothing is sent or lost; then the same daemon delivers."""
    authority, stranger = trustme.CA(), trustme.CA()
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    good = authority.issue_cert("localhost")
    expired = authority.issue_cert("localhost", not_before=past - dt.timedelta(days=1), not_after=past)
    early = authority.issue_cert("localhost", not_before=past + dt.timedelta(days=2))
    heard = bytearray()
    bad: dict[str, Greet] = {
        "has expired": handshake(showing(expired)),
        "not valid yet": handshake(showing(early)),
        "another host": handshake(showing(authority.issue_cert("example.com", "127.0.0.1"))),
        "authority unknown": handshake(showing(stranger.issue_cert("localhost"))),
        "self-signed": handshake(showing(stranger.issue_cert("localhost"), stranger)),
        "is this a TLS port?": say(b"HTTP/1.1 400 Bad Request\r\n\r\n", heard),
        "broke off": handshake(outdated(showing(good))),
        "no complete answer within": say(b"", heard),
    }
    trusted = site.folder / "authority.pem"
    trusted.write_bytes(authority.cert_pem.bytes())
    with ExitStack() as stack:
        servers = [
            stack.enter_context(RawServer(greetings=(*[greet] * BADLY_GREETED, handshake(showing(good)))))
            for greet in bad.values()
        ]
        accounts = {
            f"a{number}": {
                "url": server.url("https", "localhost"),
                "timeout": "500ms",
                "concurrency": 1,
                "login": LOGIN,
            }
            for number, server in enumerate(servers)
        }
        site.configure(others=accounts, tables={"log": {"level": "debug"}}, password=PASSWORD)
        daemon = site.start(SSL_CERT_FILE=str(trusted))
        with site.client() as app:
            app.report_many(
                [{"message_id": "m", "message_state": "delivered", "account": each} for each in accounts]
            )
        for server in servers:
            server.wait_for_the_last_greeting()
            server.mend()
        for name in accounts:
            site.wait_for_account(lambda account: account["receipts"]["acknowledged"] == 1, name)
        assert [len(server.acknowledged) for server in servers] == [1] * len(bad)
        for server, words in zip(servers, bad, strict=True):
            assert all(asked.connection >= BADLY_GREETED for asked in server.asked), words
        assert heard
        assert b"POST" not in heard
        check_clean("what was said before TLS", bytes(heard))
        assert daemon.terminate() == 0
    log = site.log.read_text("utf-8").splitlines()
    for name, words in zip(accounts, bad, strict=True):
        assert any(f"account {name}: " in line and words in line for line in log), words
    for path in (site.log, site.database):
        check_clean(path.name, path.read_bytes())
