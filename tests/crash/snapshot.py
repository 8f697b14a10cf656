"""What a killed daemon left on the disk, read from a copy: rows, and whether the file is whole.

A copy, so that recovering the log stays the next daemon's work. What the rows may be is `oracle`'s to judge.
"""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dlr_buffer.storage.schema import STATE_NAMES, STATUSES
from tests.integration.storage.harness import assert_counters, assert_linked, crash_copy

WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class MessageOnDisk:
    """A row of ``messages``, in the words of the contract; times in wall milliseconds."""

    account: str
    message_id: str
    state: str
    registered_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class ReceiptOnDisk:
    """A row of ``receipts`` with the name of its message; ``newest`` says that the message points at it."""

    request_id: int
    account: str
    message_id: str
    state: str
    status: str
    created_at: int
    error_code: str | None
    newest: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows at one moment at which no daemon ran, and what is wrong with the file itself."""

    at_ms: int
    messages: tuple[MessageOnDisk, ...]
    receipts: tuple[ReceiptOnDisk, ...]
    next_request_id: int
    faults: tuple[str, ...] = ()
    wal_bytes: int = 0


def take_snapshot(database: Path, room: Path, *, at_ms: int) -> Snapshot:
    """Copy the database and its log into the folder ``room`` and read the copy; no daemon may run."""
    room.mkdir(exist_ok=True)
    for old in room.iterdir():
        old.unlink()
    wal = database.with_name(database.name + "-wal")
    wal_bytes = wal.stat().st_size if wal.exists() else 0
    return read_snapshot(crash_copy(database, room / database.name), at_ms=at_ms, wal_bytes=wal_bytes)


def read_snapshot(copy: Path, *, at_ms: int, wal_bytes: int = 0) -> Snapshot:
    """Read a database that nobody else uses; its log is recovered by that."""
    with closing(sqlite3.connect(copy)) as database:
        faults = [f"integrity_check: {row[0]}" for row in database.execute("PRAGMA integrity_check")]
        faults = [fault for fault in faults if fault != "integrity_check: ok"]
        names = dict(database.execute("SELECT id, name FROM accounts").fetchall())
        messages = tuple(
            MessageOnDisk(names[account_id], message_id, STATE_NAMES[state], registered_at, expires_at)
            for account_id, message_id, state, registered_at, expires_at in database.execute(
                "SELECT account_id, message_id, state, registered_at, expires_at FROM messages"
            )
        )
        receipts = tuple(_receipts(database, names))
        number = database.execute("SELECT next_request_id FROM queue_state").fetchone()
    faults += _broken(copy)
    return Snapshot(at_ms, messages, receipts, number[0] if number else 1, tuple(faults), wal_bytes)


def _receipts(database: sqlite3.Connection, names: dict[int, str]) -> Iterator[ReceiptOnDisk]:
    rows = database.execute(
        "SELECT r.request_id, r.account_id, m.message_id, r.state, r.status, r.created_at, r.error_code,"
        " m.receipt_id = r.request_id FROM receipts r JOIN messages m ON m.id = r.message ORDER BY 1"
    )
    for request_id, account_id, message_id, state, status, created_at, error_code, newest in rows:
        yield ReceiptOnDisk(
            request_id,
            names[account_id],
            message_id,
            STATE_NAMES[state],
            STATUSES[status].value,
            created_at,
            error_code,
            bool(newest),
        )


def _broken(copy: Path) -> list[str]:
    """What a recount and a walk over the chains of receipts find."""
    faults = []
    for check in (assert_counters, assert_linked):
        try:
            check(copy)
        except AssertionError as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{check.__name__}: does not hold: {where.line}")
    return faults
