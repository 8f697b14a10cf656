"""HTTP/1.1 over asyncio's own connections: a transport for httpx that knows what it has read.

A custom transport as httpx's documentation describes it: requests and responses are httpx's, the parser is h11,
which httpx brings along. httpx's own transport takes three times the CPU (its pool serves threads and two
event-loop libraries alike), takes what a server sends after an answer for the answer to the next request, and
shows nowhere what it has read ahead. Here an answer belongs to the request before it: a connection on which
anything else came is never used again.

A connection that was idle may be closed by the server at the very moment when a request goes over it: servers do so
after some time, after some number of requests, and when they reload. If such a connection ends before the first byte
of an answer, the request goes once more over a new one; that is no failure of the server's.

Through a proxy the transport speaks only ``CONNECT`` with it (RFC 9110 §9.3.6), and TLS with the server inside of the
tunnel: the proxy learns host and port, and nothing of a request.

How many requests are under way at a time, and for how long each may be, is the caller's: `client`.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, cast

import h11
import httpx

from dlr_buffer.smartswitch.reachability import Reached, encryption_of

_KEEPALIVE_S: Final = 4.0
"""How long an idle connection is kept: less than the 5 s after which common servers close theirs."""
_MOST_UNREAD_BYTES: Final = 256 * 1024
"""When so much was received and not asked for yet, no more is read from the socket."""
_LONGEST_HEAD_BYTES: Final = 100 * 1024
_SECOND_ADDRESS_S: Final = 0.25
"""When the next address of a name is tried beside the one before (RFC 8305 §8)."""
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")


class HandshakeBrokenOff(httpx.ConnectError):
    """The connection ended in the middle of the TLS handshake."""


class CutShort(httpx.RemoteProtocolError):
    """The connection ended in the middle of an answer's body."""


class NoAnswer(httpx.RemoteProtocolError):
    """The connection ended before an answer's head was complete."""


class ProxyFailed(httpx.ConnectError):
    """There is no tunnel, for what stands behind this error."""


class TunnelRefused(ProxyFailed):
    """The proxy answered, but there is no tunnel; ``basic`` says that a login by HTTP's Basic scheme is offered."""

    def __init__(self, status: int, *, basic: bool) -> None:
        """Remember HTTP's ``status``."""
        self.status = status
        self.basic = basic
        super().__init__("no tunnel")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to without TLS; ``credentials`` are ``user:password`` for HTTP's Basic scheme."""

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Progress:
    """How far one request came, for whoever sent it: as its extension ``progress`` it is kept up to date."""

    connected: bool = False
    """Whether there was a connection to the server, past any proxy; TLS may not have begun yet."""
    repeated: bool = False
    """Whether it went out twice, since the connection that it first went over was closed by the server."""


class Transport(httpx.AsyncBaseTransport):
    """Sends each request over an idle connection, or a new one; all go to one origin."""

    def __init__(self, ssl_context: ssl.SSLContext | None, proxy: Proxy | None = None) -> None:
        """Connect to nothing yet; ``ssl_context`` is for https, and has to be there for a proxy (ValueError)."""
        if proxy is not None and ssl_context is None:
            raise ValueError("through a proxy only https goes: it would read all else")
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._idle: list[Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, whose body must be read already, and return when the answer's head is there.

        The request target is the extension ``target``, else the URL's; a `Progress` may be the extension ``progress``.
        The answer must be closed; its extension ``connection`` is the `Connection` it comes over. Raises
        httpx.ConnectError (from the OSError or ssl.SSLError behind it), `ProxyFailed`, ReadError and
        RemoteProtocolError.
        """
        progress = request.extensions.get("progress") or Progress()
        if (connection := self._take_idle()) is not None:
            progress.connected = True
            try:
                return await self._send(connection, request)
            except (NoAnswer, httpx.ReadError) as error:
                if connection.heard or isinstance(error.__cause__, ssl.SSLError):
                    raise
            progress.repeated = True
            progress.connected = False
        connection = await self._connect(request.url, progress)
        return await self._send(connection, request)

    async def _send(self, connection: Connection, request: httpx.Request) -> httpx.Response:
        try:
            connection.send(request)
            head = await connection.receive_head()
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(connection, self._idle),
            extensions={"reason_phrase": head.reason, "connection": connection},
        )

    async def reach(self, url: httpx.URL, progress: Progress) -> Reached:
        """Connect to the origin as for a request, send nothing, and close again; raises as a request does."""
        connection = await self._connect(url, progress)
        try:
            return connection.reached()
        finally:
            connection.abort()
            await connection.closed

    async def aclose(self) -> None:
        """Close the idle connections, and return when they are closed."""
        closing, self._idle = self._idle, []
        for connection in closing:
            connection.abort()
        for connection in closing:
            await connection.closed

    def _take_idle(self) -> Connection | None:
        """Return the one used last, and close those that became too old."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                break
            connection.abort()
        else:
            return None
        while self._idle and self._idle[0].too_old():
            self._idle.pop(0).abort()
        return connection

    async def _connect(self, url: httpx.URL, progress: Progress) -> Connection:
        host = url.raw_host.decode("ascii")
        port = url.port or (80 if self._ssl_context is None else 443)
        if self._proxy is None:
            transport, connection = await self._open(host, port)
        else:
            transport, connection = await self._tunnel(self._proxy, host, port), Connection()
        progress.connected = True
        if self._ssl_context is not None:
            connection.go_on_over(await self._encrypt(transport, connection, host, self._ssl_context))
        return connection

    @staticmethod
    async def _open(host: str, port: int) -> tuple[asyncio.Transport, Connection]:
        try:
            return await asyncio.get_running_loop().create_connection(
                Connection, host, port, happy_eyeballs_delay=_SECOND_ADDRESS_S
            )
        except OSError as error:
            raise httpx.ConnectError("no connection") from _with_number(error)

    async def _tunnel(self, proxy: Proxy, host: str, port: int) -> asyncio.Transport:
        """Let the proxy connect to the server, and return what leads there; raises `ProxyFailed`."""
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = {"Host": authority}
        if proxy.credentials is not None:
            headers["Proxy-Authorization"] = f"Basic {b64encode(proxy.credentials.encode()).decode('ascii')}"
        request = httpx.Request(
            "CONNECT",
            httpx.URL(scheme="http", host=proxy.host, port=proxy.port),
            headers=headers,
            extensions={"target": authority.encode("ascii")},
        )
        try:
            transport, connection = await self._open(proxy.host, proxy.port)
            try:
                connection.send(request)
                head = await connection.receive_head()
            except BaseException:
                connection.abort()
                raise
        except httpx.TransportError as error:
            raise ProxyFailed("no tunnel") from error
        if not connection.is_tunnel():
            connection.abort()
            raise TunnelRefused(head.status_code, basic=_offers_basic(head))
        return transport

    @staticmethod
    async def _encrypt(
        plain: asyncio.Transport, connection: Connection, host: str, ssl_context: ssl.SSLContext
    ) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        try:
            encrypted = await loop.start_tls(plain, connection, ssl_context, server_hostname=host)
        except ConnectionError as error:
            plain.abort()
            # That the peer ended it in good order is asyncio's own finding, and bears no number.
            raise (HandshakeBrokenOff if error.errno is None else httpx.ConnectError)(
                "no handshake"
            ) from error
        except OSError as error:
            plain.abort()
            raise httpx.ConnectError("no handshake") from error
        except BaseException:
            plain.abort()
            raise
        if encrypted is None:
            raise HandshakeBrokenOff("no handshake")
        return encrypted


class Connection(asyncio.Protocol):
    """One connection to the server, in use by one request at a time, or idle."""

    def __init__(self) -> None:
        """Be made by asyncio when the connection stands."""
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed."""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD_BYTES)
        self._received = bytearray()
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._idle_since: float | None = None
        self.heard = False
        """Whether anything came since the last request went out."""

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        self._transport = cast("asyncio.Transport", transport)

    def go_on_over(self, transport: asyncio.Transport) -> None:
        """Use ``transport``, which encrypts, from now on."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep what came for whoever waits for an answer; nobody does while the connection is idle."""
        if self._idle_since is not None:
            self.abort()
            return
        self._received += data
        if len(self._received) > _MOST_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Close as well: whoever sends nothing more is not asked again."""
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why."""
        self._ended = True
        self._error = exc
        self.closed.set_result(None)
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def reached(self) -> Reached:
        """Say where it leads, and how it is encrypted."""
        address = self._transport.get_extra_info("peername")
        encrypted = self._transport.get_extra_info("ssl_object")
        return Reached(
            address=str(address[0]) if isinstance(address, tuple) else "unknown",
            encryption=None if encrypted is None else encryption_of(encrypted),
        )

    # --- an exchange

    def too_old(self) -> bool:
        """Whether it has been idle for so long that the server may be about to close it."""
        return self._idle_since is None or self._now() - self._idle_since > _KEEPALIVE_S

    def usable(self) -> bool:
        """Whether an idle connection can take a request: young enough, open, and nothing came on it."""
        if self.too_old() or self._ended or self._transport.is_closing():
            return False
        # What came may not have been read yet.
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def send(self, request: httpx.Request) -> None:
        """Send ``request``; asyncio keeps what the socket does not take at once."""
        self._idle_since = None
        self.heard = False
        target = request.extensions.get("target", request.url.raw_path)
        head = h11.Request(method=request.method, target=target, headers=request.headers.raw)
        pieces = [self._http.send(head)]
        if request.content:
            pieces.append(self._http.send(h11.Data(data=request.content)))
        pieces.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(piece for piece in pieces if piece))

    async def receive_head(self) -> h11.Response:
        """Return the answer's head; interim ones (103 and the like) are passed over.

        Raises `NoAnswer`, httpx.ReadError and httpx.RemoteProtocolError.
        """
        while not isinstance(event := await self._receive(), h11.Response):
            pass
        return event

    async def receive_body(self) -> AsyncIterator[bytes]:
        """Yield the answer's body; raises `CutShort`, httpx.ReadError and httpx.RemoteProtocolError."""
        while isinstance(event := await self._receive(), h11.Data):
            yield bytes(event.data)

    def is_tunnel(self) -> bool:
        """Whether the answer to a CONNECT made the connection a tunnel, with nothing in it yet."""
        return (
            self._http.their_state is h11.SWITCHED_PROTOCOL
            and self._http.trailing_data == (b"", False)
            and not (self._received or self._ended)
        )

    def end_exchange(self) -> bool:
        """Be idle, if the answer was read to its end and nothing came after it; else close; returns which."""
        self._idle_since = self._now()
        if (
            self._http.our_state is h11.DONE
            and self._http.their_state is h11.DONE
            and self._http.trailing_data == (b"", False)
            and not (self._received or self._ended or self._transport.is_closing())
            and not self._transport.get_write_buffer_size()  # the server did not want all of the request
        ):
            self._http.start_next_cycle()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close at once, without a farewell."""
        self._transport.abort()

    async def _receive(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        last = False
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                received = await self._read()
                last = not received
                if last and self._http.their_state is h11.SEND_RESPONSE:
                    raise NoAnswer("closed without an answer")
                self._http.receive_data(received)
        except h11.RemoteProtocolError as error:
            # What it says quotes the server.
            raise (CutShort if last else httpx.RemoteProtocolError)("not HTTP/1.1") from error
        return event

    async def _read(self) -> bytes:
        """Return what came next, nothing at the end."""
        while not self._received:
            if self._error is not None:
                raise httpx.ReadError("broken off") from self._error
            if self._ended:
                return b""
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        self.heard = True
        received = bytes(self._received)
        self._received.clear()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return received

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Body(httpx.AsyncByteStream):
    """The body of the answer that comes over a connection."""

    def __init__(self, connection: Connection, idle: list[Connection]) -> None:
        """Put ``connection`` among the ``idle`` ones in the end."""
        self._connection = connection
        self._idle = idle
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        return self._connection.receive_body()

    async def aclose(self) -> None:
        """End the exchange."""
        if not self._closed:
            self._closed = True
            if self._connection.end_exchange():
                self._idle.append(self._connection)


def _offers_basic(head: h11.Response) -> bool:
    offered = [value.lower() for name, value in head.headers if name == b"proxy-authenticate"]
    return not offered or any(re.search(rb"(^|,)\s*basic\b", each) for each in offered)


def _with_number(error: OSError) -> OSError:
    """Return the last of several failures, if ``error`` is asyncio's sum of them: one for each address of the name.

    The last is the most telling: a host without IPv6 reaches no address of that kind, whatever the server does.
    """
    numbers = _ERRNO.findall(str(error)) if error.errno is None else []
    if not numbers:
        return error
    number = int(numbers[-1])
    return OSError(number, os.strerror(number))
