"""The HTTP client of one account: sends a batch, and says what came of it.

Only it and its transport know httpx. It makes the bytes of the request, holds the time limit, cuts off what is
too long, and translates every failure once, into an `Outage` whose text names the host and what failed and
nothing else. What the answer says is read in `answers`.

httpx is used without its client: that would keep cookies, log a line per request, and prepare to follow
redirects, whereas here only one request goes to one place. The query is given to the transport (`transport`) as
the raw request target, so httpx's own URL, and with it its exceptions, never holds the credentials.

An answer belongs to the request before it: after an outage, which may have been meant for another request, the
connection is not used again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from dlr_buffer import __version__
from dlr_buffer.clock import Clock
from dlr_buffer.receipts import Receipt
from dlr_buffer.smartswitch import wire
from dlr_buffer.smartswitch.answers import Answer, HttpAnswer, Outage, classify
from dlr_buffer.smartswitch.redaction import redactor
from dlr_buffer.smartswitch.transport import CutShort, HandshakeBrokenOff, NoAnswer, Transport

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""An answer longer than this is cut off (DESIGN §4)."""

_HEADERS = {
    "User-Agent": f"dlr-buffer/{__version__}",
    "Accept": "application/vnd.api+json, application/json",
    "Accept-Encoding": "identity",
}
# OpenSSL's X509_V_ERR_*: see openssl-verification-options(1).
_TLS_NOT_YET_VALID = 9
_TLS_EXPIRED = 10
_TLS_SELF_SIGNED = (18, 19)
_TLS_UNKNOWN_ISSUER = (2, 20, 21)
_TLS_WRONG_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where and how to send; ``form``: arguments go in the body; ``timeout_ms``: for the whole exchange."""

    url: str
    login: str = field(repr=False)
    password: str = field(repr=False)
    form: bool
    timeout_ms: int
    concurrency: int

    @property
    def overhead(self) -> int:
        """Bytes of a request besides its receipts: take it off the limit to get `wire.fitting`'s budget."""
        return wire.overhead(None if self.form else wire.target_path(self.url), self.login, self.password)


class SmartswitchClient:
    """Sends receipts of one account, over at most ``concurrency`` connections that are kept alive."""

    def __init__(
        self, settings: UpstreamSettings, clock: Clock, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Connect to nothing yet; ``ssl_context`` stands in for the system's trust store."""
        parts = urlsplit(settings.url)
        self._path = wire.target_path(settings.url)
        self._origin = httpx.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, path="/")
        self._peer = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._settings = settings
        self._clock = clock
        self._redact = redactor(settings.login, settings.password)
        if parts.scheme != "https":
            ssl_context = None  # loading the system's certificates takes memory: only who speaks TLS pays
        else:
            ssl_context = ssl_context or ssl.create_default_context()
            ssl_context.set_alpn_protocols(["http/1.1"])
        self._places = asyncio.Semaphore(settings.concurrency)
        self._transport = Transport(ssl_context)

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        """Send ``receipts`` (at least one) in one request and say what came of it.

        Raises nothing but CancelledError; every failure is an `Outage`. The request may have reached
        Smartswitch whatever the outcome.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000), self._places:
                return await self._exchange(receipts)
        except TimeoutError:
            seconds = self._settings.timeout_ms / 1000
            return Outage("timeout", f"{self._peer} gave no complete answer within {seconds:g} s")
        except Exception as error:  # noqa: BLE001 - whatever httpx raises is translated here
            return self._outage(error)

    async def aclose(self) -> None:
        """Close the connections; nothing may be under way."""
        await self._transport.aclose()

    def _request(self, receipts: Sequence[Receipt]) -> httpx.Request:
        pairs = wire.encode_query(receipts, self._settings.login, self._settings.password)
        headers, target, body = _HEADERS, self._path, b""
        if self._settings.form:
            headers = {**_HEADERS, "Content-Type": "application/x-www-form-urlencoded"}
            body = pairs.encode("ascii")
        else:
            target = f"{self._path}?{pairs}"
        extensions = {"target": target.encode("ascii")}
        return httpx.Request("POST", self._origin, headers=headers, content=body, extensions=extensions)

    async def _exchange(self, receipts: Sequence[Receipt]) -> Answer:
        request = self._request(receipts)
        response = await self._transport.handle_async_request(request)
        try:
            body, fault = await self._read(response)
            http = HttpAnswer(
                response.status_code, response.reason_phrase, response.headers.get("Retry-After"), body, fault
            )
            asked = [receipt.request_id for receipt in receipts]
            answer = classify(http, asked, now_ms=self._clock.now_ms(), redact=self._redact)
            if isinstance(answer, Outage):
                # What comes on it next may be the answer to another request.
                response.extensions["connection"].abort()
        finally:
            await response.aclose()
        return answer

    async def _read(self, response: httpx.Response) -> tuple[bytes, Outage | None]:
        """Return the body, or what was wrong with it: the status alone may still say what has to be done."""
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            return b"", Outage(
                "protocol", f"{self._peer} answered with a Content-Encoding that was not asked for"
            )
        body = bytearray()
        try:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    limit = MAX_ANSWER_BYTES // 1024**2
                    return b"", Outage("too-long", f"{self._peer} sent an answer of more than {limit} MiB")
        except (httpx.HTTPError, ssl.SSLError) as error:
            return b"", self._outage(error, in_body=True)
        return bytes(body), None

    def _outage(self, error: Exception, *, in_body: bool = False) -> Outage:
        """Translate a foreign exception. Its text is never taken over: h11's quote what the server sent."""
        if isinstance(error, HandshakeBrokenOff):
            return Outage("tls", f"{self._peer} broke off the TLS handshake")
        for root in _roots(error):
            match root:
                case ssl.SSLWantReadError() | ssl.SSLWantWriteError():
                    pass  # no failure: how OpenSSL waits, left over in the context of the real one
                case ssl.SSLError():
                    return Outage("tls", f"TLS with {self._peer} failed: {_tls_reason(root)}")
                case socket.gaierror():
                    return Outage("dns", f"the name in {self._peer} cannot be resolved: {root.strerror}")
                case ConnectionRefusedError():
                    return Outage("refused", f"{self._peer} refused the connection")
                case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
                    return Outage("reset", f"{self._peer} broke off the connection")
                case TimeoutError():
                    return Outage("timeout", f"the connection with {self._peer} timed out")
                case OSError(errno=int(number)):
                    return Outage("unreachable", f"{self._peer} cannot be reached: {os.strerror(number)}")
                case _:
                    pass  # a wrapper: what it wraps came before, or what wraps it comes next
        return self._outage_by_kind(error, in_body=in_body)

    def _outage_by_kind(self, error: Exception, *, in_body: bool) -> Outage:
        """Translate an exception with nothing behind it: httpx's own, and the unforeseen."""
        match error:
            case CutShort():
                return Outage("truncated", f"{self._peer} broke off in the middle of an answer")
            case NoAnswer():
                return Outage("reset", f"{self._peer} closed the connection without a complete answer")
            case httpx.ProtocolError():
                part = "body" if in_body else "head"
                return Outage("protocol", f"the {part} of the answer of {self._peer} is not valid HTTP/1.1")
            case httpx.NetworkError():
                return Outage("reset", f"{self._peer} broke off the connection")
            case _:
                return Outage("protocol", f"the exchange with {self._peer} failed ({type(error).__name__})")


def _roots(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exceptions behind ``error``, those of a group included, the innermost first."""
    if error is None:
        return
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _roots(member)
    yield from _roots(error.__cause__ or error.__context__)
    yield error


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "it broke off the handshake"
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.reason or 'no common protocol'} (is this a TLS port?)"
    code = error.verify_code
    if code == _TLS_EXPIRED:
        return "its certificate has expired"
    if code == _TLS_NOT_YET_VALID:
        return "its certificate is not valid yet (is this machine's clock right?)"
    if code in _TLS_WRONG_NAME:
        return "its certificate is for another host name"
    if code in _TLS_SELF_SIGNED:
        return "its certificate is self-signed; add its authority to the system's trust store"
    if code in _TLS_UNKNOWN_ISSUER:
        return "its certificate is from an authority unknown here; add that to the system's trust store"
    return f"its certificate is not accepted: {error.verify_message}"
