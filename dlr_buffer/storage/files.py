"""Whether the queue's files are still the ones that were opened, and hold nothing that others wrote.

SQLite goes on in files that were removed or replaced under it, and says that all is well: a commit to a log that
nobody will ever read again. So the writer asks here after each commit, before anybody is told of it. A name that
leads to another file shows in device and inode; bytes that others wrote show in time, size and header of the
database, which only our own checkpoints change, and in the log's header, which only SQLite changes, after a whole
checkpoint, and then in a way of its own. What is not noticed: a database that was rewritten with the same header,
single pages written past SQLite, a file mounted over one of ours, another program's commits by SQLite's own rules
(the writer logs those).

Whether the files are whole when they are opened is looked at in `whole` and `wal`; what a daemon does about
a loss is the writer's.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.logs import Event, about

_HEADER_BYTES: Final = 100
_LOG_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_SETTLED_NS: Final = 1_000_000_000
_PIECE_BYTES: Final = 1024 * 1024

_log = logging.getLogger(__name__)


class FileReplaced(StoreUnavailable):
    """A name leads elsewhere now. What this process has open is whole, and may be brought to an end."""

    def __init__(self, detail: str) -> None:
        """Be a reason to end."""
        super().__init__(detail, fatal=True)


class FileOverwritten(StoreUnavailable):
    """Bytes of an open file were changed by others: nothing more may be written to it.

    ``database`` says whether it was the database's; then the log belongs to what was there before.
    """

    def __init__(self, detail: str, *, database: bool) -> None:
        """Be a reason to end."""
        self.database = database
        super().__init__(detail, fatal=True)


class QueueFiles:
    """A database, its log and its wal-index, as this process has them open.

    All but `require_names` belongs to the writer's thread.
    """

    def __init__(self, path: Path) -> None:
        """Remember the files of the database at ``path``, which is open in WAL mode. Raises OSError."""
        self._path = path
        self.log = path.with_name(path.name + "-wal")
        self._known = {
            str(name): _identity(name.stat()) for name in (path, self.log, path.with_name(path.name + "-shm"))
        }
        # Held open to the end: whoever closes any descriptor of a file drops all locks that this process has on it,
        # SQLite's too. For that reason the wal-index is only looked at by name.
        self._database_file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._log_file = os.open(self.log, os.O_RDONLY | os.O_CLOEXEC)
        self._folder = str(path.parent)
        self._folder_times: tuple[int, ...] | None = None
        self._stamp = (0, 0)
        self._header = b""
        self._log_header = os.pread(self._log_file, _LOG_HEADER_BYTES, 0)
        self._log_bytes = 0
        self.checkpointed()

    def close(self) -> None:
        """Let go of the files; only once SQLite has closed them."""
        os.close(self._database_file)
        os.close(self._log_file)

    def require_ours(self) -> None:
        """Raise FileReplaced or FileOverwritten if somebody else had a hand in the files."""
        self.require_names()
        self._require_own_log()
        found = os.fstat(self._database_file)
        if (found.st_size, found.st_mtime_ns) != self._stamp:
            self._require_own_database(found)

    def require_names(self) -> None:
        """Raise FileReplaced if a name leads to no file, or to another one; from any thread.

        Whatever is done to a name changes the times of its folder, so while these stay the names are not looked at.
        """
        try:
            folder = os.stat(self._folder)  # noqa: PTH116 - twice as fast, twice in each commit
        except OSError:
            self._look_at_names()  # which says what is gone
            return
        times = (folder.st_dev, folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns)
        if times == self._folder_times:
            return
        self._look_at_names()
        # These times go in steps of some milliseconds: a change within the step of the one before would not show.
        settled = time.time_ns() - max(folder.st_mtime_ns, folder.st_ctime_ns) > _SETTLED_NS
        self._folder_times = times if settled else None

    def _look_at_names(self) -> None:
        for name, known in self._known.items():
            try:
                found = _identity(os.stat(name))  # noqa: PTH116 - twice as fast, twice in each commit
            except OSError as error:
                raise FileReplaced(
                    f"{name} was removed while the daemon used it ({error.strerror}); stop whatever did that before the"
                    " daemon starts again"
                ) from error
            if found != known:
                raise FileReplaced(
                    f"another file was put in the place of {name} while the daemon used it; stop the daemon before you"
                    " move or restore a queue"
                )

    def checkpointed(self) -> None:
        """Take the files as they are now for ours: the writer has checkpointed. Raises OSError."""
        found = os.fstat(self._database_file)
        self._stamp = (found.st_size, found.st_mtime_ns)
        self._header = os.pread(self._database_file, _HEADER_BYTES, 0)
        self._log_bytes = os.fstat(self._log_file).st_size

    @property
    def log_bytes(self) -> int:
        """How long the log's file is, as of the last look; its end may be left over from before it was begun anew."""
        return self._log_bytes

    def log_reaches(self, length: int) -> bool:
        """Whether so many bytes were written to the log since it was begun anew, as of the last look. Raises OSError.

        Each page in it bears the two salts of the log's header (https://sqlite.org/fileformat2.html#walformat).
        """
        page_bytes = int.from_bytes(self._log_header[8:12], "big")
        if not page_bytes:
            return False
        frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        at = _LOG_HEADER_BYTES + max(0, length // frame_bytes - 1) * frame_bytes
        if at >= self._log_bytes:
            return False
        return os.pread(self._log_file, _FRAME_HEADER_BYTES, at)[8:16] == self._log_header[16:24]

    def rescue(self) -> Path | None:
        """Copy a database that has no name any more beside where it was; returns the copy, None if it has one.

        Raises OSError.
        """
        if os.fstat(self._database_file).st_nlink:
            return None
        copy = self._path.with_name(f"{self._path.name}.rescued-{os.getpid()}")
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while piece := os.pread(self._database_file, _PIECE_BYTES, at):
                at += os.pwrite(target, piece, at)
            os.fsync(target)
        finally:
            os.close(target)
        return copy

    def set_log_aside(self) -> Path:
        """Take the log's name away, so that it is not applied to a database it does not belong to. Raises OSError."""
        return self.log.rename(self.log.with_name(f"{self.log.name}.orphaned-{os.getpid()}"))

    def _require_own_log(self) -> None:
        size = os.fstat(self._log_file).st_size
        header = os.pread(self._log_file, _LOG_HEADER_BYTES, 0)
        # A log that we emptied, or that has not begun yet, may hold anything next.
        known = not self._log_bytes or header == self._log_header or _began_anew(self._log_header, header)
        if size < self._log_bytes or not known:
            raise FileOverwritten(
                f"another program cut or overwrote {self.log} while the daemon used it: what was answered since the"
                " last checkpoint may be lost. Stop that program, and let `dlr-buffer check-db` look at the queue",
                database=False,
            )
        self._log_header, self._log_bytes = header, size

    def _require_own_database(self, found: os.stat_result) -> None:
        header = os.pread(self._database_file, _HEADER_BYTES, 0)
        grown = found.st_size >= self._stamp[0]
        if not grown or (header != self._header and not self._came_from_the_log(header)):
            raise FileOverwritten(
                f"{self._path} was overwritten by another program while the daemon used it; stop the daemon before you"
                " restore a queue",
                database=True,
            )
        _log.warning(
            "another program wrote to %s; nothing is known to be lost, but stop it",
            self._path,
            extra=about(Event.QUEUE_TOUCHED, path=str(self._path)),
        )
        self._stamp, self._header = (found.st_size, found.st_mtime_ns), header

    def _came_from_the_log(self, header: bytes) -> bool:
        """Whether the log holds a first page with this header: then another SQLite checkpointed it."""
        page_bytes = int.from_bytes(os.pread(self._log_file, 4, 8), "big")
        at = _LOG_HEADER_BYTES
        while frame := os.pread(self._log_file, _FRAME_HEADER_BYTES + _HEADER_BYTES, at):
            if int.from_bytes(frame[:4], "big") == 1 and frame[_FRAME_HEADER_BYTES:] == header:
                return True
            at += _FRAME_HEADER_BYTES + page_bytes
        return False


def _began_anew(old: bytes, new: bytes) -> bool:
    """Whether SQLite itself began the log anew: it counts that at 12, and the first salt goes up by one."""
    return len(new) == len(old) == _LOG_HEADER_BYTES and all(
        int.from_bytes(new[at : at + 4], "big") == (int.from_bytes(old[at : at + 4], "big") + 1) % 2**32
        for at in (12, 16)
    )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
