"""Mending what can be derived from the rows themselves: nothing is lost by it, and each mend is told.

Counters are counted again, links between receipts follow from their numbers, indexes from their tables. Pages
that are damaged, rows that are gone and values that make no sense are not mended: for those there is a backup.
What is wrong is found by `checking`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.checking import CACHE_KIB, Finding, index_statement, objects
from dlr_buffer.storage.connection import BUSY_TIMEOUT_MS, translated
from dlr_buffer.storage.lock import QueueLock
from dlr_buffer.storage.recovery import bring_in_log
from dlr_buffer.storage.rules import (
    BROKEN_LINKS,
    BROKEN_NEWEST,
    COUNTERS,
    NEVER_EXPIRE,
    NEVER_PURGED,
    ORPHANED_HISTORY,
    USED_MESSAGES,
    USED_REQUEST_IDS,
    WRONGLY_BEREFT,
)

_HOPELESS: Final = ("damaged", "log", "schema-version", "schema-missing", "schema-differs")
GAP: Final = 1_000_000_000
"""So many request ids are left out where it is not known which were used: more than any queue purges unseen."""


def repair(path: Path, findings: tuple[Finding, ...], *, now_ms: int) -> list[str]:
    """Mend what can be in the queue at ``path``, in one transaction; returns what was done, in words.

    Nothing is done to a database with damaged pages, or of another schema. Raises StoreUnavailable if a daemon
    holds the queue.
    """
    if any(finding.code in _HOPELESS and not finding.mendable for finding in findings):
        return []
    lock = QueueLock(path)
    try:
        with translated(path):
            bring_in_log(path, lock.last)
        with translated(path), closing(_connect(path)) as database:
            database.execute("BEGIN IMMEDIATE")
            done = list(_mends(database, {finding.code for finding in findings}, now_ms))
            database.execute("COMMIT")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        lock.release()
    return done


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    return database


def _mends(database: sqlite3.Connection, codes: set[str], now_ms: int) -> Iterator[str]:
    """Indexes first, since the others read by them; counters last, since the others change what they count."""
    yield from _indexes(database, codes)
    if "queue-state" in codes or "numbers" in codes:
        yield from _numbers(database, now_ms)
    if "broken-links" in codes:
        rows = _change(
            database,
            f"CREATE TEMP TABLE links AS {BROKEN_LINKS}",
            "UPDATE receipts SET previous_id = (SELECT before FROM links WHERE id = request_id)"
            " WHERE request_id IN (SELECT id FROM links)",
        )
        yield f"pointed {rows} of receipts to the one before"
    if "broken-newest" in codes:
        rows = _change(
            database,
            # A waiting message may point to no receipt: one that has some all the same is left as it is.
            f"CREATE TEMP TABLE newest AS {BROKEN_NEWEST}",
            "CREATE UNIQUE INDEX temp.newest_id ON newest (id)",
            "UPDATE messages SET receipt_id = (SELECT coalesce(newest, -abs(receipt_id)) FROM newest"
            " WHERE newest.id = messages.id) WHERE id IN (SELECT id FROM newest) AND state > 2",
        )
        yield f"pointed {rows} of messages to the newest receipt"
    for code, statement, words in (
        (
            "never-expire",
            "UPDATE queue_state SET swept_message = 0, swept_to = (SELECT min(expires_at) - 1 FROM messages"  # noqa: ISC004, S608 - nothing of it comes from outside
            f" WHERE id IN ({NEVER_EXPIRE}))",
            "set the mark of expiry back",
        ),
        (
            "orphaned-history",
            f"DELETE FROM history WHERE id IN ({ORPHANED_HISTORY})",  # noqa: S608 - as above
            "removed {rows} of history",
        ),
    ):
        if code in codes:
            yield words.format(rows=_change(database, statement))
    # What was pointed to nothing just now may be bereft by that.
    rows = _change(database, f"DELETE FROM bereft WHERE message IN ({WRONGLY_BEREFT})")  # noqa: S608 - as above
    if not rows.startswith("0 "):
        yield f"removed {rows} of bereft"
    rows = _change(
        database,
        f"INSERT INTO bereft (message, since) SELECT id, changed_at FROM messages WHERE id IN ({NEVER_PURGED})",  # noqa: S608 - as above
    )
    if not rows.startswith("0 "):
        yield f"noted {rows} of messages for purging"
    if "counter" in codes:
        for table, counted, code, values in COUNTERS:
            _count_again(database, table, counted, code, values)
            yield f"counted {counted} again"


def _indexes(database: sqlite3.Connection, codes: set[str]) -> Iterator[str]:
    if "schema-missing" in codes:
        there = objects(database)
        for table in schema.metadata.tables.values():
            for index in table.indexes:
                if index.name not in there and table.name in there:
                    try:
                        database.execute(index_statement(index))
                    except sqlite3.IntegrityError as error:
                        raise StoreUnavailable(
                            f"the index {index.name} cannot be made again: {error}; restore the database from a backup",
                            fatal=True,
                        ) from error
                    yield f"made the index {index.name} again"
    if "index" in codes:
        database.execute("REINDEX")
        yield "built every index again"


def _numbers(database: sqlite3.Connection, now_ms: int) -> Iterator[str]:
    """Set the numbers that are given out next above all that can have been."""
    used_request_id = database.execute(USED_REQUEST_IDS).fetchone()[0] or 0
    used_message = database.execute(USED_MESSAGES).fetchone()[0] or 0
    row = database.execute("SELECT next_request_id, next_message FROM queue_state").fetchone()
    request_id = max(now_ms, used_request_id + GAP)
    if row is None:
        database.execute(
            "INSERT INTO queue_state (id, next_request_id, next_message, swept_to, swept_message)"
            " VALUES (1, ?, ?, 0, 0)",
            (request_id, used_message + 1),
        )
        yield f"made the row of queue_state again; the next request_id is {request_id}"
        return
    request_id = row[0] if row[0] > used_request_id else request_id
    database.execute(
        "UPDATE queue_state SET next_request_id = ?, next_message = ?",
        (request_id, max(row[1], used_message + 1)),
    )
    yield f"set the numbers that are given out next; the next request_id is {request_id}"


def _count_again(
    database: sqlite3.Connection, table: str, counted: str, code: str, values: tuple[int, ...]
) -> None:
    database.execute(f"DELETE FROM {table}")  # noqa: S608 - our schema, here and below
    database.executemany(
        f'INSERT INTO {table} (account_id, {code}, "rows") VALUES (?, ?, 0)',  # noqa: S608
        [
            (account, value)
            for (account,) in database.execute("SELECT id FROM accounts").fetchall()
            for value in values
        ],
    )
    database.execute(
        f'INSERT OR REPLACE INTO {table} (account_id, {code}, "rows")'  # noqa: S608
        f" SELECT account_id, {code}, count(*) FROM {counted} GROUP BY 1, 2"
    )


def _change(database: sqlite3.Connection, *statements: str) -> str:
    """Run the statements; returns in words how many rows the last one changed."""
    count = 0
    for statement in statements:
        count = database.execute(statement).rowcount
    return f"{count:,} row{'s' if count != 1 else ''}"
