"""Serving an app on a bound socket: uvicorn's HTTP protocol, our own start and stop.

uvicorn's Server is left out, for it wakes ten times a second, takes the signals, and polls when it stops. Its protocol
class is used as it is but for three things: requests that are not HTTP get a problem as well, and never in the place of
an answer that is still owed; a client that closes its sending side early still gets its answer; and the head
of a request is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from dlr_buffer.local_api.problems import CONTENT_TYPE, ProblemCode, problem_body
from dlr_buffer.local_api.sockets import BACKLOG, BoundSocket

_KEEP_ALIVE_S = 75
_MAX_HEAD_BYTES = 64 * 1024
_LAST_WORDS_S = 1.0


class ApiServer:
    """Serves ``app`` on ``sock`` until it is stopped."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        """``sock`` is bound already, and closed by `stop`."""
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
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._sock = sock
        self._state = _State()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Take connections; those that came since the socket was bound have waited."""
        self._config.load()

        def connect() -> _Protocol:
            return _Protocol(self._config, self._state)

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(connect, sock=self._sock, backlog=BACKLOG)

    async def stop(self, grace_ms: int) -> None:
        """Take no new connections, close idle ones, answer what is in work for at most ``grace_ms``, then close.

        What is in work after that is answered with 503. No answer is cut off in the middle, unless its client does not
        read it.
        """
        if isinstance(self._sock, BoundSocket):
            self._sock.unlink()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._sock.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait_until_idle(grace_ms / 1000)
        for connection in list(self._state.connections):
            # Its client does not read: nothing more can be said to it.
            if isinstance(connection, _Protocol) and connection.flow.write_paused:
                connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
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
    """uvicorn's registry of connections and tasks, which also says when one of them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def watch_tasks(self) -> None:
        for task in self.tasks:
            task.remove_done_callback(self._tell)
            task.add_done_callback(self._tell)

    def _tell(self, _task: asyncio.Task[None]) -> None:
        self.changed.set()


class _Protocol(HttpToolsProtocol):
    server_state: _State

    def __init__(self, config: uvicorn.Config, server_state: _State) -> None:
        super().__init__(config, server_state, app_state={})
        self._head_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server_state.changed.set()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of the request is longer than {_MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()
        if self.expect_100_continue:
            # A client that waits for leave to send its body may never send it, once refused: do not wait for it.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes a bool: keep the sending side open
        if self._owes_answer():
            self.cycle.keep_alive = False
            return True
        return False

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
        body = problem_body(ProblemCode.MALFORMED, f"this is not HTTP/1.1 as it should be: {msg}")
        self.transport.writelines(_head(ProblemCode.MALFORMED.status, len(body)))
        self.transport.write(body)
        self.transport.close()

    def _owes_answer(self) -> bool:
        """Whether the last request came whole and is not answered yet."""
        cycle = self._current()
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _current(self) -> RequestResponseCycle | None:
        return self.cycle  # uvicorn declares it without the None that it begins with


def _head(status: int, length: int) -> Iterable[bytes]:
    yield STATUS_LINE[status]
    yield f"content-type: {CONTENT_TYPE}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n".encode()
