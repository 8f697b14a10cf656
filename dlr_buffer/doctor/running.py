"""What the daemon says of itself over its sockets, and whether it answers there at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from dlr_buffer.client import ApiError, Client, DaemonUnreachable
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning

Status = Mapping[str, Any]
"""The resource of ``GET /v1/status``."""

PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Commands:
    """How the daemon of this installation is started anew, and where its log is: by systemd, or by hand."""

    start: str = "sudo systemctl start dlr-buffer"
    restart: str = "sudo systemctl restart dlr-buffer"
    log: str = "sudo journalctl --unit dlr-buffer --lines 50"


_BY_SYSTEMD: Final = Commands()


class Answer(Enum):
    """How a socket answers."""

    WELL = "well"
    UNHEALTHY = "unhealthy"
    MISSING = "missing"
    STALE = "stale"
    FORBIDDEN = "forbidden"
    SILENT = "silent"
    NOT_ASKED = "not asked"
    """A connection would have made systemd start the daemon."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking at one socket."""

    path: Path
    answer: Answer
    detail: str = ""
    status: Status | None = None
    """Of the admin socket only."""
    version: str | None = None
    """The daemon's."""


def ask(path: Path, *, admin: bool, patience_s: float = PATIENCE_S) -> Asked:
    """Ask the daemon at ``path`` how it is; it takes no longer than twice ``patience_s`` seconds."""
    with Client(path, timeout_s=patience_s, retry_for_s=0) as client:
        answer, detail = Answer.WELL, ""
        try:
            client.request("GET", "/healthz")
        except ApiError as problem:
            answer, detail = Answer.UNHEALTHY, problem.detail
        except DaemonUnreachable as unreachable:
            return Asked(path, _why(unreachable), unreachable.reason)
        try:
            if admin:
                status: Status = client.request("GET", "/v1/status")
                return Asked(path, answer, detail, status, str(status["version"]))
            described = client.request("GET", "/openapi.json")
            return Asked(path, answer, detail, version=str(described["info"]["version"]))
        except (ApiError, DaemonUnreachable, LookupError, TypeError) as problem:
            return Asked(path, Answer.UNHEALTHY, detail or str(problem))


def _why(unreachable: DaemonUnreachable) -> Answer:
    match unreachable.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return Answer.MISSING
        case errno.ECONNREFUSED:
            return Answer.STALE
        case errno.EACCES | errno.EPERM:
            return Answer.FORBIDDEN
        case _:
            return Answer.SILENT


def answer_findings(
    name: str, asked: Asked, *, alive: bool, commands: Commands = _BY_SYSTEMD
) -> Iterator[Finding]:
    """Say how a socket (``client`` or ``admin``) answers; ``alive`` if a daemon is known to run."""
    path = asked.path
    match asked.answer:
        case Answer.WELL:
            yield ok("answer", f"the daemon answers at the {name} socket {path}")
        case Answer.UNHEALTHY:
            yield error(
                "answer",
                f"the daemon at {path} is {asked.detail}",
                'docs/operations.md, "When something fails"; sudo dlr-buffer status',
            )
        case Answer.MISSING if alive:
            yield error(
                "answer",
                f"a daemon runs, but its {name} socket {path} is gone: somebody removed it, or it was configured anew",
                commands.restart,
            )
        case Answer.MISSING:
            yield warning(
                "answer",
                f"no daemon runs: there is no {name} socket {path}",
                commands.start,
            )
        case Answer.STALE:
            yield warning(
                "answer",
                f"nobody listens at {path}: a daemon that was killed left it behind",
                f"{commands.start}, which replaces it",
            )
        case Answer.FORBIDDEN:
            yield note(
                "answer",
                f"the {name} socket {path} is not for you, so the daemon is not asked there",
                "ask as root: sudo dlr-buffer doctor",
            )
        case Answer.SILENT:
            yield error(
                "answer",
                f"{path} takes connections, but gives no good answer ({asked.detail})",
                f"{commands.log}; {commands.restart}",
            )
        case Answer.NOT_ASKED:
            yield note(
                "answer",
                f"systemd listens at {path} and starts the daemon at the first connection; none was made",
            )


def version_finding(daemons: str | None, programs: str, commands: Commands = _BY_SYSTEMD) -> Finding | None:
    """Compare the daemon's version with this program's; None if the daemon did not tell."""
    if daemons is None:
        return None
    if daemons == programs:
        return ok("version", f"the daemon is of this version, {programs}")
    return warning(
        "version",
        f"the daemon that runs is dlr-buffer {daemons}, the installed program is {programs}",
        commands.restart,
    )


def alarm_findings(status: Status) -> Iterator[Finding]:
    """Repeat the daemon's own alarms."""
    for alarm in status["alarms"]:
        yield warning("alarm", str(alarm), 'docs/operations.md, "When something fails"')
    if not status["alarms"]:
        yield ok("alarm", "the daemon raises no alarm")
