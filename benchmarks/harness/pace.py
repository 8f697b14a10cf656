"""An app that sends at a steady rate, as life does, whether it is answered quickly or not.

As fast as possible: `dlr_buffer.bench.load`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from dlr_buffer.bench.load import AnswerReader, Taken


class _Connection(asyncio.Protocol):
    """One connection; ``answered`` is told of each whole answer, and whether it was a 2xx."""

    def __init__(self, answered: Callable[[_Connection, bool], None]) -> None:
        self._answered = answered
        self._answers = AnswerReader()
        self._transport: asyncio.Transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if (good := self._answers.read(data)) is not None:
            self._answered(self, good)

    def send(self, content: bytes) -> None:
        self._transport.write(content)

    def close(self) -> None:
        self._transport.close()


@dataclass(slots=True)
class Paced:
    """Sends requests at a steady rate, whether they are answered quickly or not."""

    sock: str
    rate: float
    """Requests a second."""
    connections: int
    sent: Callable[[int], None] = lambda _: None
    """Told of the number of each request when it is sent."""

    async def run(self, requests: Iterator[bytes], seconds: float) -> Taken:
        """Send for so long; a latency counts from when the request was due, however late it could be sent."""
        taken = Taken()
        idle: asyncio.Queue[_Connection] = asyncio.Queue()
        due_of: dict[_Connection, float] = {}

        def answered(connection: _Connection, good: bool) -> None:  # noqa: FBT001 - a callback
            taken.latencies_s.append(time.monotonic() - due_of[connection])
            taken.requests += 1
            taken.failed += not good
            idle.put_nowait(connection)

        loop = asyncio.get_running_loop()
        open_ = [
            (await loop.create_unix_connection(lambda: _Connection(answered), self.sock))[1]
            for _ in range(self.connections)
        ]
        for connection in open_:
            idle.put_nowait(connection)
        began = time.monotonic()
        number = 0
        while (due := began + number / self.rate) < began + seconds:
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            connection = await idle.get()
            content = next(requests, None)
            if content is None:
                break
            due_of[connection] = due
            self.sent(number)
            connection.send(content)
            number += 1
        for _ in open_:
            await idle.get()
        taken.elapsed_s = time.monotonic() - began
        for connection in open_:
            connection.close()
            await connection.lost
        return taken
