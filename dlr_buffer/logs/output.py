"""Where the log goes: the journal's socket, or stderr; and that neither can hold up or end the daemon.

Nothing is waited for longer than a moment: a reader that has stopped reading, a broken pipe, a full disk cost lines,
which are counted, and told once there is somebody to tell; they cost nothing else. How a line looks is `formats`'.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, assert_never

from dlr_buffer.logs.events import AUDIT, Event, about
from dlr_buffer.logs.formats import as_json, as_prefixed, as_text, encode, journal_fields
from dlr_buffer.logs.sparing import EVERY_S, FloodGuard

LogFormat = Literal["auto", "text", "json", "journal"]

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
STDERR: Final = 2
_PATIENCE_S: Final = 0.1
"""What a reader gets to catch up, once; while it does not, nothing is waited for."""
_PIECE_BYTES: Final = select.PIPE_BUF
"""So much a pipe takes at once, if it takes anything: the kernel's word is needed only once a piece."""
_SHORT_CHARACTERS: Final = 1000
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)

_log = logging.getLogger(__name__)

Write = Callable[[logging.LogRecord], None]
"""Puts out one record; raises OSError if that can't be done now."""


class Patience:
    """Waits until a descriptor can be written to, but for as long as one moment only until it could again."""

    def __init__(self, fd: int) -> None:
        """Watch ``fd``."""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._left_s = _PATIENCE_S

    def require(self) -> None:
        """Return if something can be written; raises BlockingIOError if nobody reads it."""
        if self._poll.poll(self._left_s * 1000):
            self._left_s = _PATIENCE_S
            return
        self._left_s = 0.0
        raise BlockingIOError(errno.EAGAIN, "it is full, and nobody reads it")


class Stream:
    """Lines on a descriptor that others may hold too, so that its flags are not ours to change."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd``."""
        self._fd = fd
        self._patience = Patience(fd)
        self._torn = False
        """Whether the last line was cut off in its middle."""

    def write(self, text: str) -> None:
        """Write lines; raises OSError."""
        content = text.encode("utf-8", "backslashreplace")
        if self._torn:
            content = b"\n" + content
        written = 0
        try:
            while written < len(content):
                self._patience.require()
                written += os.write(self._fd, content[written : written + _PIECE_BYTES])
        finally:
            if written:
                self._torn = written < len(content)


class Journal:
    """systemd's journal by its native protocol."""

    def __init__(self, path: Path) -> None:
        """Connect to the journal's socket; raises OSError."""
        self._path = os.fspath(path)
        self._socket = self._connected()

    def write(self, record: logging.LogRecord) -> None:
        """Send one entry; raises OSError, BlockingIOError if the journal does not read."""
        fields = list(journal_fields(record))
        try:
            self._send(encode(fields))
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            # A system with small buffers: what is left of the entry is better than none.
            self._send(encode((name, value[:_SHORT_CHARACTERS]) for name, value in fields))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.send(datagram)
        except TimeoutError:
            self._socket.settimeout(0.0)
            raise BlockingIOError(errno.EAGAIN, "the journal does not read") from None
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _TOO_LARGE:
                raise
            # It was started anew, with another socket under the same name.
            self._socket.close()
            self._socket = self._connected()
            self._socket.send(datagram)
        self._socket.settimeout(_PATIENCE_S)

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(_PATIENCE_S)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock


class SteadyHandler(logging.Handler):
    """Puts records out, whatever happens; counts those that it could not."""

    def __init__(self, write: Write) -> None:
        """Put out with ``write``."""
        super().__init__()
        self.write = write
        self.lost = 0
        """Lines since the start that could not be written."""
        self.lost_at_s: float | None = None
        self.reason = ""
        self._untold = 0
        self._guard = FloodGuard()

    def emit(self, record: logging.LogRecord) -> None:
        """Put out one record, unless there were too many like it."""
        now_s = time.monotonic()
        try:
            addition = self._guard.judge(record, now_s)
            if addition is None:
                return
            if addition:
                record = _with(record, addition)
            if self._untold:
                self.write(_told_late(self._untold, self.reason))
                self._untold = 0
            self.write(record)
        except Exception as error:  # noqa: BLE001 - the log must never be what ends the daemon
            self.lost += 1
            self._untold += 1
            self.lost_at_s = now_s
            self.reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class Log:
    """The log of this process: levels, format and output, for `apply` at the start and at each reload."""

    def __init__(
        self, environ: Mapping[str, str], *, journal: Path = JOURNAL_SOCKET, fd: int = STDERR
    ) -> None:
        """Change nothing yet; ``fd`` is stderr, and ``environ`` says whether that is the journal's."""
        _keep_standard_descriptors()
        self._environ = environ
        self._path = journal
        self._fd = fd
        self._journal: Journal | None = None
        self._stream = Stream(fd)
        self._handler = SteadyHandler(self._as_prefixed)

    def apply(self, level: str, form: LogFormat) -> None:
        """Log from ``level`` on in this format; all loggers of the process speak through this from now on.

        Other libraries only speak from warnings on. What admins did is logged at every level.
        """
        self._handler.write = self._choose(form)
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(logging.WARNING)
        set_level(level)
        # A sweep that takes longer than its tick is no news.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        logging.captureWarnings(capture=True)

    def close(self) -> None:
        """Close what this opened; for a process that has another log after this one."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def take_uncaught(self) -> None:
        """Have errors that nothing catches logged like others, instead of written to stderr without priority."""
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda fault: _log_uncaught(
            fault.exc_type, fault.exc_value or fault.exc_type(), fault.exc_traceback
        )

    @property
    def lost(self) -> int:
        """Lines since the start that could not be written."""
        return self._handler.lost

    @property
    def trouble(self) -> str | None:
        """A sentence for admins if lines were lost within the last minute."""
        lost_at_s = self._handler.lost_at_s
        if lost_at_s is None or time.monotonic() >= lost_at_s + EVERY_S:
            return None
        return (
            f"the log can't be written ({self._handler.reason}): {self.lost} lines are lost since the start; look at"
            " what reads the daemon's stderr, or at the journal"
        )

    def _choose(self, form: LogFormat) -> Write:
        match form:
            case "text":
                return self._as_text
            case "json":
                return self._as_json
            case "journal":
                return self._to_journal()
            case "auto":
                return self._to_journal() if self._is_journals() else self._as_text
            case _:
                assert_never(form)

    def _is_journals(self) -> bool:
        """Whether stderr is the journal's, as sd-journal's manual says to find out: a child may have another."""
        with suppress(OSError):
            found = os.fstat(self._fd)
            return self._environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
        return False

    def _to_journal(self) -> Write:
        if self._journal is None:
            with suppress(OSError):
                self._journal = Journal(self._path)
        journal = self._journal
        if journal is None:
            return self._as_prefixed

        def write(record: logging.LogRecord) -> None:
            try:
                journal.write(record)
            except BlockingIOError:
                raise  # stderr leads to the same reader
            except OSError:
                self._as_prefixed(record)

        return write

    def _as_text(self, record: logging.LogRecord) -> None:
        self._stream.write(as_text(record))

    def _as_json(self, record: logging.LogRecord) -> None:
        self._stream.write(as_json(record))

    def _as_prefixed(self, record: logging.LogRecord) -> None:
        self._stream.write(as_prefixed(record))


def set_level(level: str) -> None:
    """Let this program speak from ``level`` on; what admins did is logged at every level."""
    logging.getLogger("dlr_buffer").setLevel(level.upper())
    logging.getLogger(AUDIT).setLevel(logging.INFO)


def _keep_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed to nothing: else one of the queue's files might become stderr."""
    for fd in range(STDERR + 1):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - the standard library's signature


def _with(record: logging.LogRecord, addition: str) -> logging.LogRecord:
    """The record with something added to its text; other handlers may have the same object."""
    added = logging.makeLogRecord(record.__dict__)
    added.msg, added.args = record.getMessage() + addition, ()
    return added


def _told_late(lines: int, reason: str) -> logging.LogRecord:
    return _log.makeRecord(
        _log.name,
        logging.ERROR,
        __file__,
        0,
        "%d lines of the log before this one could not be written: %s",
        (lines, reason),
        None,
        extra=about(Event.LINES_LOST, count=lines),
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical(
        "an error that nobody foresaw; please report it",
        exc_info=(kind, error, trace),
        extra=about(Event.DEFECT),
    )
