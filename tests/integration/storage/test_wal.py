"""The log of a killed daemon: brought in whole, or the loss is found; SQLite itself says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage.checking import check
from dlr_buffer.storage.lock import last_run
from dlr_buffer.storage.wal import lost_commits
from tests.integration.storage.databases import copied_queue, flip, killed_queue
from tests.integration.storage.harness import opened, rows


@pytest.fixture(scope="session")
def dead_queue(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue whose daemon was killed after twenty registrations that were answered."""
    path = tmp_path_factory.mktemp("dead") / "queue.db"
    path.write_bytes(migrated.read_bytes())
    killed_queue(path)
    return path


@pytest.fixture
def left(dead_queue: Path, tmp_path: Path) -> Path:
    """What it left, for one test."""
    return copied_queue(dead_queue, tmp_path)


def log_of(path: Path) -> Path:
    """Return the path of the log."""
    return path.with_name(path.name + "-wal")


def open_it(path: Path) -> int:
    """Open and close the queue; returns how many messages are in it."""

    async def run() -> None:
        async with opened(path):
            pass

    asyncio.run(run())
    count: int = rows(path, "SELECT count(*) FROM messages")[0][0]
    return count


def test_a_whole_log_is_brought_in(left: Path) -> None:
    """After a kill everything that was answered is there, and the log is empty or gone."""
    assert log_of(left).stat().st_size > 20 * 4096
    assert last_run(left).process is not None
    assert open_it(left) == 20


def remove(log: Path) -> None:
    """Remove the log."""
    log.unlink()


def empty(log: Path) -> None:
    """Leave nothing in it."""
    log.write_bytes(b"")


def cut_a_byte(log: Path) -> None:
    """Cut off its last byte."""
    log.write_bytes(log.read_bytes()[:-1])


def cut_a_frame(log: Path) -> None:
    """Cut off its last page, so that SQLite finds a shorter but sound log."""
    log.write_bytes(log.read_bytes()[: -4096 - 24])


def flip_in_the_middle(log: Path) -> None:
    """Turn one byte over: SQLite takes what is before it and passes over all that comes after."""
    flip(log, log.stat().st_size // 2)


def flip_the_header(log: Path) -> None:
    """Turn a byte of its header over: SQLite takes the log for empty."""
    flip(log, 2)


DAMAGES = [remove, empty, cut_a_byte, cut_a_frame, flip_in_the_middle, flip_the_header]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_log_that_lost_something_is_refused(left: Path, damage: Callable[[Path], None]) -> None:
    """Removed, cut or damaged: the start is refused each time, with what to do; done as it says, it opens."""
    damage(log_of(left))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"queue\.db-wal is missing, cut or damaged: of \d+ pages"):
            open_it(left)
    checked = check(left)
    assert [finding.code for finding in checked.findings] == ["log"]
    assert "remove queue.db-shm" in checked.findings[0].detail
    left.with_name("queue.db-shm").unlink()
    assert open_it(left) < 20


@pytest.mark.parametrize("damage", DAMAGES)
def test_sqlite_itself_says_nothing(left: Path, damage: Callable[[Path], None]) -> None:
    """The planted damage is real: SQLite opens the same files, finds them sound, and has lost what was answered."""
    damage(log_of(left))
    assert rows(left, "PRAGMA integrity_check") == [("ok",)]
    assert rows(left, "SELECT count(*) FROM messages")[0][0] < 20


def test_another_run_of_the_machine_proves_nothing(left: Path) -> None:
    """After a power cut the index on the disk may be older or newer than the log: then nothing is concluded."""
    last = last_run(left)
    assert last.boot_id is not None
    remove(log_of(left))
    assert lost_commits(left, last, last.boot_id) is not None
    assert lost_commits(left, last, "another boot") is None


def test_a_torn_index_proves_nothing(left: Path) -> None:
    """An index whose two headers differ, or whose sum is wrong, was being written when the process was killed."""
    last = last_run(left)
    index = left.with_name("queue.db-shm")
    content = index.read_bytes()
    remove(log_of(left))
    for at in (16, 48 + 16):
        index.write_bytes(content)
        flip(index, at)
        assert lost_commits(left, last, last.boot_id or "") is None
    index.write_bytes(content)
    flip(index, 16)
    flip(index, 48 + 16)
    assert lost_commits(left, last, last.boot_id or "") is None
    index.write_bytes(content)
    assert lost_commits(left, last, last.boot_id or "") is not None


def test_a_log_is_not_brought_into_another_file(left: Path, migrated: Path) -> None:
    """A database put in the place of a killed one's, beside the old log, is refused: SQLite would mix the two."""
    other = left.with_name("restored.db")
    other.write_bytes(migrated.read_bytes())
    other.rename(left)
    with pytest.raises(
        StoreUnavailable, match=r"was put in place.*move queue\.db-wal and queue\.db-shm away"
    ):
        open_it(left)
    log_of(left).unlink()
    left.with_name("queue.db-shm").unlink()
    assert open_it(left) == 0
