"""Serving an app on a bound socket: uvicorn's HTTP protocol, our own start and stop.

uvicorn's Server is left out, for it wakes ten times a second, takes the signals, and polls when it stops. Its protocol
class is used as it is but for this: requests that are not HTTP get a problem as well, and never in the place of an
answer that is still owed; a client that closes its sending side early still gets its answer; a request that is answered
before its body came whole ends the connection, after a little more of the body is dropped; requests sent ahead of their
turn wait as bytes, and no more is read meanwhile; and connections are bounded in number, and in the time that they keep
waiting (`connections`). Who is at the other end is asked once a connection, and may be kept out (`peers`).

A stop loses no request: what was accepted is answered, with ``Connection: close``; a connection that its client keeps
is closed so that its next request either came before and is answered, or can't be sent at all (`_Protocol.end_idle`).

An app's requests differ in their bodies, but their heads are the same bytes again and again. So the heads of single
registrations and reports are remembered once uvicorn's parser has read them, and a request that comes whole, with a
head that is known, goes the short way (`express`) past parser and ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import termios
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from dlr_buffer.local_api.accepting import Acceptor
from dlr_buffer.local_api.bodies import is_ndjson
from dlr_buffer.local_api.connections import ConnectionLimits, ConnectionRoom, Phase
from dlr_buffer.local_api.express import MAX_BODY_BYTES, Express
from dlr_buffer.local_api.peers import NOBODY, AllowList, CallCounts, Peer, peer_of
from dlr_buffer.local_api.problems import (
    CONTENT_TYPE,
    ProblemCode,
    Refusal,
    problem_body,
    problem_response,
    stopping,
)
from dlr_buffer.local_api.sockets import BoundSocket
from dlr_buffer.logs import Event, Sparing, about

_MAX_HEAD_BYTES = 16 * 1024
"""Every id, filter and cursor of ours fits in a quarter of it."""
_MAX_READ_BYTES = 64 * 1024
"""So much is read at once from one connection, and at most kept unread for it."""
_PARSED_AT_ONCE_BYTES = 2 * 1024
"""Pipelined requests become objects fifty times their size; so they are parsed a little at a time."""
_HEAD_END = b"\r\n\r\n"
_MAX_KNOWN_HEADS = 256
"""Far more than there are kinds of clients, and lengths of bodies that each sends."""
_PLAIN_HEADERS = frozenset(
    {b"host", b"user-agent", b"accept", b"accept-encoding", b"content-type", b"content-length"}
)
"""A head with any other field (Expect, Connection, Transfer-Encoding, …) goes the long way."""
_LAST_WORDS_S = 1.0
_ONCE_MORE_S = 0.25
"""At a stop, busy clients use the connection that they keep once more within it, and are told to make another."""
_RETRY_AFTER_S = 5
_MAX_LAST_WORDS = 16
"""So many who were kept out may be listened to at once, until they have read why."""
_MAX_LAST_WORDS_BYTES = 64 * 1024

_logger = logging.getLogger(__name__)


class ApiServer:
    """Serves ``app`` on ``sock`` until it is stopped."""

    def __init__(  # noqa: PLR0913 - what a server is made of, all but two by name
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        name: str = "socket",
        limits: ConnectionLimits | None = None,
        express: Express | None = None,
        allowed: AllowList | None = None,
    ) -> None:
        """``sock`` listens already, and is closed by `stop`; ``name`` is what admins know it by.

        If it is no `BoundSocket`, somebody else has it open as well, and will have it served again after a stop.
        ``express`` takes what may go the short way; without it all goes through ``app``. ``allowed`` narrows who may
        come in.
        """
        self._config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            # It warns of every request that is not HTTP: one bad client would flood the log.
            log_level="error",
        )
        self._sock = sock
        self._name = name
        self._state = _State(name, limits or ConnectionLimits(), express, allowed or AllowList())
        self._acceptor: Acceptor | None = None

    async def start(self) -> None:
        """Take connections; those that came since the socket was bound have waited."""
        self._config.load()

        def connect() -> _Protocol:
            return _Protocol(self._config, self._state)

        self._acceptor = Acceptor(self._sock, connect)
        self._acceptor.start()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._state.room.open

    @property
    def refused(self) -> int:
        """How many connections were answered 503 since the start because there were too many."""
        return self._state.room.refused

    @property
    def forbidden(self) -> int:
        """How many connections were answered 403 since the start because a list did not name their user."""
        return self._state.forbidden

    def calls(self) -> dict[str, int]:
        """Requests answered since the start, by the uid of who sent them."""
        for connection in self._state.connections:
            if isinstance(connection, _Protocol):
                connection.count_calls()
        return self._state.calls()

    @property
    def alarm(self) -> str | None:
        """A sentence for admins while connections are refused, or were within the last minute."""
        room = self._state.room
        if not room.is_full(asyncio.get_running_loop().time()):
            return None
        return (
            f"the {self._name} is full: connections beyond {room.limits.connections} are answered 503"
            f" ({room.refused} so far); look which programs hold so many open"
        )

    def allow(self, limits: ConnectionLimits) -> None:
        """Go by other limits from now on; what is open beyond them stays."""
        self._state.room.limits = limits

    def admit(self, allowed: AllowList) -> None:
        """Let only these in from now on; connections of others end once what they have asked is answered."""
        self._state.allowed = allowed
        for connection in list(self._state.connections):
            if isinstance(connection, _Protocol) and not allowed.admits(connection.peer):
                connection.shutdown()
                connection.end_idle()

    async def stop(self, grace_ms: int) -> None:
        """Take no new connections, answer what is in work or on the way for at most ``grace_ms``, then close.

        What is in work after that is answered with 503. No answer is cut off in the middle, unless its client does not
        read it. Where the socket goes on without us, clients that keep a connection may use it once more, and those
        that wait to be accepted go on waiting.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + grace_ms / 1000
        goes_on = not isinstance(self._sock, BoundSocket)
        if isinstance(self._sock, BoundSocket):
            self._sock.unlink()
        if self._acceptor is not None:
            await self._acceptor.stop(drain=not goes_on)
        self._sock.close()
        self._state.stop()
        for connection in list(self._state.connections):
            connection.shutdown()
        if goes_on:
            await self._wait_until_idle(min(_ONCE_MORE_S, grace_ms / 1000))
        # One that is new was made for a request that has not come yet.
        self._end_idle(lambda connection: connection.was_used)
        await self._wait_until_idle(ends_s - loop.time())
        self._end_idle(lambda _connection: True)
        await self._end_what_is_left()

    def _end_idle(self, which: Callable[[_Protocol], bool]) -> None:
        for connection in list(self._state.connections):
            if isinstance(connection, _Protocol) and which(connection):
                connection.end_idle()

    async def _end_what_is_left(self) -> None:
        for connection in list(self._state.connections):
            # Its client does not read: nothing more can be said to it.
            if isinstance(connection, _Protocol) and connection.flow.write_paused:
                connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            if isinstance(connection, _Protocol):
                connection.end_express()
        await self._wait_until_idle(_LAST_WORDS_S)
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def _wait_until_idle(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while self._state.connections or self._state.tasks:
                    self._state.changed.clear()
                    self._state.watch_tasks()
                    await self._state.changed.wait()
        except TimeoutError:
            pass


class _State(ServerState):
    """uvicorn's registry of connections and tasks, which also says when one is gone, and ends what takes too long."""

    def __init__(
        self, name: str, limits: ConnectionLimits, express: Express | None, allowed: AllowList
    ) -> None:
        super().__init__()
        self.express = express
        self.allowed = allowed
        self.calls = CallCounts()
        self.forbidden = 0
        self.kept_out: set[_Protocol] = set()
        """Those who were told that they may not come in, and may not have read it yet."""
        self.known_heads: dict[bytes, _KnownHead] = {}
        self.changed = asyncio.Event()
        self.room: ConnectionRoom[_Protocol] = ConnectionRoom(limits)
        self._name = name
        self._timer: asyncio.TimerHandle | None = None
        self._sparing = Sparing()
        self.stopping = False

    def watch_tasks(self) -> None:
        for task in self.tasks:
            task.remove_done_callback(self._tell)
            task.add_done_callback(self._tell)

    def _tell(self, _task: asyncio.Task[None]) -> None:
        self.changed.set()

    def admit(self, connection: _Protocol, now_s: float) -> bool:
        admitted, leaving = self.room.admit(connection, now_s)
        if leaving is not None:
            leaving.give_up(Phase.IDLE)
        if not admitted and self._sparing.lets("full", now_s) is not None:
            _logger.warning(
                "the %s is full with %d connections, the last from %s: more are answered 503; look which programs hold"
                " so many open",
                self._name,
                self.room.open,
                connection.peer,
                extra=about(Event.SOCKET_FULL, socket=self._name, peer_uid=connection.peer.uid),
            )
        return admitted

    def keep_out(self, peer: Peer, now_s: float) -> str:
        """Count and log that a peer is kept out; returns what to tell it."""
        self.forbidden += 1
        if self._sparing.lets(peer.uid, now_s) is not None:
            _logger.warning(
                "the %s keeps out %s: %s does not name this user; add it and reload if that is a mistake",
                self._name,
                peer,
                self.allowed.key,
                extra=about(Event.PEER_REFUSED, socket=self._name, peer_uid=peer.uid, peer_pid=peer.pid),
            )
        return (
            f"this socket is not for the user with uid {peer.uid}: {self.allowed.key} in the daemon's configuration"
            " does not name it"
        )

    def look_in_time(self, loop: asyncio.AbstractEventLoop, phase: Phase, now_s: float) -> None:
        """See to it that `_look` runs when the next connection is overdue; one has just entered ``phase``."""
        if self._timer is not None and self._timer.when() <= now_s + self.room.patience_s(phase):
            return
        self._look_next(loop)

    def _look_next(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline_s = self.room.next_deadline_s()
        if deadline_s is None or self.stopping:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline_s:
                return
            self._timer.cancel()
        self._timer = loop.call_at(deadline_s, self._look, loop)

    def stop(self) -> None:
        """The server stops: it ends the connections in its own way, each after its next answer at the latest."""
        self.stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop_unsent(self) -> None:
        """Keep the answers that nobody takes within their bound, at the cost of those that wait longest."""
        slow = self.room.waiting(Phase.ANSWER)
        unsent = sum(connection.unsent_bytes for connection in slow)
        for connection in slow[:-1]:
            if unsent <= self.room.limits.unsent_bytes:
                break
            unsent -= connection.unsent_bytes
            connection.give_up(Phase.ANSWER)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for connection, phase in self.room.overdue(loop.time()):
            connection.give_up(phase)
        self._look_next(loop)


class _Flow(FlowControl):
    """uvicorn's flow control, which does not read on while bytes wait to be parsed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class _LastWords(asyncio.Transport):
    """What the answer to an unfinished request is written to: closing it lets the client come to reading the answer."""

    def __init__(self, protocol: _Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.linger()


@dataclass(frozen=True, slots=True)
class _KnownHead:
    """What a head says that came before, byte by byte the same."""

    path: bytes
    length: int


_NOBODY_WAITS: Final = asyncio.Event()
"""What uvicorn sets for a cycle whose connection is lost; on the short way nobody listens."""


class _ExpressCycle:
    """A request on the short way and its answer, with as much of uvicorn's cycle as the protocol looks at."""

    more_body = False
    response_started = False
    response_complete = False
    disconnected = False
    message_event = _NOBODY_WAITS

    def __init__(self, protocol: _Protocol, *, keep_alive: bool) -> None:
        self._protocol = protocol
        self.transport = protocol.transport
        self.keep_alive = keep_alive

    def answer(self, content: bytes) -> None:
        self._protocol.answer_express(self, content)

    def finish(self, response: Coroutine[Any, Any, Response]) -> None:
        self._protocol.finish_express(self, response)


class _Protocol(HttpToolsProtocol):
    server_state: _State
    flow: _Flow

    def __init__(self, config: uvicorn.Config, server_state: _State) -> None:
        super().__init__(config, server_state, app_state={})
        self._phase: Phase | None = None
        self._head_bytes = 0
        self._unread = b""
        self._fault: str | None = None
        # What becomes of the connection once the body of the current request has come whole.
        self._keep_alive = False
        # Whether the next answer is the last one, whatever was begun before that was decided.
        self._ending = False
        # Bytes that may still come and are dropped, once the last answer is given; None before that.
        self._dropping: int | None = None
        self.peer = NOBODY
        self._calls = 0
        """Answered requests that are not in the server's count yet."""

    @property
    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    @property
    def was_used(self) -> bool:
        return self._current() is not None

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        transport.max_size = _MAX_READ_BYTES  # type: ignore[attr-defined]  # of every transport of a selector loop
        self.flow = _Flow(transport)
        self.peer = peer_of(transport.get_extra_info("socket"))
        self.app_state["peer"] = self.peer
        if not self.server_state.allowed.admits(self.peer):
            self._keep_out()
        elif self.server_state.admit(self, self.loop.time()):
            self._observe()
        else:
            self._end_with(
                ProblemCode.OVERLOADED,
                "too many connections are open on this socket; close some, or come again later",
                f"retry-after: {_RETRY_AFTER_S}\r\n",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.room.leave(self, self._phase)
        self.server_state.kept_out.discard(self)
        self.count_calls()
        self._phase = None
        super().connection_lost(exc)
        self.server_state.changed.set()

    def data_received(self, data: bytes) -> None:
        if self._dropping is not None:
            self._dropping -= len(data)
            if self._dropping < 0:
                self.transport.close()
            return
        express = self.server_state.express is not None and self._between_requests()
        if express:
            if self._take_express(data):
                return
            self.scope = None  # type: ignore[assignment]  # until the parser has seen this one
        received, self._unread = self._unread + data, b""
        self._parse(received)
        cycle = self._current()
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            cycle.transport = _LastWords(self)
        if express:
            self._remember_head(data)
        self._observe()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes a bool: keep the sending side open
        if self._owes_answer():
            self.cycle.keep_alive = False
            return True
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._observe()
        self.server_state.drop_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._observe()

    # What the parser tells

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        upgrade = self.parser.should_upgrade()
        if upgrade and any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers):
            self._fault = "it asks for an upgrade and has a body; send it without Upgrade"
            raise ValueError(self._fault)  # which becomes the parser's error, without the text
        super().on_headers_complete()
        # An answer that goes out before the body came whole is the last one: the rest of the body is not waited for.
        self._keep_alive = self.cycle.keep_alive and not (
            upgrade or self._ending or self.server_state.stopping
        )
        self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive

    # What the cycle and the server tell

    def on_response_complete(self) -> None:
        self._calls += 1
        self._go_on()

    def _go_on(self) -> None:
        """An answer is given: turn to what came after its request."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # idle connections are the room's
        if self._unread and not self.pipeline and not self.transport.is_closing():
            unread, self._unread = self._unread, b""
            self.flow.held = False
            self._parse(unread)
            self.flow.resume_reading()
        self._observe()

    def count_calls(self) -> None:
        """Add what was answered here to the server's count."""
        self.server_state.calls.add(self.peer, self._calls)
        self._calls = 0

    def shutdown(self) -> None:
        """Close after the next answer, and tell the client with it, also if none of its request was read yet."""
        self._ending = True
        self._keep_alive = False
        cycle = self._current()
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False

    def end_idle(self) -> None:
        """Close if no request was begun, so that none can be lost: a client that comes too late can't send any of it.

        Reading is shut down first. From then on the client's sends fail with EPIPE before a byte of them is taken; what
        it sent before that is here, is read by the loop, and is answered.
        """
        if self._phase is not Phase.IDLE or self.transport.is_closing() or self._came():
            return
        with contextlib.suppress(OSError):  # the client was quicker
            self.transport.get_extra_info("socket").shutdown(socket.SHUT_RD)
        if not self._came():
            self.transport.close()

    def _came(self) -> bool:
        """Whether something was received that the loop has not read yet."""
        waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(waiting)

    def linger(self) -> None:
        """Close the connection; while its client is still sending a body, drop some of that first."""
        cycle = self._current()
        if cycle is None or not cycle.more_body or self.transport.is_closing():
            self.transport.close()
        else:
            self._dropping = self.server_state.room.limits.linger_bytes
            self.transport.write_eof()

    def give_up(self, phase: Phase) -> None:
        """Close the connection, which was too long in ``phase``."""
        match phase:
            case Phase.HEAD:
                limit_s = self.server_state.room.limits.head_s
                self.send_400_response(f"its head did not come whole within {limit_s:g} s")
            case Phase.IDLE if not self.unsent_bytes:
                self.end_idle()
            case Phase.IDLE | Phase.ANSWER | Phase.LINGER:  # nobody reads: closing would wait for that
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self._owes_answer():
            # What came behind a good request is garbage: answer the request, then close.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        cycle = self._current()
        if cycle is not None and not cycle.response_complete:  # the garbage is in the body
            cycle.disconnected = True
            cycle.message_event.set()
        self._end_with(ProblemCode.MALFORMED, f"this is not HTTP/1.1 as it should be: {self._fault or msg}")

    def _parse(self, received: bytes) -> None:
        """Hand over what was received a little at a time; keep it unread while earlier requests wait for their turn."""
        for start in range(0, len(received), _PARSED_AT_ONCE_BYTES):
            if self.transport.is_closing():
                return
            if self.pipeline:
                self._unread = received[start:]
                self.flow.held = True
                self.flow.pause_reading()
                return
            piece = received[start : start + _PARSED_AT_ONCE_BYTES]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"its head is longer than {_MAX_HEAD_BYTES} bytes")

    # The short way

    def _between_requests(self) -> bool:
        """Whether all that came so far was answered, so that what comes now begins a request."""
        cycle = self._current()
        return (
            (cycle is None or (cycle.response_complete and not cycle.more_body))
            and not self._head_bytes
            and not self._unread
            and not self.transport.is_closing()
        )

    def _take_express(self, received: bytes) -> bool:
        """Let one whole request go the short way; False if it can't."""
        end = received.find(_HEAD_END)
        known = self.server_state.known_heads.get(received[:end])
        express = self.server_state.express
        if known is None or express is None or len(received) != end + len(_HEAD_END) + known.length:
            return False
        before = self._current()
        keep = not (self._ending or self.server_state.stopping)
        cycle = self.cycle = _ExpressCycle(self, keep_alive=keep)  # type: ignore[assignment]  # as much as is looked at
        if not express.take(known.path, received[end + len(_HEAD_END) :], cycle):
            self.cycle = before  # type: ignore[assignment]  # uvicorn declares it without the None
            return False
        self._observe()
        return True

    def _remember_head(self, received: bytes) -> None:
        """Know a head again that the parser has read, if its request may go the short way."""
        end = received.find(_HEAD_END)
        express = self.server_state.express
        scope: MutableMapping[str, Any] | None = self.scope  # type: ignore[assignment]  # which ASGI has it be
        if end < 0 or express is None or scope is None or "raw_path" not in scope:
            return
        if self._head_bytes or self._unread or self.pipeline or self.transport.is_closing():
            return
        fields = dict(scope["headers"])
        length = fields.get(b"content-length", b"")
        if (
            scope["method"] == "POST"
            and scope["raw_path"] in express.paths
            and not scope["query_string"]
            and scope["http_version"] == "1.1"
            and len(fields) == len(scope["headers"])
            and fields.keys() <= _PLAIN_HEADERS
            and not is_ndjson(scope)
            and length.isdigit()
            and int(length) <= MAX_BODY_BYTES
            and len(received) == end + len(_HEAD_END) + int(length)
            # As strict as lines can be: the parser and `find` must see the same end.
            and received.count(b"\n", 0, end) == received.count(b"\r\n", 0, end)
        ):
            known = self.server_state.known_heads
            if len(known) >= _MAX_KNOWN_HEADS:
                known.clear()
            known[received[:end]] = _KnownHead(scope["raw_path"], int(length))

    def answer_express(self, cycle: _ExpressCycle, content: bytes) -> None:
        """Write the whole answer, if none was given yet, and turn to what came after its request."""
        if cycle.response_complete:
            return
        cycle.response_complete = True
        self.server_state.total_requests += 1
        self._calls += 1
        if self.transport.is_closing():
            return
        if cycle.keep_alive:
            self.transport.write(content)
        else:
            self.transport.write(content.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            self.transport.close()
        if self.pipeline or self._unread:
            self._go_on()
        else:
            self._observe()

    def finish_express(self, cycle: _ExpressCycle, response: Coroutine[Any, Any, Response]) -> None:
        """Write what ``response`` comes to, as a task."""
        task = self.loop.create_task(self._finish_express(cycle, response))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _finish_express(self, cycle: _ExpressCycle, response: Coroutine[Any, Any, Response]) -> None:
        try:
            answer = await response
        except asyncio.CancelledError:
            answer = problem_response(stopping())
        except Exception:  # the last line of defence, as in `app`
            _logger.exception(
                "a request of %s failed in a way that nobody foresaw, and was answered 500; please report it",
                self.peer,
                extra=about(Event.DEFECT, peer_uid=self.peer.uid),
            )
            answer = problem_response(
                Refusal(ProblemCode.INTERNAL, "an error that nobody foresaw; the daemon's log has it")
            )
        fields = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
        self.answer_express(
            cycle, b"%b%b\r\n%b" % (STATUS_LINE[answer.status_code], fields, bytes(answer.body))
        )

    def end_express(self) -> None:
        """The daemon's grace is over: what is still on the short way is not waited for."""
        cycle = self._current()
        if isinstance(cycle, _ExpressCycle) and not cycle.response_complete:
            cycle.keep_alive = False
            self.loop.create_task(self._finish_express(cycle, _stopping()))

    def _observe(self) -> None:
        """Tell the room what this connection waits for now."""
        phase: Phase | None = None
        if self.transport.is_closing():
            phase = Phase.ANSWER if self.unsent_bytes else None
        elif self.flow.write_paused:
            phase = Phase.ANSWER
        elif self._dropping is not None:
            phase = Phase.LINGER
        elif (cycle := self._current()) is None or cycle.response_complete:
            phase = Phase.HEAD if self._head_bytes else Phase.IDLE
        if phase is not self._phase:
            now_s = self.loop.time() if phase is not None else 0.0  # nobody is waited for
            self.server_state.room.move(self, self._phase, phase, now_s)
            self._phase = phase
            if phase is not None:
                self.server_state.look_in_time(self.loop, phase, now_s)

    def _owes_answer(self) -> bool:
        """Whether the last request came whole and is not answered yet."""
        cycle = self._current()
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _end_with(self, code: ProblemCode, detail: str, headers: str = "") -> None:
        body = problem_body(code, detail)
        self.transport.writelines(_head(code.status, len(body), headers))
        self.transport.write(body)
        self.transport.close()
        self._observe()

    def _keep_out(self) -> None:
        """Say that this user may not come in; a few at a time are listened to until they have read that."""
        body = problem_body(ProblemCode.FORBIDDEN, self.server_state.keep_out(self.peer, self.loop.time()))
        self.transport.writelines(_head(ProblemCode.FORBIDDEN.status, len(body), ""))
        self.transport.write(body)
        if len(self.server_state.kept_out) < _MAX_LAST_WORDS:
            self.server_state.kept_out.add(self)
            self._dropping = _MAX_LAST_WORDS_BYTES
            self.transport.write_eof()
        else:
            self.transport.close()
        self._observe()

    def _current(self) -> RequestResponseCycle | _ExpressCycle | None:
        return self.cycle  # uvicorn declares it without the None that it begins with


async def _stopping() -> Response:
    return problem_response(stopping())


def _head(status: int, length: int, headers: str) -> Iterable[bytes]:
    yield STATUS_LINE[status]
    yield f"content-type: {CONTENT_TYPE}\r\ncontent-length: {length}\r\n{headers}connection: close\r\n\r\n".encode()
