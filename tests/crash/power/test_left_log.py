"""What a start does with the log that an earlier run left: it is brought in and said, whoever else looks at it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.storage import recovery
from tests.integration.storage.harness import crash_copy, opened, rows


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A queue with one message, as a killed daemon leaves it: all in the log."""

    async def run() -> Path:
        async with opened(tmp_path / "first.db") as queue:
            await queue.register("m")
            return crash_copy(tmp_path / "first.db", tmp_path / "queue.db")

    return asyncio.run(run())


async def reopen(path: Path) -> None:
    """Open and close the queue, which must have its message."""
    async with opened(path) as queue:
        await queue.message("m")


def log_size(path: Path) -> int:
    """The size of the log in bytes, 0 if there is none."""
    log = path.with_name(path.name + "-wal")
    return log.stat().st_size if log.exists() else 0


def test_a_left_log_is_brought_in_and_said(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next start empties the log into the database and says so with its size; the one after it says nothing."""
    size = log_size(left)
    assert size > 0
    with caplog.at_level(logging.WARNING, "dlr_buffer.storage.recovery"):
        asyncio.run(reopen(left))
        assert [text for text in caplog.messages if "did not close" in text] == [
            f"the last run did not close the queue; its log of {size} bytes was brought in"
        ]
        caplog.clear()
        asyncio.run(reopen(left))
        assert not [text for text in caplog.messages if "did not close" in text]


def test_a_reader_does_not_keep_the_queue_from_starting(
    left: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program reads (a backup, say) the log, written anew, stays: the start goes on and says it."""
    monkeypatch.setattr(recovery, "BUSY_TIMEOUT_MS", 0)
    size = log_size(left)
    with closing(sqlite3.connect(left, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT message_id FROM messages").fetchall() == [("m",)]
        asyncio.run(reopen(left))
        reader.execute("COMMIT")
    assert f"its log of {size} bytes is safe but stays for now: another program reads {left}" in caplog.text
    assert rows(left, "SELECT message_id FROM messages") == [("m",)]


def test_a_log_that_is_whole_is_written_back_as_it_is(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the log anew changes no byte of it, whatever its size is to the pieces."""
    log = left.with_name(left.name + "-wal")
    before = log.read_bytes()
    monkeypatch.setattr(recovery, "_PIECE_BYTES", 1000)
    recovery._write_anew(log)
    assert log.read_bytes() == before
