"""Who is at the other end of a connection: read from the kernel once, counted, and kept out if a list does not name it.

Permissions on the socket files decide who can connect at all; this only narrows it further. What an admin did is
written down by `audit`.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

MOST_USERS: Final = 64
"""Counted by their uid on each socket; calls of any further ones are counted together."""
OTHERS: Final = "other"
UNKNOWN: Final = "unknown"
UNSEEN: Final = "?"
_CREDENTIALS = struct.Struct("3i")
_MOST_PROGRAM_BYTES: Final = 64


class Peer(NamedTuple):
    """A process as it was when it connected; a uid is -1 where the kernel does not tell."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        """As refusals name it."""
        return f"uid {self.uid}, process {self.pid}, {program_of(self.pid)}"


NOBODY: Final = Peer(0, -1, -1)
"""Whoever is at the other end of something that is no Unix socket."""


def peer_of(sock: object) -> Peer:
    """Ask the kernel who connected (SO_PEERCRED); costs a microsecond."""
    if getattr(sock, "family", None) != socket.AF_UNIX:
        return NOBODY
    credentials: bytes = sock.getsockopt(  # type: ignore[attr-defined]  # asyncio's, which is not socket.socket
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    return Peer(pid, uid, gid)


def program_of(pid: int) -> str:
    """The name of the program that a process runs; UNSEEN where that can't be seen (it is gone, or /proc is hidden).

    A process can call itself anything, so this helps to remember, and proves nothing.
    """
    try:
        with Path(f"/proc/{pid}/comm").open("rb") as file:
            name = file.read(_MOST_PROGRAM_BYTES).removesuffix(b"\n").decode("utf-8", "replace")
    except OSError:
        return UNSEEN
    return printable(name) or UNSEEN


def printable(name: str) -> str:
    """The name without what can't be printed."""
    return "".join(character if character.isprintable() else "?" for character in name)


class AllowList(NamedTuple):
    """Who may use a socket: ``uids``, None for everybody; ``key`` is where an admin wrote that down."""

    uids: frozenset[int] | None = None
    key: str = "the allow list"

    def admits(self, peer: Peer) -> bool:
        """Whether this one may come in."""
        return self.uids is None or peer.uid in self.uids


class CallCounts:
    """Calls by uid since the start, on one socket; bounded in the number of uids."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._calls: Counter[str] = Counter()

    def add(self, peer: Peer, calls: int) -> None:
        """Count calls of a peer."""
        if not calls:
            return
        uid = str(peer.uid) if peer.uid >= 0 else UNKNOWN
        if uid not in self._calls and len(self._calls) >= MOST_USERS:
            uid = OTHERS
        self._calls[uid] += calls

    def __call__(self) -> dict[str, int]:
        """Calls by uid, ``other`` for all beyond the first 64."""
        return dict(self._calls)
