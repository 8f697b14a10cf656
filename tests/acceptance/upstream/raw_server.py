"""A server of raw bytes in a thread, for a daemon that runs as a process: it misbehaves until it is mended.

What it answers is chosen by the test, request by request; once mended it acknowledges whatever it is asked. It
remembers what it acknowledged, so that nothing else may count as acknowledged. What can be wrong with an answer is
in `tests.integration.smartswitch.misconduct`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.integration.smartswitch.misconduct import good_body, http

T = TypeVar("T")

PATIENCE_S = 60.0
Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
"""What is done with a new connection before the first request, a TLS handshake for instance."""
Misbehave = Callable[["Asked", asyncio.StreamWriter], Coroutine[Any, Any, None]]
"""What is answered instead of what was asked for; the connection is closed after it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    target: bytes
    ids: tuple[int, ...]
    connection: int
    """On which connection, from 0 in the order of coming."""


class RawServer:
    """Listens on loopback in a thread of its own, as a context manager with plain calls."""

    def __init__(self, *script: Misbehave, greetings: tuple[Greet, ...] = ()) -> None:
        """Misbehave by ``script``, once a request, then answer 503 until mended.

        ``greetings`` are for the connections one after another; those after them are greeted by the last.
        """
        self._script = list(script)
        self._greetings = list(greetings)
        self._mended = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raw server", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._listening: asyncio.Server | None = None
        self._connections = 0
        self.asked: list[Asked] = []
        self.acknowledged: list[int] = []
        """Every request_id that was acknowledged, as often as it was."""
        self.port = 0

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Break off everything."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        """The account's url."""
        return f"{scheme}://{host}:{self.port}/api/dlr"

    def wait_for_the_end_of_the_script(self) -> None:
        """Return once everything that was scripted has happened and was followed by another request."""

        async def wait() -> None:
            async with self._changed:
                wanted = len(self.asked) + len(self._script) + 1
                await self._changed.wait_for(lambda: not self._script and len(self.asked) >= wanted)

        self._call(asyncio.wait_for(wait(), PATIENCE_S))

    def wait_for_the_last_greeting(self) -> None:
        """Return once a connection was greeted with the last greeting but one."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._greetings) <= 1)

        self._call(asyncio.wait_for(wait(), PATIENCE_S))

    def mend(self) -> None:
        """From now on acknowledge whatever is asked."""

        async def change() -> None:
            self._mended = True

        self._call(change())

    async def _start(self) -> None:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, self._connections = self._connections, self._connections + 1
        # Whatever the other side does to the connection is its right.
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            try:
                if self._greetings:
                    greet = self._greetings[0] if len(self._greetings) == 1 else self._greetings.pop(0)
                    async with self._changed:
                        self._changed.notify_all()
                    await greet(reader, writer)
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    await self._answer(_request(head, connection), writer)
                    await writer.drain()
            finally:
                writer.close()
                with suppress(OSError, ssl.SSLError):
                    await writer.wait_closed()

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        misbehave = self._script.pop(0) if self._script else None
        self.asked.append(asked)
        async with self._changed:
            self._changed.notify_all()
        if misbehave is not None:
            await misbehave(asked, writer)
            await writer.drain()
            writer.close()
        elif self._mended:
            self.acknowledged += asked.ids
            writer.write(http(good_body(asked.ids)))
        else:
            writer.write(http(b"", status=b"503 Not mended yet"))

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _request(head: bytes, connection: int) -> Asked:
    target = head.split(b" ", 2)[1]
    return Asked(target, tuple(map(int, re.findall(rb"[?&]request_id=(\d+)", target))), connection)
