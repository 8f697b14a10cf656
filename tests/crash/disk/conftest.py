"""Fixtures: a small disk, a queue's folder whose database lies on it, and an empty queue to be damaged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlr_buffer.storage.migrate import ensure_schema
from tests.crash.disk.small_disk import DiskSite, SmallDisk, unfit
from tests.missing import skip_or_fail

DISK_MIB = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk; the test is skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (why_not := unfit(folder)) is not None:
        skip_or_fail(why_not)
    with SmallDisk(folder, DISK_MIB) as disk:
        yield disk


@pytest.fixture
def site(disk: SmallDisk) -> Iterator[DiskSite]:
    """A queue's folder with its database on the small disk; nothing runs in it yet."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        site = DiskSite(Path(name), disk=disk.folder)
        try:
            yield site
        finally:
            site.close()


@pytest.fixture
def site_anywhere() -> Iterator[DiskSite]:
    """The same on the machine's own disk, for what takes no small one."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        database_folder = Path(name) / "disk"
        database_folder.mkdir()
        site = DiskSite(Path(name), disk=database_folder)
        try:
            yield site
        finally:
            site.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing in it."""
    path = tmp_path_factory.mktemp("migrated") / "queue.db"
    ensure_schema(path)
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    """An empty queue of this test's own, in a folder of its own."""
    folder = tmp_path / "queue"
    folder.mkdir()
    return Path(shutil.copyfile(migrated, folder / "queue.db"))
