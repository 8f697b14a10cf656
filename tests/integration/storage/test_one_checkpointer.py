"""SQLite's WAL-reset bug takes two connections that checkpoint or write: here there is one, by design and by test."""

from __future__ import annotations

import ast
import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import dlr_buffer
from dlr_buffer.selection import ReceiptFilter
from dlr_buffer.storage import writer
from dlr_buffer.storage.backup import back_up
from dlr_buffer.storage.checking import check
from dlr_buffer.storage.writer import Writer
from tests.integration.storage.harness import DELIVERED, opened, rows
from tests.loops import on_loop

PACKAGE = Path(dlr_buffer.__file__).parent

CONNECTS = {
    # Before anything is answered, under the queue's lock, each closed before the next is opened:
    "storage/migrate.py: _version",
    "storage/migrate.py: upgrade",
    "storage/recovery.py: _connect",
    # With the daemon stopped, under the queue's lock:
    "storage/repairing.py: _connect",
    # The running daemon's: one that writes, and readers that can't write and never checkpoint:
    "storage/connection.py: make_engine",
    "storage/store.py: __init__",
    "storage/store.py: _open",
    # Opened with mode=ro, which can't even checkpoint when it is closed last:
    "storage/connection.py: witness",
    "storage/checking.py: open_read_only",
    # Not a queue: a database in memory; the new copy:
    "storage/checking.py: expected_objects",
    "storage/backup.py: _copy",
    # Not a queue: a new database of its own in a new folder, to measure the disk:
    "bench/disk.py: commits",
}
"""Every place of the program that opens a SQLite database, and why the bug can't strike by it."""

CHECKPOINTS = {"storage/recovery.py", "storage/repairing.py", "storage/writer.py"}
"""Where checkpoints are asked for: before the daemon serves, with it stopped, and by its writer."""


def functions_calling(names: set[str]) -> set[str]:
    """Return ``file: function`` for each call of one of these names in the package."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in names:
                    found.add(f"{file.relative_to(PACKAGE)}: {function.name}")
    return found


def test_every_connection_is_known() -> None:
    """A new place that opens a database has to say here why it is no second checkpointer."""
    assert functions_calling({"sqlite3.connect", "create_engine", "make_engine"}) == CONNECTS
    text = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if "wal_checkpoint" in file.read_text()
    }
    assert text == CHECKPOINTS


@on_loop
async def test_only_the_writer_moves_the_log(path: Path, tmp_path: Path) -> None:
    """Readers, a check and a backup of a running daemon leave log and database to the byte; the writer brings it in."""
    log = path.with_name("queue.db-wal")
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(3000)))
        async with queue.hold_writer():
            before = path.read_bytes(), log.read_bytes()  # noqa: ASYNC240 - nothing else runs
            assert len(before[1]) > 100_000
            await queue.view("a1")
            await queue.store.list_receipts(ReceiptFilter(), after=0, limit=1000)
            for connection in queue.store._reader_connections:
                with pytest.raises(Exception, match="readonly"):
                    connection.exec_driver_sql("DELETE FROM messages")
                assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar() == 0
            await asyncio.to_thread(check, path)
            await asyncio.to_thread(back_up, path, tmp_path / "backup.db")
            assert (path.read_bytes(), log.read_bytes()) == before  # noqa: ASYNC240 - nothing else runs
    assert not log.exists() or not log.stat().st_size


@on_loop
async def test_readers_are_closed_before_the_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the queue is closed no reader is left that would be the last one, whose close would checkpoint."""
    left: list[int] = []
    real = Writer.stop

    async def stop(self: Writer) -> None:
        left.append(len(store._reader_connections))
        await real(self)

    monkeypatch.setattr(Writer, "stop", stop)
    async with opened(path) as queue:
        store = queue.store
        await queue.register("m")
        await asyncio.gather(*(queue.view("m") for _ in range(10)))
        assert store._reader_connections
    assert left == [0]


@on_loop
async def test_a_reader_never_makes_the_writer_begin_the_log_anew_under_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints go on while somebody reads an old state; the reader sees that state, and nothing is lost after."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 100_000)
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(200)))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
            for round_ in range(5):
                reader.execute("BEGIN")
                seen = reader.execute("SELECT count(*) FROM messages").fetchone()
                await queue.report(*((f"b{round_}-{n}", DELIVERED) for n in range(500)))
                await queue.report(*((f"c{round_}-{n}", DELIVERED) for n in range(500)))
                assert reader.execute("SELECT count(*) FROM messages").fetchone() == seen
                reader.execute("ROLLBACK")
        assert queue.store.facts().checkpoints > 0
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT count(*) FROM messages") == [(200 + 5 * 1000,)]


@on_loop
async def test_what_another_program_writes_is_noticed_by_a_check(path: Path) -> None:
    """A second writing connection is not ours to prevent; what it does shows as a contradiction, pages are whole."""
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(100)))
        assert check(path).findings == ()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("DELETE FROM history")
            other.execute("UPDATE receipts SET status = 3 WHERE request_id = 7")
        await queue.report_one("b", DELIVERED)
        found = check(path)
        assert {finding.code for finding in found.findings} == {"counter"}
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE receipts SET status = 2 WHERE request_id = 7")
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
