"""A clock that tests move by hand.

It fulfils `dlr_buffer.clock.BootClock`: wall time, monotonic time and the time since boot go on together with
`advance`, wall time alone with `leap`. Nothing here waits for the real time.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

START_MS = 1_800_000_000_000
"""Where a new clock's wall stands: 2027-01-15T08:00:00Z."""


class FakeClock:
    """A clock that stands still until it is told to move; belongs to one event loop's thread."""

    def __init__(
        self,
        now_ms: int = START_MS,
        *,
        boot_id: str = "boot-1",
        boottime_ms: int = 1_000_000,
        synchronised: bool = False,
    ) -> None:
        """Stand at wall time ``now_ms``, ``boottime_ms`` after the machine was started."""
        self._now_ms = now_ms
        self._boot_id = boot_id
        self._boottime_ms = boottime_ms
        self._synchronised = synchronised
        self._order = count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        """Wall time in milliseconds since 1970."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """Milliseconds that only `advance` moves."""
        return self._boottime_ms

    def boot_id(self) -> str:
        """The name given for this run of the machine."""
        return self._boot_id

    def boottime_ms(self) -> int:
        """Milliseconds since the machine was started, as told."""
        return self._boottime_ms

    def synchronised(self) -> bool:
        """What `set_synchronised` said last."""
        return self._synchronised

    async def sleep(self, duration_ms: int) -> None:
        """Wait until the clock was advanced by ``duration_ms`` (one turn of the loop if not positive)."""
        if duration_ms <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._boottime_ms + duration_ms, next(self._order), woken))
        await woken

    @property
    def sleeping(self) -> int:
        """How many tasks wait in `sleep`."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    def advance(self, duration_ms: int) -> None:
        """Let time pass: wakes who has slept long enough, in order of their deadlines.

        They run at the loop's next turns.
        """
        if duration_ms < 0:
            raise ValueError("only the wall clock can go back: use leap")
        self._now_ms += duration_ms
        self._boottime_ms += duration_ms
        while self._sleepers and self._sleepers[0][0] <= self._boottime_ms:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    def leap(self, duration_ms: int) -> None:
        """Set the wall clock ahead, or back if negative, as NTP or an admin does; nothing else moves."""
        self._now_ms += duration_ms

    def reboot(self, boot_id: str, *, after_ms: int = 0) -> None:
        """Start the machine anew under another name, ``after_ms`` of wall time later."""
        self._now_ms += after_ms
        self._boot_id = boot_id
        self._boottime_ms = 0

    def set_synchronised(self, value: bool) -> None:  # noqa: FBT001 - reads as a setter does
        """Say what the kernel tells about NTP from now on."""
        self._synchronised = value
