"""The look at the disk: it tells what lies there, and finds what is broken in the file."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.snapshot import read_snapshot, take_snapshot
from tests.integration.storage.harness import DELIVERED, ENROUTE, opened


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A queue with one message and two receipts, closed in order."""
    path = tmp_path / "queue.db"

    async def fill() -> None:
        async with opened(path) as queue:
            await queue.register("a", "b")
            await queue.report(("a", ENROUTE))
            await queue.report(("a", DELIVERED))

    asyncio.run(fill())
    return path


def change(path: Path, statement: str) -> None:
    """Break something."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


def test_a_snapshot_tells_what_lies_there(database: Path, tmp_path: Path) -> None:
    """Messages and receipts in the words of the contract, and no fault; the original is not touched."""
    before = database.read_bytes()
    snapshot = take_snapshot(database, tmp_path / "copy", at_ms=7)
    assert [(row.message_id, row.state) for row in snapshot.messages] == [
        ("a", "delivered"),
        ("b", "waiting"),
    ]
    rows = [(row.request_id, row.state, row.status, row.newest) for row in snapshot.receipts]
    assert rows == [(1, "enroute", "superseded", False), (2, "delivered", "pending", True)]
    assert (snapshot.at_ms, snapshot.next_request_id, snapshot.faults) == (7, 3, ())
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE message_counts SET rows = rows + 1 WHERE rows", "assert_counters"),
        ("UPDATE receipt_counts SET rows = 7 WHERE rows", "assert_counters"),
        ("UPDATE receipts SET previous_id = NULL", "assert_linked"),
        ("UPDATE messages SET receipt_id = -1 WHERE message_id = 'a'", "assert_linked"),
    ],
)
def test_a_broken_queue_is_found(database: Path, statement: str, check: str) -> None:
    """A counter that is wrong and a receipt that no chain leads to are faults."""
    change(database, statement)
    assert any(check in fault for fault in read_snapshot(database, at_ms=0).faults)
