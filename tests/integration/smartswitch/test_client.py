"""The client against a raw server: the bytes on the wire, and every way an exchange may fail."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import logging
import socket
import ssl
import traceback
from urllib.parse import quote, quote_plus

import httpx
import pytest
import trustme

from dlr_buffer import __version__
from dlr_buffer.receipts import Acknowledged
from dlr_buffer.smartswitch import wire
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    Outage,
    RequestRefused,
    TooLarge,
)
from dlr_buffer.smartswitch.client import MAX_ANSWER_BYTES, SmartswitchClient, UpstreamSettings
from dlr_buffer.smartswitch.transport import Transport
from tests.integration.smartswitch.conftest import (
    LOGIN,
    PASSWORD,
    Act,
    acknowledge,
    answer,
    hang,
    receipt,
    reset,
    respond,
    serving,
    talking,
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]

AUTHORITY = trustme.CA()
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
ACKNOWLEDGED = Answered((Acknowledged(1, "r1"),), (), 0)
CANARIES = [
    spelled
    for secret in (LOGIN, PASSWORD)
    for spelled in (
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        quote(secret, safe="").lower(),
    )
]


async def send_to(*script: Act, timeout_ms: int = 20_000) -> Answer:
    """Send request 1 to a server with ``script``."""
    async with serving(*script) as server, talking(server.port, timeout_ms=timeout_ms) as client:
        return await client.send([receipt(1)])


def cause(outcome: Answer) -> str:
    """Return an outage's cause, after looking for credentials in its text."""
    assert isinstance(outcome, Outage), outcome
    assert not any(canary in outcome.detail for canary in CANARIES)
    return outcome.cause


# --- the request


async def test_the_bytes_of_a_request() -> None:
    """The request line is the seed's, the headers are those of DESIGN §4, and there are no others."""
    async with (
        serving(acknowledge(1, 2)) as server,
        talking(server.port, login="LOGIN", password="PASSWORD") as client,
    ):
        outcome = await client.send([receipt(1), receipt(2, "1561370632522")])
    assert outcome == Answered((Acknowledged(1, "r1"), Acknowledged(2, "r2")), (), 0)
    line, *headers = server.requests[0].decode().split("\r\n")
    assert line == (
        "POST /api/dlr?message_id=1561370632513&message_state=delivered&request_id=1"
        "&message_id=1561370632522&message_state=delivered&request_id=2"
        "&_login=LOGIN&_password=PASSWORD HTTP/1.1"
    )
    assert sorted(headers) == sorted(
        [
            f"Host: 127.0.0.1:{server.port}",
            f"User-Agent: dlr-buffer/{__version__}",
            "Accept: application/vnd.api+json, application/json",
            "Accept-Encoding: identity",
            "Content-Length: 0",
            "",
            "",
        ]
    )


async def test_nothing_is_encoded_twice_or_left_raw() -> None:
    """What wire built is what arrives, for characters that an HTTP library would treat its own way."""
    odd = receipt(1, "a b+c%41/'ä|[]\"")
    async with serving(acknowledge(1)) as server, talking(server.port) as client:
        await client.send([odd])
    target = server.requests[0].split(b" ")[1].decode()
    assert target == "/api/dlr?" + wire.encode_query([odd], LOGIN, PASSWORD)
    settings = UpstreamSettings(
        "http://127.0.0.1/api/dlr", LOGIN, PASSWORD, form=False, timeout_ms=1000, concurrency=1
    )
    assert len(target) == settings.overhead + wire.encoded_length(odd)


async def test_form_mode_puts_the_pairs_into_the_body() -> None:
    """With a form the request line is bare, and the body and its length are the pairs'."""
    async with serving(acknowledge(1)) as server, talking(server.port, form=True) as client:
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/dlr HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/x-www-form-urlencoded" in head
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert body.decode() == wire.encode_query([receipt(1)], LOGIN, PASSWORD)
    settings = UpstreamSettings(
        "http://127.0.0.1/api/dlr", LOGIN, PASSWORD, form=True, timeout_ms=1000, concurrency=1
    )
    assert len(body) == settings.overhead + wire.encoded_length(receipt(1))


async def test_the_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment (here a dead port) is not used."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert await send_to(acknowledge(1)) == ACKNOWLEDGED


async def test_cookies_are_not_kept() -> None:
    """A cookie that the server sets does not come back."""
    first = answer('{"errors":[{"code":"x"}]}', headers="Set-Cookie: session=1; Path=/\r\n")
    async with serving(first, acknowledge(1)) as server, talking(server.port) as client:
        await client.send([receipt(1)])
        await client.send([receipt(1)])
    assert b"cookie" not in server.requests[1].lower()


# --- connections


async def test_a_connection_is_kept_alive() -> None:
    """Requests one after another share a connection."""
    async with serving(acknowledge(1), acknowledge(1)) as server, talking(server.port) as client:
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
    assert server.connections == 1


async def test_a_connection_closed_between_requests_is_no_outage() -> None:
    """The server may close an idle connection: the next request takes a new one."""
    last_words = answer('{"data":{"attributes":{"status":"ok"},"id":"r1","request_id":1}}', close=True)
    async with serving(last_words, acknowledge(1)) as server, talking(server.port) as client:
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
        await server.writers[0].wait_closed()
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
    assert server.connections == 2


async def test_not_more_connections_than_allowed() -> None:
    """Six sends at once over two connections all get their answers."""
    script = [acknowledge(1, 2, 3, 4, 5, 6) for _ in range(6)]
    async with serving(*script) as server, talking(server.port, concurrency=2) as client:
        outcomes = await asyncio.gather(*(client.send([receipt(i)]) for i in range(1, 7)))
    assert all(isinstance(outcome, Answered) and len(outcome.acknowledged) == 1 for outcome in outcomes)
    assert server.connections <= 2


@pytest.mark.parametrize(
    "failing",
    [
        reset(),
        respond(OK_HEAD + b"{", close=True),
        answer(b"x" * (MAX_ANSWER_BYTES + 1)),
        respond(b"no HTTP\r\n\r\n"),
    ],
    ids=["reset", "truncated", "too-long", "protocol"],
)
async def test_the_client_works_on_after_a_failure(failing: Act) -> None:
    """A failed exchange leaves no broken connection behind and takes no place in the pool."""
    async with (
        serving(failing, failing, acknowledge(1)) as server,
        talking(server.port, concurrency=1) as client,
    ):
        assert isinstance(await client.send([receipt(1)]), Outage)
        assert isinstance(await client.send([receipt(1)]), Outage)
        assert await client.send([receipt(1)]) == ACKNOWLEDGED
    gc.collect()


# --- no answer


async def test_a_refused_connection() -> None:
    """Nobody listens: the outage names host and port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with talking(port) as client:
            outcome = await client.send([receipt(1)])
    assert outcome == Outage("refused", f"127.0.0.1:{port} refused the connection")


async def test_a_name_that_does_not_resolve() -> None:
    """An unknown host is told as such (.invalid never resolves, RFC 6761)."""
    async with talking(80, host="smartswitch.invalid") as client:
        outcome = await client.send([receipt(1)])
    assert cause(outcome) == "dns"


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nConte", OK_HEAD, OK_HEAD + b'{"data"']
)
async def test_a_reset(sent: bytes) -> None:
    """A TCP reset before, in and after the head is a reset."""
    assert cause(await send_to(reset(sent))) == "reset"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", "reset"),
        (b"HTTP/1.1 200", "reset"),
        (b"HTTP/1.1 200 OK\r\nConte", "reset"),
        (OK_HEAD, "truncated"),
        (OK_HEAD + b'{"data"', "truncated"),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"da', "truncated"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": ', "not-json"),
    ],
)
async def test_a_connection_closed_too_early(sent: bytes, expected: str) -> None:
    """An end before the answer is a reset, one within the body is a truncated answer."""
    assert cause(await send_to(respond(sent, close=True))) == expected


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nConte", OK_HEAD, OK_HEAD + b'{"data"']
)
async def test_a_server_that_hangs(sent: bytes) -> None:
    """Wherever the server stops, the time limit ends the exchange and the connection."""
    async with serving(hang(sent)) as server, talking(server.port, timeout_ms=80) as client:
        outcome = await client.send([receipt(1)])
        await server.closed.wait()
    assert outcome == Outage("timeout", f"127.0.0.1:{server.port} gave no complete answer within 0.08 s")


async def test_a_slow_drip_does_not_escape_the_time_limit() -> None:
    """A server that sends a byte again and again is cut off: the limit is for the whole exchange."""

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0)

    assert cause(await send_to(drip, timeout_ms=100)) == "timeout"


async def test_waiting_for_a_connection_counts() -> None:
    """Who waits for a place in the pool is under the same limit, and leaves the pool sound."""
    async with (
        serving(hang(), hang()) as server,
        talking(server.port, concurrency=1, timeout_ms=150) as client,
    ):
        outcomes = await asyncio.gather(client.send([receipt(1)]), client.send([receipt(2)]))
        assert [cause(outcome) for outcome in outcomes] == ["timeout", "timeout"]
        server.script[:] = [acknowledge(1)]
        assert await client.send([receipt(1)]) == ACKNOWLEDGED


async def test_a_cancellation_from_outside_passes() -> None:
    """Cancelling the sender raises CancelledError (no outage), and the connection is ended."""
    async with (
        serving(hang(OK_HEAD), acknowledge(1)) as server,
        talking(server.port, concurrency=1) as client,
    ):
        task = asyncio.create_task(client.send([receipt(1)]))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.closed.wait()
        assert await client.send([receipt(1)]) == ACKNOWLEDGED


# --- strange answers


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"220 mail.example.com ESMTP\r\n\r\n", "protocol"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "protocol"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", "not-json"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "not-json"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "neither"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "http-503"),
    ],
)
async def test_strange_answers_are_outages(raw: bytes, expected: str) -> None:
    """What is no HTTP, lies about its length or is encoded is an outage with a telling cause."""
    assert cause(await send_to(respond(raw, close=True))) == expected


async def test_sound_answers_in_other_dress() -> None:
    """Chunks, interim answers and a body that ends with the connection are understood."""
    body = b'{"data":{"attributes":{"status":"ok"},"id":"r1","meta":{"request_id":"1"}}}'
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    raws = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        b"HTTP/1.0 200 OK\r\nContent-Encoding: identity\r\n\r\n" + body,
    ]
    for raw in raws:
        assert await send_to(respond(raw, close=True)) == ACKNOWLEDGED


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (5 * 1024**2), "too-long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b" " * (5 * 1024**2), "too-long"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", "protocol"),
    ],
    ids=["endless", "announced", "gzip"],
)
async def test_an_answer_that_is_not_read_to_its_end_is_cut_off(raw: bytes, expected: str) -> None:
    """What is too long or encoded ends the connection at once; the server may go on sending into the void."""
    async with serving(hang(raw)) as server, talking(server.port) as client:
        assert cause(await client.send([receipt(1)])) == expected
        await server.closed.wait()


async def test_four_mebibytes_are_not_too_long() -> None:
    """The limit itself is still read."""
    body = b'{"data":{"attributes":{"status":"ok"},"id":"r1","request_id":1}}'
    assert await send_to(answer(body + b" " * (MAX_ANSWER_BYTES - len(body)))) == ACKNOWLEDGED


async def test_the_status_counts_though_the_body_breaks_off() -> None:
    """Servers answer 413 and reset the connection: that is still a 413."""
    head = "HTTP/1.1 {}\r\nContent-Length: 100\r\nRetry-After: 9\r\n\r\n<html>"
    assert await send_to(respond(head.format("413 Large").encode(), close=True)) == TooLarge(413)
    forbidden = await send_to(respond(head.format("403 Forbidden").encode(), close=True))
    assert isinstance(forbidden, AuthenticationFailed)
    busy = await send_to(respond(head.format("503 Busy").encode(), close=True))
    assert busy == Outage("http-503", "HTTP 503 (Busy)", 9000)


async def test_a_wrong_url_is_a_refusal() -> None:
    """The HTML page of a 404 refuses the request, with status and page."""
    outcome = await send_to(answer("<h1>Not here</h1>", "404 Not Found"))
    assert isinstance(outcome, RequestRefused)
    assert (outcome.error.code, outcome.error.title) == ("http-404", "Not Found")
    assert outcome.error.detail == "<h1>Not here</h1>"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_never_followed(status: str) -> None:
    """The other server sees neither a request nor a connection."""
    async with serving() as other:
        location = f"Location: http://127.0.0.1:{other.port}/api/dlr\r\n"
        assert cause(await send_to(answer("", status, location))) == "redirect"
        assert other.connections == 0


async def test_a_redirect_to_nonsense() -> None:
    """A Location that is no URL at all is still only a redirect."""
    assert cause(await send_to(answer("", "302 Found", "Location: http://[::bad\r\n"))) == "redirect"


# --- TLS


async def test_tls_with_a_trusted_certificate() -> None:
    """A certificate of a trusted authority for the right name works."""
    assert await send_over_tls(AUTHORITY.issue_cert("localhost")) == ACKNOWLEDGED


async def test_an_expired_certificate() -> None:
    """The outage says that the certificate has expired."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    long_past = past - dt.timedelta(days=1)
    outcome = await send_over_tls(AUTHORITY.issue_cert("localhost", not_before=long_past, not_after=past))
    assert cause(outcome) == "tls"
    assert "has expired" in repr(outcome)


async def test_a_certificate_for_another_host() -> None:
    """The outage says that the name is wrong."""
    outcome = await send_over_tls(AUTHORITY.issue_cert("example.com"))
    assert cause(outcome) == "tls"
    assert "another host name" in repr(outcome)


async def test_a_certificate_nobody_vouches_for() -> None:
    """Without its authority the certificate is refused, and the outage says what to do."""
    outcome = await send_over_tls(AUTHORITY.issue_cert("localhost"), trusted=False)
    assert cause(outcome) == "tls"
    assert "add" in repr(outcome)
    assert "trust store" in repr(outcome)


async def test_a_self_signed_certificate() -> None:
    """An authority's own certificate, sent along and unknown here, is called self-signed."""
    leaf = AUTHORITY.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(
        leaf.private_key_and_cert_chain_pem.bytes() + AUTHORITY.cert_pem.bytes()
    ).tempfile() as path:
        context.load_cert_chain(path)
    strangers = ssl.create_default_context()
    async with (
        serving(acknowledge(1), tls=context) as server,
        talking(server.port, scheme="https", host="localhost", ssl_context=strangers) as client,
    ):
        outcome = await client.send([receipt(1)])
    assert cause(outcome) == "tls"
    assert "self-signed" in repr(outcome)


@pytest.mark.parametrize(("abruptly", "expected"), [(False, "tls"), (True, "reset")])
async def test_a_handshake_broken_off(*, abruptly: bool, expected: str) -> None:
    """A server that ends the connection in the handshake is said to break off, in people's words."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if abruptly:
            await reset()(reader, writer)
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server, talking(server.sockets[0].getsockname()[1], scheme="https") as client:
        outcome = await client.send([receipt(1)])
    assert cause(outcome) == expected
    assert "broke off" in repr(outcome)


async def test_tls_against_a_plain_port() -> None:
    """A server that speaks no TLS is a TLS failure, not a mystery."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server, talking(server.sockets[0].getsockname()[1], scheme="https") as client:
        assert cause(await client.send([receipt(1)])) == "tls"


@pytest.mark.parametrize(
    ("act", "expected"), [(reset(OK_HEAD), "reset"), (respond(OK_HEAD, close=True), "truncated")]
)
async def test_a_connection_broken_off_under_tls(act: Act, expected: str) -> None:
    """Within TLS a break in the answer has the same cause as without."""
    assert cause(await send_over_tls(AUTHORITY.issue_cert("localhost"), act=act)) == expected


async def send_over_tls(
    certificate: trustme.LeafCert, *, trusted: bool = True, act: Act | None = None
) -> Answer:
    """Send request 1 to https://localhost, whose server shows ``certificate``."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(theirs)
    ours = ssl.create_default_context()
    if trusted:
        AUTHORITY.configure_trust(ours)
    async with (
        serving(act or acknowledge(1), tls=theirs) as server,
        talking(server.port, scheme="https", host="localhost", ssl_context=ours) as client,
    ):
        return await client.send([receipt(1)])


# --- secrets


@pytest.mark.parametrize("form", [False, True])
async def test_no_log_holds_a_credential(caplog: pytest.LogCaptureFixture, *, form: bool) -> None:
    """At DEBUG for everything, with echoes in headers and bodies and failures of all kinds, no canary is logged."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
        caplog.set_level(logging.DEBUG, logger=name)
    query = wire.encode_query([receipt(1)], LOGIN, PASSWORD)
    echo = f"X-Echo: {query}\r\nLocation: /api/dlr?{query}\r\n"
    script = [
        acknowledge(1),
        answer(query, f"404 {query}", echo),
        answer(query, "302 Found", echo),
        respond(f"HTTP/1.1 {query}\r\n\r\n".encode(), close=True),
        respond(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{query}\r\n".encode(), close=True),
        reset(),
        hang(),
    ]
    async with serving(*script) as server, talking(server.port, form=form, timeout_ms=500) as client:
        outcomes = [await client.send([receipt(1)]) for _ in range(len(script))]
        shown = repr(client) + str(client)
    assert len(server.requests) == len(outcomes) == 7
    logging.getLogger("dlr_buffer").debug("the capture works")
    assert "the capture works" in caplog.text
    for text in (caplog.text, shown, *map(repr, outcomes)):
        assert not any(canary in text for canary in CANARIES)


@pytest.mark.parametrize("form", [False, True])
async def test_no_exception_of_httpx_holds_a_credential(
    monkeypatch: pytest.MonkeyPatch, *, form: bool
) -> None:
    """Whatever is raised while sending, with all that stands behind it, and the request itself, as they are printed."""
    shown: list[str] = []
    translate = SmartswitchClient._outage
    ask = Transport.handle_async_request

    def watch(self: SmartswitchClient, error: Exception, *, in_body: bool = False) -> Outage:
        shown.extend(traceback.format_exception(error))
        shown.append(repr(error))
        return translate(self, error, in_body=in_body)

    async def listen(self: Transport, request: httpx.Request) -> httpx.Response:
        shown.append(f"{request!r} {request.url!r} {request.url} {request.headers!r}")
        return await ask(self, request)

    monkeypatch.setattr(SmartswitchClient, "_outage", watch)
    monkeypatch.setattr(Transport, "handle_async_request", listen)
    query = wire.encode_query([receipt(1)], LOGIN, PASSWORD)
    script = [
        reset(),
        reset(OK_HEAD),
        respond(OK_HEAD, close=True),
        respond(b"", close=True),
        respond(f"HTTP/1.1 {query}\r\n\r\n".encode(), close=True),
        respond(f"HTTP/1.1 200 OK\r\nContent-Length: {query}\r\n\r\n".encode(), close=True),
        respond(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{query}\r\n".encode(), close=True),
    ]
    async with serving(*script) as server, talking(server.port, form=form) as client:
        for _ in script:
            assert isinstance(await client.send([receipt(1)]), Outage)
    async with talking(server.port, form=form) as client:
        assert isinstance(await client.send([receipt(1)]), Outage)
    assert sum("httpx." in each for each in shown) > len(script)
    # h11 quotes what the server said, and only the server here says a credential: so its text is never taken over.
    ours = [each for each in shown if "h11" not in each]
    assert len(ours) > 20
    for each in ours:
        assert not any(canary in each for canary in CANARIES), each


def test_the_settings_hide_the_credentials() -> None:
    """Neither repr nor str of the settings shows login or password."""
    settings = UpstreamSettings(
        "https://example.com/api/dlr", LOGIN, PASSWORD, form=False, timeout_ms=1000, concurrency=1
    )
    assert "canary" not in repr(settings) + str(settings)
