"""Opening the SQLite file: pragmas that are read back, transactions begun by hand, foreign errors translated.

Only how a connection behaves is decided here; what is done with one is decided by the writer and the readers.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable

BUSY_TIMEOUT_MS: Final = 5_000
WRITER_CACHE_KIB: Final = 16_384
READER_CACHE_KIB: Final = 4_096
SYNCHRONOUS_FULL: Final = 2
_STATEMENTS_KEPT: Final = 256
"""More than the daemon has: none that comes often is prepared again."""
_WAL_RESET_MENDED: Final[dict[tuple[int, ...], tuple[int, ...]]] = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
"""Where SQLite's authors mended it in older branches as well."""
_FULL_BELOW_BYTES: Final = 1024 * 1024

_EITHER: Final = (
    "; the file is damaged, or the disk could not be read (SQLite calls both so): see whether the kernel logged an I/O"
    " error, and let `dlr-buffer check-db` look at the queue"
)
"""SQLite tells of EIO from a read as plain SQLITE_CORRUPT (`unixRead`, SQLITE_IOERR_CORRUPTFS)."""

_FATAL = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite has the WAL-reset bug (mended in 3.51.3, and in the branches of 3.44 and 3.50).

    It takes several connections that checkpoint. Here one connection writes and alone checkpoints, so it
    cannot strike; the daemon still warns.
    """
    mended_in_branch = _WAL_RESET_MENDED.get(version[:2])
    return version < (3, 51, 3) and (mended_in_branch is None or version < mended_in_branch)


def make_engine(path: Path, *, cache_kib: int, read_only: bool) -> Engine:
    """Make an engine whose connections leave transactions to us.

    pysqlite's default begins late and lets savepoints escape a rollback; with ``isolation_level=None`` it
    begins nothing, and the writer says BEGIN IMMEDIATE and COMMIT itself. Readers can't write
    (``query_only``) and none but the writer checkpoints.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "timeout": BUSY_TIMEOUT_MS / 1000,
            "check_same_thread": False,
            "cached_statements": _STATEMENTS_KEPT,
        },
    )

    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = FULL")
        if read_only:
            connection.execute("PRAGMA query_only = ON")

    event.listen(engine, "connect", configure)
    return engine


def witness(path: Path) -> sqlite3.Connection:
    """Open a connection that can't write, to be kept beside one that can.

    SQLite checkpoints when the last connection to a database is closed, and says nothing of a failure. After a sync
    that failed that must not be tried again as if nothing had happened (Linux reports it once). While the witness
    is open another's close does not checkpoint, and its own close can't.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    # A connection counts only from its first look into the database on.
    connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    return connection


def require_durable(connection: Connection) -> None:
    """Switch to WAL and read back what promise 1 rests on.

    Raises StoreUnavailable if the file system refuses it.
    """
    mode = str(connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar())
    if mode.lower() != "wal":
        raise StoreUnavailable(
            f"the database refuses write-ahead logging (journal_mode stays {mode!r}): put it on a local file system",
            fatal=True,
        )
    synchronous = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    if synchronous != SYNCHRONOUS_FULL:
        raise StoreUnavailable(f"the database refuses synchronous=FULL (it is {synchronous})", fatal=True)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLAlchemy's and sqlite3's errors into ours, once, at the edge."""
    try:
        yield
    except DBAPIError as error:
        raise translate(error, path) from error
    except sqlite3.Error as error:
        raise translate(error, path) from error


def _full(path: Path) -> bool:
    """Whether there is no room beside a file: SQLite calls it an I/O error if the wal-index can't grow."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _FULL_BELOW_BYTES


def disk_failed(error: BaseException | None) -> bool:
    """Whether reading, writing or syncing a file failed, as SQLite was told by the kernel."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_IOERR


def cannot_open(error: BaseException | None) -> bool:
    """Whether SQLite could not even open a file, as happens to a process that has too many open."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_CANTOPEN


def translate(error: Exception, path: Path) -> DlrBufferError:
    """Say what a database error means for us: full, busy, or (fatal or not) unavailable."""
    original = getattr(error, "orig", error)
    code = getattr(original, "sqlite_errorcode", None)
    if code is None:
        return StoreUnavailable(f"{path}: {original}")
    primary = code & 0xFF
    name = getattr(original, "sqlite_errorname", str(code))
    if primary == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR_SHMSIZE and _full(path)):
        return StorageFull(f"the disk that holds {path} is full ({name}); free some space")
    if primary in _BUSY:
        return Overloaded(f"{path} is locked by another program ({name}); stop what holds it")
    what = f"{path}: {original} ({name})"
    if code == sqlite3.SQLITE_CORRUPT:
        what += _EITHER
    return StoreUnavailable(what, fatal=primary in _FATAL)
