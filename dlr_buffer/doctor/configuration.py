"""The configuration: whether it can be used, and who may read it and the files of secrets that it names."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlr_buffer.config import Problem, Survey
from dlr_buffer.doctor.access import READ, Identity, barrier, group_name, may, mode, user_name
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning

PUBLIC_KEYS: Final = ("ca_file", "client_cert")
"""Keys whose files hold no secret."""


def configuration_findings(
    survey: Survey, *, viewer: Identity, granted: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Say what is wrong in the file itself.

    ``granted`` are the secrets that systemd hands to the daemon and to nobody else (LoadCredential= and the like), by
    their dotted key: that they are not in the file is no fault.
    """
    path = survey.path
    problems = [each for each in survey.problems if each.path not in granted or each.path in survey.files]
    hidden = [each for each in problems if viewer.uid != 0 and _is_hidden(survey, each)]
    for problem in problems:
        if problem in hidden:
            yield note(
                "config-hidden",
                f"{_place(survey, problem)} may not be read by {viewer.name}, so it is not looked at",
                "ask as root: sudo dlr-buffer doctor",
            )
        else:
            what, _, commands = _first_line(problem.detail).partition(": run ")
            mend = f"mend it in {_place(survey, problem)}"
            if commands:
                mend = "sudo " + commands.replace("&& ", "&& sudo ")
            yield error("config", f"{problem.path}: {what}", f"{mend}, then: sudo dlr-buffer check-config")
    if not problems and survey.configuration is not None:
        names = ", ".join(survey.configuration.accounts)
        yield ok("config", f"{path} can be used (accounts: {names})")


def file_findings(path: Path, *, daemon: Identity | None, secret: bool = True) -> Iterator[Finding]:
    """Say who may read or change one file who must not, and whether ``daemon`` may read it. Raises OSError."""
    name = shlex.quote(str(path))
    try:
        found = path.stat()
    except FileNotFoundError:
        yield error("file-missing", f"{path} is missing", f"write it: sudo install -m 0600 /dev/stdin {name}")
        return
    faults = list(_faults(found, daemon, secret=secret))
    for fault in faults:
        yield error("file-mode", f"{path} {fault} (mode {mode(found)})", _remedy(path, daemon, secret=secret))
    if daemon is not None and (closed := closed_finding(path, daemon, secret=secret)) is not None:
        yield closed
    elif not faults:
        yield ok(
            "file-mode", f"{path}: {user_name(found.st_uid)}:{group_name(found.st_gid)}, mode {mode(found)}"
        )


def closed_finding(path: Path, daemon: Identity, *, secret: bool = True) -> Finding | None:
    """Say why ``daemon`` can't read a file that is there; None if it can. Raises OSError."""
    if (blocked := barrier(path, daemon)) is not None:
        return error(
            "file-unreachable",
            f"{path} can't be reached by the daemon's user {daemon.name}: {blocked} does not let it pass"
            f" (mode {mode(blocked.stat())})",
            f"sudo chmod a+x {shlex.quote(str(blocked))}",
        )
    found = path.stat()
    if may(found, daemon, READ):
        return None
    return error(
        "file-unreadable",
        f"{path} can't be read by the daemon's user {daemon.name} (it is"
        f" {user_name(found.st_uid)}:{group_name(found.st_gid)}, mode {mode(found)})",
        _remedy(path, daemon, secret=secret),
    )


def _remedy(path: Path, daemon: Identity | None, *, secret: bool) -> str:
    name = shlex.quote(str(path))
    group = group_name(daemon.gid) if daemon is not None else "dlr-buffer"
    return f"sudo chown root:{group} {name} && sudo chmod {'0640' if secret else '0644'} {name}"


def _faults(found: os.stat_result, daemon: Identity | None, *, secret: bool) -> Iterator[str]:
    bits = found.st_mode
    owners = {0} | ({daemon.uid} if daemon is not None else set())
    if daemon is not None and found.st_uid not in owners:
        yield f"belongs to {user_name(found.st_uid)}, who may read and change it"
    if secret and bits & stat.S_IROTH:
        yield "holds a secret and may be read by every user of this machine"
    if bits & stat.S_IWOTH:
        yield "may be changed by every user of this machine"
    elif bits & stat.S_IWGRP:
        yield f"may be changed by the group {group_name(found.st_gid)}"
    foreign = daemon is not None and found.st_gid not in {0, daemon.gid}
    if secret and bits & stat.S_IRGRP and foreign:
        yield f"holds a secret and may be read by the group {group_name(found.st_gid)}"


def secret_readers_finding(group: str, found: tuple[str, ...] | None, daemon: Identity) -> Finding | None:
    """Say who else is in the daemon's own ``group``, which may read the secrets; None if there is no such group."""
    if found is None:
        return None
    others = [name for name in found if name != daemon.name]
    if not others:
        return ok(
            "secret-readers", f"nobody but {daemon.name} is in the group {group}, which reads the secrets"
        )
    return warning(
        "secret-readers",
        f"{', '.join(others)} may read configuration and passwords as members of {group}",
        f"apps belong into dlr-buffer-client: sudo gpasswd --delete {others[0]} {group}",
    )


def _is_hidden(survey: Survey, problem: Problem) -> bool:
    """Whether a problem is only that whoever asks may not read a file."""
    place = survey.files.get(problem.path, survey.path if problem.path == str(survey.path) else None)
    if place is None:
        return False
    try:
        return not os.access(place, os.R_OK) and (
            os.path.lexists(place) or not os.access(place.parent, os.X_OK)
        )
    except OSError:
        return True


def _place(survey: Survey, problem: Problem) -> Path:
    return survey.files.get(problem.path, survey.path)


def _first_line(detail: str) -> str:
    return detail.splitlines()[0].rstrip(":")
