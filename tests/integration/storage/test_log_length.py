"""How much was written to SQLite's log since it was begun anew, whatever its file's length is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.storage.files import QueueFiles

PAGE = 4096
FRAME = PAGE + 24
HEADER = 32


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database whose log has something in it."""
    with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("CREATE TABLE t (x)")
        yield db


@pytest.fixture
def files(database: sqlite3.Connection, tmp_path: Path) -> Iterator[QueueFiles]:
    """Its files."""
    assert database.in_transaction is False
    found = QueueFiles(tmp_path / "queue.db")
    yield found
    found.close()


def log_bytes(tmp_path: Path) -> int:
    """How long the log's file is."""
    return (tmp_path / "queue.db-wal").stat().st_size


def test_a_log_grows(database: sqlite3.Connection, files: QueueFiles, tmp_path: Path) -> None:
    """It reaches as far as it was written, as of the last look, and no further."""
    written = log_bytes(tmp_path)
    assert files.log_reaches(written)
    assert not files.log_reaches(written + FRAME)
    database.execute("INSERT INTO t VALUES (1)")
    assert not files.log_reaches(written + FRAME)
    files.require_ours()
    assert files.log_reaches(log_bytes(tmp_path))
    assert not files.log_reaches(log_bytes(tmp_path) + FRAME)


def test_a_log_is_begun_anew(database: sqlite3.Connection, files: QueueFiles, tmp_path: Path) -> None:
    """After a checkpoint the file keeps its length, but what is left over from before does not count."""
    for number in range(20):
        database.execute("INSERT INTO t VALUES (?)", (number,))
    files.require_ours()
    long = log_bytes(tmp_path)
    assert files.log_reaches(long)
    assert database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    files.checkpointed()
    database.execute("INSERT INTO t VALUES (1)")
    files.require_ours()
    assert log_bytes(tmp_path) == files.log_bytes == long
    assert files.log_reaches(HEADER + FRAME)
    assert not files.log_reaches(HEADER + 2 * FRAME)
    for number in range(30):
        database.execute("INSERT INTO t VALUES (?)", (number,))
    files.require_ours()
    assert files.log_reaches(long)


def test_an_empty_log(database: sqlite3.Connection, files: QueueFiles, tmp_path: Path) -> None:
    """A log that was cut reaches nowhere."""
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    files.checkpointed()
    assert log_bytes(tmp_path) == 0
    assert not files.log_reaches(HEADER)
