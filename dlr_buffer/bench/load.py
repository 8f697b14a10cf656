"""The apps: many connections to the client socket, each sending its next request when the last one is answered.

The requests are built before the clock starts, and answers are hardly looked at (status and length), so that on two
cores as much as possible is left to the daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

JSON = b"application/json"
NDJSON = b"application/x-ndjson"


def request(path: bytes, body: bytes, content_type: bytes = JSON) -> bytes:
    """Build one request."""
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        path,
        content_type,
        len(body),
        body,
    )


def registration(message_id: str) -> bytes:
    """Build the request that registers one message."""
    return request(b"/v1/messages", b'{"message_id":"%b"}' % message_id.encode())


def report(message_id: str, state: str = "delivered") -> bytes:
    """Build the request that reports one state."""
    return request(
        b"/v1/receipts", b'{"message_id":"%b","message_state":"%b"}' % (message_id.encode(), state.encode())
    )


def registrations(message_ids: Sequence[str]) -> bytes:
    """Build the request that registers many messages."""
    return request(
        b"/v1/messages", b"\n".join(b'{"message_id":"%b"}' % each.encode() for each in message_ids), NDJSON
    )


def reports(message_ids: Sequence[str], state: str = "delivered") -> bytes:
    """Build the request that reports many states."""
    line = b'{"message_id":"%b","message_state":"' + state.encode() + b'"}'
    return request(b"/v1/receipts", b"\n".join(line % each.encode() for each in message_ids), NDJSON)


@dataclass(slots=True)
class Taken:
    """What a load came to; times in seconds."""

    requests: int = 0
    failed: int = 0
    """Answers that were no 2xx."""
    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.elapsed_s


class Connection(asyncio.Protocol):
    """One connection; ``answered`` is told of each whole answer, and whether it was a 2xx."""

    def __init__(self, answered: Callable[[Connection, bool], None]) -> None:
        """Connect with `connect`."""
        self._answered = answered
        self._buffer = b""
        self._transport: asyncio.Transport
        self.sent_at = 0.0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember whom to ask."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Say so."""
        self.lost.set_result(None)

    def send(self, content: bytes) -> None:
        """Send one request; the next only once it is answered."""
        self.sent_at = time.monotonic()
        self._transport.write(content)

    def data_received(self, data: bytes) -> None:
        """Wait for a whole answer."""
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"content-length: ", 0, end) + 16
        length = int(self._buffer[at : self._buffer.index(b"\r", at)])
        if len(self._buffer) < end + 4 + length:
            return
        good = self._buffer[9:10] == b"2"
        self._buffer = self._buffer[end + 4 + length :]
        self._answered(self, good)

    def close(self) -> None:
        """Close it."""
        self._transport.close()


async def run(sock: str, requests: Iterable[bytes], connections: int) -> Taken:
    """Send all ``requests``, as fast as they are answered, over so many connections.

    Raises ConnectionResetError if the other side ends a connection before all is answered.
    """
    taken = Taken()
    waiting = iter(requests)
    done = asyncio.get_running_loop().create_future()
    busy = 0

    def answered(connection: Connection, good: bool) -> None:  # noqa: FBT001 - a callback
        nonlocal busy
        taken.latencies_s.append(time.monotonic() - connection.sent_at)
        taken.requests += 1
        taken.failed += not good
        following = next(waiting, None)
        if following is not None:
            connection.send(following)
            return
        busy -= 1
        if not busy and not done.done():
            done.set_result(None)

    open_ = [await connect(sock, answered) for _ in range(connections)]
    began = time.perf_counter()
    for connection in open_:
        following = next(waiting, None)
        if following is not None:
            busy += 1
            connection.send(following)
    if not busy:
        done.set_result(None)
    await asyncio.wait([done, *(each.lost for each in open_)], return_when=asyncio.FIRST_COMPLETED)
    if not done.done():
        raise ConnectionResetError("the daemon ended a connection without an answer")
    taken.elapsed_s = time.perf_counter() - began
    for connection in open_:
        connection.close()
        await connection.lost
    return taken


async def connect(sock: str, answered: Callable[[Connection, bool], None]) -> Connection:
    """Connect to the socket at the path ``sock``."""
    _, connection = await asyncio.get_running_loop().create_unix_connection(
        lambda: Connection(answered), sock
    )
    return connection
