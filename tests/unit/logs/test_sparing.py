"""Bounding what keeps happening: one line a minute for each cause, and a guard before all output."""

from __future__ import annotations

import logging

from dlr_buffer.logs import AUDIT, Sparing, about
from dlr_buffer.logs.sparing import LINES_A_MINUTE, MOST_CAUSES, FloodGuard


def record(line: int = 1, name: str = "dlr_buffer.x", account: str | None = None) -> logging.LogRecord:
    """A record of one place in the code."""
    return logging.getLogger(name).makeRecord(
        name, logging.WARNING, "/x.py", line, "text", (), None, "f", about(account=account)
    )


def test_a_cause_is_said_once_a_minute() -> None:
    """Another cause is said at once; after a minute the first one is again, with how often it was passed over."""
    sparing = Sparing()
    assert [sparing.lets("a", second) for second in (0, 1, 59)] == [0, None, None]
    assert sparing.lets("b", 59) == 0
    assert sparing.lets("a", 60) == 2
    assert sparing.lets("a", 120) == 0


def test_causes_are_bounded() -> None:
    """Whoever makes up causes makes the memory forget, not grow."""
    sparing = Sparing()
    for cause in range(10 * MOST_CAUSES):
        assert sparing.lets(cause, 0) == 0
    assert len(sparing._said) <= MOST_CAUSES


def test_a_flood_is_cut_and_said_so() -> None:
    """The last line of a minute says that more are left out, the first one after it how many were."""
    guard = FloodGuard()
    said = [guard.judge(record(), second / 100) for second in range(LINES_A_MINUTE + 5)]
    assert said[: LINES_A_MINUTE - 1] == [""] * (LINES_A_MINUTE - 1)
    assert said[LINES_A_MINUTE - 1] == " (more lines like this are left out for a minute)"
    assert said[LINES_A_MINUTE:] == [None] * 5
    assert guard.judge(record(), 60) == " (5 lines like this were left out)"
    assert guard.judge(record(), 61) == ""


def test_a_flood_drowns_no_other_line() -> None:
    """Another place in the code, another account, and what admins did are let through meanwhile."""
    guard = FloodGuard()
    for _ in range(2 * LINES_A_MINUTE):
        guard.judge(record(account="a"), 0)
    assert guard.judge(record(account="a"), 0) is None
    assert guard.judge(record(account="b"), 0) == ""
    assert guard.judge(record(line=2, account="a"), 0) == ""
    assert [guard.judge(record(name=AUDIT), 0) for _ in range(2 * LINES_A_MINUTE)] == [
        ""
    ] * 2 * LINES_A_MINUTE
