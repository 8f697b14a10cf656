"""Reading files that hold a secret, or decide who is trusted, once it is judged who else may touch them.

The opened file is judged, not its name, so that nothing can be exchanged between the look and the reading. A symbolic
link is followed and its target judged, together with every folder on the way to either. What the content means is the
caller's: `credentials`, `tls`.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SERVICE = "dlr-buffer"
"""The user that the service runs as, and its own group, which nobody else joins."""
_SHARED_GROUPS = ("dlr-buffer-client", "users", "nogroup", "nobody")
"""Groups that apps, or all people and programs of a machine, are in."""
_READ_ONCE_BYTES = 65536


class FileRefused(Exception):
    """A file is not read; the text goes on after its path, says what to do, and holds nothing of the content."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads, and who must not; ``client_group`` is the number of the group of the client socket, if it has one."""

    client_group: int | None = None

    def secret(self, path: Path, *, limit: int, missing: str) -> bytes:
        """Return the content of a file that nobody else may read, at most ``limit`` bytes and one more.

        Raises FileRefused; ``missing`` says what to do if there is no such file.
        """
        return self._read(path, limit=limit, missing=missing, secret=True)

    def trusted(self, path: Path, *, limit: int, missing: str) -> bytes:
        """Return the content of a file that everybody may read, but nobody else may write to; else like `secret`."""
        return self._read(path, limit=limit, missing=missing, secret=False)

    def _read(self, path: Path, *, limit: int, missing: str, secret: bool) -> bytes:
        try:
            # Without O_NONBLOCK a named pipe would keep us waiting for its writer.
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise FileRefused(f"is missing; {missing}") from None
        except PermissionError:
            raise FileRefused(
                "may not be read by the user that this runs as; mend its owner or mode (and those of its folders):"
                f" {_remedy(path, None, secret=secret)}"
            ) from None
        except (OSError, ValueError) as error:
            raise FileRefused(f"cannot be read: {reason(error)}") from None
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                what = "directory" if stat.S_ISDIR(found.st_mode) else "device, pipe or socket"
                raise FileRefused(f"is a {what}; name a file")
            if faults := [*self._faults(found, secret=secret)]:
                raise FileRefused(f"{' and '.join(faults)}: {_remedy(path, found, secret=secret)}")
            for folder in _folders(path):
                if _everybody_may_change(folder):
                    raise FileRefused(
                        f"can be exchanged by everybody, who may write to {folder}: run chmod o-w"
                        f" {shlex.quote(str(folder))}"
                    )
            return _content(opened, limit + 1)
        except OSError as error:
            raise FileRefused(f"cannot be read: {reason(error)}") from None
        finally:
            os.close(opened)

    def _faults(self, found: os.stat_result, *, secret: bool) -> Iterator[str]:
        """Say what is wrong with the file's owner and mode."""
        if found.st_uid not in _trusted_owners():
            yield f"belongs to {_user_name(found.st_uid)}, who is neither root nor the user that this runs as"
        if secret and found.st_mode & stat.S_IRWXO:
            yield f"may be {_verbs(found.st_mode)} by everybody (mode {stat.S_IMODE(found.st_mode):04o})"
        elif found.st_mode & stat.S_IWOTH:
            yield f"may be written by everybody (mode {stat.S_IMODE(found.st_mode):04o})"
        elif found.st_mode & stat.S_IWGRP:
            yield f"may be written by the group {_group_name(found.st_gid)}"
        elif secret and found.st_mode & stat.S_IRWXG and found.st_gid in self._shared_groups():
            yield f"may be read by the group {_group_name(found.st_gid)}, which is not the daemon's alone"

    def _shared_groups(self) -> set[int]:
        found = {gid for name in _SHARED_GROUPS if (gid := _gid(name)) is not None}
        return found | ({self.client_group} if self.client_group is not None else set())


def reason(error: OSError | ValueError) -> str:
    """Say why a file could not be opened or read, in the system's words."""
    # The text of a ValueError (a NUL in the path) is not the admin's language.
    return (error.strerror or "I/O error") if isinstance(error, OSError) else "its name is not a path"


def _content(opened: int, limit: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < limit and (piece := os.read(opened, min(_READ_ONCE_BYTES, limit - len(pieces)))):
        pieces += piece
    return bytes(pieces)


def _folders(path: Path) -> Iterator[Path]:
    """Every folder that the file is found through: those of its name, and those of what the name leads to."""
    yield from dict.fromkeys((*path.parents, *Path(os.path.realpath(path)).parents))


def _everybody_may_change(folder: Path) -> bool:
    # In a folder with the sticky bit (/tmp) only the owner of a file may exchange it.
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _trusted_owners() -> set[int]:
    owners = {0, os.geteuid()}
    with suppress(KeyError):
        # Root checks the configuration for the service.
        owners.add(pwd.getpwnam(SERVICE).pw_uid)
    return owners


def _remedy(path: Path, found: os.stat_result | None, *, secret: bool) -> str:
    """Say which commands mend owner and mode."""
    name = shlex.quote(str(path))
    if not secret:
        owner = "" if found is None or found.st_uid in _trusted_owners() else f"chown root {name} && "
        return f"run {owner}chmod 0644 {name}"
    # What is not root's is the daemon's own, which needs no group to read it.
    if found is not None and found.st_uid in _trusted_owners() - {0}:
        return f"run chmod 0600 {name}"
    if _gid(SERVICE) is not None:
        return f"run chown root:{SERVICE} {name} && chmod 0640 {name}"
    return f"run chown {_user_name(os.geteuid())} {name} && chmod 0600 {name}"


def _verbs(mode: int) -> str:
    verbs = [verb for bit, verb in ((stat.S_IROTH, "read"), (stat.S_IWOTH, "written")) if mode & bit]
    return " and ".join(verbs) or "executed"


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
