"""Backups: whole and consistent while the daemon works, never over anything, and never half."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dlr_buffer.errors import DlrBufferError, StorageFull
from dlr_buffer.storage.backup import BackupRefused, back_up
from dlr_buffer.storage.checking import check
from tests.integration.storage.databases import beside, change, copied_queue, killed_queue
from tests.integration.storage.harness import DELIVERED, ENROUTE, crash_copy, opened, rows
from tests.loops import on_loop


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy few pages at a time, so that much happens between the steps."""
    monkeypatch.setattr("dlr_buffer.storage.backup._PAGES_AT_ONCE", 5)


@on_loop
async def test_a_backup_under_load_is_one_moment_of_the_queue(
    path: Path, tmp_path: Path, small_steps: None
) -> None:
    """While messages are registered, reported, sent and acknowledged, the copy is the state at its begin, and sound."""
    target = tmp_path / "backup.db"
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(1000)))
        loop, steps = asyncio.get_running_loop(), 0

        async def work() -> None:
            await queue.register(*(f"r{steps}-{n}" for n in range(3)))
            await queue.report((f"b{steps}", ENROUTE), (f"a{steps}", DELIVERED))
            await queue.settle(acknowledged=await queue.claim(5))

        def progress(_done: int, _total: int, words: str) -> None:
            nonlocal steps
            if words == "copying":
                steps += 1
                asyncio.run_coroutine_threadsafe(work(), loop).result(60)

        done = await asyncio.to_thread(back_up, path, target, progress=progress)
        assert steps > 10
        assert (done.messages, done.receipts, done.next_request_id) == (1000, 1000, 1001)
        assert beside(path) == {"backup.db", *(f"queue.db{end}" for end in ("", "-wal", "-shm", ".lock"))}
        assert rows(path, "SELECT count(*) FROM messages") == [(1000 + 4 * steps,)]
    assert check(target).findings == ()
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.stat().st_size == done.size_bytes
    async with opened(target) as queue:
        assert await queue.acknowledge_all() == 1000


def test_a_backup_needs_no_file_beside_it(path: Path, tmp_path: Path) -> None:
    """The copy is one file in the plain journal mode, which opens even where nothing can be written."""
    target = tmp_path / "backup.db"
    back_up(path, target)
    assert target.read_bytes()[18:20] == b"\x01\x01"
    assert rows(target, "PRAGMA journal_mode") == [("delete",)]


@on_loop
async def test_a_backup_of_a_killed_daemons_queue_leaves_it_as_it_is(path: Path, tmp_path: Path) -> None:
    """What lies in the log is in the copy; log and database of the original stay byte for byte."""
    async with opened(path) as queue:
        await queue.report(*((f"a{n}", DELIVERED) for n in range(100)))
        copy = crash_copy(path, tmp_path / "copy.db")
    log = copy.with_name("copy.db-wal")
    before = copy.read_bytes(), log.read_bytes()
    assert back_up(copy, tmp_path / "backup.db").receipts == 100
    assert (copy.read_bytes(), log.read_bytes()) == before


def test_a_backup_of_a_queue_whose_log_lost_something_is_refused(migrated: Path, tmp_path: Path) -> None:
    """A backup must neither hide a loss nor wipe out the traces of one."""
    folder = tmp_path / "left"
    folder.mkdir()
    original = tmp_path / "origin" / "queue.db"
    original.parent.mkdir()
    original.write_bytes(migrated.read_bytes())
    killed_queue(original)
    left = copied_queue(original, folder)
    left.with_name("queue.db-wal").unlink()
    for _ in range(2):
        with pytest.raises(BackupRefused, match="is missing, cut or damaged"):
            back_up(left, tmp_path / "backup.db")
    assert beside(tmp_path / "backup.db") == {"left", "origin"}


def taken(path: Path) -> Path:
    """A file that is there already."""
    target = path.with_name("backup.db")
    target.write_text("precious")
    return target


def dangling(path: Path) -> Path:
    """A symbolic link that leads nowhere."""
    target = path.with_name("link.db")
    target.symlink_to("nowhere")
    return target


def itself_by_symlink(path: Path) -> Path:
    """A symbolic link to the queue."""
    target = path.with_name("link.db")
    target.symlink_to(path)
    return target


def itself_by_hard_link(path: Path) -> Path:
    """Another name of the queue's file."""
    target = path.with_name("hard.db")
    target.hardlink_to(path)
    return target


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (taken, "exists and is not overwritten; name a new file"),
        (dangling, "exists and is not overwritten"),
        (lambda path: path, "is the queue itself"),
        (itself_by_symlink, "is the queue itself"),
        (itself_by_hard_link, "is the queue itself"),
        (lambda path: path.with_name("queue.db-wal"), "is the queue itself"),
        (lambda path: path.with_name("queue.db.lock"), "is the queue itself"),
        (lambda path: path.parent, "is a directory; name a new file in it"),
        (lambda path: path.with_name("no") / "backup.db", "does not exist; create it first"),
    ],
)
def test_a_backup_overwrites_nothing(path: Path, make: object, said: str) -> None:
    """A name that is taken, a directory, or the queue by whatever name is refused, and everything stays as it was."""
    assert callable(make)
    target = make(path)
    before = {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    with pytest.raises(BackupRefused, match=said):
        back_up(path, target)
    assert {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()} == before


def test_a_name_that_is_taken_meanwhile_is_kept(path: Path, tmp_path: Path) -> None:
    """A file that comes to be while the copy is made is not overwritten either."""
    target = tmp_path / "backup.db"

    def progress(_done: int, _total: int, _words: str) -> None:
        target.write_text("precious")

    with pytest.raises(BackupRefused, match="has come to be meanwhile"):
        back_up(path, target, progress=progress)
    assert target.read_text() == "precious"
    assert "backup.db.partial" not in beside(path)


def test_no_room_is_told_before_anything_is_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the copy does not fit, both sizes are told and no file is left."""
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([*real[:3], 10, 10, *real[5:]])
    monkeypatch.setattr("dlr_buffer.storage.backup.os.statvfs", lambda _path: full)
    with pytest.raises(StorageFull, match=r"takes 0\.1 MiB, but only 0\.0 MiB are free.*another disk"):
        back_up(path, tmp_path / "backup.db")
    assert beside(path) == {"queue.db", "queue.db-wal", "queue.db-shm"}


def test_a_disk_that_fails_midway_leaves_nothing(path: Path, tmp_path: Path) -> None:
    """If writing fails in the middle (here by a limit of the process), the error is told and no file is left."""
    code = (
        "import pathlib, sys; from dlr_buffer.storage.backup import back_up;"
        " back_up(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "backup.db")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "StoreUnavailable" in done.stderr or "StorageFull" in done.stderr
    assert {name for name in beside(path) if "backup" in name} == set()


class Stop(BaseException):
    """What Ctrl-C is."""


@pytest.mark.parametrize("at", ["copying", "pages", "done"])
def test_a_backup_that_is_broken_off_leaves_nothing(path: Path, tmp_path: Path, at: str) -> None:
    """Ctrl-C while copying or while checking the copy leaves no file, and the next try succeeds."""

    def progress(_done: int, _total: int, words: str) -> None:
        if words == at:
            raise Stop

    with pytest.raises(Stop):
        back_up(path, tmp_path / "backup.db", progress=progress)
    assert {name for name in beside(path) if "backup" in name} == set()
    back_up(path, tmp_path / "backup.db")


def test_what_a_killed_backup_left_is_begun_anew(path: Path, tmp_path: Path) -> None:
    """A partial file has another name than a backup, and does not stop the next one."""
    partial = tmp_path / "backup.db.partial"
    partial.write_bytes(b"half of something" * 100_000)
    back_up(path, tmp_path / "backup.db")
    assert not partial.exists()
    assert check(tmp_path / "backup.db").findings == ()


def test_two_backups_of_one_name_do_not_mix(path: Path, tmp_path: Path) -> None:
    """While one backup is written, another of that name is refused and the first one is not harmed."""
    target = tmp_path / "backup.db"
    said: list[str] = []

    def progress(_done: int, _total: int, words: str) -> None:
        if words == "copying" and not said:
            try:
                back_up(path, target)
            except BackupRefused as error:
                said.append(str(error))

    back_up(path, target, progress=progress)
    assert len(said) == 1
    assert "another backup is writing" in said[0]
    assert check(target).findings == ()


def test_an_unsound_queue_gives_no_backup(path: Path, tmp_path: Path) -> None:
    """What the check of the copy finds is told, and the copy is not kept: nobody shall rely on it."""
    change(path, "INSERT INTO accounts VALUES (1, 'a', 0)")
    with pytest.raises(BackupRefused, match=r"is not sound, so it was not kept: .*message_counts"):
        back_up(path, tmp_path / "backup.db")
    assert {name for name in beside(path) if "backup" in name} == set()


def test_something_else_is_not_backed_up(tmp_path: Path) -> None:
    """Another program's database, a text and nothing at all are no queues."""
    other = tmp_path / "other.db"
    change(other, "CREATE TABLE bookmarks (url)")
    text = tmp_path / "text"
    text.write_text("some text\n" * 100)
    for source in (other, text, tmp_path / "nothing"):
        with pytest.raises(DlrBufferError):
            back_up(source, tmp_path / "backup.db")
        assert {name for name in beside(text) if "backup" in name} == set()
