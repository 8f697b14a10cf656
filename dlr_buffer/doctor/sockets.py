"""The files of the two sockets: whose they are, who may open them, and whether those can get there.

Who they should be for is told by the configuration, or by the socket unit where there is one. Whether somebody answers
is asked in `running`.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlr_buffer.doctor.access import (
    SEARCH,
    Identity,
    group_name,
    identity_of_uid,
    may,
    members,
    mode,
    user_name,
)
from dlr_buffer.doctor.findings import Finding, error, ok
from dlr_buffer.doctor.units import Properties


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a socket's file should be; None where nobody says."""

    path: Path
    uid: int | None
    gid: int | None
    mode: int
    said_by: str
    """Where that is written."""


def wanted_by_configuration(
    name: str, path: Path, wanted_mode: int, gid: int | None, daemon: Identity | None
) -> Wanted:
    """Return what the configuration makes of the socket ``name`` (``client`` or ``admin``)."""
    if gid is None and daemon is not None:
        gid = daemon.gid
    return Wanted(
        path, None if daemon is None else daemon.uid, gid, wanted_mode, f"api.{name}_mode and {name}_group"
    )


def wanted_by_unit(name: str, path: Path, unit: Properties) -> Wanted:
    """Return what a socket unit makes of the socket at ``path``; names that nobody has are left open."""
    return Wanted(
        path,
        _uid(unit.get("SocketUser") or "root"),
        _gid(unit.get("SocketGroup") or "root"),
        int(unit.get("SocketMode") or "0666", 8),
        name,
    )


def unit_path_finding(name: str, path: Path, unit: Properties) -> Finding | None:
    """Say if a socket unit listens elsewhere than the configuration says; None if not."""
    listens = [line.partition(" (")[0] for line in unit.get("Listen", "").split("\n") if line]
    if not listens or str(path) in listens:
        return None
    return error(
        "socket-path",
        f"{name} listens at {', '.join(listens)}, but the configuration names {path}: apps and this program look there",
        f"name the same path in both: sudo systemctl edit {name}",
    )


def socket_findings(wanted: Wanted) -> Iterator[Finding]:
    """Look at the file; one that is missing is nothing to be said of here. Raises OSError."""
    path, name = wanted.path, shlex.quote(str(wanted.path))
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        yield error(
            "socket",
            f"{path} is there, but is no socket: the daemon will not start",
            f"sudo mv {name} {name}.old",
        )
        return
    faults = []
    if wanted.uid is not None and found.st_uid != wanted.uid:
        faults.append(
            (
                f"belongs to {user_name(found.st_uid)}, not to {user_name(wanted.uid)}",
                f"chown {user_name(wanted.uid)} {name}",
            )
        )
    if wanted.gid is not None and found.st_gid != wanted.gid:
        faults.append(
            (
                f"has the group {group_name(found.st_gid)}, not {group_name(wanted.gid)}",
                f"chgrp {group_name(wanted.gid)} {name}",
            )
        )
    if stat.S_IMODE(found.st_mode) != wanted.mode:
        faults.append(
            (f"has the mode {mode(found)}, not {wanted.mode:04o}", f"chmod {wanted.mode:04o} {name}")
        )
    for fault, command in faults:
        yield error("socket", f"{path} {fault}, as {wanted.said_by} say", f"sudo {command}")
    if not faults:
        yield ok(
            "socket", f"{path}: {user_name(found.st_uid)}:{group_name(found.st_gid)}, mode {mode(found)}"
        )
    yield from _way_findings(path, found)


def _way_findings(path: Path, found: os.stat_result) -> Iterator[Finding]:
    """Say whether those who may open the socket can get to it."""
    owner = identity_of_uid(found.st_uid)
    others = set(members(group_name(found.st_gid)) or ()) - {owner.name}
    if not found.st_mode & stat.S_IRWXG or (found.st_gid == owner.gid and not others):
        return  # it is for its owner alone
    # Somebody in the socket's group and in no other; the number belongs to nobody.
    member = Identity("a member", 2**32 - 2, found.st_gid, frozenset({found.st_gid}))
    for folder in reversed(path.parents):
        seen = folder.stat()
        if not may(seen, member, SEARCH):
            yield error(
                "socket-folder",
                f"members of {group_name(found.st_gid)} may open {path}, but can't get there: {folder} is"
                f" {user_name(seen.st_uid)}:{group_name(seen.st_gid)}, mode {mode(seen)}",
                f"sudo chmod a+x {shlex.quote(str(folder))}",
            )
            return


def _uid(name: str) -> int | None:
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        return None
