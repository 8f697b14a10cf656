"""A copy of the queue as it is at one moment, made while the daemon runs or not.

The copy is made by SQLite's online backup on a connection that can't write, inside one read transaction: so the
daemon goes on and the copy does not see it. (The log can't begin anew meanwhile, and grows.) It is written
beside its name, checked, synced and only then given its name, so that no half copy is ever taken for one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dlr_buffer.errors import DlrBufferError, StorageFull, StoreUnavailable
from dlr_buffer.storage.checking import Progress, check, damaged_log, open_read_only
from dlr_buffer.storage.connection import translate, translated
from dlr_buffer.storage.lock import lock_path, sync_folder

_PAGES_AT_ONCE: Final = 1024
_ROOM_TO_SPARE: Final = 1024 * 1024


class BackupRefused(DlrBufferError):
    """No backup was made, and nothing is left of it; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What lies in a finished backup."""

    path: Path
    size_bytes: int
    messages: int
    receipts: int
    next_request_id: int
    """The first request_id that the queue had not given out when the backup was begun."""


def back_up(source: Path, target: Path, *, progress: Progress | None = None) -> BackedUp:
    """Copy the queue at ``source`` to the new file ``target``.

    Raises BackupRefused, StorageFull or StoreUnavailable; then, and when ``progress`` raises, nothing is left.
    """
    source = Path(os.path.realpath(source))
    target = target.absolute()
    _require_new(source, target)
    if (finding := damaged_log(source)) is not None:
        raise BackupRefused(finding.detail)
    partial = target.with_name(target.name + ".partial")
    with _partial_file(partial) as file, closing(open_read_only(source)) as database:
        _require_room(database, target)
        next_request_id = _next_request_id(database, source)
        _copy(database, source, partial, progress)
        checked = check(partial, quick=True, progress=progress, immutable=True)
        if checked.findings:
            told = "; ".join(finding.detail for finding in checked.findings)
            raise BackupRefused(
                f"the copy of {source} is not sound, so it was not kept: {told}. `dlr-buffer check-db` tells more"
            )
        _publish(file, partial, target)
        return BackedUp(target, target.stat().st_size, checked.messages, checked.receipts, next_request_id)


def _require_new(source: Path, target: Path) -> None:
    """Refuse a name that is taken: a backup never overwrites anything."""
    own = (source, lock_path(source), *(source.with_name(source.name + end) for end in ("-wal", "-shm")))
    if os.path.realpath(target) in map(str, own) or (
        target.exists() and source.exists() and target.samefile(source)
    ):
        raise BackupRefused(f"{target} is the queue itself; name a new file, best on another disk")
    if target.is_dir():
        raise BackupRefused(f"{target} is a directory; name a new file in it")
    if os.path.lexists(target):
        raise BackupRefused(f"{target} exists and is not overwritten; name a new file, or remove that one")
    if not target.parent.is_dir():
        raise BackupRefused(f"the folder {target.parent} does not exist; create it first")


@contextmanager
def _partial_file(path: Path) -> Iterator[int]:
    """Open a file of our own to write to, and remove it unless it has got its final name."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackupRefused(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupRefused(f"another backup is writing {path} now; wait for it") from None
        if not os.fstat(file).st_nlink:
            raise BackupRefused(f"another backup wrote {path} until now; try again")
        try:
            # What a killed backup has left is begun anew.
            os.fchmod(file, 0o600)
            os.ftruncate(file, 0)
            yield file
        finally:
            for end in ("", "-journal"):
                path.with_name(path.name + end).unlink(missing_ok=True)
    finally:
        os.close(file)


def _require_room(database: sqlite3.Connection, target: Path) -> None:
    size = (
        database.execute("PRAGMA page_count").fetchone()[0]
        * database.execute("PRAGMA page_size").fetchone()[0]
    )
    room = os.statvfs(target.parent)
    free = room.f_bavail * room.f_frsize
    if free < size + _ROOM_TO_SPARE:
        raise StorageFull(
            f"the backup takes {size / 2**20:,.1f} MiB, but only {free / 2**20:,.1f} MiB are free in {target.parent};"
            " name a file on another disk"
        )


def _next_request_id(database: sqlite3.Connection, source: Path) -> int:
    try:
        row = database.execute("SELECT next_request_id FROM queue_state").fetchone()
    except sqlite3.OperationalError:
        raise BackupRefused(f"{source} is not a queue of dlr-buffer") from None
    except sqlite3.Error as error:
        raise translate(error, source) from error
    return int(row[0]) if row is not None else 1


def _copy(database: sqlite3.Connection, source: Path, partial: Path, progress: Progress | None) -> None:
    def told(_status: int, left: int, pages: int) -> None:
        if progress is not None:
            progress(pages - left, pages, "copying")

    with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
        # It has no name yet: what a crash leaves of it is thrown away, so nothing needs a journal.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        try:
            database.backup(copy, pages=_PAGES_AT_ONCE, progress=told)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    f"the disk that holds {partial.parent} is full; name a file on another one"
                ) from error
            raise translate(error, source) from error
    with translated(partial), closing(sqlite3.connect(partial, isolation_level=None)) as copy:
        # As a file alone, which can be opened from a disk that can't be written; the daemon sets WAL again.
        copy.execute("PRAGMA journal_mode = DELETE")


def _publish(file: int, partial: Path, target: Path) -> None:
    """Sync the copy and give it its name, which nothing may have taken meanwhile."""
    try:
        os.fsync(file)
        try:
            os.link(partial, target)
        except FileExistsError:
            raise BackupRefused(f"{target} has come to be meanwhile; name a new file") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without hard links (exFAT, some of the network).
            partial.rename(target)
        try:
            sync_folder(target)
        except OSError:
            target.unlink()
            raise
    except OSError as error:
        raise StoreUnavailable(
            f"cannot finish {target}: {error.strerror}; the backup was not kept"
        ) from error
