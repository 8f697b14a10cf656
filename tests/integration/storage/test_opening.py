"""Opening and closing a queue: durability read back, and everything that is refused with words that help."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from dlr_buffer.errors import Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.storage.connection import make_engine, require_durable, translate, wal_reset_bug
from dlr_buffer.storage.lock import QueueLock
from dlr_buffer.storage.migrate import ensure_schema
from tests.integration.storage.harness import DELIVERED, opened, rows
from tests.loops import on_loop

HOLD_LOCK = """
import pathlib, sys
from dlr_buffer.storage.lock import QueueLock
lock = QueueLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def refused(path: Path) -> str:
    """Try to open; returns why that was refused, which has to be a reason to end."""

    async def run() -> None:
        async with opened(path):
            pass

    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(run())
    assert caught.value.fatal
    return str(caught.value)


@on_loop
async def test_the_writer_is_durable(path: Path) -> None:
    """The connection that writes has WAL and synchronous=FULL, and leaves checkpoints to us."""
    async with opened(path) as queue:
        connection = queue.store._writer._connection
        assert connection is not None

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        async with queue.hold_writer():
            assert pragma("journal_mode") == "wal"
            assert pragma("synchronous") == 2
            assert pragma("wal_autocheckpoint") == 0
            assert pragma("busy_timeout") == 5000


def test_no_durability_no_start(path: Path) -> None:
    """A database that does not take WAL, or a weaker synchronous, is refused."""
    memory = create_engine("sqlite://", poolclass=StaticPool)
    with memory.connect() as connection, pytest.raises(StoreUnavailable, match="write-ahead"):
        require_durable(connection)
    memory.dispose()
    with make_engine(path, cache_kib=1024, read_only=False).connect() as connection:
        require_durable(connection)
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        with pytest.raises(StoreUnavailable, match="synchronous"):
            require_durable(connection)


@on_loop
async def test_a_second_daemon_is_refused_with_the_firsts_pid(path: Path) -> None:
    """While one process holds a queue another is told which one, and may have it once that is closed."""
    async with opened(path) as queue:
        other = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys, pathlib; from dlr_buffer.storage.lock import QueueLock; QueueLock(pathlib.Path(sys.argv[1]))",
            str(path),
            stderr=subprocess.PIPE,
        )
        _, errors = await other.communicate()
        assert other.returncode != 0
        assert f"(process {os.getpid()})" in errors.decode()
        with pytest.raises(StoreUnavailable, match=rf"process {os.getpid()}\b.*stop it first"):
            QueueLock(path)
        await queue.register("one")
    async with opened(path) as queue:
        await queue.message("one")


def test_another_name_of_the_queue_is_the_same_queue(path: Path, tmp_path: Path) -> None:
    """Through a symbolic link to the file, or to its folder, a second daemon is refused just so, either way round."""
    link = tmp_path / "link.db"
    link.symlink_to(path.name)
    folder = tmp_path / "elsewhere"
    folder.symlink_to(tmp_path, target_is_directory=True)
    names = (path, link, folder / path.name, folder / "link.db")
    for first in names:
        held = QueueLock(first)
        for second in names:
            with pytest.raises(StoreUnavailable, match="holds the queue"):
                QueueLock(second)
        held.release()
    assert not link.with_name("link.db.lock").exists()


@on_loop
async def test_the_log_of_a_linked_queue_is_found(path: Path, tmp_path: Path) -> None:
    """Opened by a symbolic link, the log beside the file itself is the one that is measured and kept small."""
    link = tmp_path / "linked" / "queue.db"
    link.parent.mkdir()
    link.symlink_to(path)
    async with opened(link) as queue:
        await queue.register("m")
        assert queue.store.facts().wal_bytes == path.with_name("queue.db-wal").stat().st_size > 0
        highest = 0
        for chunk in range(30):
            await queue.register(*(f"{chunk}-{n}-{'x' * 200}" for n in range(1000)))
            highest = max(highest, queue.store.facts().wal_bytes)
        assert queue.store.facts().checkpoints >= 1
        assert highest < 14 * 2**20
    assert [each.name for each in link.parent.iterdir()] == ["queue.db"]


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    """A symbolic link that leads nowhere but to itself is refused with its name."""
    loop = tmp_path / "queue.db"
    loop.symlink_to(loop.name)
    assert str(loop) in refused(loop)


def test_a_killed_daemon_leaves_no_lock(path: Path) -> None:
    """The lock is the kernel's: a process killed with SIGKILL does not keep the next one out."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD_LOCK,
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreUnavailable, match=f"process {holder.pid}"):
            QueueLock(path)
        holder.kill()
    QueueLock(path).release()


def test_a_refused_start_lets_go_of_the_lock(tmp_path: Path) -> None:
    """Whatever the refusal, the lock is free afterwards for whoever mends it."""
    path = tmp_path / "queue.db"
    path.write_text("not a database at all, but long enough to have a header of a hundred bytes or more" * 5)
    refused(path)
    QueueLock(path).release()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory where the database should be is named, with the setting to change."""
    assert "is a directory; [database] url" in refused(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A folder that does not exist is named, and not made in silence."""
    assert f"the folder {tmp_path / 'no'} does not exist" in refused(tmp_path / "no" / "queue.db")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_an_unreadable_database_is_refused(path: Path, mode: int) -> None:
    """A file that the daemon's user may not read or write is named, with what to do."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.chmod(mode)
    assert "let the daemon's user read and write it" in refused(path)


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    """Where the lock file cannot be made (its name is taken by a directory), the folder is to blame."""
    (tmp_path / "queue.db.lock").mkdir()
    assert "needs to write in that folder" in refused(tmp_path / "queue.db")


def test_a_text_file_is_refused_and_kept(tmp_path: Path) -> None:
    """A file that is no database is refused without a byte of it changed."""
    path = tmp_path / "queue.db"
    text = "login = someone\n" * 100
    path.write_text(text)
    assert "cannot be read as a database" in refused(path)
    assert path.read_text() == text


def test_a_corrupt_header_is_refused(path: Path) -> None:
    """A damaged database is refused, and the words say to restore it."""
    damaged = bytearray(path.read_bytes())
    damaged[:32] = b"\xff" * 32
    path.write_bytes(damaged)
    assert "restore it from a backup" in refused(path)
    assert path.read_bytes() == damaged


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """A database with tables that are not ours is refused and gets none of ours."""
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
        database.commit()
    assert "another program" in refused(path)
    assert rows(path, "SELECT name FROM sqlite_master") == [("bookmarks",)]


def test_a_newer_schema_is_refused(path: Path) -> None:
    """A database that a newer program migrated is refused, with its version."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    reason = refused(path)
    assert "schema 9999" in reason
    assert "newer dlr-buffer" in reason


def test_a_locked_database_is_not_called_damaged(path: Path) -> None:
    """If another program holds the file exclusively, the advice is to stop it, not to restore a backup."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        reason = refused(path)
    assert "locked by another program" in reason
    assert "backup" not in reason


def test_an_empty_file_becomes_a_queue(tmp_path: Path) -> None:
    """A new path and an empty file are migrated, by a child process, and only the owner may read the result."""
    path = tmp_path / "new.db"
    ensure_schema(path)
    ensure_schema(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]


def test_alembic_stays_out_of_this_process(tmp_path: Path) -> None:
    """Opening a new queue does not load Alembic into the daemon."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from dlr_buffer.storage.store import SqliteStore, StoreListeners\n"
        "async def main():\n"
        "    store = await SqliteStore.open(pathlib.Path(sys.argv[1]), accounts=['a'], min_free_bytes=0,\n"
        "        first_request_id=1, listeners=StoreListeners(print, print, print), now_ms=lambda: 1)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
        "assert not any(name.split('.')[0] in ('alembic', 'mako') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "q.db")], check=True)


@on_loop
async def test_close_finishes_what_was_submitted(path: Path) -> None:
    """What was submitted before `close` is committed and answered, what comes after is refused."""
    async with opened(path) as queue:
        async with queue.hold_writer():
            tasks = [asyncio.create_task(queue.register(f"a{n}", f"b{n}")) for n in range(20)]
            for _ in range(3):
                await asyncio.sleep(0)
            closing_ = asyncio.create_task(queue.store._writer.stop())
            await asyncio.sleep(0)
        await closing_
        assert [len(each) for each in await asyncio.gather(*tasks)] == [2] * 20
        with pytest.raises(StoreUnavailable, match="stopping"):
            await queue.register("late")
    assert rows(path, "SELECT count(*) FROM messages") == [(40,)]
    assert not path.with_name("queue.db-wal").exists() or not path.with_name("queue.db-wal").stat().st_size


@on_loop
async def test_the_first_request_id_is_only_ever_raised(path: Path) -> None:
    """`first_request_id` begins a new queue and lifts an old one, and never lowers it."""
    async with opened(path, first_request_id=1000) as queue:
        assert await queue.report_one("a", DELIVERED) == 1000
    async with opened(path, first_request_id=1) as queue:
        assert await queue.report_one("b", DELIVERED) == 1001
    async with opened(path, first_request_id=5_000_000_000) as queue:
        assert await queue.report_one("c", DELIVERED) == 5_000_000_000


@on_loop
async def test_accounts_are_kept_and_added(path: Path) -> None:
    """Accounts of earlier runs stay known with their rows; a reload adds more, each with its own counters."""
    async with opened(path, accounts=["one"]) as queue:
        await queue.report_one("m", DELIVERED)
        await queue.store.set_paused("one", paused=True)
    async with opened(path, accounts=["two"]) as queue:
        assert queue.store.accounts() == ("one", "two")
        assert queue.store.paused("one")
        assert not queue.store.paused("two")
        await queue.store.add_accounts(["three", "one"])
        assert queue.store.accounts() == ("one", "two", "three")
        await queue.report_one("m", DELIVERED, account="three")
        await queue.report_one("m", DELIVERED, account="two")
        assert (await queue.view("m", "one")).receipts[0].receipt.request_id == 1
        assert await queue.claim(account="three") == [2]
        assert await queue.claim(account="two") == [3]
        await queue.store.set_paused("one", paused=False)
    async with opened(path, accounts=["two"]) as queue:
        assert not queue.store.paused("one")


@pytest.mark.parametrize(
    ("code", "kind", "fatal"),
    [
        (sqlite3.SQLITE_FULL, StorageFull, None),
        (sqlite3.SQLITE_BUSY, Overloaded, None),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Overloaded, None),
        (sqlite3.SQLITE_LOCKED, Overloaded, None),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreUnavailable, True),
        (sqlite3.SQLITE_CORRUPT, StoreUnavailable, True),
        (sqlite3.SQLITE_CORRUPT_INDEX, StoreUnavailable, True),
        (sqlite3.SQLITE_NOTADB, StoreUnavailable, True),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, StoreUnavailable, False),
        (sqlite3.SQLITE_ERROR, StoreUnavailable, False),
    ],
)
def test_sqlites_errors_are_translated(
    tmp_path: Path, code: int, kind: type[Exception], *, fatal: bool | None
) -> None:
    """Each of SQLite's codes, extended ones too, means full, busy, broken for good, or broken for now."""
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_X"
    translated = translate(error, tmp_path / "queue.db")
    assert type(translated) is kind
    assert getattr(translated, "fatal", None) is fatal
    assert "queue.db" in str(translated)
    assert ("or the disk could not be read" in str(translated)) is (code == sqlite3.SQLITE_CORRUPT)


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 49, 9), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_the_wal_reset_bug_is_known_by_version(version: tuple[int, int, int], *, has_it: bool) -> None:
    """SQLite before 3.51.3 has the bug, but for the two older branches that were mended as well."""
    assert wal_reset_bug(version) is has_it


@pytest.mark.parametrize("has_it", [True, False])
@on_loop
async def test_a_start_on_sqlite_with_the_bug_warns(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_it: object
) -> None:
    """Opening a queue warns once, naming the version in use, where SQLite has the bug, and only there."""
    monkeypatch.setattr("dlr_buffer.storage.store.wal_reset_bug", lambda: has_it)
    async with opened(path):
        pass
    said = [each for each in caplog.messages if "WAL-reset bug" in each]
    assert len(said) == (1 if has_it else 0)
    assert all(f"SQLite {sqlite3.sqlite_version} has" in each and str(path) in each for each in said)
