"""The machine below the daemon: its clock, the versions of SQLite and Python, the limit on open files."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlr_buffer.clock import EARLIEST_MS, BootClock, parse_rfc3339, rfc3339
from dlr_buffer.config import Configuration
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning
from dlr_buffer.doctor.running import Commands, Status
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.expiry import LATE_MS
from dlr_buffer.local_api.connections import MAX_CLIENT_CONNECTIONS, share_descriptors
from dlr_buffer.storage.connection import wal_reset_bug

NEWEST_PYTHON: Final = (3, 13)
"""The newest that the tests are run with."""
_BY_SYSTEMD: Final = Commands()
_HOMES: Final = ("/home", "/root", "/run/user")
_NEARLY: Final = 0.8
_SET_CLOCK: Final = "sudo timedatectl set-ntp true; then: timedatectl status"


def clock_findings(
    clock: BootClock, status: Status | None, commands: Commands = _BY_SYSTEMD
) -> Iterator[Finding]:
    """Say whether the clock is right and kept so, and whether the daemon believes it (``status``, if it answers)."""
    now_ms = clock.now_ms()
    if now_ms < EARLIEST_MS:
        yield error(
            "clock", f"the clock says {rfc3339(now_ms)}: it was never set, and nothing expires", _SET_CLOCK
        )
    elif clock.synchronised():
        yield ok("clock", "the kernel says that the clock is synchronised")
    else:
        yield warning(
            "clock",
            "the kernel does not say that the clock is synchronised (STA_UNSYNC): messages expire by it",
            _SET_CLOCK,
        )
    if status is None:
        return
    expiry = status["expiry"]
    if expiry["stopped"]:
        yield error(
            "expiry",
            f"expiry is stopped since {expiry['since']}: {expiry['reason']}",
            "check the clock; it goes on by itself, or at once: sudo dlr-buffer expiry resume",
        )
        return
    # By the daemon's own wall clock, whatever this program's says.
    now_ms = parse_rfc3339(status["started_at"]) + round(status["uptime"] * 1000)
    since = expiry["last_sweep_at"] or status["started_at"]
    if now_ms - parse_rfc3339(since) > LATE_MS:
        yield error(
            "expiry",
            f"nothing has come of expiry since {since}, though it runs every second: messages expire late",
            f"see why: {commands.log}; if nothing is said there, it hangs: {commands.restart}",
        )
    else:
        yield ok("expiry", f"expiry runs (last at {expiry['last_sweep_at']})")


def sqlite_finding(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Finding:
    """Judge SQLite's version."""
    words = "SQLite " + ".".join(map(str, version))
    if wal_reset_bug(version):
        return note(
            "sqlite",
            f"{words} has the WAL-reset bug (mended in 3.51.3); it can't strike while the daemon alone writes",
            "let no other program write to the queue",
        )
    return ok("sqlite", words)


def python_findings(
    version: tuple[int, ...] = sys.version_info[:3], base: str = sys.base_prefix
) -> Iterator[Finding]:
    """Judge the Python that this program runs on, which is the service's too."""
    words = "Python " + ".".join(map(str, version))
    if version[:2] > NEWEST_PYTHON:
        yield note(
            "python",
            f"{words} is newer than what this release was tested with ({'.'.join(map(str, NEWEST_PYTHON))})",
            "make install PYTHON=/usr/bin/python3.13, or a newer release",
        )
    else:
        yield ok("python", words)
    place = Path(base).resolve()
    if any(place.is_relative_to(home) for home in _HOMES):
        yield note(
            "python-place",
            f"this Python lies in {place}, which the unit hides from the daemon (ProtectHome=)",
            "for a service: sudo make install PYTHON=/usr/bin/python3",
        )


def open_files_limit(process: int, proc: Path = Path("/proc")) -> int | None:
    """Return how many files a process may open, None for no limit. Raises OSError."""
    for line in (proc / str(process) / "limits").read_text("ascii").splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return None if soft == "unlimited" else int(soft)
    return None


def open_files(process: int, proc: Path = Path("/proc")) -> int:
    """Return how many files a process has open. Raises OSError."""
    return sum(1 for _ in (proc / str(process) / "fd").iterdir())


def open_files_findings(
    limit: int | None, configuration: Configuration, *, in_use: int | None = None
) -> Iterator[Finding]:
    """Judge the daemon's ``limit`` on open files (None: unlimited), of which ``in_use`` are open."""
    if limit is None:
        yield ok("open-files", "the daemon may open any number of files")
        return
    upstream = 2 * sum(account.concurrency for account in configuration.accounts.values())
    raise_it = "set LimitNOFILE=16384: sudo systemctl edit dlr-buffer, then restart"
    try:
        shares = share_descriptors(limit, upstream)
    except DlrBufferError as problem:
        yield error("open-files", str(problem), raise_it)
        return
    if shares.client < MAX_CLIENT_CONNECTIONS:
        yield warning(
            "open-files",
            f"the daemon may open {limit:,} files, which leaves apps {shares.client:,} connections instead of"
            f" {MAX_CLIENT_CONNECTIONS:,}",
            raise_it,
        )
    else:
        yield ok(
            "open-files", f"the daemon may open {limit:,} files, of which apps may hold {shares.client:,}"
        )
    if in_use is not None and in_use > _NEARLY * limit:
        yield warning(
            "open-files-used",
            f"{in_use:,} of the {limit:,} files that the daemon may open are open",
            f"find the app that holds connections: sudo ss --unix --processes; or {raise_it}",
        )
