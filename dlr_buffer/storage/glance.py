"""A look at a queue that changes nothing in it: its schema, and who holds its lock.

For whoever asks how a queue is, whether the daemon runs or not. Looking through its rows is the business of `checking`.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dlr_buffer.storage.checking import damaged_log, open_read_only
from dlr_buffer.storage.connection import translated
from dlr_buffer.storage.lock import lock_path
from dlr_buffer.storage.migrate import KNOWN
from dlr_buffer.storage.schema import HEAD

_LEAST_FIELDS: Final = 6


@dataclass(frozen=True, slots=True)
class Glance:
    """What a queue shows of itself."""

    schema: str | None
    """Its version, None if it does not tell one."""
    head: str
    """This program's."""
    known: bool
    """Whether this program can read that schema, or migrate from it."""
    damage: str | None
    """What its log lost, None if nothing is known to be."""


def glance(path: Path) -> Glance:
    """Look at the queue at ``path``, a real path without links; raises StoreUnavailable if there is none."""
    if (finding := damaged_log(path)) is not None:
        return Glance(None, HEAD, known=False, damage=finding.detail)
    log = path.with_name(path.name + "-wal")
    # Without a log there is nothing beside the file to be read, and SQLite is kept from putting something there.
    alone = not log.exists() or not log.stat().st_size
    with translated(path), closing(open_read_only(path, immutable=alone)) as database:
        try:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.OperationalError:
            rows = []
    schema = str(rows[0][0]) if len(rows) == 1 else None
    return Glance(schema, HEAD, known=schema in KNOWN, damage=None)


def lock_holders(database: Path, locks: Path = Path("/proc/locks")) -> frozenset[int] | None:
    """Return the processes that hold the lock of the queue at ``database``, as the kernel has it (proc_locks(5)).

    The lock itself is left alone: a daemon that starts at this moment must find it free. None if the kernel does not
    tell. Raises OSError if the lock file may not be looked at.
    """
    try:
        found = lock_path(database).stat()
    except FileNotFoundError:
        return frozenset()
    try:
        lines = locks.read_text("ascii").splitlines()
    except OSError:
        return None
    held: dict[bool, set[int]] = {True: set(), False: set()}
    for line in lines:
        # 1: FLOCK ADVISORY WRITE 4178 fe:00:2327650 0 EOF; one that only waits has an arrow before its kind.
        fields = line.split()
        if len(fields) < _LEAST_FIELDS or fields[1] != "FLOCK":
            continue
        major, minor, inode = fields[5].split(":")
        if int(inode) == found.st_ino:
            device = os.makedev(int(major, 16), int(minor, 16))
            held[device == found.st_dev].add(int(fields[4]))
    # Some file systems (btrfs, overlays) show another device there than stat does.
    return frozenset(held[True] or held[False])
