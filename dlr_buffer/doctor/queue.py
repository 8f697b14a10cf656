"""The file of the queue: there, the daemon's own, on a disk that syncs, of a known schema, and held by one daemon.

Its rows are only looked through when asked for (`rows_findings`), for that takes as long as it has pages.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlr_buffer.doctor.access import READ, SEARCH, WRITE, Identity, barrier, group_name, may, mode, user_name
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning
from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import checking
from dlr_buffer.storage.file_systems import IN_MEMORY, LAYERED, ON_A_NETWORK, FileSystem
from dlr_buffer.storage.glance import glance
from dlr_buffer.storage.lock import last_run, lock_path

LONG_LOG_BYTES: Final = 64 * 1024 * 1024
"""Twice of what the daemon lets the log grow to by itself."""
_BESIDE: Final = ("-wal", "-shm", ".lock")
_RESTORE: Final = 'docs/operations.md, "Restore a backup"'


def owner_findings(path: Path, daemon: Identity | None, *, made_at_start: bool = False) -> Iterator[Finding]:
    """Look at the owner and mode of the queue at ``path`` and of the files beside it.

    ``made_at_start`` if systemd makes the folder where there is none. Raises OSError.
    """
    folder = path.parent
    if not folder.is_dir() and made_at_start:
        yield note("queue-folder", f"there is no {folder} yet: the first start makes it")
        return
    if not folder.is_dir():
        yield error(
            "queue-folder",
            f"the folder {folder} of the queue does not exist",
            f"sudo install -d -m 0700 -o {_name(daemon)} -g {_group(daemon)} {shlex.quote(str(folder))}",
        )
        return
    if daemon is not None:
        yield from _folder_findings(folder, daemon)
    faulty = False
    for each in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        try:
            found = each.stat()
        except FileNotFoundError:
            continue
        name = shlex.quote(str(each))
        if daemon is not None and not may(found, daemon, READ | WRITE):
            faulty = True
            yield error(
                "queue-owner",
                f"{each} is {user_name(found.st_uid)}:{group_name(found.st_gid)}, mode {mode(found)}: the daemon's"
                f" user {daemon.name} can't read and write it",
                f"sudo chown {daemon.name}:{group_name(daemon.gid)} {name} && sudo chmod 0600 {name}",
            )
        elif found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not each.name.endswith(".lock"):
            faulty = True
            yield warning(
                "queue-mode",
                f"{each} has the mode {mode(found)}: others than the daemon get at message ids, or into the queue",
                f"sudo chmod 0600 {name}",
            )
    if path.exists() and not faulty:
        found = path.stat()
        yield ok("queue-owner", f"{path}: {user_name(found.st_uid)}, mode {mode(found)}")


def _folder_findings(folder: Path, daemon: Identity) -> Iterator[Finding]:
    blocked = barrier(folder / "queue", daemon)
    found = folder.stat()
    if blocked is not None and blocked != folder:
        yield error(
            "queue-folder",
            f"the daemon's user {daemon.name} can't get to {folder}: {blocked} does not let it pass",
            f"sudo chmod a+x {shlex.quote(str(blocked))}",
        )
    elif not may(found, daemon, READ | WRITE | SEARCH):
        name = shlex.quote(str(folder))
        yield error(
            "queue-folder",
            f"the daemon's user {daemon.name} can't write into {folder} ({user_name(found.st_uid)}:"
            f"{group_name(found.st_gid)}, mode {mode(found)})",
            f"sudo chown {daemon.name}:{group_name(daemon.gid)} {name} && sudo chmod 0700 {name}",
        )


def file_system_finding(folder: Path, found: FileSystem) -> Finding:
    """Judge the file system that the queue lies on."""
    where = f"{folder} is on {found}"
    if found.kind in ON_A_NETWORK:
        return error(
            "queue-file-system",
            f"{where}, a file system of several hosts: SQLite's log needs the locks and the memory of one",
            'put the queue on a local disk: docs/operations.md, "Move to another host"',
        )
    if found.kind in IN_MEMORY:
        return error(
            "queue-file-system",
            f"{where}, in memory: what was answered is lost with the next reboot",
            "name a folder on a disk in [database] url",
        )
    if found.kind in LAYERED or found.kind.startswith("fuse"):
        return warning(
            "queue-file-system",
            f"{where}: it may not survive its container, or may not sync what it is told to",
            "name a volume or a folder on a local disk in [database] url",
        )
    if found.kind == "unknown":
        return note("queue-file-system", f"the kernel does not tell which file system {folder} is on")
    return ok("queue-file-system", where)


def file_findings(path: Path) -> Iterator[Finding]:
    """Say whether the queue is there, of which schema, and whether its log is whole. Raises OSError."""
    if not path.exists() and not lock_path(path).exists() and not path.with_name(path.name + "-wal").exists():
        yield note("queue", f"there is no queue at {path} yet: the first start makes it")
        return
    try:
        seen = glance(path)
    except StoreUnavailable as problem:
        yield error("queue", str(problem), _RESTORE)
        return
    if seen.damage is not None:
        yield error("queue", seen.damage, _RESTORE)
    elif seen.schema is None:
        yield error("queue", f"{path} does not tell which schema it has", "sudo dlr-buffer check-db")
    elif seen.schema == seen.head:
        yield ok("queue", f"{path} has this program's schema, {seen.head}")
    elif seen.known:
        yield warning(
            "queue",
            f"{path} has the schema {seen.schema}, this program's is {seen.head}: the next start migrates it",
            "sudo dlr-buffer backup FILE, then: sudo systemctl restart dlr-buffer",
        )
    else:
        yield error(
            "queue",
            f"{path} has the schema {seen.schema}, which this program does not know: a newer dlr-buffer made it",
            "install the newer release again, or restore a backup that was made before the upgrade",
        )


def lock_findings(path: Path, holders: frozenset[int] | None, *, daemon_pid: int | None) -> Iterator[Finding]:
    """Say who holds the queue; ``daemon_pid`` is the process that answers at the admin socket, if one does.

    Raises OSError.
    """
    last = last_run(path)
    if holders is None:
        yield note("queue-lock", f"the kernel does not tell who holds {lock_path(path)}")
    elif not holders and daemon_pid is not None:
        yield error(
            "queue-lock",
            f"process {daemon_pid} answers at the admin socket, but does not hold {path}: it uses another queue, or its"
            " lock file was removed",
            "sudo dlr-buffer status shows its queue; sudo systemctl restart dlr-buffer",
        )
    elif not holders and last.process is not None:
        yield note(
            "queue-lock",
            f"the last run (process {last.process}) did not close the queue; the next start brings in what it left",
        )
    elif not holders:
        yield ok("queue-lock", f"nobody holds {path}")
    elif daemon_pid is None or daemon_pid in holders:
        numbers = ", ".join(map(str, sorted(holders)))
        yield ok("queue-lock", f"process {numbers} holds {path}")
    else:
        other = min(holders)
        yield error(
            "queue-lock",
            f"process {other} holds {path}, but process {daemon_pid} answers at the admin socket",
            f"see which is which: ps -f -p {other},{daemon_pid}; stop one",
        )


def log_finding(path: Path, *, held: bool) -> Finding | None:
    """Look at the length of SQLite's log; None if there is nothing to be said. Raises OSError."""
    log = path.with_name(path.name + "-wal")
    try:
        length = log.stat().st_size
    except FileNotFoundError:
        return None
    if held and length > LONG_LOG_BYTES:
        return warning(
            "queue-log",
            f"{log} has {length >> 20} MiB: somebody reads the queue for long (a backup, check-db, another program)",
            f"see who: sudo fuser --verbose {shlex.quote(str(path))}",
        )
    if length and not held:
        return note(
            "queue-log",
            f"{log} holds what the last run left; never move {path.name} without it, or remove it",
        )
    return ok("queue-log", f"{log.name} has {length >> 20} MiB")


def rows_findings(path: Path) -> Iterator[Finding]:
    """Look through pages and rows as ``check-db --quick`` does."""
    try:
        found = checking.check(path, quick=True)
    except StoreUnavailable as problem:
        yield error("queue-rows", str(problem), _RESTORE)
        return
    for each in found.findings:
        yield error("queue-rows", f"{each.code}: {each.detail}", each.remedy)
    if not found.findings:
        yield ok(
            "queue-rows",
            f"{found.messages:,} messages and {found.receipts:,} receipts: nothing is wrong (indexes and history"
            " are left to check-db)",
        )


def real_path(path: Path) -> Path:
    """Return where the queue really lies: SQLite keeps its log beside the file, not beside a link to it."""
    return Path(os.path.realpath(path))


def _name(daemon: Identity | None) -> str:
    return "dlr-buffer" if daemon is None else daemon.name


def _group(daemon: Identity | None) -> str:
    return "dlr-buffer" if daemon is None else group_name(daemon.gid)
