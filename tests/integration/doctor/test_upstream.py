"""Each account's server: real names, ports, handshakes and certificates, each with its fault; nothing is ever sent."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trustme

from dlr_buffer.config import AccountSettings, Secret
from dlr_buffer.daemon.provision import upstream_settings
from dlr_buffer.doctor.findings import Level
from dlr_buffer.doctor.upstream import (
    Connect,
    client_of,
    connection_findings,
    left_out_finding,
    probe,
    reach,
    reach_all,
    resolve,
)
from dlr_buffer.simulator import Exchange, Simulator, SimulatorSettings
from dlr_buffer.smartswitch.client import SmartswitchClient
from dlr_buffer.smartswitch.reachability import Encryption, Reached
from tests.clocks import FakeClock
from tests.unit.doctor.findings_of import told

pytestmark = pytest.mark.anyio

AUTHORITY = trustme.CA()
NOW = dt.datetime.now(dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = dt.timedelta(days=1)


@pytest.fixture
def anyio_backend() -> str:
    """Run the tests on asyncio, as the program does."""
    return "asyncio"


def account(
    port: int, *, host: str = "localhost", scheme: str = "https", **changes: object
) -> AccountSettings:
    """An account whose server is on this machine."""
    url = f"{scheme}://{host}:{port}/api/dlr"
    settings = AccountSettings("default", url, Secret("canary-login"), Secret("canary-password"))
    return replace(settings, **changes)  # type: ignore[arg-type]


def trusting(authority: trustme.CA | None = AUTHORITY) -> Connect:
    """Make clients that trust ``authority`` instead of the system's store."""

    def connect(settings: AccountSettings) -> SmartswitchClient:
        context = ssl.create_default_context()
        if authority is not None:
            authority.configure_trust(context)
        upstream = replace(upstream_settings(settings), timeout_ms=20_000)
        return SmartswitchClient(upstream, FakeClock(NOW_MS), context)

    return connect


class Listener(asyncio.Protocol):
    """The server's side of a connection; a stream's reader would lose what came just before a reset."""

    def __init__(self) -> None:
        """Wait for one."""
        self.port = 0
        self.received = b""
        self.over = asyncio.Event()
        """Set when a connection that came about is gone."""

    def data_received(self, data: bytes) -> None:
        """Note it."""
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Be gone."""
        self.over.set()


@asynccontextmanager
async def listening(context: ssl.SSLContext | None) -> AsyncIterator[Listener]:
    """Take connections until they end."""
    listener = Listener()
    server = await asyncio.get_running_loop().create_server(lambda: listener, "127.0.0.1", 0, ssl=context)
    async with server:
        listener.port = server.sockets[0].getsockname()[1]
        yield listener


@asynccontextmanager
async def server(
    name: str = "localhost", *, ends: dt.timedelta = 90 * DAY, authority: trustme.CA = AUTHORITY
) -> AsyncIterator[Listener]:
    """Shake hands with a certificate for ``name``; what is received came after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=NOW + ends).configure_cert(context)
    async with listening(context) as served:
        yield served


async def test_a_sound_server() -> None:
    """Name, address, protocol and the days that the certificate is good for are told; no byte is sent."""
    async with server() as listener, asyncio.timeout(20):
        found = await reach(account(listener.port), NOW_MS, trusting())
        await listener.over.wait()
    assert told(found) == [("ok", "upstream-dns"), ("ok", "upstream-tls"), ("ok", "upstream-certificate")]
    assert "TLSv1.3" in found[1].what
    assert "localhost" in found[2].what
    assert "90 more days" in found[2].what or "89 more days" in found[2].what
    assert listener.received == b""


@pytest.mark.parametrize("days", [1, 20])
async def test_a_certificate_that_ends_soon(days: int) -> None:
    """Within three weeks of its end a certificate should have been renewed."""
    async with server(ends=days * DAY) as listener:
        found = await reach(account(listener.port), NOW_MS, trusting())
    assert told(found)[2] == ("warning", "upstream-certificate")


@pytest.mark.parametrize(
    ("name", "ends", "authority", "words"),
    [
        ("localhost", -DAY, AUTHORITY, "its certificate has expired"),
        ("other.example.com", DAY, AUTHORITY, "its certificate is for another host name"),
        ("localhost", 90 * DAY, trustme.CA(), "from an authority unknown here"),
    ],
)
async def test_a_certificate_that_is_not_to_be_trusted(
    name: str, ends: dt.timedelta, authority: trustme.CA, words: str
) -> None:
    """Expired, for another name, from somebody unknown: an error in plain words, and nothing is sent."""
    async with server(name, ends=ends, authority=authority) as listener:
        found = await reach(account(listener.port), NOW_MS, trusting())
    assert told(found) == [("ok", "upstream-dns"), ("error", "upstream-tls")]
    assert words in found[1].what
    assert listener.received == b""


async def test_a_port_that_speaks_no_tls() -> None:
    """A plain HTTP server behind an https URL."""
    async with Simulator(SimulatorSettings()) as stand_in:
        port = int(stand_in.url.rpartition(":")[2].partition("/")[0])
        found = await reach(account(port), NOW_MS, trusting())
    assert told(found)[-1] == ("error", "upstream-tls")


async def test_a_port_that_nobody_listens_at() -> None:
    """A refused connection is told with its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        found = await reach(account(port, host="127.0.0.1"), NOW_MS, trusting())
    assert told(found) == [("error", "upstream-connect")]
    assert f"127.0.0.1:{port} refused the connection" in found[0].what


async def test_a_server_that_never_shakes_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is bounded, and what did not come about is told."""
    monkeypatch.setattr("dlr_buffer.doctor.upstream.PATIENCE_MS", 50)
    async with listening(None) as listener, asyncio.timeout(20):
        found = await reach(account(listener.port, host="127.0.0.1"), NOW_MS, client_of)
        await listener.over.wait()
    assert told(found) == [("error", "upstream-connect")]
    assert "could not be connected to within 0.05 s" in found[0].what
    assert b"canary" not in listener.received


async def test_a_proxy_is_what_has_to_be_reached() -> None:
    """Behind a proxy the server's name need not be known here; a proxy that is not there is told as such."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        behind = account(443, host="no-such-host.invalid", proxy=proxy)
        found = await reach(behind, NOW_MS, client_of)
    assert told(found) == [("error", "upstream-connect")]
    assert f"the proxy {proxy.removeprefix('http://')} refused the connection" in found[0].what
    reached = Reached("127.0.0.1", Encryption("TLSv1.3", "x", "unknown", (), None))
    (finding,) = connection_findings(behind, reached, NOW_MS)
    assert "its server through the proxy 127.0.0.1" in finding.what


async def test_a_name_that_nobody_has() -> None:
    """A host that can't be resolved (RFC 6761 promises that .invalid never can) is told, with how to look."""
    found = await reach(account(443, host="no-such-host.invalid"), NOW_MS, trusting())
    assert told(found) == [("error", "upstream-dns")]
    assert "no-such-host.invalid" in found[0].what


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that takes for ever is given up."""
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> list[object]:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return []

    monkeypatch.setattr("dlr_buffer.doctor.upstream.socket.getaddrinfo", hang)
    assert await resolve("example.com", patience_ms=1) == "no answer within 0.001 s"
    release.set()


async def test_all_accounts_are_tried_at_once() -> None:
    """Findings come in the accounts' order, and one account's fault is its own."""
    async with server() as listener:
        accounts = [
            replace(account(1, host="127.0.0.1"), name="first"),
            replace(account(listener.port), name="second"),
        ]
        found = await reach_all(accounts, NOW_MS, trusting())
    assert told(found[0]) == [("error", "upstream-connect")]
    assert [level for level, _ in told(found[1])] == ["ok"] * 3
    assert "first" in found[0][0].what
    assert "second" in found[1][0].what


def test_without_tls() -> None:
    """On this machine that is well, to another one it is a warning."""
    reached = Reached("127.0.0.1", None)
    assert told(connection_findings(account(80, scheme="http"), reached, NOW_MS)) == [("ok", "upstream-tls")]
    open_to_all = account(80, scheme="http", host="example.com", allow_http=True)
    assert told(connection_findings(open_to_all, reached, NOW_MS)) == [("warning", "upstream-tls")]
    silent = Reached("127.0.0.1", Encryption("TLSv1.3", "x", "unknown", (), None))
    assert told(connection_findings(account(443), silent, NOW_MS)) == [("ok", "upstream-tls")]
    assert told([left_out_finding([account(443)])]) == [("note", "upstream")]


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        (SimulatorSettings("canary-login", "canary-password"), Level.OK, "takes login and password"),
        (
            SimulatorSettings("canary-login", "canary-password", known_ids=frozenset(), unknown_ids="refuse"),
            Level.OK,
            "did not complain of login and password",
        ),
        (SimulatorSettings("canary-login", "another"), Level.ERROR, "refuses login or password"),
        (SimulatorSettings("canary-login", "canary-password", always_status=503), Level.ERROR, "503"),
        (SimulatorSettings("canary-login", "canary-password", always_status=414), Level.ERROR, "414"),
    ],
)
async def test_a_probe(settings: SimulatorSettings, level: Level, words: str) -> None:
    """One receipt for a made-up message tells right credentials from wrong ones, and is all that is sent."""
    seen: list[Exchange] = []
    async with Simulator(settings, on_exchange=seen.append) as stand_in:
        found = await probe(replace(account(1), url=stand_in.url))
    assert told([found]) == [(level.value, "upstream-probe")]
    assert words in found.what
    assert "canary" not in found.what + (found.remedy or "")
    assert len(seen) == 1
    for receipt in seen[0].receipts:
        assert (receipt.message_state, receipt.request_id) == ("enroute", "0")
        assert receipt.message_id.startswith("dlr-buffer-doctor-")


async def test_a_probe_without_an_answer() -> None:
    """A server that is not there says nothing of the credentials."""
    found = await probe(account(1, host="127.0.0.1"), trusting())
    assert told([found]) == [("error", "upstream-probe")]
