"""Clock, versions and limits, each by a reader that tells what the test wants."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import MappingProxyType

import pytest

from dlr_buffer.config import (
    AccountSettings,
    ApiSettings,
    Configuration,
    DatabaseSettings,
    LogSettings,
    MessageSettings,
    RetentionSettings,
    Secret,
)
from dlr_buffer.doctor.machine import (
    clock_findings,
    open_files,
    open_files_findings,
    open_files_limit,
    python_findings,
    sqlite_finding,
)
from tests.clocks import FakeClock
from tests.unit.doctor.findings_of import told

RUNS = {
    "expiry": {"stopped": False, "last_sweep_at": "2026-11-28T03:00:00.000Z"},
    "started_at": "2026-11-28T02:00:00.000Z",
    "uptime": 3600.5,
}
STOPPED = {"expiry": {"stopped": True, "since": "2026-11-28T03:00:00.000Z", "reason": "the clock leapt"}}


def test_a_clock_that_is_kept_right() -> None:
    """Synchronised, and expiry runs by it."""
    clock = FakeClock(synchronised=True)
    assert told(clock_findings(clock, RUNS)) == [("ok", "clock"), ("ok", "expiry")]


def test_a_clock_that_nobody_keeps() -> None:
    """An unsynchronised clock is a warning, as messages expire by it."""
    clock = FakeClock(synchronised=False)
    assert told(clock_findings(clock, None)) == [("warning", "clock")]


def test_a_clock_that_was_never_set() -> None:
    """1970 is an error, whatever the kernel says of it."""
    clock = FakeClock(now_ms=1000, synchronised=True)
    assert told(clock_findings(clock, None)) == [("error", "clock")]


@pytest.mark.parametrize(
    ("last", "uptime", "level"),
    [
        ("2026-11-28T03:00:00.000Z", 3660, "ok"),
        ("2026-11-28T03:00:00.000Z", 3660.001, "error"),
        (None, 60, "ok"),
        (None, 61, "error"),
    ],
)
def test_expiry_of_which_nothing_comes(last: str | None, uptime: float, level: str) -> None:
    """A sweep that is a minute old by the daemon's own clock, or never came, is an error with what to look at."""
    clock = FakeClock(synchronised=True)
    status = {**RUNS, "expiry": {"stopped": False, "last_sweep_at": last}, "uptime": uptime}
    findings = list(clock_findings(clock, status))
    assert told(findings) == [("ok", "clock"), (level, "expiry")]
    if level == "error":
        assert "journalctl" in (findings[1].remedy or "")


def test_expiry_that_is_stopped() -> None:
    """The daemon's own alarm is an error with the command that ends it."""
    clock = FakeClock(synchronised=True)
    findings = list(clock_findings(clock, STOPPED))
    assert told(findings) == [("ok", "clock"), ("error", "expiry")]
    assert "the clock leapt" in findings[1].what
    assert "expiry resume" in (findings[1].remedy or "")


@pytest.mark.parametrize(
    ("version", "level"), [((3, 40, 1), "note"), ((3, 51, 2), "note"), ((3, 51, 3), "ok"), ((3, 52, 0), "ok")]
)
def test_sqlite(version: tuple[int, ...], level: str) -> None:
    """A version with the WAL-reset bug is named."""
    found = sqlite_finding(version)
    assert told([found]) == [(level, "sqlite")]
    assert ".".join(map(str, version)) in found.what


@pytest.mark.parametrize(
    ("version", "base", "expected"),
    [
        ((3, 11, 7), "/usr", [("ok", "python")]),
        ((3, 99, 0), "/usr", [("note", "python")]),
        ((3, 12, 1), "/home/ada/.pyenv/versions/3.12.1", [("ok", "python"), ("note", "python-place")]),
    ],
)
def test_python(version: tuple[int, ...], base: str, expected: list[tuple[str, str]]) -> None:
    """One newer than tested is named, and one that the service can't see."""
    assert told(python_findings(version, base)) == expected


def configuration(concurrency: int) -> Configuration:
    """One account that may have so many requests under way."""
    account = AccountSettings("a", "https://x/", Secret("l"), Secret("p"), concurrency=concurrency)
    return Configuration(
        ApiSettings(),
        DatabaseSettings(),
        MessageSettings(),
        RetentionSettings(),
        LogSettings(),
        MappingProxyType({"a": account}),
    )


@pytest.mark.parametrize(
    ("limit", "concurrency", "in_use", "expected"),
    [
        (None, 4, None, [("ok", "open-files")]),
        (16_384, 4, 100, [("ok", "open-files")]),
        (1024, 4, None, [("warning", "open-files")]),
        (200, 64, None, [("error", "open-files")]),
        (16_384, 4, 14_000, [("ok", "open-files"), ("warning", "open-files-used")]),
    ],
)
def test_open_files(
    limit: int | None, concurrency: int, in_use: int | None, expected: list[tuple[str, str]]
) -> None:
    """Too few to start is an error; fewer than apps may want, or nearly all of them open, is a warning."""
    assert told(open_files_findings(limit, configuration(concurrency), in_use=in_use)) == expected


def test_a_real_process_tells_its_limit() -> None:
    """What the kernel says of this process is what it was given."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = None if soft == resource.RLIM_INFINITY else soft
    assert open_files_limit(os.getpid()) == wanted
    before = open_files(os.getpid())
    with Path("/dev/null").open():
        assert open_files(os.getpid()) == before + 1
