"""The kernel lock that keeps a second daemon off the same queue, and what is noted in its file.

A lock on a file beside the database, held as long as the process lives: gone with it, whatever kills it.
Locking the database file itself would clash with SQLite's own locks. The file stays when the queue is closed,
and remembers that there was a queue and how its last run ended: so a database that has vanished, was emptied
or was put back from a backup is not taken for a new one. What follows from that is decided where the queue
is opened (`migrate`, `store`).
"""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from dlr_buffer.clock import SystemBootClock
from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.logs import about

_CLOSED = "closed"
_MOST_BYTES = 512
"""A note fits into one sector of a disk, so that it is replaced as a whole."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastRun:
    """What the lock file tells of the process that held the queue last; None where it tells nothing."""

    process: int | None = None
    """Its process id, unless it closed the queue in order."""
    next_request_id: int | None = None
    """Every request_id below it may have been used; None if there never was a queue to be noted."""
    boot_id: str | None = None
    """The machine's run (`dlr_buffer.clock.BootClock`) in which the queue was opened."""
    inode: int | None = None
    """The database file's."""

    @property
    def kept_a_queue(self) -> bool:
        """Whether a queue was ready for use here: then its database can't be missing or empty."""
        return self.next_request_id is not None


class QueueLock:
    """Exclusive use of a queue; raises StoreUnavailable if another process has it, naming that process."""

    def __init__(self, database: Path) -> None:
        """Take the lock file ``<database>.lock``."""
        # Another name of the same file must not give another lock.
        self._database = Path(os.path.realpath(database))
        self.path = lock_path(self._database)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot open {self.path}: {error.strerror}; the daemon needs to write in that folder",
                fatal=True,
            ) from error
        self._opened = False
        self._give_to_owner()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _parse(os.read(self._file, _MOST_BYTES)).process or "unknown"
            os.close(self._file)
            raise StoreUnavailable(
                f"another dlr-buffer (process {owner}) holds the queue {self._database}; stop it first, or give this"
                " one another [database] url",
                fatal=True,
            ) from None
        self._before = os.pread(self._file, _MOST_BYTES, 0)
        self.last = _parse(self._before)
        """How the queue was left, as the lock file told it when it was taken."""
        self._write(_worded(replace(self.last, process=os.getpid())))

    def opened(self, next_request_id: int) -> None:
        """Note that a queue is ready for use here, whose next receipt gets this number; before anything is answered."""
        self._opened = True
        self._note(os.getpid(), next_request_id)

    def closed(self, next_request_id: int) -> None:
        """Note that the queue was closed in order; `release` comes next."""
        self._note(None, next_request_id)

    def release(self) -> None:
        """Give the queue free; the file stays, so that two daemons can never lock two different ones."""
        if self._file >= 0:
            if not self._opened:
                # A start that was refused tells nothing of how the last run ended.
                self._write(self._before)
            os.close(self._file)
            self._file = -1

    def _give_to_owner(self) -> None:
        """Let the daemon's user have a lock file that root made (`check-db --repair`)."""
        if os.geteuid() == 0 and self._database.exists():
            owner = self._database.stat()
            if os.fstat(self._file).st_uid != owner.st_uid:
                os.fchown(self._file, owner.st_uid, owner.st_gid)

    def _note(self, process: int | None, next_request_id: int) -> None:
        inode = self._database.stat().st_ino
        self._write(
            _worded(LastRun(process, next_request_id, SystemBootClock().boot_id(), inode)), synced=True
        )

    def _write(self, text: bytes, *, synced: bool = False) -> None:
        try:
            os.pwrite(self._file, text, 0)
            os.ftruncate(self._file, len(text))
            if synced:
                os.fsync(self._file)
                sync_folder(self.path)
        except OSError as error:
            # The lock itself holds; what is noted here only makes refusals and warnings better.
            _log.warning(
                "cannot note in %s how the queue is used: %s. The queue is held all the same; if it is restored from a"
                " backup one day, set [database] first_request_id",
                self.path,
                error.strerror,
                extra=about(path=str(self.path)),
            )


def lock_path(database: Path) -> Path:
    """Return the path of a database's lock file; ``database`` is a real path, without links."""
    return database.with_name(database.name + ".lock")


def last_run(database: Path) -> LastRun:
    """Read what the lock file of a queue tells, without taking the lock; raises OSError if it may not be read.

    A run that goes on is told from one that broke off by `running`.
    """
    try:
        return _parse(lock_path(database).read_bytes()[:_MOST_BYTES])
    except FileNotFoundError:
        return LastRun()


def running(run: LastRun) -> bool:
    """Whether the process of that run is still there (or another one by now has its number)."""
    if run.process is None:
        return False
    try:
        os.kill(run.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(path: Path) -> None:
    """Make a file's name in its folder durable; raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _worded(run: LastRun) -> bytes:
    lines = [_CLOSED if run.process is None else str(run.process)]
    if run.next_request_id is not None:
        lines.append(f"queue {run.next_request_id}")
    if run.boot_id is not None:
        lines.append(f"boot {run.boot_id}")
    if run.inode is not None:
        lines.append(f"file {run.inode}")
    return "".join(f"{line}\n" for line in lines).encode()


def _parse(content: bytes) -> LastRun:
    first, *lines = content.decode(errors="replace").splitlines() or [""]
    facts = dict(line.split(" ", 1) for line in lines if " " in line)
    return LastRun(
        _number(first), _number(facts.get("queue", "")), facts.get("boot"), _number(facts.get("file", ""))
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
