"""An app that sends at a steady rate, as life does, whether it is answered quickly or not.

As fast as possible: `dlr_buffer.bench.load`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlr_buffer.bench.load import Connection, Taken, connect


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
        idle: asyncio.Queue[Connection] = asyncio.Queue()
        due_of: dict[Connection, float] = {}

        def answered(connection: Connection, good: bool) -> None:  # noqa: FBT001 - a callback
            taken.latencies_s.append(time.monotonic() - due_of[connection])
            taken.requests += 1
            taken.failed += not good
            idle.put_nowait(connection)

        open_ = [await connect(self.sock, answered) for _ in range(self.connections)]
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
