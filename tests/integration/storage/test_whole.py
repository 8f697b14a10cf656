"""A queue that has lost something is refused with what to do; it is never begun anew in silence."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.lock import LastRun, QueueLock, last_run
from dlr_buffer.storage.migrate import ensure_schema
from dlr_buffer.storage.store import RESTORED_GAP
from tests.clocks import START_MS
from tests.integration.storage.databases import change, copied_queue, flip
from tests.integration.storage.harness import DELIVERED, crash_copy, opened, rows
from tests.loops import on_loop

TABLES = sorted(schema.metadata.tables)
INDEXES = sorted(str(index.name) for table in schema.metadata.tables.values() for index in table.indexes)


@pytest.fixture(scope="session")
def closed_queue(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with a few messages that was closed in order."""
    path = tmp_path_factory.mktemp("closed") / "queue.db"
    path.write_bytes(migrated.read_bytes())

    async def use() -> None:
        async with opened(path) as queue:
            await queue.register("waiting")
            for n in range(30):
                await queue.report_one(f"m{n}", DELIVERED)

    asyncio.run(use())
    return path


@pytest.fixture
def used(closed_queue: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return copied_queue(closed_queue, tmp_path)


def refused(path: Path) -> str:
    """Try to open, twice since systemd will, and return why that was refused."""
    reasons = set()
    for _ in range(2):

        async def run() -> None:
            async with opened(path):
                pass

        with pytest.raises(StoreUnavailable) as caught:
            asyncio.run(run())
        assert caught.value.fatal
        reasons.add(str(caught.value))
    QueueLock(path).release()
    assert len(reasons) == 1
    return reasons.pop()


def remove(path: Path) -> None:
    """Remove the database."""
    path.unlink()


def empty(path: Path) -> None:
    """Truncate it to nothing."""
    path.write_bytes(b"")


def no_tables(path: Path) -> None:
    """Put a database without a table in its place."""
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize(
    ("plant", "said"),
    [(remove, "does not exist any more"), (empty, "is empty"), (no_tables, "has no tables")],
)
def test_a_vanished_queue_is_not_begun_anew(used: Path, plant: Callable[[Path], None], said: str) -> None:
    """Where the lock file tells of a queue, a missing or empty database is refused and not made, until that is gone."""
    plant(used)
    before = used.read_bytes() if used.exists() else None
    reason = refused(used)
    assert said in reason
    assert "restore it from a backup" in reason
    assert "move queue.db.lock away and set [database] first_request_id above" in reason
    assert (used.read_bytes() if used.exists() else None) == before
    used.with_name("queue.db.lock").unlink()
    ensure_schema(used)


@pytest.mark.parametrize("plant", [remove, empty])
@on_loop
async def test_the_log_of_a_vanished_database_is_kept(
    path: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    """A log beside a missing or empty database (SQLite would remove it) is evidence even without a lock file."""
    async with opened(path) as queue:
        await queue.register("m")
        copy = crash_copy(path, tmp_path / "copy.db")
    log = copy.with_name("copy.db-wal")
    content = log.read_bytes()
    assert content
    plant(copy)
    with pytest.raises(StoreUnavailable, match=r"copy\.db-wal beside it shows; restore it from a backup"):
        ensure_schema(copy)
    assert log.read_bytes() == content


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_table_is_refused(used: Path, name: str) -> None:
    """Whichever table is gone, it is named and not made again."""
    change(used, f"DROP TABLE {name}")
    reason = refused(used)
    assert f"it has lost the table {name}" in reason
    assert "check-db" in reason


@pytest.mark.parametrize("name", INDEXES)
def test_a_missing_index_is_refused(used: Path, name: str) -> None:
    """Without an index names would not be unique, or each poll would read everything: it is named."""
    change(used, f"DROP INDEX {name}")
    assert f"it has lost the index {name}" in refused(used)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM queue_state", "the row of queue_state, which numbers receipts"),
        ("DELETE FROM accounts", "the names of accounts (number 1), every account"),
        ("DELETE FROM message_counts WHERE state = 6", "counters (message_counts)"),
        ("DELETE FROM receipt_counts", "counters (receipt_counts)"),
        ("DELETE FROM alembic_version", "does not tell which schema it has"),
        ("INSERT INTO alembic_version VALUES ('0000')", "does not tell which schema it has"),
        ("DROP TABLE alembic_version", "database of another program"),
    ],
)
def test_a_missing_row_is_refused(used: Path, statement: str, said: str) -> None:
    """Rows that a first start has made are not made again in a queue that has lost them."""
    change(used, statement)
    before = rows(used, "SELECT count(*) FROM messages")
    assert said in refused(used)
    assert rows(used, "SELECT count(*) FROM messages") == before == [(31,)]


@pytest.mark.parametrize("keep", [100, 4096, 0.5, -1])
def test_a_cut_database_is_refused(used: Path, keep: float) -> None:
    """A database cut in its header, after a page, in the middle or by one byte is refused, with a backup as the way."""
    content = used.read_bytes()
    size = len(content)
    kept = content[: {0.5: size // 2, -1: size - 1}.get(keep, int(keep))]
    used.write_bytes(kept)
    assert "restore it from a backup" in refused(used)
    assert used.read_bytes() == kept


def test_a_destroyed_header_is_refused(used: Path) -> None:
    """A database without its magic string is refused and stays as it is."""
    flip(used, 0, 16)
    assert "restore it from a backup" in refused(used)


@on_loop
async def test_a_restored_backup_does_not_use_a_number_twice(
    used: Path, closed_queue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A database older than the last run here goes on far beyond what that run can have used, and says so."""
    put_back = partial(used.write_bytes, closed_queue.read_bytes())  # noqa: ASYNC240 - nothing else runs meanwhile
    async with opened(used) as queue:
        assert await queue.report_one("after the backup", DELIVERED) == 31
    put_back()
    async with opened(used) as queue:
        number = await queue.report_one("after the restore", DELIVERED)
        assert number == START_MS
    assert "restored from a backup, it goes on with request_id" in caplog.text
    caplog.clear()
    async with opened(used) as queue:
        assert await queue.report_one("later", DELIVERED) == number + 1
    assert "goes on with" not in caplog.text
    put_back()
    async with opened(used) as queue:
        assert await queue.report_one("restored again", DELIVERED) == number + 2 + RESTORED_GAP


@on_loop
async def test_a_number_that_an_admin_chose_holds_for_a_restored_backup(
    used: Path, closed_queue: Path
) -> None:
    """With `first_request_id` above what was used, the queue goes on just there."""
    put_back = partial(used.write_bytes, closed_queue.read_bytes())  # noqa: ASYNC240 - as above
    async with opened(used) as queue:
        await queue.report_one("after the backup", DELIVERED)
    put_back()
    async with opened(used, first_request_id=5000) as queue:
        assert await queue.report_one("after the restore", DELIVERED) == 5000


@on_loop
async def test_the_lock_file_tells_how_the_last_run_ended(path: Path) -> None:
    """While a queue is open its process stands there, after an orderly end none; a refused start changes nothing."""
    async with opened(path, first_request_id=700) as queue:
        assert last_run(path).next_request_id == 700
        assert last_run(path).process is not None
        await queue.report_one("m", DELIVERED)
    run = last_run(path)
    assert (run.process, run.next_request_id) == (None, 701)
    assert run.inode == path.stat().st_ino  # noqa: ASYNC240 - nothing else runs
    lock = path.with_name("queue.db.lock")
    noted = lock.read_bytes()
    assert len(noted) <= 512
    QueueLock(path).release()
    assert lock.read_bytes() == noted


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"12\n", b"x\nqueue\nqueue y\nfile \n", b"\n\n\n"])
def test_a_lock_file_with_nonsense_tells_nothing(tmp_path: Path, content: bytes) -> None:
    """A lock file that was never written to its end, or by something else, neither fails nor tells of a queue."""
    (tmp_path / "queue.db.lock").write_bytes(content)
    run = last_run(tmp_path / "queue.db")
    assert run == LastRun(process=12 if content == b"12\n" else None)
    assert not run.kept_a_queue


DIE = """
import asyncio, importlib, os, pathlib, signal, sys
place, _, name = sys.argv[2].rpartition(".")
module, _, inner = place.partition(":")
owner = importlib.import_module(module)
owner = getattr(owner, inner) if inner else owner
setattr(owner, name, lambda *_args, **_named: os.kill(os.getpid(), signal.SIGKILL))
from dlr_buffer.storage.store import SqliteStore, StoreListeners
asyncio.run(SqliteStore.open(
    pathlib.Path(sys.argv[1]), accounts=["default"], min_free_bytes=0, first_request_id=1,
    listeners=StoreListeners(print, print, print), now_ms=lambda: 1))
"""
"""Opens a queue and is killed where the named function would be called."""


@pytest.mark.parametrize(
    "at",
    [
        "dlr_buffer.storage.migrate._version",
        "subprocess.Popen",
        "dlr_buffer.storage.store.require_durable",
        "dlr_buffer.storage.store.require_whole",
        "dlr_buffer.storage.store._prepare",
        "dlr_buffer.storage.lock:QueueLock.opened",
    ],
)
def test_a_first_start_that_was_killed_is_begun_again(tmp_path: Path, at: str) -> None:
    """Wherever a first start is killed, the next one is neither refused nor believes that there was a queue."""
    path = tmp_path / "queue.db"
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(path), at], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done

    async def start() -> None:
        async with opened(path) as queue:
            assert await queue.report_one("m", DELIVERED) == 1

    asyncio.run(start())


@pytest.mark.parametrize("statements", [1, 9, 17])
def test_a_first_migration_that_was_killed_is_begun_again(tmp_path: Path, statements: int) -> None:
    """A migration killed after so many of its statements leaves no table, and the next start makes them all."""
    path = tmp_path / "queue.db"
    code = (
        "import os, pathlib, signal, sys\n"
        "import alembic.op\n"
        "real, left = alembic.op.execute, [int(sys.argv[2])]\n"
        "def execute(statement):\n"
        "    real(statement)\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "alembic.op.execute = execute\n"
        "from dlr_buffer.storage.migrate import upgrade\n"
        "upgrade(pathlib.Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(statements)],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done
    assert rows(path, "SELECT name FROM sqlite_master") == []
    ensure_schema(path)
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
