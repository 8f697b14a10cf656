"""The stand-in's HTTP/1.1 server: sockets, keep-alive, and answers down to resets and torn bytes.

h11 reads and writes HTTP over asyncio streams; the listening socket is our own, so that an outage can really
refuse connections. What to answer is decided in `behaviour`, or by a script.

Flow of a request: read whole → noted in the record → script, else `behaviour.decide` → accepted receipts
noted → latency → answer. `Simulator.wait_for` looks again after the second, fourth and last step.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from inspect import isawaitable
from random import Random
from types import TracebackType
from typing import Self, assert_never
from urllib.parse import unquote

import h11

from dlr_buffer.simulator.answers import Answer, Drop, Ending, Hang, Raw, Scripted
from dlr_buffer.simulator.behaviour import Decision, Outcome, decide, errors_answer
from dlr_buffer.simulator.protocol import PATH, Arguments, Receipt, mask_target, read_arguments
from dlr_buffer.simulator.record import Record
from dlr_buffer.simulator.settings import (
    MAX_REQUEST_LINE,
    OutageKind,
    SimulatorSettings,
    next_edge,
    outage_at,
)

_CHUNK = 1 << 16
_MAX_HEAD = MAX_REQUEST_LINE + _CHUNK
_CONTROL_PREFIX = "/_simulator/"
_BODILESS = frozenset({204, 304})
# A client that was refused early may still be sending; it gets this long to read the answer before the close.
_FAREWELL_S = 1.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One request as a script sees it; ``number`` counts from 1, ``target`` is raw and holds the credentials.

    ``arguments.problem`` says what is wrong with the arguments, if anything is; ``receipts`` is empty then.
    """

    number: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    arguments: Arguments

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """The receipts asked for, in their order."""
        return self.arguments.receipts

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        """Return the first header of that name in lower case, or an empty string."""
        return next((value for key, value in self.headers if key == name), "")

    def __repr__(self) -> str:
        """Show the request without its credentials."""
        return f"Request({self.number}, {self.method} {mask_target(self.target)})"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what was decided about it, for whoever prints it; holds no credential.

    ``at`` is the wall time in seconds since 1970; ``status`` is None if nothing or something torn is
    answered.
    """

    at: float
    number: int
    receipts: tuple[Receipt, ...]
    outcome: str
    status: int | None


Script = Callable[[Request], Awaitable[Answer | None] | Answer | None]
"""Called for each request before all faults; None lets the stand-in answer as usual. May be a coroutine
function."""


@dataclass(eq=False, slots=True)
class _Waiter:
    predicate: Callable[[Record], bool]
    future: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER, _MAX_HEAD))

    async def next_event(self) -> h11.Event:
        """Return the next part of a request; raises h11.RemoteProtocolError on bad HTTP."""
        while True:
            event = self.http.next_event()
            if isinstance(event, h11.Event):
                return event
            if self.http.they_are_waiting_for_100_continue:
                self.writer.write(
                    self.http.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                )
            self.http.receive_data(await self.reader.read(_CHUNK))

    async def pause(self, seconds: float) -> bool:
        """Wait, and say whether the client is still there; what it sends meanwhile is kept."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while received := await self.reader.read(_CHUNK):
                    self.http.receive_data(received)
                return False
        return True

    async def send(self, answer: Scripted) -> bool:
        """Write an answer and say whether another request may follow."""
        headers = list(answer.headers)
        names = {name.lower() for name, _ in headers}
        body = b"" if answer.status in _BODILESS else answer.body
        if answer.status not in _BODILESS and not names & {"content-length", "transfer-encoding"}:
            headers.append(("Content-Length", str(len(body))))
        if answer.close:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=answer.status, headers=headers, reason=_reason(answer.status))
        head = self.http.send(response) or b""
        content = (self.http.send(h11.Data(data=body)) or b"") if body else b""
        self.writer.write(head + content + (self.http.send(h11.EndOfMessage()) or b""))
        await self.writer.drain()
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
            return True
        return False

    async def send_raw(self, raw: Raw) -> None:
        """Write bytes as given and end the connection as asked."""
        for number, piece in enumerate(raw.pieces):
            if number and not await self.pause(raw.pause):
                return
            self.writer.write(piece)
            await self.writer.drain()
        match raw.ending:
            case Ending.CLOSE:
                pass
            case Ending.RESET:
                self.reset()
            case Ending.HANG:
                await self.hang()
            case _ as unreachable:
                assert_never(unreachable)

    async def hang(self) -> None:
        """Return only when the client has gone."""
        while await self.reader.read(_CHUNK):
            pass

    async def farewell(self) -> None:
        """Let a client that is still sending read the answer: a close with unread bytes would be a reset."""
        if self.writer.can_write_eof():
            self.writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self.hang()

    def reset(self) -> None:
        """End the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.writer.transport.abort()


class Simulator:
    """A Smartswitch stand-in on loopback, used as an async context manager or by `start` and `stop`.

    ``settings`` may be replaced at any time and count from the next request on. ``script`` sees every request
    (but the oversized) first; ``on_exchange`` is told of every request once it is decided. ``host`` has to be
    a loopback address (ValueError); port 0 takes any free one. Bounds of the record are taken from the first
    settings.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        script: Script | None = None,
        on_exchange: Callable[[Exchange], None] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare; nothing is bound before `start`."""
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not address.is_loopback:
            raise ValueError(f"the stand-in listens on loopback only, not on {host}")
        self.script = script
        self.on_exchange = on_exchange
        self._settings = settings or SimulatorSettings()
        self.record = Record(self._settings.max_messages, self._settings.max_targets)
        self._random = Random(self._settings.random_seed)  # noqa: S311 - which faults, not a secret
        self._next_response_id = self._settings.first_response_id or time.time_ns() // 1_000_000
        self._host = str(address)
        self._family = socket.AF_INET6 if isinstance(address, ipaddress.IPv6Address) else socket.AF_INET
        self._port = port
        self._socket: socket.socket | None = None
        self._listening = False
        self._started_at = 0.0
        self._edge: asyncio.TimerHandle | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._waiters: list[_Waiter] = []
        self._failure: BaseException | None = None

    @property
    def settings(self) -> SimulatorSettings:
        """The settings in force; assign other ones to change the behaviour at once."""
        return self._settings

    @settings.setter
    def settings(self, settings: SimulatorSettings) -> None:
        if settings.random_seed != self._settings.random_seed:
            self._random = Random(settings.random_seed)  # noqa: S311 - which faults, not a secret
        if settings.first_response_id not in (None, self._settings.first_response_id):
            self._next_response_id = settings.first_response_id or 0
        self._settings = settings
        if self._socket is not None:
            self._apply_outages()

    @property
    def port(self) -> int:
        """The port bound by `start`, which stays ours until `stop`."""
        return self._port

    @property
    def base_url(self) -> str:
        """The server's address without a path, e.g. ``http://127.0.0.1:8080``."""
        host = f"[{self._host}]" if self._family == socket.AF_INET6 else self._host
        return f"http://{host}:{self._port}"

    @property
    def url(self) -> str:
        """The URL of the receipts API: an account's ``url``."""
        return self.base_url + PATH

    async def start(self) -> None:
        """Bind and listen; raises OSError if the port is taken."""
        self._started_at = asyncio.get_running_loop().time()
        self._bind()
        self._apply_outages()

    async def stop(self) -> None:
        """Close everything; raises what a script or the stand-in itself raised while it answered."""
        if self._edge is not None:
            self._edge.cancel()
        self._shut()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def wait_for(self, predicate: Callable[[Record], bool], timeout: float = 10.0) -> None:  # noqa: ASYNC109 - a test states its patience
        """Return once ``predicate`` holds for the record, looking again at every request and answer.

        Raises TimeoutError with the record's counters after ``timeout`` seconds.
        """
        if predicate(self.record):
            return
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter.future
        except TimeoutError:
            raise TimeoutError(f"not within {timeout:g} s; received: {self.record.summary()}") from None
        finally:
            self._waiters.remove(waiter)

    # -- listening -------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Bind without listening: connections are refused, but the port is ours."""
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, self._port))
        except BaseException:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        self._socket = sock

    def _apply_outages(self) -> None:
        """Listen or refuse as the windows say now, and come back at their next edge."""
        loop = asyncio.get_running_loop()
        elapsed = loop.time() - self._started_at
        outage = outage_at(self._settings.outages, elapsed)
        if outage is not None and outage.kind is OutageKind.REFUSE:
            if self._listening:
                self._shut()
                self._bind()
                for connection in self._connections:
                    connection.cancel()
        elif not self._listening:
            self._listen()
        if self._edge is not None:
            self._edge.cancel()
            self._edge = None
        edge = next_edge(self._settings.outages, elapsed)
        if edge is not None:
            self._edge = loop.call_at(self._started_at + edge, self._apply_outages)

    def _listen(self) -> None:
        if self._socket is not None:
            self._socket.listen(1024)
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)
            self._listening = True

    def _shut(self) -> None:
        """Stop listening: a listening socket can only be closed."""
        if self._socket is not None and self._listening:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._listening = False

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._connections.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()

    # -- connections -----------------------------------------------------------------------------------------

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
        connection = _Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            while await self._exchange(connection):
                pass
        except h11.RemoteProtocolError as error:
            await self._answer_malformed(connection, error)
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            connection.reset()
            raise
        finally:
            connection.writer.close()

    async def _exchange(self, connection: _Connection) -> bool:
        """Read one request and answer it; say whether another one may follow."""
        head = await connection.next_event()
        if not isinstance(head, h11.Request):
            return False  # the client has closed
        target = head.target.decode("ascii")
        refusal: Decision | None = None
        if len(head.method) + len(head.target) + len("  HTTP/1.1") > self._settings.max_request_line:
            refusal = Decision(_line_too_long(self._settings), Outcome.TOO_LONG)
        body = bytearray()
        while isinstance(event := await connection.next_event(), h11.Data):
            body += event.data
            if len(body) > self._settings.max_body:
                refusal = Decision(_body_too_large(self._settings), Outcome.TOO_LARGE)
                break
        method = head.method.decode("ascii")
        if target.startswith(_CONTROL_PREFIX):
            return await connection.send(self._control(method, target))
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        content_type = next((value for name, value in headers if name == "content-type"), "")
        arguments = Arguments() if refusal else read_arguments(target, content_type, bytes(body))
        arrival = self.record.begin(target, bytes(body), arguments.receipts)
        self._notify()
        try:
            request = Request(self.record.requests, method, target, headers, bytes(body), arguments)
            decision = refusal or await self._decide(request)
            self.record.outcomes[str(decision.outcome)] += 1
            for (message, sighting), accepted in zip(arrival, decision.accepted, strict=False):
                if accepted:
                    self.record.accept(message, sighting)
            self._report(request, decision)
            self._notify()
            alive = await self._carry_out(decision, connection)
            if refusal is not None:
                await connection.farewell()
                return False
            return alive
        finally:
            self.record.end()
            self._notify()

    async def _answer_malformed(self, connection: _Connection, error: h11.RemoteProtocolError) -> None:
        """Answer what is no HTTP, unless the client has merely gone in the middle of a request."""
        unread, closed = connection.http.trailing_data
        if closed or connection.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE and b"\n" not in unread:
            answer, outcome = _line_too_long(self._settings), Outcome.TOO_LONG
        else:
            detail = "The request is not HTTP/1.1 as RFC 9112 has it"
            answer = errors_answer(error.error_status_hint, "malformed", "Bad request", detail)
            outcome = Outcome.MALFORMED
        self.record.begin("", b"", ())
        self.record.outcomes[str(outcome)] += 1
        self.record.end()
        self._notify()
        with suppress(ConnectionError):
            await connection.send(replace(answer, close=True))
            await connection.farewell()

    async def _decide(self, request: Request) -> Decision:
        if self.script is not None:
            scripted = self.script(request)
            answer = await scripted if isawaitable(scripted) else scripted
            if answer is not None:
                accepted = (answer.accepts,) * len(request.receipts)
                answered = isinstance(answer, Scripted) and answer.accepts
                return Decision(answer, Outcome.SCRIPTED, accepted, len(request.receipts) if answered else 0)
        elapsed = asyncio.get_running_loop().time() - self._started_at
        return decide(
            request.method,
            request.path,
            request.arguments,
            self._settings,
            elapsed,
            self._random,
            self._take_id,
        )

    async def _carry_out(self, decision: Decision, connection: _Connection) -> bool:
        """Do what was decided; say whether the connection can go on."""
        answer = decision.answer
        seconds = self._settings.latency + (answer.delay if isinstance(answer, Scripted) else 0.0)
        if self._settings.latency_jitter:
            seconds += self._random.uniform(0, self._settings.latency_jitter)
        if seconds and not await connection.pause(seconds):
            return False
        match answer:
            case Scripted():
                listening = not connection.reader.at_eof()
                alive = await connection.send(answer)
                self.record.acknowledged += decision.acknowledged if listening else 0
                return alive
            case Drop():
                connection.reset()
            case Hang():
                await connection.hang()
            case Raw():
                await connection.send_raw(answer)
            case _ as unreachable:
                assert_never(unreachable)
        return False

    def _take_id(self) -> int:
        response_id = self._next_response_id
        self._next_response_id += 1
        return response_id

    def _report(self, request: Request, decision: Decision) -> None:
        if self.on_exchange is not None:
            status = decision.answer.status if isinstance(decision.answer, Scripted) else None
            self.on_exchange(
                Exchange(time.time(), request.number, request.receipts, str(decision.outcome), status)
            )

    def _notify(self) -> None:
        for waiter in self._waiters:
            if waiter.future.done():
                continue
            try:
                if waiter.predicate(self.record):
                    waiter.future.set_result(None)
            except Exception as error:  # noqa: BLE001 - the predicate is the waiter's: so is its failure
                waiter.future.set_exception(error)

    # -- the record, served ----------------------------------------------------------------------------------

    def _control(self, method: str, target: str) -> Scripted:
        """Answer ``GET /_simulator/record`` and ``GET /_simulator/messages/{id}``; neither is counted."""
        path = target.partition("?")[0].removeprefix(_CONTROL_PREFIX)
        if method != "GET":
            return errors_answer(
                405, "method", "Method not allowed", "The record can only be read", ("Allow", "GET")
            )
        if path == "record":
            return _json(self.record.shown())
        kind, _, quoted = path.partition("/")
        message_id = unquote(quoted, errors="replace")
        if kind == "messages" and message_id in self.record:
            sightings = self.record.sightings(message_id)
            shown = [
                {"state": s.state, "request_id": s.request_id, "accepted": s.accepted} for s in sightings
            ]
            return _json({"message_id": message_id, "sightings": shown})
        return errors_answer(
            404, "not-found", "Not found", "Nothing came about this message, or no such page exists"
        )


def _line_too_long(settings: SimulatorSettings) -> Scripted:
    detail = f"The request line is longer than {settings.max_request_line} bytes"
    return replace(errors_answer(414, "too-long", "Request line too long", detail), close=True)


def _body_too_large(settings: SimulatorSettings) -> Scripted:
    detail = f"The body is larger than {settings.max_body} bytes"
    return replace(errors_answer(413, "too-large", "Body too large", detail), close=True)


def _json(value: object) -> Scripted:
    body = json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"
    return Scripted(200, (("Content-Type", "application/json"),), body)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
