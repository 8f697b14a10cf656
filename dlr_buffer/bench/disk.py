"""What a disk does on its own: how long a sync takes, how many rows SQLite commits on it.

Nothing of the daemon is involved: these are the bounds that it works within.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

_PAGE = b"\0" * 4096
_PAGES = 1000
"""So many are written before the first is written again, as in a log that is checkpointed."""


def syncs(folder: Path, seconds: float) -> Iterator[float]:
    """Write 4 KiB and sync, again and again for ``seconds``; give how long each took, in seconds.

    The file has its blocks before the first sync that counts, as the queue's log has. Raises OSError.
    """
    path = folder / "sync.probe"
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(file, _PAGE * _PAGES)
        os.fsync(file)
        number = 0
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            os.pwrite(file, _PAGE, number % _PAGES * len(_PAGE))
            os.fdatasync(file)
            yield time.perf_counter() - began
            number += 1
    finally:
        os.close(file)
        path.unlink()


def commits(database: Path, seconds: float) -> Iterator[float]:
    """Insert rows into a new SQLite database, each committed and synced before the next; give how long each took.

    Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, message_id TEXT NOT NULL UNIQUE, at INTEGER)"
        )
        number = 0
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            db.execute("INSERT INTO messages (message_id, at) VALUES (?, ?)", (str(number), time.time_ns()))
            yield time.perf_counter() - began
            number += 1
