"""Files that are replaced, removed or overwritten under a daemon: nothing more is acknowledged, nothing is mixed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partialmethod
from pathlib import Path
from unittest.mock import Mock

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.receipts import Registered
from dlr_buffer.selection import ReceiptFilter
from dlr_buffer.storage import files
from dlr_buffer.storage.files import QueueFiles
from dlr_buffer.storage.store import SqliteStore, StoreListeners
from dlr_buffer.storage.writer import Lane
from tests.acceptance.harness import PATIENCE_S
from tests.clocks import FakeClock
from tests.crash.disk.small_disk import DiskSite, refusal
from tests.integration.storage.harness import DELIVERED, Heard, Queue, opened, rows
from tests.loops import on_loop

WAL, SHM = "-wal", "-shm"


def beside(path: Path, ending: str) -> Path:
    """A file of the same queue."""
    return path.with_name(path.name + ending)


def other_queue(path: Path) -> Path:
    """Another database, whole and with a page more, beside the queue's folder."""
    other = path.parent.parent / "other.db"
    shutil.copyfile(path.parent.parent / "empty.db", other)
    with closing(sqlite3.connect(other)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("CREATE TABLE put_here (x)")
        database.commit()
    return other


def move_another_over_it(path: Path) -> None:
    """`mv other.db queue.db`."""
    other_queue(path).rename(path)


def move_it_away(path: Path) -> None:
    """`mv queue.db old.db`."""
    path.rename(path.with_name("old.db"))


def move_it_away_and_another_there(path: Path) -> None:
    """Both: how a backup is restored without stopping the daemon."""
    move_it_away(path)
    move_another_over_it(path)


def remove_it(path: Path) -> None:
    """`rm queue.db`."""
    path.unlink()


def remove_the_log(path: Path) -> None:
    """`rm queue.db-wal`."""
    beside(path, WAL).unlink()


def replace_the_log(path: Path) -> None:
    """A log with the same bytes, but another file."""
    copy = path.with_name("copy")
    shutil.copyfile(beside(path, WAL), copy)
    copy.rename(beside(path, WAL))


def remove_the_wal_index(path: Path) -> None:
    """`rm queue.db-shm`: other programs would no longer see this one's locks."""
    beside(path, SHM).unlink()


def remove_the_folder(path: Path) -> None:
    """`rm -r` of the folder."""
    shutil.rmtree(path.parent)


def copy_another_over_it(path: Path) -> None:
    """`cp other.db queue.db`: the same file, other bytes."""
    path.write_bytes(other_queue(path).read_bytes())


def cut_it_short(path: Path) -> None:
    """`truncate --size 4096 queue.db`."""
    os.truncate(path, 4096)


def empty_the_log(path: Path) -> None:
    """`: > queue.db-wal`."""
    os.truncate(beside(path, WAL), 0)


def cut_the_log(path: Path) -> None:
    """`truncate --size 8192 queue.db-wal`: the next commit goes where it would have, behind a hole."""
    os.truncate(beside(path, WAL), 8192)


def overwrite_the_log(path: Path) -> None:
    """Another log's bytes in the same file."""
    size = beside(path, WAL).stat().st_size
    beside(path, WAL).write_bytes(b"7" * size)


REPLACED: list[Callable[[Path], None]] = [
    move_another_over_it,
    move_it_away,
    move_it_away_and_another_there,
    remove_it,
    remove_the_log,
    replace_the_log,
    remove_the_wal_index,
    remove_the_folder,
]
OVERWRITTEN: list[Callable[[Path], None]] = [
    copy_another_over_it,
    cut_it_short,
    empty_the_log,
    cut_the_log,
    overwrite_the_log,
]


@asynccontextmanager
async def running(path: Path, messages: int = 500) -> AsyncIterator[Queue]:
    """A queue with some messages, whose end is not looked at."""
    shutil.copyfile(path, path.parent.parent / "empty.db")
    clock, heard = FakeClock(), Heard()
    store = await SqliteStore.open(
        path,
        accounts=["default"],
        min_free_bytes=0,
        first_request_id=1,
        listeners=StoreListeners(heard.add_fresh, heard.add_events, heard.failures.append),
        now_ms=clock.now_ms,
    )
    queue = Queue(store, clock, heard)
    try:
        if messages:
            await queue.register(*(f"m{number}" for number in range(messages)))
        yield queue
    finally:
        await store.close()


def image(folder: Path) -> dict[str, bytes]:
    """Everything that lies in a folder."""
    return {each.name: each.read_bytes() for each in folder.iterdir()} if folder.exists() else {}


def spoil_all_but_the_first_page(path: Path) -> None:
    """Past SQLite, and so that the header does not show it."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


async def failed(queue: Queue) -> None:
    """Return once the writer has done what it was given, by which time it has to have given up."""
    for _ in range(3):
        with suppress(StoreUnavailable):
            await queue.store._writer.submit(Lane.CLAIM, read=lambda _connection: None)
    assert queue.store.failure is not None


@pytest.mark.parametrize("strike", [*REPLACED, *OVERWRITTEN])
@on_loop
async def test_the_next_commit_is_not_acknowledged(strike: Callable[[Path], None], path: Path) -> None:
    """Whatever was done to the files, no request after that is answered as stored, and the daemon is told to end."""
    async with running(path) as queue:
        strike(path)
        for number in range(2):
            with pytest.raises(StoreUnavailable, match="while the daemon used it") as caught:
                await queue.register(f"after-{number}")
            assert caught.value.fatal
        with pytest.raises(StoreUnavailable):
            await queue.claim()
        assert len(queue.heard.failures) == 1
        assert queue.store.failure is queue.heard.failures[0]
        assert queue.store.facts().commits >= 1


@pytest.mark.parametrize("strike", REPLACED)
@on_loop
async def test_a_folder_that_was_quiet(
    strike: Callable[[Path], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are not looked at while their folder's times stay; one that is taken away or given anew changes them."""
    monkeypatch.setattr(files, "_SETTLED_NS", -1)
    looks = Mock(side_effect=QueueFiles._look_at_names)
    monkeypatch.setattr(QueueFiles, "_look_at_names", partialmethod(looks))
    async with running(path) as queue:
        # Long ago, so that what happens now can't fall into the same step of the file system's clock.
        os.utime(path.parent, (0, 0))
        await queue.register("before")
        looked = looks.call_count
        await queue.register("quiet")
        assert looks.call_count == looked
        strike(path)
        with pytest.raises(StoreUnavailable, match="while the daemon used it"):
            await queue.register("after")


@pytest.mark.parametrize("strike", [move_another_over_it, remove_it, remove_the_log, copy_another_over_it])
@on_loop
async def test_in_the_middle_of_a_transaction(strike: Callable[[Path], None], path: Path) -> None:
    """What happens between a transaction's begin and its commit keeps it from being acknowledged as well."""
    async with running(path) as queue:
        with pytest.raises(StoreUnavailable, match="while the daemon used it"):
            await queue.store._writer.submit(Lane.ADMIN, run=lambda _tx: strike(path))
        assert len(queue.heard.failures) == 1


@pytest.mark.parametrize("strike", [*REPLACED, *OVERWRITTEN])
@on_loop
async def test_an_idle_queue_notices_as_well(strike: Callable[[Path], None], path: Path) -> None:
    """A look every few seconds finds the same though nobody writes."""
    async with running(path) as queue:
        queue.store.look_after()
        await queue.claim()
        assert not queue.heard.failures
        strike(path)
        queue.store.look_after()
        await failed(queue)
        assert len(queue.heard.failures) == 1


@pytest.mark.parametrize("strike", [*REPLACED, *OVERWRITTEN])
@on_loop
async def test_the_end_leaves_what_others_put_there(strike: Callable[[Path], None], path: Path) -> None:
    """Whoever stops without having noticed finds out at the end, and neither writes to nor removes a new file."""
    async with running(path):
        strike(path)
        (path.parent.parent / "was").mkdir()
        before = image(path.parent)
    after = image(path.parent)
    ours = {beside(path, WAL).name, beside(path, SHM).name, path.name + ".lock"}
    # A log of ours is emptied into the database that we have open, or set aside; all else stays as it was put there.
    kept = {name: content for name, content in before.items() if name not in ours}
    if strike in {remove_the_log, replace_the_log, remove_the_wal_index}:
        kept.pop(path.name)
    if strike in {move_it_away, move_it_away_and_another_there}:
        kept.pop("old.db")
    assert {name: after.get(name) for name in kept} == kept
    if strike is replace_the_log:
        assert after[beside(path, WAL).name] == before[beside(path, WAL).name]


@pytest.mark.parametrize("strike", [move_it_away, move_it_away_and_another_there])
@on_loop
async def test_what_was_moved_away_is_whole(strike: Callable[[Path], None], path: Path) -> None:
    """The log of a database that was moved is in it at the end, and is not left for the one that took its place."""
    async with running(path) as queue:
        await queue.report_one("m7", DELIVERED)
        strike(path)
        queue.store.look_after()
    old = path.with_name("old.db")
    assert rows(old, "SELECT count(*) FROM messages") == [(500,)]
    assert rows(old, "SELECT count(*) FROM receipts") == [(1,)]
    assert rows(old, "PRAGMA integrity_check") == [("ok",)]
    assert not beside(path, WAL).exists() or beside(path, WAL).stat().st_size == 0
    if strike is move_it_away_and_another_there:
        assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]


@on_loop
async def test_what_was_removed_is_saved(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A database that was removed under the daemon is copied out before the last descriptor of it is closed."""
    async with running(path) as queue:
        await queue.report_one("m7", DELIVERED)
        remove_it(path)
        with pytest.raises(StoreUnavailable, match=r"queue\.db was removed"):
            await queue.register("after")
    saved = path.with_name(f"queue.db.rescued-{os.getpid()}")
    assert f"saved as {saved}" in caplog.text
    assert saved.stat().st_mode & 0o777 == 0o600
    saved.rename(path)
    beside(path, SHM).unlink()
    async with opened(path) as queue:
        assert (await queue.message("m7")).state is DELIVERED
        assert len(queue.store.counts().messages) == 1


@pytest.mark.parametrize("strike", [remove_the_log, remove_the_wal_index])
@on_loop
async def test_a_log_that_was_removed_loses_nothing(strike: Callable[[Path], None], path: Path) -> None:
    """What only the log held is brought into the database, which the next start finds whole."""
    async with running(path) as queue:
        await queue.report_one("m7", DELIVERED)
        strike(path)
        queue.store.look_after()
    async with opened(path) as queue:
        assert (await queue.message("m7")).state is DELIVERED
        await queue.message("m499")


@on_loop
async def test_a_log_is_not_applied_to_what_it_does_not_belong_to(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that was copied over the queue's stays as it was copied; the old log is set aside."""
    async with running(path) as queue:
        copy_another_over_it(path)
        queue.store.look_after()
        with pytest.raises(StoreUnavailable, match="overwritten by another program"):
            await queue.register("after")
    aside = path.with_name(f"queue.db-wal.orphaned-{os.getpid()}")
    assert f"kept as {aside}" in caplog.text
    assert aside.stat().st_size > 0
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM put_here").fetchone() == (0,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@on_loop
async def test_a_touch_and_a_chmod_are_no_reason_to_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another time on the file, another mode, a checkpoint of another program: said at most, and all goes on."""
    async with running(path) as queue:
        os.utime(path)
        await queue.register("one")
        assert caplog.text.count("another program wrote to") == 1
        os.chmod(path, 0o400)  # noqa: PTH101 - as the line above
        await queue.register("two")
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        await queue.register("three")
        await queue.store.list_receipts(ReceiptFilter(), after=0, limit=5)
        assert not queue.heard.failures
        assert caplog.text.count("another program wrote to") == 2


@on_loop
async def test_another_programs_commit_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that another program writes by SQLite's rules can't be told from ours, but that it wrote is logged."""
    async with running(path) as queue:
        queue.store.look_after()
        await queue.register("one")
        queue.store.look_after()
        await queue.claim()
        assert "counters may be wrong" not in caplog.text
        with closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE accounts SET paused = 1")
            other.commit()
        queue.store.look_after()
        await queue.claim()
        assert caplog.text.count("counters may be wrong") == 1


@on_loop
async def test_many_checkpoints_are_our_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits, checkpoints and logs begun anew of one's own are never taken for another's."""
    monkeypatch.setattr("dlr_buffer.storage.writer.CHECKPOINT_BYTES", 50_000)
    async with running(path) as queue:
        for number in range(60):
            (outcome,) = await queue.register(f"{number}{'x' * 200}")
            assert isinstance(outcome, Registered)
            await queue.register(*(f"{number}-{each}" for each in range(30)))
            queue.store.look_after()
            await queue.claim()
        assert queue.store.facts().checkpoints > 5
        assert not queue.heard.failures


@on_loop
async def test_what_only_a_reader_finds_ends_the_daemon_too(path: Path) -> None:
    """A page that only a list comes across and that is damaged: the list is refused, and the daemon told to end."""
    async with running(path) as queue:
        await queue.report(*((f"m{number}", DELIVERED) for number in range(500)))
    async with running(path, messages=0) as queue:
        spoil_all_but_the_first_page(path)
        with pytest.raises(StoreUnavailable, match="malformed"):
            await queue.store.list_receipts(ReceiptFilter(), after=0, limit=500)
        await failed(queue)
        assert len(queue.heard.failures) == 1
        with pytest.raises(StoreUnavailable):
            await queue.register("after")


@on_loop
async def test_a_reader_makes_no_database_where_there_is_none(path: Path) -> None:
    """The first list after the database was removed does not leave an empty one for the next start to find."""
    async with running(path) as queue:
        remove_it(path)
        with pytest.raises(StoreUnavailable, match="was removed"):
            await queue.store.list_receipts(ReceiptFilter(), after=0, limit=5)
    assert "queue.db" not in image(path.parent)


def test_a_daemon_ends_and_the_next_goes_on(site_anywhere: DiskSite) -> None:
    """The whole daemon: 503 for who asked, a critical line that says what to do, exit code 1, and a clean start."""
    site = site_anywhere
    site.configure()
    daemon = site.start()
    old = site.database.with_name("old.db")
    with site.client() as app:
        app.register_many(["m1", "m2"])
        site.database.rename(old)
        shutil.copyfile(old, site.database)
        problem = refusal(app, "POST", "/v1/messages", {"message_id": "m3"})
        assert (problem.status, problem.code) == (503, "overloaded")
        assert problem.retry_after_s
        assert "nothing is acknowledged" in problem.detail
    assert daemon.process.wait(PATIENCE_S) == 1
    assert site.lines(" CRITICAL ") == 2
    assert site.lines("another file was put in the place of") >= 1
    assert site.lines("stop the daemon before you move or restore a queue") >= 1
    old.rename(site.database)
    site.start()
    with site.client() as app:
        assert [app.request("GET", f"/v1/messages/{each}")["message_id"] for each in ("m1", "m2")] == [
            "m1",
            "m2",
        ]
