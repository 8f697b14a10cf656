"""The queue's file with planted faults: owners, modes, file systems, schemas, locks, logs, damage."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlr_buffer.doctor.access import Identity
from dlr_buffer.doctor.queue import (
    LONG_LOG_BYTES,
    file_findings,
    file_system_finding,
    lock_findings,
    log_finding,
    owner_findings,
    real_path,
    rows_findings,
)
from dlr_buffer.storage.file_systems import FileSystem, file_system
from dlr_buffer.storage.glance import glance, lock_holders
from dlr_buffer.storage.lock import QueueLock, lock_path
from dlr_buffer.storage.schema import HEAD
from tests.integration.storage.conftest import migrated
from tests.integration.storage.databases import beside, change, flip, killed_queue
from tests.unit.doctor.findings_of import told

__all__ = ["migrated"]

DAEMON = Identity("dlr-buffer", 4001, 4001, frozenset({4001}))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@pytest.fixture
def path(migrated: Path, public_folder: Path) -> Iterator[Path]:
    """An empty queue of this test's own, of `DAEMON` if that can be."""
    folder = public_folder / "queue"
    folder.mkdir(mode=0o700)
    path = Path(shutil.copyfile(migrated, folder / "queue.db"))
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(folder, DAEMON.uid, DAEMON.gid)
        os.chown(path, DAEMON.uid, DAEMON.gid)
    yield path
    folder.chmod(0o700)


@as_root
def test_a_sound_queue(path: Path) -> None:
    """The daemon's own, of this schema, held by nobody, on a disk; looking leaves nothing beside it."""
    before = {each: each.stat().st_mtime_ns for each in path.parent.iterdir()}
    assert told(owner_findings(path, DAEMON)) == [("ok", "queue-owner")]
    assert told(file_findings(path)) == [("ok", "queue")]
    assert told(lock_findings(path, lock_holders(path), daemon_pid=None)) == [("ok", "queue-lock")]
    assert log_finding(path, held=False) is None
    assert {each: each.stat().st_mtime_ns for each in path.parent.iterdir()} == before


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "folder_mode", "expected"),
    [
        (0, 0o600, 0o700, [("error", "queue-owner")]),
        (4001, 0o400, 0o700, [("error", "queue-owner")]),
        (4001, 0o644, 0o700, [("warning", "queue-mode")]),
        (4001, 0o660, 0o700, [("warning", "queue-mode")]),
        (4001, 0o600, 0o500, [("error", "queue-folder"), ("ok", "queue-owner")]),
    ],
)
def test_owner_and_mode(
    path: Path, owner: int, mode: int, folder_mode: int, expected: list[tuple[str, str]]
) -> None:
    """What the daemon can't write is an error, what others may read a warning; the commands told mend it."""
    os.chown(path, owner, 4001)
    path.chmod(mode)
    path.parent.chmod(folder_mode)
    found = list(owner_findings(path, DAEMON))
    assert told(found) == expected
    for each in found:
        if each.remedy is not None:
            command = each.remedy.replace("sudo ", "").replace("dlr-buffer:4001", "4001:4001")
            assert os.system(command) == 0
    assert told(owner_findings(path, DAEMON)) == [("ok", "queue-owner")]


@as_root
def test_a_log_of_roots(path: Path) -> None:
    """A file beside the queue that somebody made as root is as bad as the queue itself."""
    log = path.with_name("queue.db-wal")
    log.write_bytes(b"x")
    log.chmod(0o600)
    assert told(owner_findings(path, DAEMON)) == [("error", "queue-owner")]


@as_root
def test_a_way_that_is_closed(path: Path, public_folder: Path) -> None:
    """A folder above that does not let the daemon pass is named."""
    public_folder.chmod(0o700)
    found = list(owner_findings(path, DAEMON))
    assert ("error", "queue-folder") in told(found)
    assert f"{public_folder} does not let it pass" in found[0].what


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The command that makes it is told; one that systemd makes at the start need not be there before."""
    (finding,) = owner_findings(tmp_path / "no" / "queue.db", DAEMON)
    assert told([finding]) == [("error", "queue-folder")]
    assert told(owner_findings(tmp_path / "no" / "queue.db", DAEMON, made_at_start=True)) == [
        ("note", "queue-folder")
    ]
    assert finding.remedy == f"sudo install -d -m 0700 -o dlr-buffer -g 4001 {tmp_path / 'no'}"


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("ext4", "ok"),
        ("xfs", "ok"),
        ("nfs4", "error"),
        ("cifs", "error"),
        ("fuse.sshfs", "error"),
        ("tmpfs", "error"),
        ("overlay", "warning"),
        ("fuse.mergerfs", "warning"),
        ("fuseblk", "warning"),
        ("unknown", "note"),
    ],
)
def test_file_systems(kind: str, level: str) -> None:
    """Network and memory are errors, layers and FUSE a warning, a disk is well."""
    where = FileSystem(kind, "/dev/x", "/", ())
    assert told([file_system_finding(Path("/queue"), where)]) == [(level, "queue-file-system")]


def test_a_queue_in_memory() -> None:
    """A folder that really is in memory is found out."""
    memory = Path("/dev/shm")
    if file_system(memory).kind != "tmpfs":
        pytest.skip("/dev/shm is not in memory here")
    assert told([file_system_finding(memory, file_system(memory))]) == [("error", "queue-file-system")]


def test_no_queue_yet_and_one_that_vanished(path: Path) -> None:
    """Before the first start there is none; once one was kept there, its absence is an error."""
    path.unlink()
    assert told(file_findings(path)) == [("note", "queue")]
    lock_path(path).write_text("closed\nqueue 17\n")
    (finding,) = file_findings(path)
    assert told([finding]) == [("error", "queue")]
    assert "but a queue was kept there" in finding.what


@pytest.mark.parametrize(
    ("statement", "level"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "error"),
        ("DELETE FROM alembic_version", "error"),
        ("DROP TABLE alembic_version", "error"),
    ],
)
def test_schemas(path: Path, statement: str, level: str) -> None:
    """One of a newer program, and one that does not tell, are errors."""
    change(path, statement)
    assert told(file_findings(path)) == [(level, "queue")]


def test_an_older_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the next start migrates is a warning: a backup comes first."""
    assert glance(path).schema == HEAD
    monkeypatch.setattr("dlr_buffer.storage.glance.HEAD", "0099")
    assert told(file_findings(path)) == [("warning", "queue")]


def test_what_is_no_database(path: Path) -> None:
    """Bytes of something else are an error, not a crash."""
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    assert told(file_findings(path)) == [("error", "queue")]


def test_who_holds_the_lock(path: Path) -> None:
    """The kernel tells the process; another one that answers at the socket is an error, and so is none at all."""
    assert lock_holders(path) == frozenset()
    lock = QueueLock(path)
    holders = lock_holders(path)
    assert holders == frozenset({os.getpid()})
    assert told(lock_findings(path, holders, daemon_pid=None)) == [("ok", "queue-lock")]
    assert told(lock_findings(path, holders, daemon_pid=os.getpid())) == [("ok", "queue-lock")]
    assert told(lock_findings(path, holders, daemon_pid=1)) == [("error", "queue-lock")]
    lock.release()
    assert told(lock_findings(path, lock_holders(path), daemon_pid=1)) == [("error", "queue-lock")]
    assert told(lock_findings(path, None, daemon_pid=None)) == [("note", "queue-lock")]


def test_looking_at_the_lock_does_not_take_it(path: Path) -> None:
    """A daemon that starts while doctor looks finds the lock free."""
    lock_path(path).touch()
    lock_holders(path)
    with lock_path(path).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_locks_of_other_files_and_kinds_do_not_count(path: Path, tmp_path: Path) -> None:
    """Only a flock on this very file is one on the queue; one that waits for it does not hold it."""
    lock_path(path).touch()
    found = lock_path(path).stat()
    here = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    locks = tmp_path / "locks"
    locks.write_text(
        f"1: POSIX  ADVISORY  WRITE 11 {here}:{found.st_ino} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 12 {here}:{found.st_ino + 1} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 13 {here}:{found.st_ino} 0 EOF\n"
        f"3: -> FLOCK  ADVISORY  WRITE 14 {here}:{found.st_ino} 0 EOF\n"
        f"4: FLOCK  ADVISORY  WRITE 15 ff:77:{found.st_ino} 0 EOF\n"
    )
    assert lock_holders(path, locks) == frozenset({13})
    locks.write_text(f"4: FLOCK  ADVISORY  WRITE 15 ff:77:{found.st_ino} 0 EOF\n")
    assert lock_holders(path, locks) == frozenset({15})
    assert lock_holders(path, tmp_path / "none") is None


def test_what_a_killed_daemon_left(tmp_path: Path) -> None:
    """Its log is named, and that the next start brings it in; looking does not change it."""
    path = tmp_path / "queue.db"
    killed_queue(path)
    log = path.with_name("queue.db-wal").read_bytes()
    assert log
    assert told(file_findings(path)) == [("ok", "queue")]
    assert told(lock_findings(path, lock_holders(path), daemon_pid=None)) == [("note", "queue-lock")]
    assert told([log_finding(path, held=False)]) == [("note", "queue-log")]
    assert path.with_name("queue.db-wal").read_bytes() == log
    assert beside(path) >= {"queue.db-wal"}


def test_a_log_that_lost_commits(tmp_path: Path) -> None:
    """A log that was removed after a kill is an error, with what is lost."""
    path = tmp_path / "queue.db"
    killed_queue(path)
    path.with_name("queue.db-wal").unlink()
    (finding,) = file_findings(path)
    assert told([finding]) == [("error", "queue")]
    assert "is missing, cut or damaged" in finding.what


def test_a_log_that_grows(path: Path) -> None:
    """One far longer than the daemon lets it grow means that somebody reads for long."""
    log = path.with_name("queue.db-wal")
    with log.open("wb") as file:
        file.truncate(LONG_LOG_BYTES + 1)
    assert told([log_finding(path, held=True)]) == [("warning", "queue-log")]
    with log.open("wb") as file:
        file.truncate(8 << 20)
    assert told([log_finding(path, held=True)]) == [("ok", "queue-log")]


def test_the_rows(path: Path) -> None:
    """Sound pages are said to be so; a wrong counter and a damaged page are errors with check-db's remedy."""
    assert told(rows_findings(path)) == [("ok", "queue-rows")]
    change(path, "INSERT INTO accounts (id, name, paused) VALUES (1, 'a', 0)")
    assert set(told(rows_findings(path))) == {("error", "queue-rows")}
    flip(path, 4096 + 8)
    assert ("error", "queue-rows") in told(rows_findings(path))
    path.unlink()
    assert told(rows_findings(path)) == [("error", "queue-rows")]


def test_a_link_is_followed(path: Path) -> None:
    """What is looked at lies beside the file itself, as SQLite's log does."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    assert real_path(link) == real_path(path)
