"""The kernel lock that keeps a second daemon off the same queue.

A lock on a file beside the database, held as long as the process lives: gone with it, whatever kills it.
Locking the database file itself would clash with SQLite's own locks.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dlr_buffer.errors import StoreUnavailable


class QueueLock:
    """Exclusive use of a queue; raises StoreUnavailable if another process has it, naming that process."""

    def __init__(self, database: Path) -> None:
        """Take the lock file ``<database>.lock``."""
        # Another name of the same file must not give another lock.
        database = Path(os.path.realpath(database))
        self.path = database.with_name(database.name + ".lock")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot open {self.path}: {error.strerror}; the daemon needs to write in that folder",
                fatal=True,
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise StoreUnavailable(
                f"another dlr-buffer (process {owner}) holds the queue {database}; stop it first, or give this one"
                " another [database] url",
                fatal=True,
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the queue free; the file stays, so that two daemons can never lock two different ones."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
