"""Bringing in what an earlier run left in its write-ahead log, before anything of this run is answered.

A log that was left behind can look better than it is: after a sync that failed, the system goes on reading what
never reached the disk (Linux marks the pages clean), and a later sync says that all is well. A commit that is appended
to such a log is lost with it in the next power cut, and a checkpoint of it that a power cut breaks off leaves half of
a transaction. So the log is written anew, byte by byte, and synced; only then is it checkpointed and emptied. Whether
the log is whole is looked at in `wal`; the checkpoints of a running daemon are the writer's.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from dlr_buffer.errors import Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.logs import Event, about
from dlr_buffer.storage.connection import BUSY_TIMEOUT_MS, translate, witness
from dlr_buffer.storage.lock import LastRun, sync_folder

_PIECE_BYTES: Final = 1024 * 1024

_log = logging.getLogger(__name__)


def bring_in_log(path: Path, last: LastRun) -> None:
    """Make the log beside ``path`` durable and bring it into the database; says so if the last run did not.

    Raises StoreUnavailable or sqlite3.Error if that fails. A database that another program reads, or a full disk,
    puts only the checkpoint off: the log itself is on the disk by then.
    """
    log = path.with_name(path.name + "-wal")
    size = log.stat().st_size if log.exists() else 0
    outcome = "was brought in"
    if size:
        # The last to be closed: what has failed must not be tried again by closing.
        with closing(witness(path)), closing(_connect(path)) as connection:
            # Nobody may append to the log, or begin it anew, while it is written.
            connection.execute("BEGIN IMMEDIATE")
            try:
                _write_anew(log)
            except OSError as error:
                raise unreliable(log, error.strerror or str(error)) from error
            connection.execute("ROLLBACK")
            if (obstacle := _checkpoint(connection, path)) is not None:
                outcome = f"is safe but stays for now: {obstacle}"
    if size or last.process is not None:
        run = "the last run" if last.process is None else f"the last run (process {last.process})"
        _log.warning(
            "%s did not close the queue; its log of %d bytes %s",
            run,
            size,
            outcome,
            extra=about(Event.LAST_RUN_BROKE_OFF, path=str(path)),
        )


def make_names_durable(path: Path) -> None:
    """Make the names of a queue's files durable in their folder.

    SQLite does so only when it makes its log itself. Raises StoreUnavailable if the disk fails at it.
    """
    try:
        sync_folder(path)
    except OSError as error:
        raise unreliable(path.parent, error.strerror or str(error)) from error


def unreliable(path: Path, reason: str) -> StoreUnavailable:
    """Word that the disk under ``path`` fails, and what to do."""
    return StoreUnavailable(
        f"{path} cannot be read or written reliably: {reason}; look after its disk (the kernel's log tells more), then"
        " start again",
        fatal=True,
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _write_anew(log: Path) -> None:
    file = os.open(log, os.O_RDWR | os.O_CLOEXEC)
    try:
        at = 0
        while piece := os.pread(file, _PIECE_BYTES, at):
            written = 0
            while written < len(piece):
                written += os.pwrite(file, piece[written:], at + written)
            at += len(piece)
        os.fsync(file)
    finally:
        os.close(file)


def _checkpoint(connection: sqlite3.Connection, path: Path) -> str | None:
    """Bring the log in and empty it; returns what is in the way for now, if so."""
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        if not isinstance(known := translate(error, path), (StorageFull, Overloaded)):
            raise
        return str(known)
    return f"another program reads {path}" if busy else None
