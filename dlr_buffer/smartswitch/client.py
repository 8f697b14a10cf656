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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from dlr_buffer import __version__
from dlr_buffer.clock import Clock
from dlr_buffer.receipts import Receipt
from dlr_buffer.smartswitch import wire
from dlr_buffer.smartswitch.answers import Answer, HttpAnswer, Outage, classify
from dlr_buffer.smartswitch.reachability import Reached
from dlr_buffer.smartswitch.redaction import redactor
from dlr_buffer.smartswitch.transport import (
    CutShort,
    HandshakeBrokenOff,
    NoAnswer,
    Progress,
    Proxy,
    ProxyFailed,
    Transport,
    TunnelRefused,
)

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
# OpenSSL's names of the alerts by which a server says what it thinks of our certificate (RFC 8446 §6.2).
_TLS_WANTS_CERTIFICATE = ("TLSV13_ALERT_CERTIFICATE_REQUIRED",)
_TLS_REFUSES_CERTIFICATE = (
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_ACCESS_DENIED",
)
_TLS_OTHER_VERSION = ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE")
_TRUST_IT = "add the authority to the system's trust store, or name it in tls.ca_file"
_PROXY_LOGIN = 407
_PROXY_FORBIDS = (401, 403)
_PROXY_UNREACHED = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where and how to send; ``form``: arguments go in the body; ``timeout_ms``: for the whole exchange.

    ``proxy`` is for an https URL only.
    """

    url: str
    login: str = field(repr=False)
    password: str = field(repr=False)
    form: bool
    timeout_ms: int
    concurrency: int
    proxy: Proxy | None = None

    @property
    def overhead(self) -> int:
        """Bytes of a request besides its receipts: take it off the limit to get `wire.fitting`'s budget."""
        return wire.overhead(None if self.form else wire.target_path(self.url), self.login, self.password)


class SmartswitchClient:
    """Sends receipts of one account, over at most ``concurrency`` connections that are kept alive."""

    def __init__(
        self,
        settings: UpstreamSettings,
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
        on_repeat: Callable[[int], None] | None = None,
    ) -> None:
        """Connect to nothing yet; ``ssl_context`` stands in for the system's trust store.

        ``on_repeat`` is told of so many receipts that went out once more over a new connection, since the server had
        closed the one that they went over first.
        """
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
        proxy = settings.proxy
        self._proxy = None if proxy is None else f"the proxy {proxy.host}:{proxy.port}"
        self._on_repeat = on_repeat
        self._transport = Transport(ssl_context, proxy)

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        """Send ``receipts`` (at least one) in one request and say what came of it.

        Raises nothing but CancelledError; every failure is an `Outage`. The request may have reached
        Smartswitch whatever the outcome.
        """
        progress = Progress()
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000), self._places:
                return await self._exchange(receipts, progress)
        except TimeoutError:
            return self._timed_out(progress)
        except Exception as error:  # noqa: BLE001 - whatever httpx raises is translated here
            return self._outage(error)
        finally:
            if progress.repeated and self._on_repeat is not None:
                self._on_repeat(len(receipts))

    async def reach(self) -> Reached | Outage:
        """Connect as for a request, TLS and all, and send nothing, neither login nor password.

        Raises nothing but CancelledError; every failure is an `Outage`, in the words of `send`.
        """
        progress = Progress()
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000), self._places:
                return await self._transport.reach(self._origin, progress)
        except TimeoutError:
            if self._proxy is not None and not progress.connected:
                return self._timed_out(progress)
            seconds = self._settings.timeout_ms / 1000
            return Outage("timeout", f"{self._peer} could not be connected to within {seconds:g} s")
        except Exception as error:  # noqa: BLE001 - whatever httpx raises is translated here
            return self._outage(error)

    async def aclose(self) -> None:
        """Close the connections; nothing may be under way."""
        await self._transport.aclose()

    def _request(self, receipts: Sequence[Receipt], progress: Progress) -> httpx.Request:
        pairs = wire.encode_query(receipts, self._settings.login, self._settings.password)
        headers, target, body = _HEADERS, self._path, b""
        if self._settings.form:
            headers = {**_HEADERS, "Content-Type": "application/x-www-form-urlencoded"}
            body = pairs.encode("ascii")
        else:
            target = f"{self._path}?{pairs}"
        extensions = {"target": target.encode("ascii"), "progress": progress}
        return httpx.Request("POST", self._origin, headers=headers, content=body, extensions=extensions)

    async def _exchange(self, receipts: Sequence[Receipt], progress: Progress) -> Answer:
        request = self._request(receipts, progress)
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

    def _timed_out(self, progress: Progress) -> Outage:
        seconds = self._settings.timeout_ms / 1000
        if self._proxy is None:
            return Outage("timeout", f"{self._peer} gave no complete answer within {seconds:g} s")
        if progress.connected:
            through = f"{self._peer} gave no complete answer through {self._proxy} within {seconds:g} s"
            return Outage("timeout", through)
        return Outage("proxy", f"{self._proxy} gave no connection with {self._peer} within {seconds:g} s")

    def _outage(self, error: Exception, *, in_body: bool = False) -> Outage:
        """Translate a foreign exception. Its text is never taken over: h11's quote what the server sent."""
        match error:
            case HandshakeBrokenOff():
                return Outage("tls", f"{self._peer} broke off the TLS handshake")
            case TunnelRefused():
                return Outage("proxy", f"{self._proxy} {self._refusal(error)}")
            case ProxyFailed(__cause__=Exception() as cause):
                # As any failure to reach a server, but said of the proxy.
                return Outage("proxy", self._failure(cause, f"{self._proxy}", in_body=False).detail)
            case _:
                return self._failure(error, self._peer, in_body=in_body)

    def _refusal(self, error: TunnelRefused) -> str:
        """Say why a proxy made no tunnel."""
        if error.status == _PROXY_LOGIN:
            if not error.basic:
                return "wants a login, but not by the scheme Basic, and no other is spoken here (407)"
            if self._settings.proxy is not None and self._settings.proxy.credentials is not None:
                return "does not take the login in proxy_credentials_file (407)"
            return "wants a login; write it into a file, and name that in proxy_credentials_file (407)"
        if error.status in _PROXY_FORBIDS:
            return f"does not allow connections with {self._peer} ({error.status})"
        if error.status in _PROXY_UNREACHED:
            return f"cannot reach {self._peer} ({error.status})"
        return f"answered CONNECT with HTTP {error.status}, and makes no tunnel to {self._peer} (is this a proxy?)"

    def _failure(self, error: BaseException, peer: str, *, in_body: bool) -> Outage:
        """Say what failed with ``peer``."""
        for root in _roots(error):
            match root:
                case ssl.SSLWantReadError() | ssl.SSLWantWriteError():
                    pass  # no failure: how OpenSSL waits, left over in the context of the real one
                case ssl.SSLError():
                    return Outage("tls", f"TLS with {peer} failed: {_tls_reason(root)}")
                case socket.gaierror():
                    return Outage("dns", f"the name in {peer} cannot be resolved: {root.strerror}")
                case ConnectionRefusedError():
                    return Outage("refused", f"{peer} refused the connection")
                case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
                    return Outage("reset", f"{peer} broke off the connection")
                case TimeoutError():
                    return Outage("timeout", f"the connection with {peer} timed out")
                case OSError(errno=int(number)):
                    return Outage("unreachable", f"{peer} cannot be reached: {os.strerror(number)}")
                case _:
                    pass  # a wrapper: what it wraps came before, or what wraps it comes next
        return self._failure_by_kind(error, peer, in_body=in_body)

    @staticmethod
    def _failure_by_kind(error: BaseException, peer: str, *, in_body: bool) -> Outage:
        """Translate an exception with nothing behind it: httpx's own, and the unforeseen."""
        match error:
            case CutShort():
                return Outage("truncated", f"{peer} broke off in the middle of an answer")
            case NoAnswer():
                return Outage("reset", f"{peer} closed the connection without a complete answer")
            case httpx.ProtocolError():
                part = "body" if in_body else "head"
                return Outage("protocol", f"the {part} of the answer of {peer} is not valid HTTP/1.1")
            case httpx.NetworkError():
                return Outage("reset", f"{peer} broke off the connection")
            case _:
                return Outage("protocol", f"the exchange with {peer} failed ({type(error).__name__})")


def _roots(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exceptions behind ``error``, those of a group included, the innermost first."""
    if error is None:
        return
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _roots(member)
    yield from _roots(error.__cause__ or error.__context__)
    yield error


def _tls_alert(reason: str) -> str:
    if reason in _TLS_WANTS_CERTIFICATE:
        return "it wants a certificate of ours; name one in tls.client_cert"
    if reason in _TLS_REFUSES_CERTIFICATE:
        return f"it does not take our certificate ({reason}); see tls.client_cert"
    if reason in _TLS_OTHER_VERSION:
        return f"it speaks no version of TLS that is allowed here ({reason}); see tls.min_version"
    return f"{reason} (is this a TLS port?)"


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "it broke off the handshake"
    if not isinstance(error, ssl.SSLCertVerificationError):
        return _tls_alert(error.reason or "no common protocol")
    code = error.verify_code
    if code == _TLS_EXPIRED:
        return "its certificate has expired"
    if code == _TLS_NOT_YET_VALID:
        return "its certificate is not valid yet (is this machine's clock right?)"
    if code in _TLS_WRONG_NAME:
        return "its certificate is for another host name"
    if code in _TLS_SELF_SIGNED:
        return f"its certificate is self-signed; {_TRUST_IT}"
    if code in _TLS_UNKNOWN_ISSUER:
        return f"its certificate is from an authority unknown here; {_TRUST_IT}"
    return f"its certificate is not accepted: {error.verify_message}"
