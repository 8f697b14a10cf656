"""Clients that misbehave: what each does to a socket, and threads that keep at it. What has to hold is the tests'."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_DESCRIPTION = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
_REGISTRATION = HEAD + b'Content-Length: 21\r\n\r\n{"message_id":"slow"}'
_EACH = 20
"""Clients of each slow kind."""
_JOIN_S = 30.0


def connected(path: Path) -> socket.socket:
    """Open a raw connection, waiting for a place among those that wait to be accepted."""
    raw = socket.socket(socket.AF_UNIX)
    try:
        raw.connect(str(path))
    except OSError:
        raw.close()
        raise
    raw.settimeout(30)
    return raw


def register(raw: socket.socket, name: str) -> None:
    """Register a message, and see that it is."""
    body = json.dumps({"message_id": name}).encode()
    raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    answer = raw.recv(65536)
    while not answer.endswith(b"}"):
        piece = raw.recv(65536)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 201 "), answer


@contextmanager
def many_files() -> Iterator[None]:
    """Let this process open as many files as a crowd has members."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowded(client: Path, admin: Path, *, idle: int) -> Iterator[None]:
    """Misbehave in every way until the block is left: idle, slow, half-closed, resetting, deaf and endless clients."""
    with ExitStack() as opened:

        def some(number: int, opening: bytes = b"", path: Path = client) -> list[socket.socket]:
            found = [opened.enter_context(connected(path)) for _ in range(number)]
            for raw in found:
                raw.sendall(opening)
            return found

        some(idle)
        slow = some(_EACH, b"GET /healthz HTTP/1.1\r\nX: ")
        slow += some(_EACH, HEAD + b"Content-Length: 16000000\r\n\r\n")
        for raw in (*some(_EACH, HEALTH), *some(_EACH, HEAD + b"Content-Length: 500\r\n\r\n{")):
            raw.shutdown(socket.SHUT_WR)
        some(_EACH, _DESCRIPTION * 100, admin)  # and never reads
        with _until_left(_drip(slow), *(_over(client, work) for work in (_reset, _huge, _chunked, _ahead))):
            yield


_Work = Callable[[threading.Event], None]


@contextmanager
def _until_left(*works: _Work) -> Iterator[None]:
    left = threading.Event()
    # The crowd's threads must not keep those of the test from running: that would say nothing of the daemon.
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)

    def again_and_again(work: _Work) -> None:
        while not left.is_set():
            with contextlib.suppress(OSError):  # that the daemon ends such connections is what is wanted
                work(left)

    running = [threading.Thread(target=again_and_again, args=(work,), daemon=True) for work in works]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        left.set()
        for thread in running:
            thread.join(_JOIN_S)
        assert not any(thread.is_alive() for thread in running)


def _drip(slow: list[socket.socket]) -> _Work:
    turns = itertools.cycle(slow)

    def work(left: threading.Event) -> None:
        while not left.wait(0.001):
            next(turns).sendall(b" ")

    return work


def _over(path: Path, talk: Callable[[socket.socket, threading.Event], None]) -> _Work:
    def work(left: threading.Event) -> None:
        with connected(path) as raw:
            raw.settimeout(0.5)
            talk(raw, left)

    return work


def _reset(raw: socket.socket, _left: threading.Event) -> None:
    cut = raw.fileno() * 7 % len(_REGISTRATION)
    raw.sendall(_REGISTRATION[:cut])


def _huge(raw: socket.socket, left: threading.Event) -> None:
    raw.sendall(HEAD + b"Content-Length: 10737418240\r\n\r\n")
    while not left.is_set():
        raw.sendall(b" " * 65536)


def _chunked(raw: socket.socket, left: threading.Event) -> None:
    raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while not left.is_set():
        raw.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def _ahead(raw: socket.socket, left: threading.Event) -> None:
    while not left.is_set():
        raw.sendall(HEALTH * 1000)
