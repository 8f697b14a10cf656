"""The apps: many connections to the client socket, each sending its next request when the last one is answered.

The requests are built before the clock starts, and answers are hardly looked at (status and length), so that on two
cores as much as possible is left to the daemon. For the same reason there is no event loop here, only the kernel's own
list of sockets that have something to read: it takes a third of the time.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
_READ_BYTES: Final = 64 * 1024


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


class AnswerReader:
    """Puts the answers of one connection together; one request at a time is under way on it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._buffer = b""

    def read(self, content: bytes) -> bool | None:
        """Take what has come: whether the answer is a 2xx, or None while it is not whole."""
        self._buffer += content
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        at = self._buffer.find(b"content-length: ", 0, end) + 16
        length = int(self._buffer[at : self._buffer.index(b"\r", at)])
        if len(self._buffer) < end + 4 + length:
            return None
        good = self._buffer[9:10] == b"2"
        self._buffer = self._buffer[end + 4 + length :]
        return good


class _App:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._answers = AnswerReader()
        self.sent_at = 0.0

    def send(self, content: bytes) -> None:
        """Send one request; the next only once it is answered."""
        self.sent_at = time.perf_counter()
        self._sock.sendall(content)

    def read(self) -> bool | None:
        """Read what has come, as `AnswerReader.read`."""
        if content := self._sock.recv(_READ_BYTES):
            return self._answers.read(content)
        raise ConnectionResetError("the daemon ended a connection without an answer")


def run(sock: str, requests: Iterable[bytes], connections: int) -> Taken:
    """Send all ``requests``, as fast as they are answered, over so many connections to the socket at the path ``sock``.

    Raises ConnectionResetError if the other side ends a connection before all is answered.
    """
    with ExitStack() as stack:
        ready = stack.enter_context(select.epoll())
        apps: dict[int, _App] = {}
        for _ in range(connections):
            opened = stack.enter_context(socket.socket(socket.AF_UNIX))
            opened.connect(sock)
            ready.register(opened.fileno(), select.EPOLLIN)
            apps[opened.fileno()] = _App(opened)
        return _run(ready, apps, iter(requests))


def _run(ready: select.epoll, apps: dict[int, _App], waiting: Iterator[bytes]) -> Taken:
    taken = Taken()
    began = time.perf_counter()
    busy = 0
    for app, content in zip(apps.values(), waiting, strict=False):
        app.send(content)
        busy += 1
    while busy:
        for number, _ in ready.poll():
            app = apps[number]
            if (good := app.read()) is None:
                continue
            taken.latencies_s.append(time.perf_counter() - app.sent_at)
            taken.requests += 1
            taken.failed += not good
            if (following := next(waiting, None)) is None:
                busy -= 1
            else:
                app.send(following)
    taken.elapsed_s = time.perf_counter() - began
    return taken
