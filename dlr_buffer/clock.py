"""Time, as it is handed to everything that needs it.

The rest of the program never asks the operating system for the time: it is given a `Clock`. Wall time is an
int of milliseconds since 1970 in UTC, because that is what the queue stores; waiting goes through the clock
too, so that a test moves both. Formats of times live here, schedules do not.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

EARLIEST_MS: Final = 1_767_225_600_000
"""2026-01-01: this program did not exist before, so a clock that reads less (one without a battery) is wrong."""
_TIME_ERROR: Final = 5
TIMEDATECTL: Final = ("/usr/bin/timedatectl", "show", "--property=NTPSynchronized", "--value")
"""What asks systemd whether the clock is synchronised; it answers ``yes`` or ``no``."""
_ASKED_EVERY_S: Final = 30.0
_ASKED_FOR_S: Final = 20.0


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

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._timedated = _Timedated()

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
        """Ask adjtimex(2), which needs no privilege to read, or systemd where that may not be called.

        systemd's answer is up to a minute old, and False before the first.
        """
        known = _kernel_synchronised()
        return known if known is not None else self._timedated.synchronised()


def _kernel_synchronised() -> bool | None:
    """What the kernel says; None if it may not be asked: the service's unit forbids all that could set the clock."""
    # struct timex is 208 bytes on 64-bit Linux; `modes` 0 only reads, and STA_UNSYNC is the kernel's return value
    # TIME_ERROR.
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    if state < 0:
        return None if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS) else False
    return bool(state < _TIME_ERROR)


class _Timedated:
    """systemd's word on whether the clock is synchronised, asked for in a thread, for that may take a moment."""

    def __init__(self) -> None:
        self._answer = False
        self._asked_at_s: float | None = None
        self._thread: threading.Thread | None = None

    def synchronised(self) -> bool:
        now = time.monotonic()
        if self._asked_at_s is not None and now - self._asked_at_s > 2 * _ASKED_EVERY_S + _ASKED_FOR_S:
            self._answer = False  # nobody asked for long: what was true then says nothing
        if (self._asked_at_s is None or now - self._asked_at_s >= _ASKED_EVERY_S) and (
            self._thread is None or not self._thread.is_alive()
        ):
            self._asked_at_s = now
            self._thread = threading.Thread(target=self._ask, name="timedated", daemon=True)
            self._thread.start()
        return self._answer

    def _ask(self) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                TIMEDATECTL, capture_output=True, text=True, check=False, timeout=_ASKED_FOR_S
            )
        except (OSError, subprocess.SubprocessError):
            self._answer = False
        else:
            self._answer = done.returncode == 0 and done.stdout.strip() == "yes"


@functools.lru_cache(maxsize=1024)  # requests that share a commit share their times
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
