"""One migrated database for the session, and a copy of it for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dlr_buffer.storage.migrate import ensure_schema


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing in it; migrating takes a process, so it is done once."""
    path = tmp_path_factory.mktemp("migrated") / "queue.db"
    ensure_schema(path)
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    """An empty queue of this test's own."""
    return Path(shutil.copyfile(migrated, tmp_path / "queue.db"))
