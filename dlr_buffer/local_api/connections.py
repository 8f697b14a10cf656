"""Room for connections: how many one socket serves, what each may wait for and how long, and which has to go first.

The server tells what each connection is doing; nothing here reads, writes or knows HTTP. Times are seconds of any
monotonic clock, handed in. How much of bodies may be in flight is `bodies`'.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar, assert_never

from dlr_buffer.errors import DlrBufferError

MAX_CLIENT_CONNECTIONS: Final = 2048
"""Ten times what a supplier's apps are likely to hold; with what one connection may hold (under 200 KiB) bearable."""
MAX_ADMIN_CONNECTIONS: Final = 128
"""Room of the admins' own: apps that took all of theirs leave it alone."""
ACCEPTED_AT_ONCE: Final = 4
"""Connections taken in one turn of the loop: clients that connect again and again delay those who are connected by a
millisecond a turn (by 5 ms with 16 at once). The next ones are taken in the next turn."""
RESERVED_DESCRIPTORS: Final = 128
"""What the daemon has open itself: database, log, sockets (12 measured, the rest is for backups and look-ups of names),
and on each of two sockets connections that are refused, or closed but not gone yet."""
_WANTED_DESCRIPTORS: Final = 16_384
_FEWEST_CONNECTIONS: Final = 16
_FULL_FOR_S: Final = 60.0
"""How long the alarm stays after a connection was refused."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one socket may take."""

    connections: int = MAX_CLIENT_CONNECTIONS
    idle_s: float = 75.0
    """An idle connection is closed; longer than the usual minute between two scrapes of metrics."""
    idle_spared_s: float = 2.0
    """One idle for so short is not closed to make room: its next request may be on the way."""
    head_s: float = 30.0
    """A head comes whole in this time, or its client is no client."""
    answer_s: float = 120.0
    """An answer that its client does not take is dropped."""
    linger_s: float = 5.0
    linger_bytes: int = 32 * 1024 * 1024
    """So much of a refused body is read and dropped, as most clients look for an answer only once all is sent."""
    unsent_bytes: int = 64 * 1024 * 1024
    """Answers that wait for slow readers; beyond it the slowest of them loses its answer."""


class Phase(StrEnum):
    """What a connection waits for, if it is its client's turn."""

    IDLE = "idle"
    HEAD = "head"
    ANSWER = "answer"
    LINGER = "linger"


Connection = TypeVar("Connection", bound=Hashable)


class ConnectionRoom(Generic[Connection]):
    """The connections of one socket."""

    def __init__(self, limits: ConnectionLimits) -> None:
        """Start empty; ``limits`` may be replaced."""
        self.limits = limits
        self.refused = 0
        """Connections turned away since the start."""
        self._refused_at_s: float | None = None
        self._open: set[Connection] = set()
        # In order of time, so that only the first of each has to be looked at.
        self._waiting: dict[Phase, OrderedDict[Connection, float]] = {phase: OrderedDict() for phase in Phase}

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def admit(self, connection: Connection, now_s: float) -> tuple[bool, Connection | None]:
        """Let a connection in if there is room; also returns an idle one that has to be closed for it."""
        leaving = None
        if len(self._open) >= self.limits.connections:
            leaving = self._idle_for_long(now_s)
            if leaving is None:
                self.refused += 1
                self._refused_at_s = now_s
                return False, None
            self._open.discard(leaving)
        self._open.add(connection)
        return True, leaving

    def leave(self, connection: Connection, phase: Phase | None) -> None:
        """Forget a connection that is gone, and was in ``phase``."""
        self._open.discard(connection)
        if phase is not None:
            self._waiting[phase].pop(connection, None)

    def move(self, connection: Connection, old: Phase | None, new: Phase | None, now_s: float) -> None:
        """Note that a connection waits for something else; None: it is the daemon's turn."""
        if old is not None:
            self._waiting[old].pop(connection, None)
        if new is not None:
            self._waiting[new][connection] = now_s

    def waiting(self, phase: Phase) -> tuple[Connection, ...]:
        """The connections in a phase, the longest in it first."""
        return tuple(self._waiting[phase])

    def overdue(self, now_s: float) -> list[tuple[Connection, Phase]]:
        """Connections whose time is over."""
        found = []
        for phase, waiting in self._waiting.items():
            for connection, since_s in waiting.items():
                if now_s < since_s + self.patience_s(phase):
                    break
                found.append((connection, phase))
        return found

    def next_deadline_s(self) -> float | None:
        """When the next connection will be overdue; None while none waits."""
        deadlines = [
            next(iter(waiting.values())) + self.patience_s(phase)
            for phase, waiting in self._waiting.items()
            if waiting
        ]
        return min(deadlines, default=None)

    def is_full(self, now_s: float) -> bool:
        """Whether a connection was refused within the last minute."""
        return self._refused_at_s is not None and now_s < self._refused_at_s + _FULL_FOR_S

    def _idle_for_long(self, now_s: float) -> Connection | None:
        for connection, since_s in self._waiting[Phase.IDLE].items():
            if now_s >= since_s + self.limits.idle_spared_s:
                return connection
            break
        return None

    def patience_s(self, phase: Phase) -> float:
        """How long a connection may be in a phase."""
        match phase:
            case Phase.IDLE:
                return self.limits.idle_s
            case Phase.HEAD:
                return self.limits.head_s
            case Phase.ANSWER:
                return self.limits.answer_s
            case Phase.LINGER:
                return self.limits.linger_s
            case _:
                assert_never(phase)


@dataclass(frozen=True, slots=True)
class Shares:
    """How many connections each socket may have."""

    client: int
    admin: int


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files as far as is useful and allowed; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _WANTED_DESCRIPTORS if hard == unlimited else min(_WANTED_DESCRIPTORS, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _WANTED_DESCRIPTORS if soft == unlimited else soft


def share_descriptors(limit: int, upstream: int) -> Shares:
    """Divide ``limit`` open files between the sockets, after the daemon itself and ``upstream`` connections.

    Raises DlrBufferError if too few are left for anybody.
    """
    left = limit - RESERVED_DESCRIPTORS - upstream
    if left < 2 * _FEWEST_CONNECTIONS:
        least = RESERVED_DESCRIPTORS + upstream + 2 * _FEWEST_CONNECTIONS
        raise DlrBufferError(
            f"this process may open {limit} files, but {least} are needed with {upstream} for connections upstream; "
            "raise the limit (LimitNOFILE= in the unit, or ulimit -n), or lower the accounts' concurrency"
        )
    admin = max(_FEWEST_CONNECTIONS, min(MAX_ADMIN_CONNECTIONS, left // 4))
    return Shares(client=min(MAX_CLIENT_CONNECTIONS, left - admin), admin=admin)
