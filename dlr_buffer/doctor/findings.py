"""What a check comes to: one line that says what is, and one that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How grave a finding is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing: nothing has to be mended, or it could not be looked at."""
    WARNING = "warning"
    """It works, and may not for long, or not for everybody."""
    ERROR = "error"
    """It does not work, or somebody may do what they must not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; neither text holds a credential."""

    code: str
    """A short name that stays the same for programs."""
    level: Level
    what: str
    remedy: str | None = None
    """What to do, the very command where there is one; None where there is nothing to do."""


def ok(code: str, what: str) -> Finding:
    """All is well."""
    return Finding(code, Level.OK, what)


def note(code: str, what: str, remedy: str | None = None) -> Finding:
    """Worth knowing."""
    return Finding(code, Level.NOTE, what, remedy)


def warning(code: str, what: str, remedy: str) -> Finding:
    """To be mended some time."""
    return Finding(code, Level.WARNING, what, remedy)


def error(code: str, what: str, remedy: str) -> Finding:
    """To be mended now."""
    return Finding(code, Level.ERROR, what, remedy)
