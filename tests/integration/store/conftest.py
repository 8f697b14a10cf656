"""One migrated database for the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlr_buffer.storage.migrate import ensure_schema


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing in it."""
    path = tmp_path_factory.mktemp("migrated") / "queue.db"
    ensure_schema(path)
    return path
