"""Clients that misbehave, in a process of their own: ``python -m tests.acceptance.misuse.crowd CLIENT ADMIN KIND=N …``.

Of their own, for threads beside those who measure would keep them from running, and nobody could say whose fault it
was. The process says ``ready`` once all have come, and goes on until its standard input ends. What has to hold is the
tests'; `benchmarks/crowd.py` measures what each kind costs the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_DESCRIPTION = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
_REGISTRATION = HEAD + b'Content-Length: 21\r\n\r\n{"message_id":"slow"}'
_JOIN_S = 30.0

CROWD: Final[Mapping[str, int]] = {
    "idle": 1_000,
    "loris": 40,
    "half-closed": 40,
    "deaf": 20,
    "reset": 1,
    "huge": 1,
    "chunked": 1,
    "ahead": 1,
}
"""How many of each kind make a crowd."""


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
def crowded(client: Path, admin: Path, kinds: Mapping[str, int] = CROWD) -> Iterator[None]:
    """Let so many of each kind misbehave, in another process, until the block is left."""
    command = [sys.executable, "-m", "tests.acceptance.misuse.crowd", str(client), str(admin)]
    command += [f"{kind}={number}" for kind, number in kinds.items()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        try:
            assert crowd.stdout.readline() == "ready\n"
            yield
            assert crowd.poll() is None, "the crowd left early"
        finally:
            crowd.stdin.close()
            assert crowd.wait(2 * _JOIN_S) == 0


_Work = Callable[[threading.Event], None]


@contextmanager
def _misbehaving(client: Path, admin: Path, kinds: Mapping[str, int]) -> Iterator[None]:
    with ExitStack() as opened:

        def some(number: int, opening: bytes = b"", path: Path = client) -> list[socket.socket]:
            found = [opened.enter_context(connected(path)) for _ in range(number)]
            for raw in found:
                raw.sendall(opening)
            return found

        works: list[_Work] = []
        for kind, number in kinds.items():
            match kind:
                case "idle":
                    some(number)
                case "loris":  # in its head, and in its body
                    slow = some(number // 2, b"GET /healthz HTTP/1.1\r\nX: ")
                    slow += some(number // 2, HEAD + b"Content-Length: 16000000\r\n\r\n")
                    works.append(_drip(slow))
                case "half-closed":  # after a request, and in the middle of one
                    found = some(number // 2, HEALTH)
                    found += some(number // 2, HEAD + b"Content-Length: 500\r\n\r\n{")
                    for raw in found:
                        raw.shutdown(socket.SHUT_WR)
                case "deaf":  # asks for much, and never reads
                    some(number, _DESCRIPTION * 100, admin)
                case "reset" | "huge" | "chunked" | "ahead":
                    works += [_over(client, _ENDLESS[kind])] * number
                case _:
                    raise ValueError(kind)
        with _until_left(*works):
            yield


@contextmanager
def _until_left(*works: _Work) -> Iterator[None]:
    left = threading.Event()

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


_ENDLESS: Final = {"reset": _reset, "huge": _huge, "chunked": _chunked, "ahead": _ahead}


def main() -> None:
    """Misbehave until the standard input ends."""
    client, admin, *kinds = sys.argv[1:]
    numbers = {kind: int(number) for kind, number in (each.split("=") for each in kinds)}
    with many_files(), _misbehaving(Path(client), Path(admin), numbers):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
