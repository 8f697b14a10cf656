"""Starts the real daemon for the crash tests: ``python -m tests.crash.starter --config FILE run``.

What comes seldom in production (checkpoints, retention, expiry) is made to come all the time, and the process may
be told by ``DLR_CRASH_AT=POINT:COUNT:DELAY_S`` to kill itself: so long after it has come to that point so many times.
A thread kills, so that with a delay the process dies somewhere inside of what begins there; if that is over by then,
it waits for the next time, and half as long. So a process that kills itself was where it was meant to be. Everything
else is the daemon as it is.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final
from unittest.mock import patch

from dlr_buffer import daemon
from dlr_buffer.cli import main
from dlr_buffer.storage import (
    lock,
    migrate,
    recovery,
    settling,
    steering,
    store,
    sweeping,
    transaction,
    writer,
)

VARIABLE: Final = "DLR_CRASH_AT"
CHECKPOINT_BYTES: Final = 256 * 1024
RETENTION_EVERY_S: Final = 0.3
EXPIRY_EVERY_S: Final = 0.2
FEW_ROWS: Final = 10
FEW_EXPIRE: Final = 3


class Point(StrEnum):
    """Where the daemon can be told to die."""

    BEFORE_COMMIT = "before-commit"
    """Everything of a transaction is written, the COMMIT comes next."""
    AFTER_COMMIT = "after-commit"
    """Committed and synced, but nobody was answered yet."""
    CHECKPOINT = "checkpoint"
    RETENTION = "retention"
    EXPIRY = "expiry"
    ADMIN = "admin"
    """An admin's action on many rows."""
    BULK = "bulk"
    SETTLING = "settling"
    """Smartswitch has answered, and what it said is being written."""
    OPENING = "opening"
    """It opens what its predecessor has left: its log, its rows, its lock file."""


def _always(*_arguments: object) -> bool:
    return True


def _log_is_large(subject: writer.Writer, *_arguments: object) -> bool:
    return subject._unchecked and subject._log_is_long()


def _many(_tx: object, rows: Sequence[object], *_arguments: object) -> bool:
    return len(rows) >= FEW_ROWS


def _some(_tx: object, rows: Sequence[object], *_arguments: object) -> bool:
    return len(rows) >= FEW_EXPIRE


def _many_in_action(_tx: object, _action: object, rows: Sequence[object], *_arguments: object) -> bool:
    return len(rows) >= FEW_ROWS


_Places = tuple[tuple[object, str, Callable[..., bool]], ...]
_PLACES: Final[dict[Point, _Places]] = {
    Point.BEFORE_COMMIT: ((transaction.Transaction, "finish", _always),),
    Point.AFTER_COMMIT: ((writer.Writer, "_follow", _always),),
    Point.CHECKPOINT: ((writer.Writer, "_checkpoint", _log_is_large),),
    Point.RETENTION: ((sweeping, "purge", _always),),
    Point.EXPIRY: ((sweeping, "expire_rows", _some),),
    Point.ADMIN: ((steering, "steer_receipts", _many_in_action), (steering, "steer_messages", _many)),
    Point.BULK: ((store, "register", _many), (store, "report", _many)),
    Point.SETTLING: ((settling, "settle", _always),),
    Point.OPENING: (
        (migrate, "bring_in_log", _always),
        (recovery, "_checkpoint", _always),
        (store, "require_whole", _always),
        (store, "_prepare", _always),
        (store.SqliteStore, "_load", _always),
        (store, "make_names_durable", _always),
        (lock.QueueLock, "opened", _always),
    ),
}


class Trap:
    """Counts how often a point is come to, and kills the process at the last time."""

    def __init__(self, count: int, delay_s: float) -> None:
        """Wait for the ``count``-th time."""
        self._left = count
        self._delay_s = delay_s
        self._inside = False
        self._sprung = threading.Event()
        self._never = threading.Event()

    def set_at(self, place: object, name: str, counts: Callable[..., bool]) -> None:
        """Watch one function."""
        real: Callable[..., Any] = getattr(place, name)

        @functools.wraps(real)
        def watched(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any function
            if not counts(*arguments):
                return real(*arguments, **named)
            self._inside = True
            try:
                self._step()
                return real(*arguments, **named)
            finally:
                self._inside = False

        patch.object(place, name, watched).start()

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0 and not self._delay_s:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left == 0:
            self._sprung.set()

    def watch(self) -> None:
        """Kill, once sprung and the delay is over; runs in a thread that stands ready for it."""
        while True:
            self._sprung.wait()
            self._never.wait(self._delay_s)
            if self._inside:
                os.kill(os.getpid(), signal.SIGKILL)
            self._delay_s /= 2
            self._sprung.clear()
            self._left = 1


def set_trap(order: str) -> None:
    """Do what ``DLR_CRASH_AT`` says."""
    point, count, delay_s = order.split(":")
    trap = Trap(int(count), float(delay_s))
    for place, name, counts in _PLACES[Point(point)]:
        trap.set_at(place, name, counts)
    threading.Thread(target=trap.watch, name="trap", daemon=True).start()


def hurry() -> None:
    """Let everything that comes now and then come all the time."""
    patch.object(daemon, "RETENTION_EVERY_S", RETENTION_EVERY_S).start()
    patch.object(daemon, "EXPIRY_EVERY_S", EXPIRY_EVERY_S).start()
    patch.object(daemon, "HOUSEKEEPING_EVERY_S", 1).start()
    patch.object(writer, "CHECKPOINT_BYTES", CHECKPOINT_BYTES).start()


if __name__ == "__main__":
    hurry()
    if order := os.environ.get(VARIABLE):
        set_trap(order)
    sys.exit(main())
