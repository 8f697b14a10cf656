"""Filling a queue with millions of rows in seconds: straight into the file, as the daemon would have written them.

No sync is waited for until the end; then the file is checkpointed and synced. What was filled passes `check-db`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.harness import ids
from benchmarks.harness.raw import VALIDITY_MS
from dlr_buffer.storage.migrate import ensure_schema

_EACH = 10_000
_MESSAGES = (
    "INSERT INTO messages"
    " (id, account_id, message_id, state, implicit, registered_at, expires_at, changed_at, receipt_id)"
    " VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?)"
)
_RECEIPTS = (
    "INSERT INTO receipts (request_id, message, account_id, state, status, attempts, refusals, created_at,"
    " counted_since, settled_at) VALUES (?, ?, ?, 6, ?, ?, 0, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Fill:
    """What to put in; the waiting ones come first, then those with a delivered state."""

    waiting: int = 0
    pending: int = 0
    """Messages that are delivered and whose receipt is pending."""
    acknowledged: int = 0
    """Messages that are delivered and whose receipt was acknowledged ``acknowledged_ago_ms`` ago."""
    due: int = 0
    """So many of the waiting ones expired a minute ago."""
    acknowledged_ago_ms: int = 60_000
    paused: bool = False
    """Whether the account is paused, as an admin does it."""
    message_ids: Iterable[str] | None = None
    """Their names; 13 digits in order if left out."""


def fill(path: Path, wanted: Fill) -> None:
    """Make a queue at ``path`` with one account, ``default``."""
    ensure_schema(path)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-400000")
    db.execute("PRAGMA wal_autocheckpoint=100000")
    now = time.time_ns() // 1_000_000
    total = wanted.waiting + wanted.pending + wanted.acknowledged
    names = iter(wanted.message_ids if wanted.message_ids is not None else _in_order(total))
    registered = now - 3_600_000
    db.execute("BEGIN")
    db.execute("INSERT INTO accounts (id, name, paused) VALUES (1, 'default', ?)", (int(wanted.paused),))
    _many(db, _MESSAGES, _waiting(wanted, names, registered, now))
    done = wanted.pending + wanted.acknowledged
    settled = now - wanted.acknowledged_ago_ms
    _many(
        db,
        _MESSAGES,
        (
            (
                wanted.waiting + each,
                1,
                next(names),
                6,
                registered,
                registered + VALIDITY_MS,
                now - 60_000,
                each,
            )
            for each in range(1, done + 1)
        ),
    )
    _many(
        db,
        _RECEIPTS,
        (
            (each, wanted.waiting + each, 1, 2, 0, now - 60_000, now - 60_000, None)
            if each <= wanted.pending
            else (each, wanted.waiting + each, 1, 4, 1, settled - 1000, settled - 1000, settled)
            for each in range(1, done + 1)
        ),
    )
    _count(db, wanted, total)
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _in_order(total: int) -> Iterator[str]:
    return (str(ids.FIRST + number) for number in range(total))


def _waiting(wanted: Fill, names: Iterator[str], registered: int, now: int) -> Iterator[tuple[object, ...]]:
    overdue = now - 60_000
    for number in range(1, wanted.waiting + 1):
        if number <= wanted.due:
            yield number, 1, next(names), 2, overdue - VALIDITY_MS, overdue, overdue - VALIDITY_MS, -1
        else:
            yield number, 1, next(names), 2, registered, registered + VALIDITY_MS, registered, -1


def _many(db: sqlite3.Connection, statement: str, rows: Iterator[tuple[object, ...]]) -> None:
    while piece := list(islice(rows, _EACH)):
        db.executemany(statement, piece)


def _count(db: sqlite3.Connection, wanted: Fill, total: int) -> None:
    done = wanted.pending + wanted.acknowledged
    for state in range(2, 10):
        rows = {2: wanted.waiting, 6: done}.get(state, 0)
        db.execute("INSERT INTO message_counts VALUES (1, ?, ?)", (state, rows))
    for status in range(2, 7):
        rows = {2: wanted.pending, 4: wanted.acknowledged}.get(status, 0)
        db.execute("INSERT INTO receipt_counts VALUES (1, ?, ?)", (status, rows))
    db.execute(
        "INSERT INTO queue_state (id, next_request_id, next_message, swept_to, swept_message) VALUES (1, ?, ?, 0, 0)",
        (done + 1, total + 1),
    )
