"""Time, as it is handed to everything that needs it.

The rest of the program never asks the operating system for the time: it is given a `Clock`. Wall time is an
int of milliseconds since 1970 in UTC, because that is what the queue stores; waiting goes through the clock
too, so that a test moves both. Formats of times live here, schedules do not.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

EARLIEST_MS: Final = 1_767_225_600_000
"""2026-01-01: this program did not exist before, so a clock that reads less (one without a battery) is wrong."""
_TIME_ERROR: Final = 5


class Clock(Protocol):
    """Where the program gets its time from."""

    def now_ms(self) -> int:
        """Wall time in milliseconds since 1970-01-01 UTC; may leap."""
        ...

    def monotonic_ms(self) -> int:
        """A time in milliseconds that never goes back; its zero means nothing."""
        ...

    async def sleep(self, duration_ms: int) -> None:
        """Return after ``duration_ms`` milliseconds by this clock (at once if not positive)."""
        ...


class SystemClock:
    """The operating system's clock."""

    def now_ms(self) -> int:
        """Wall time in milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """CLOCK_MONOTONIC in milliseconds."""
        return time.monotonic_ns() // 1_000_000

    async def sleep(self, duration_ms: int) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(max(0, duration_ms) / 1000)


class BootClock(Clock, Protocol):
    """A clock that can also say how wall time lies to the time since the machine was started."""

    def boot_id(self) -> str:
        """A name for this run of the kernel; another one after each boot."""
        ...

    def boottime_ms(self) -> int:
        """Milliseconds since the machine was started, suspension included; never leaps."""
        ...

    def synchronised(self) -> bool:
        """Whether the kernel says that wall time is kept right by someone (NTP).

        False if it can't be asked.
        """
        ...


class SystemBootClock(SystemClock):
    """Linux's clocks."""

    def boot_id(self) -> str:
        """The kernel's boot id."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return "unknown"

    def boottime_ms(self) -> int:
        """CLOCK_BOOTTIME in milliseconds."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def synchronised(self) -> bool:
        """Ask adjtimex(2), which needs no privilege to read."""
        # struct timex is 208 bytes on 64-bit Linux; `modes` 0 only reads, and STA_UNSYNC is the kernel's
        # return value TIME_ERROR.
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            return bool(0 <= libc.adjtimex(ctypes.create_string_buffer(512)) < _TIME_ERROR)
        except (OSError, AttributeError):
            return False


def rfc3339(at_ms: int) -> str:
    """Write a wall time as RFC 3339 in UTC with milliseconds, e.g. ``2026-11-23T18:41:00.250Z``."""
    seconds, ms = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{ms:03d}Z"


@functools.lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    # Times that are written at once lie close together, and formatting one takes longer than all the rest.
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def parse_rfc3339(text: str) -> int:
    """Read an RFC 3339 time into milliseconds since 1970; a missing offset is refused with ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    delta = moment - datetime.fromtimestamp(0, UTC)
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
