"""Expiry: messages whose validity period ends without a final state become ``expired``, and that is reported.

When to sweep, and whether the clock can be believed (DESIGN §8): a leap of the wall clock must not expire a
queue. What expiring does to rows is storage's; who calls `Expiry.sweep` every second is the daemon's.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final, Protocol

from dlr_buffer.clock import EARLIEST_MS, BootClock, rfc3339
from dlr_buffer.logs import Event, about

_log = logging.getLogger(__name__)

MAX_DRIFT_MS: Final = 3_600_000
MAX_BEHIND_MS: Final = 60_000
SYNCHRONISED_FOR_MS: Final = 600_000
KEEP_MARK_EVERY_MS: Final = 60_000
LATE_MS: Final = 60_000
"""Nothing came of expiry for so long, though it runs every second: it fails, or hangs."""
_ABOVE_ALL_MS: Final = 2**62


class ClockMark(Protocol):
    """The clock as the last sweep stored it, and since when and why expiry is stopped; wall milliseconds."""

    @property
    def boot_id(self) -> str | None: ...  # noqa: D102 - named in the class's docstring
    @property
    def offset_ms(self) -> int | None: ...  # noqa: D102 - wall time less time since boot
    @property
    def now_ms(self) -> int | None: ...  # noqa: D102 - wall time
    @property
    def stopped_since_ms(self) -> int | None: ...  # noqa: D102 - None while expiry runs
    @property
    def stop_reason(self) -> str | None: ...  # noqa: D102 - None while expiry runs


class Chunk(Protocol):
    """What one chunk of expiry did."""

    @property
    def expired(self) -> int: ...  # noqa: D102 - messages
    @property
    def more(self) -> bool: ...  # noqa: D102 - others are due already


class ExpiryStore(Protocol):
    """What expiry needs of the database."""

    async def expire_chunk(self, now_ms: int, *, look_first: bool) -> Chunk:
        """Expire the next few messages that are overdue at ``now_ms``, oldest deadline first.

        ``look_first`` says that there may be none.
        """
        ...

    async def first_in_question(
        self, *, at_least_ms: int, at_most_ms: int, passing_over_since_ms: int
    ) -> int:
        """Number of the first of the newest messages that all bear a registration time between these two.

        Newer ones from ``passing_over_since_ms`` on are passed over. One above all numbers if there are none.
        """
        ...

    async def redate_chunk(self, first: int, *, right_since_ms: int, now_ms: int) -> int | None:
        """Let a few waiting messages from number ``first`` on have been registered now, but those since then.

        Returns the number to go on with, None at the end.
        """
        ...

    async def clock_mark(self) -> ClockMark:
        """The stored mark."""
        ...

    async def keep_clock_mark(
        self,
        *,
        boot_id: str | None,
        offset_ms: int | None,
        now_ms: int | None,
        stopped_since_ms: int | None,
        stop_reason: str | None,
    ) -> None:
        """Store a mark."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """A clock mark in memory; see `ClockMark`."""

    boot_id: str | None = None
    offset_ms: int | None = None
    now_ms: int | None = None
    stopped_since_ms: int | None = None
    stop_reason: str | None = None


def judge_clock(mark: ClockMark, *, boot_id: str, offset_ms: int, now_ms: int) -> str | None:
    """Say why the wall clock can't be believed against what was stored last, None if it can.

    Under the same boot the wall clock keeps its distance from the time since boot; under any, it does not go
    back. A boot has no say over a leap forward that stopped expiry before it: the wall clock is still ahead
    unless it reads less than it did then.
    """
    if now_ms < EARLIEST_MS:
        return f"the wall clock reads {rfc3339(now_ms)}, a time before this program was written"
    if mark.now_ms is not None and now_ms < mark.now_ms - MAX_BEHIND_MS:
        return f"the wall clock went back by {_span(mark.now_ms - now_ms)}"
    if (
        mark.boot_id == boot_id
        and mark.offset_ms is not None
        and abs(offset_ms - mark.offset_ms) > MAX_DRIFT_MS
    ):
        way = "forward" if offset_ms > mark.offset_ms else "back"
        return f"the wall clock leapt {way} by {_span(abs(offset_ms - mark.offset_ms))}"
    if (
        mark.boot_id != boot_id
        and mark.now_ms is not None
        and mark.stopped_since_ms is not None
        and mark.now_ms <= mark.stopped_since_ms <= now_ms
    ):
        return mark.stop_reason
    return None


@dataclass(slots=True)
class _Doubt:
    """A stop of expiry as this process sees it."""

    first: int
    """Number of the first message that was registered since."""
    boot_id: str
    offset_ms: int
    moved: bool = False
    """Whether the clock was set in the meantime: then what was registered since bears a wrong time."""


class Expiry:
    """Sweeps when it is told to, unless the clock can't be believed."""

    def __init__(self, store: ExpiryStore, clock: BootClock) -> None:
        """Read nothing yet."""
        self._store = store
        self._clock = clock
        self._mark: Mark | None = None
        self._kept_at_ms: int | None = None
        self._synchronised_since_ms: int | None = None
        self._sweeping = False
        self._doubt: _Doubt | None = None
        self._judging = asyncio.Lock()
        self._got_on_at_ms = clock.monotonic_ms()
        self.last_sweep_at_ms: int | None = None
        """When a sweep, or one of the chunks of a long one, was done last; wall time."""

    @property
    def stopped_since_ms(self) -> int | None:
        """Since when expiry is stopped by a clock alarm."""
        return self._mark.stopped_since_ms if self._mark is not None else None

    @property
    def stop_reason(self) -> str | None:
        """Why it is stopped."""
        return self._mark.stop_reason if self._mark is not None else None

    @property
    def silent_ms(self) -> int:
        """For how long nothing has come of it, in monotonic time; 0 while a clock alarm stops it."""
        return 0 if self.stop_reason is not None else self._clock.monotonic_ms() - self._got_on_at_ms

    async def sweep(self) -> int:
        """Expire everything that is overdue, in chunks.

        Returns how many. Does nothing if it runs already or is stopped.
        """
        if self._sweeping:
            return 0
        self._sweeping = True
        try:
            if (now := await self.believed_now()) is None:
                self._got_on_at_ms = self._clock.monotonic_ms()
                return 0
            expired = 0
            more = False
            while True:
                # The time that was judged, not a newer one: the clock may leap during a long sweep.
                chunk = await self._store.expire_chunk(now, look_first=not more)
                self._got_on_at_ms = self._clock.monotonic_ms()
                self.last_sweep_at_ms = self._clock.now_ms()
                expired += chunk.expired
                more = chunk.more
                if not more:
                    break
            if expired:
                _log.info(
                    "%d messages expired without a final state, and are reported as expired",
                    expired,
                    extra=about(count=expired),
                )
            return expired
        finally:
            self._sweeping = False

    async def resume(self) -> None:
        """An admin trusts the clock as it is now."""
        async with self._judging:
            mark = await self._stored()
            if mark.stopped_since_ms is not None:
                await self._go_on(mark, "an admin trusts the clock")

    async def _stored(self) -> Mark:
        if self._mark is None:
            stored = await self._store.clock_mark()
            self._mark = Mark(
                stored.boot_id, stored.offset_ms, stored.now_ms, stored.stopped_since_ms, stored.stop_reason
            )
        return self._mark

    async def believed_now(self) -> int | None:
        """Wall time in milliseconds if it can be believed, else None.

        Expiry is stopped, and retention with it.
        """
        # Expiry and retention ask, each in its own time.
        async with self._judging:
            return await self._judge()

    async def _judge(self) -> int | None:
        mark = await self._stored()
        now = self._clock.now_ms()
        offset = now - self._clock.boottime_ms()
        boot_id = self._clock.boot_id()
        reason = judge_clock(mark, boot_id=boot_id, offset_ms=offset, now_ms=now)
        if mark.stopped_since_ms is not None:
            if reason is None:
                return await self._go_on(mark, "the clock is back")
            await self._look_at_doubt(mark.stopped_since_ms, now)
            if self._synchronised_long_enough():
                return await self._go_on(
                    mark, "the kernel says that the clock is synchronised, for ten minutes now"
                )
            return None
        if reason is not None:
            _log.error(
                "expiry stops: %s. Check the clock; expiry goes on when it is back, when it has been"
                " synchronised for ten minutes, or with 'dlr-buffer expiry resume'",
                reason,
                extra=about(Event.EXPIRY_STOPPED),
            )
            self._synchronised_since_ms = None
            await self._keep(Mark(mark.boot_id, mark.offset_ms, mark.now_ms, now, reason))
            await self._look_at_doubt(now, now)
            return None
        monotonic = self._clock.monotonic_ms()
        same_boot = mark.boot_id == boot_id and mark.offset_ms is not None
        if not same_boot or self._kept_at_ms is None or monotonic - self._kept_at_ms >= KEEP_MARK_EVERY_MS:
            # Within a boot the first offset is kept: many small leaps are one large one.
            await self._keep(Mark(boot_id, mark.offset_ms if same_boot else offset, now))
        return now

    def _synchronised_long_enough(self) -> bool:
        monotonic = self._clock.monotonic_ms()
        if not self._clock.synchronised():
            self._synchronised_since_ms = None
            return False
        if self._synchronised_since_ms is None:
            self._synchronised_since_ms = monotonic
        return monotonic - self._synchronised_since_ms >= SYNCHRONISED_FOR_MS

    async def _look_at_doubt(self, stopped_since_ms: int, now: int) -> None:
        """Find what was registered since expiry stopped, and see whether the clock is set while it is."""
        boot_id, offset = self._clock.boot_id(), now - self._clock.boottime_ms()
        if self._doubt is None:
            first = await self._store.first_in_question(
                at_least_ms=stopped_since_ms - MAX_BEHIND_MS,
                at_most_ms=now,
                passing_over_since_ms=_ABOVE_ALL_MS,
            )
            self._doubt = _Doubt(first, boot_id, offset)
        elif self._doubt.boot_id != boot_id or abs(offset - self._doubt.offset_ms) > MAX_BEHIND_MS:
            self._doubt.moved = True

    async def _go_on(self, mark: Mark, why: str) -> int:
        """Trust the clock as it is now."""
        now = self._clock.now_ms()
        await self._redate(mark, now)
        _log.warning("expiry goes on: %s", why, extra=about(Event.EXPIRY_RESUMED))
        await self._keep(Mark(self._clock.boot_id(), now - self._clock.boottime_ms(), now))
        self._got_on_at_ms = self._clock.monotonic_ms()
        self._doubt = None
        return now

    async def _redate(self, mark: Mark, now: int) -> None:
        """Count the validity of what was registered by a wrong clock from now on.

        By the time that it bears it might expire at once, or days too late. (What was registered before the
        stop keeps its deadline.)
        """
        since = mark.stopped_since_ms if mark.stopped_since_ms is not None else now
        if self._doubt is not None:
            await self._look_at_doubt(since, now)
            first: int | None = self._doubt.first if self._doubt.moved else None
        elif since > now or since < EARLIEST_MS:
            # The clock was set while nobody looked. Only what bears an impossible time is known to be wrong.
            first = await self._store.first_in_question(
                at_least_ms=now + 1 if since > now else -_ABOVE_ALL_MS,
                at_most_ms=_ABOVE_ALL_MS if since > now else EARLIEST_MS - 1,
                passing_over_since_ms=now - MAX_BEHIND_MS,
            )
        else:
            first = None
        while first is not None:
            first = await self._store.redate_chunk(first, right_since_ms=now - MAX_BEHIND_MS, now_ms=now)

    async def _keep(self, mark: Mark) -> None:
        await self._store.keep_clock_mark(
            boot_id=mark.boot_id,
            offset_ms=mark.offset_ms,
            now_ms=mark.now_ms,
            stopped_since_ms=mark.stopped_since_ms,
            stop_reason=mark.stop_reason,
        )
        self._mark = mark
        self._kept_at_ms = self._clock.monotonic_ms()


def _span(milliseconds: int) -> str:
    minutes = round(milliseconds / 60_000)
    if minutes < 120:  # noqa: PLR2004 - up to two hours in minutes
        return f"{minutes} minutes"
    return f"{round(minutes / 60)} hours"
