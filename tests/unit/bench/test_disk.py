"""What a disk does on its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dlr_buffer.bench.disk import commits, syncs


def test_syncs(tmp_path: Path) -> None:
    """Each sync is timed, and the file is removed."""
    took = list(syncs(tmp_path, 0.01))
    assert took
    assert min(took) > 0
    assert list(tmp_path.iterdir()) == []


def test_commits(tmp_path: Path) -> None:
    """Each row that is timed was committed, in a database that syncs its log."""
    took = list(commits(tmp_path / "raw.db", 0.01))
    with closing(sqlite3.connect(tmp_path / "raw.db")) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (len(took),)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert took
