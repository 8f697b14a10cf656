"""Who may do what to a file: by owner, group and mode, as the kernel decides it for a user who is not there to ask.

Access control lists and mandatory access control are not looked at.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """A user with the groups that its processes have."""

    name: str
    uid: int
    gid: int
    groups: frozenset[int]


def identity_of(name: str) -> Identity | None:
    """Look a user up by name; None if there is no such user."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return _identity(found)


def identity_of_uid(uid: int) -> Identity:
    """Look a user up by number; one without a name is in no group but that of its number."""
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return Identity(str(uid), uid, uid, frozenset({uid}))
    return _identity(found)


def _identity(found: pwd.struct_passwd) -> Identity:
    groups = frozenset(os.getgrouplist(found.pw_name, found.pw_gid))
    return Identity(found.pw_name, found.pw_uid, found.pw_gid, groups)


def may(found: os.stat_result, who: Identity, wanted: int) -> bool:
    """Whether ``who`` may do all of ``wanted`` (`READ`, `WRITE`, `SEARCH`, added up) to what was ``found``."""
    if who.uid == 0:
        return True
    if who.uid == found.st_uid:
        allowed = found.st_mode >> 6
    elif found.st_gid in who.groups:
        allowed = found.st_mode >> 3
    else:
        allowed = found.st_mode
    return allowed & wanted == wanted


def barrier(path: Path, who: Identity) -> Path | None:
    """Return the outermost folder on the way to ``path`` that ``who`` may not pass, None if there is none.

    Raises OSError if the way can't be looked at.
    """
    for folder in reversed(path.parents):
        if not may(folder.stat(), who, SEARCH):
            return folder
    return None


def user_name(uid: int) -> str:
    """Write a user's name, or the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Write a group's name, or the number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def members(group: str) -> tuple[str, ...] | None:
    """Return who is in a group, by its list or because it is their own, in order; None if there is no such group."""
    try:
        found = grp.getgrnam(group)
    except KeyError:
        return None
    own = {user.pw_name for user in pwd.getpwall() if user.pw_gid == found.gr_gid}
    return tuple(sorted(own | set(found.gr_mem)))


def mode(found: os.stat_result) -> str:
    """Write a mode as chmod(1) takes it: ``0640``."""
    return f"{stat.S_IMODE(found.st_mode):04o}"
