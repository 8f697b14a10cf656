"""One migrated database for the session, and what makes an empty queue of each database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from dlr_buffer.storage.migrate import ensure_schema
from tests.integration.store.database import Database
from tests.integration.store.sqlite_database import SqliteDatabase


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing in it."""
    path = tmp_path_factory.mktemp("migrated") / "queue.db"
    ensure_schema(path)
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders everywhere."""
    for name, value in {
        "sweeping.EXPIRED_AT_ONCE": 2,
        "sweeping.EXAMINED_AT_ONCE": 3,
        "sweeping.PURGED_AT_ONCE": 2,
        "settling._LOOK_AHEAD": 1,
        "redating.LOOKED_AT_ONCE": 3,
        "redating.REDATED_AT_ONCE": 2,
        "reading.WINDOW": 3,
        "reading.BRANCHES_AT_ONCE": 2,
    }.items():
        monkeypatch.setattr(f"dlr_buffer.storage.{name}", value)


@pytest.fixture
def make(migrated: Path, tmp_path: Path, small_chunks: None) -> Callable[[], Database]:
    """Makes empty queues."""
    numbers = count()

    def new() -> Database:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        # Only the newest is ever looked at again.
        shutil.rmtree(folder.with_name(str(int(folder.name) - 1)), ignore_errors=True)
        return SqliteDatabase(Path(shutil.copyfile(migrated, folder / "queue.db")))

    return new
