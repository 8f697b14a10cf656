"""Bounding what keeps happening, so that no client and no server can flood the log.

`Sparing` is for a place that knows the causes of its lines. `FloodGuard` stands before all output, for whatever such
places forgot. Times are seconds of any monotonic clock, handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from dlr_buffer.logs.events import AUDIT, facts_of

EVERY_S: Final = 60.0
MOST_CAUSES: Final = 1000
"""Remembered at once; beyond it all are forgotten, and may each be said once more."""
LINES_A_MINUTE: Final = 20
"""Of one place in the code and one account: far more than any place has to say while all is well."""


class Sparing:
    """Lets the first of what keeps happening through, and then one a minute."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        """Remember nothing yet."""
        self._every_s = every_s
        self._said: dict[Hashable, tuple[float, int]] = {}

    def lets(self, cause: Hashable, now_s: float) -> int | None:
        """None if nothing is to be said now, else how often ``cause`` was passed over since it was said last."""
        said = self._said.get(cause)
        if said is not None and now_s < said[0] + self._every_s:
            self._said[cause] = said[0], said[1] + 1
            return None
        if said is None and len(self._said) >= MOST_CAUSES:
            self._said.clear()
        self._said[cause] = now_s, 0
        return 0 if said is None else said[1]


@dataclass(slots=True)
class _Minute:
    began_s: float
    lines: int = 0


class FloodGuard:
    """Lets so many lines of one place and account through each minute; what admins did is always let through."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._minutes: dict[Hashable, _Minute] = {}

    def judge(self, record: logging.LogRecord, now_s: float) -> str | None:
        """None if the line is left out, else what has to be added to it ("" most of the time)."""
        if record.name == AUDIT:
            return ""
        place = record.pathname, record.lineno, facts_of(record).get("account")
        minute = self._minutes.get(place)
        if minute is None or now_s >= minute.began_s + EVERY_S:
            if minute is None and len(self._minutes) >= MOST_CAUSES:
                self._minutes.clear()
            self._minutes[place] = _Minute(now_s, 1)
            left_out = 0 if minute is None else minute.lines - LINES_A_MINUTE
            return f" ({left_out} lines like this were left out)" if left_out > 0 else ""
        minute.lines += 1
        if minute.lines > LINES_A_MINUTE:
            return None
        if minute.lines == LINES_A_MINUTE:
            return " (more lines like this are left out for a minute)"
        return ""
