"""Through a proxy: it makes tunnels and learns nothing; whatever it does else is an outage that names it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
import trustme

from dlr_buffer.clock import SystemClock
from dlr_buffer.receipts import Acknowledged
from dlr_buffer.smartswitch.answers import Answer, Answered, Outage
from dlr_buffer.smartswitch.client import SmartswitchClient, UpstreamSettings
from dlr_buffer.smartswitch.transport import Proxy, Transport
from tests.integration.smartswitch.conftest import (
    ENOUGH_MS,
    LOGIN,
    PASSWORD,
    acknowledge,
    hang,
    receipt,
    serving,
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]

AUTHORITY = trustme.CA()
ACKNOWLEDGED = Answered((Acknowledged(1, "r1"),), (), 0)
USER = "user:sécret: canary"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class TunnelProxy:
    """A proxy for ``CONNECT`` that keeps what it was asked, and all bytes that went through it."""

    said: bytes = b""
    """What is answered instead of making a tunnel."""
    wants: str | None = None
    """The credentials that it asks for."""
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    passed: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.wants is not None and b64encode(self.wants.encode()) not in head:
                writer.write(
                    b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Negotiate\r\n"
                    b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
                )
            elif self.said:
                writer.write(self.said)
            else:
                await self._connect(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _connect(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = head.split(b" ")[1].rpartition(b":")
        there_reader, there_writer = await asyncio.open_connection(host.decode().strip("[]"), int(port))
        writer.write(ESTABLISHED)
        try:
            await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
        finally:
            there_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            self.passed += piece
            writer.write(piece)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def listening(greet: Greet) -> AsyncIterator[int]:
    """Serve TCP on loopback; yields the port."""
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxying(proxy: TunnelProxy) -> AsyncIterator[TunnelProxy]:
    """Run a proxy."""
    async with listening(proxy.serve) as proxy.port:
        yield proxy


@asynccontextmanager
async def talking(
    port: int, proxy: Proxy, *, timeout_ms: int = ENOUGH_MS, host: str = "localhost"
) -> AsyncIterator[SmartswitchClient]:
    """Open a client for https://localhost through ``proxy``."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    settings = UpstreamSettings(
        f"https://{host}:{port}/api/dlr",
        LOGIN,
        PASSWORD,
        form=False,
        timeout_ms=timeout_ms,
        concurrency=2,
        proxy=proxy,
    )
    client = SmartswitchClient(settings, SystemClock(), context)
    try:
        yield client
    finally:
        await client.aclose()


def identity(*names: str) -> ssl.SSLContext:
    """A server's context that the client trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*(names or ("localhost",))).configure_cert(context)
    return context


async def send_through(
    proxy: TunnelProxy, credentials: str | None = None, *, timeout_ms: int = ENOUGH_MS
) -> Answer:
    """Send one receipt to a sound server through ``proxy``."""
    async with (
        serving(acknowledge(1), tls=identity()) as server,
        proxying(proxy),
        talking(server.port, Proxy("127.0.0.1", proxy.port, credentials), timeout_ms=timeout_ms) as client,
    ):
        return await client.send([receipt(1)])


def failure(outcome: Answer) -> str:
    """Return what is said of an outage whose cause is the proxy; no credential is in it."""
    assert isinstance(outcome, Outage), outcome
    assert outcome.cause == "proxy", outcome
    assert "the proxy 127.0.0.1:" in outcome.detail, outcome
    assert "canary" not in outcome.detail
    return outcome.detail


# --- tunnels


async def test_a_tunnel_shows_nothing_to_the_proxy() -> None:
    """It is asked for host and port, without a path and without credentials, and all that passes is TLS."""
    async with (
        serving(acknowledge(1), acknowledge(2), tls=identity()) as server,
        proxying(TunnelProxy()) as proxy,
        talking(server.port, Proxy("127.0.0.1", proxy.port)) as client,
    ):
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
        assert isinstance(await client.send([receipt(2)]), Answered)
    (head,) = proxy.heads  # the tunnel is kept, as connections are
    assert head.split(b"\r\n")[0] == f"CONNECT localhost:{server.port} HTTP/1.1".encode()
    assert b"authorization" not in head.lower()
    assert quote(PASSWORD, safe="").encode() in server.requests[0]
    assert b"proxy" not in server.requests[0].lower()
    seen = (head + proxy.passed).lower()
    for shown in (
        LOGIN,
        PASSWORD,
        quote(LOGIN, safe=""),
        quote(PASSWORD, safe=""),
        "api/dlr",
        "message_id",
        "canary",
    ):
        assert shown.lower().encode() not in seen
    assert len(proxy.passed) > 1000


async def test_a_proxy_that_asks_for_a_login() -> None:
    """It gets user and password (UTF-8, with a colon in the password); the server behind it does not."""
    proxy = TunnelProxy(wants=USER)
    assert await send_through(proxy, USER) == ACKNOWLEDGED
    assert b"Proxy-Authorization: Basic " + b64encode(USER.encode()) + b"\r\n" in proxy.heads[0]


async def test_an_address_of_ipv6() -> None:
    """The server's address is in brackets, as everywhere in HTTP."""
    proxy = TunnelProxy(said=b"HTTP/1.1 403 No\r\n\r\n")
    async with proxying(proxy), talking(443, Proxy("127.0.0.1", proxy.port), host="[2001:db8::1]") as client:
        await client.send([receipt(1)])
    assert proxy.heads[0].startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")
    assert b"Host: [2001:db8::1]:443\r\n" in proxy.heads[0]


async def test_a_proxy_that_pries() -> None:
    """One that ends TLS itself, with a certificate of its own, gets no request."""
    heard = bytearray()

    async def pry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ESTABLISHED)
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost").configure_cert(own)
        try:
            await writer.start_tls(own)
            heard.extend(await reader.read())
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            writer.close()

    async with listening(pry) as port, talking(443, Proxy("127.0.0.1", port)) as client:
        outcome = await client.send([receipt(1)])
    assert isinstance(outcome, Outage)
    assert outcome.cause == "tls"
    assert "authority unknown" in outcome.detail
    assert not heard


async def test_the_server_behind_is_still_checked_by_its_name() -> None:
    """The certificate has to be the server's, not the proxy's."""
    async with (
        serving(acknowledge(1), tls=identity("127.0.0.1", "proxy.example.com")) as server,
        proxying(TunnelProxy()) as proxy,
        talking(server.port, Proxy("127.0.0.1", proxy.port)) as client,
    ):
        outcome = await client.send([receipt(1)])
    assert isinstance(outcome, Outage)
    assert "another host name" in outcome.detail
    assert not server.requests


async def test_the_environments_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the variables say, there is no connection to where they point."""
    async with proxying(TunnelProxy()) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        context = ssl.create_default_context()
        AUTHORITY.configure_trust(context)
        async with serving(acknowledge(1), tls=identity()) as server:
            url = f"https://localhost:{server.port}/"
            settings = UpstreamSettings(url, LOGIN, PASSWORD, form=False, timeout_ms=ENOUGH_MS, concurrency=1)
            client = SmartswitchClient(settings, SystemClock(), context)
            assert await client.send([receipt(1)]) == ACKNOWLEDGED
            await client.aclose()
        assert not proxy.heads


def test_without_tls_there_is_no_proxy() -> None:
    """It would read every request: the configuration refuses that, and so does the transport."""
    with pytest.raises(ValueError, match="only https"):
        Transport(None, Proxy("127.0.0.1", 3128))


def test_the_credentials_are_not_shown() -> None:
    """Neither alone nor in the account's settings."""
    proxy = Proxy("127.0.0.1", 3128, USER)
    settings = UpstreamSettings(
        "https://h/", LOGIN, PASSWORD, form=False, timeout_ms=1, concurrency=1, proxy=proxy
    )
    assert "canary" not in f"{proxy!r} {proxy} {settings!r}"


# --- failures


@pytest.mark.parametrize(
    ("credentials", "said"),
    [(None, "wants a login; write it into a file"), ("user:wrong canary", "does not take the login")],
)
async def test_a_login_that_is_missing_or_wrong(credentials: str | None, said: str) -> None:
    """407 says what is to be done about it."""
    detail = failure(await send_through(TunnelProxy(wants=USER), credentials))
    assert said in detail
    assert "proxy_credentials_file" in detail
    assert "407" in detail


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\n\r\n", "not by the scheme Basic"),
        (b"HTTP/1.1 403 canary\r\nContent-Length: 0\r\n\r\n", "does not allow connections with localhost:"),
        (b"HTTP/1.1 502 canary\r\n\r\n", "cannot reach localhost:"),
        (b"HTTP/1.1 504 canary\r\n\r\n", "cannot reach localhost:"),
        (b"HTTP/1.1 404 canary\r\n\r\n", "answered CONNECT with HTTP 404"),
        (b"HTTP/1.1 302 x\r\nLocation: http://canary/\r\n\r\n", "answered CONNECT with HTTP 302"),
        (ESTABLISHED + b"canary", "answered CONNECT with HTTP 200, and makes no tunnel"),
        (b"SSH-2.0-canary\r\n\r\n", "is not valid HTTP/1.1"),
        (b"HTTP/1.1 200 canary", "closed the connection without a complete answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"canary" * 50_000, "is not valid HTTP/1.1"),
    ],
    ids=["ntlm", "403", "502", "504", "404", "302", "talks", "ssh", "cut", "endless"],
)
async def test_what_a_proxy_may_answer_instead(answer: bytes, said: str) -> None:
    """Each is an outage that names the proxy and says what it did, without its own words."""
    assert said in failure(await send_through(TunnelProxy(said=answer)))


async def test_a_proxy_that_closes_resets_refuses_or_is_silent() -> None:
    """As for a server, but said of the proxy."""

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(close) as port, talking(443, Proxy("127.0.0.1", port)) as client:
        assert "connection" in failure(await client.send([receipt(1)]))
    async with listening(wait) as port, talking(443, Proxy("127.0.0.1", port), timeout_ms=100) as client:
        assert "gave no connection with localhost:443 within 0.1 s" in failure(
            await client.send([receipt(1)])
        )
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with talking(443, Proxy("127.0.0.1", nobody.getsockname()[1])) as client:
            assert failure(await client.send([receipt(1)])).endswith("refused the connection")
    async with talking(443, Proxy("proxy.invalid", 3128)) as client:
        outcome = await client.send([receipt(1)])
        assert isinstance(outcome, Outage)
        assert outcome.cause == "proxy"
        assert "the name in the proxy proxy.invalid:3128 cannot be resolved" in outcome.detail


async def test_a_server_that_is_silent_behind_the_proxy() -> None:
    """The tunnel stands, so that it is the server that is slow: a timeout, with a word on the way there."""
    async with (
        serving(hang(), tls=identity()) as server,
        proxying(TunnelProxy()) as proxy,
        talking(server.port, Proxy("127.0.0.1", proxy.port), timeout_ms=1000) as client,
    ):
        outcome = await client.send([receipt(1)])
    assert isinstance(outcome, Outage)
    assert outcome.cause == "timeout"
    assert f"no complete answer through the proxy 127.0.0.1:{proxy.port} within 1 s" in outcome.detail
