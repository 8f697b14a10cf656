"""When expiry sweeps, and whether it believes the clock; what sweeping does to rows is tested on real files."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from dlr_buffer.clock import EARLIEST_MS
from dlr_buffer.expiry import ClockMark, Expiry, Mark, judge_clock
from tests.clocks import START_MS, FakeClock
from tests.loops import on_loop

HOUR = 3_600_000
MINUTE = 60_000
NOW = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Swept:
    """What one chunk did."""

    expired: int = 0
    more: bool = False


@dataclass(slots=True)
class ScriptedStore:
    """Keeps the mark as a database does; sweeping does what the script says."""

    mark: ClockMark = field(default_factory=Mark)
    chunks: list[Swept] = field(default_factory=list)
    swept_at: list[int] = field(default_factory=list)
    looked_first: list[bool] = field(default_factory=list)
    kept: int = 0
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    redated: list[tuple[int, int, int]] = field(default_factory=list)
    clock: FakeClock | None = None
    leap_after_chunk: int = 0
    hold: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def expire_chunk(self, now_ms: int, *, look_first: bool) -> Swept:
        """Do the next thing of the script."""
        self.swept_at.append(now_ms)
        self.looked_first.append(look_first)
        self.reached.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.clock is not None:
            self.clock.leap(self.leap_after_chunk)
        return self.chunks.pop(0) if self.chunks else Swept()

    async def first_in_question(
        self, *, at_least_ms: int, at_most_ms: int, passing_over_since_ms: int
    ) -> int:
        """Remember the question; the first message in question is always the seventh."""
        self.asked.append((at_least_ms, at_most_ms, passing_over_since_ms))
        return 7

    async def redate_chunk(self, first: int, *, right_since_ms: int, now_ms: int) -> int | None:
        """Remember the call; two chunks are all."""
        self.redated.append((first, right_since_ms, now_ms))
        return first + 10 if len(self.redated) % 2 else None

    async def clock_mark(self) -> ClockMark:
        """The stored mark."""
        return self.mark

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
        self.kept += 1
        self.mark = Mark(boot_id, offset_ms, now_ms, stopped_since_ms, stop_reason)


def mark(**changes: int | str | None) -> Mark:
    """A mark that was stored at NOW, an hour after boot."""
    facts: dict[str, int | str | None] = {"boot_id": "a", "offset_ms": NOW - HOUR, "now_ms": NOW}
    return Mark(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "boot_id", "offset_ms", "now_ms", "reason"),
    [
        (Mark(), "a", 0, NOW, None),
        (Mark(), "a", 0, 0, "1970-01-01T00:00:00.000Z, a time before this program was written"),
        (mark(), "b", 0, EARLIEST_MS - 1, "before this program was written"),
        (Mark(), "a", 0, EARLIEST_MS, None),
        (mark(), "a", NOW - HOUR, NOW + 10, None),
        (mark(), "a", NOW - HOUR + HOUR, NOW + HOUR, None),
        (mark(), "a", NOW - HOUR + HOUR + 1, NOW + HOUR + 1, "forward"),
        (mark(), "a", NOW - HOUR - HOUR - 1, NOW + HOUR, "back"),
        (mark(), "a", NOW - HOUR, NOW - MINUTE, None),
        (mark(), "a", NOW - HOUR, NOW - MINUTE - 1, "went back"),
        (mark(), "b", NOW - 5, NOW - MINUTE - 1, "went back"),
        (mark(), "b", NOW + 500 * HOUR, NOW + 500 * HOUR, None),
        (mark(stopped_since_ms=NOW + 48 * HOUR, stop_reason="s"), "b", NOW, NOW + 49 * HOUR, "s"),
        (mark(stopped_since_ms=NOW + 48 * HOUR, stop_reason="s"), "b", NOW, NOW + 2 * HOUR, None),
        (mark(stopped_since_ms=NOW - 48 * HOUR, stop_reason="s"), "b", NOW, NOW + 2 * HOUR, None),
        (mark(stopped_since_ms=NOW - 48 * HOUR, stop_reason="s"), "b", NOW, NOW - 40 * HOUR, "went back"),
    ],
)
def test_the_clock_is_judged(
    stored: Mark, boot_id: str, offset_ms: int, now_ms: int, reason: str | None
) -> None:
    """Over an hour of drift under one boot, or over a minute behind, is not believed; downtime is."""
    judged = judge_clock(stored, boot_id=boot_id, offset_ms=offset_ms, now_ms=now_ms)
    assert judged is None if reason is None else judged is not None and reason in judged


@on_loop
async def test_a_sweep_goes_on_until_nothing_is_due() -> None:
    """All chunks are taken in one sweep, and what they expired is added up; only the first may find nothing."""
    clock = FakeClock()
    store = ScriptedStore(chunks=[Swept(250, more=True), Swept(0, more=True), Swept(7)])
    expiry = Expiry(store, clock)
    assert await expiry.sweep() == 257
    assert store.swept_at == [clock.now_ms()] * 3
    assert store.looked_first == [True, False, False]
    assert expiry.last_sweep_at_ms == clock.now_ms()


@on_loop
async def test_one_sweep_at_a_time() -> None:
    """A tick during a long sweep does nothing, and the next one after it sweeps again."""
    store = ScriptedStore(hold=asyncio.Event())
    assert store.hold is not None
    expiry = Expiry(store, FakeClock())
    first = asyncio.create_task(expiry.sweep())
    await store.reached.wait()
    assert await expiry.sweep() == 0
    assert len(store.swept_at) == 1
    store.hold.set()
    await first
    await expiry.sweep()
    assert len(store.swept_at) == 2


@on_loop
async def test_how_long_nothing_came_of_it() -> None:
    """It is counted from the start, from each chunk of a sweep however long that takes, and on while a sweep hangs."""
    clock = FakeClock()
    store = ScriptedStore(chunks=[Swept(250, more=True)], hold=asyncio.Event())
    assert store.hold is not None
    expiry = Expiry(store, clock)
    clock.advance(5)
    assert (expiry.silent_ms, expiry.last_sweep_at_ms) == (5, None)
    sweep = asyncio.create_task(expiry.sweep())
    await store.reached.wait()
    clock.advance(HOUR)
    assert expiry.silent_ms == HOUR + 5
    store.reached.clear()
    store.hold.set()
    store.hold = asyncio.Event()
    await store.reached.wait()
    assert (expiry.silent_ms, expiry.last_sweep_at_ms) == (0, clock.now_ms())
    clock.advance(HOUR)
    assert (expiry.silent_ms, expiry.last_sweep_at_ms) == (HOUR, clock.now_ms() - HOUR)
    store.hold.set()
    await sweep
    assert expiry.silent_ms == 0


@on_loop
async def test_a_stop_by_the_clock_is_no_silence() -> None:
    """While the clock is not believed nothing is missing, nor for the time before once it is believed again."""
    clock = FakeClock()
    expiry = Expiry(ScriptedStore(), clock)
    await expiry.sweep()
    clock.leap(2 * HOUR)
    await expiry.sweep()
    clock.advance(HOUR)
    assert expiry.silent_ms == 0
    await expiry.resume()
    assert expiry.silent_ms == 0
    clock.advance(MINUTE)
    assert expiry.silent_ms == MINUTE


@on_loop
async def test_a_leap_during_a_sweep_expires_nothing_more() -> None:
    """A sweep goes by the time that was judged; the leap in the middle of it stops the next sweep."""
    clock = FakeClock()
    believed = clock.now_ms()
    store = ScriptedStore(chunks=[Swept(250, more=True), Swept(1)], clock=clock, leap_after_chunk=72 * HOUR)
    expiry = Expiry(store, clock)
    await expiry.sweep()
    assert store.swept_at == [believed, believed]
    assert await expiry.sweep() == 0
    assert expiry.stopped_since_ms == clock.now_ms()


@pytest.mark.parametrize(("leap_ms", "word"), [(72 * HOUR, "forward"), (-2 * HOUR, "went back")])
@on_loop
async def test_a_leap_stops_and_the_way_back_resumes(leap_ms: int, word: str) -> None:
    """After a leap nothing is expired, over a restart too, until the clock is back where it was."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.advance(1000)
    clock.leap(leap_ms)
    for _ in range(3):
        assert await expiry.sweep() == 0
        clock.advance(1000)
    assert len(store.swept_at) == 1
    assert expiry.stop_reason is not None
    assert word in expiry.stop_reason
    restarted = Expiry(store, clock)
    assert await restarted.sweep() == 0
    assert restarted.stop_reason == expiry.stop_reason
    assert restarted.stopped_since_ms == expiry.stopped_since_ms
    clock.leap(-leap_ms)
    await restarted.sweep()
    assert restarted.stopped_since_ms is None
    assert store.swept_at[1:] == [clock.now_ms()]


@on_loop
async def test_ten_minutes_of_synchronisation_resume() -> None:
    """The kernel's word must hold for ten minutes without a break before expiry trusts a leapt clock."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.leap(72 * HOUR)
    await expiry.sweep()
    clock.set_synchronised(True)
    for _ in range(9):
        await expiry.sweep()
        clock.advance(MINUTE)
    clock.set_synchronised(False)
    await expiry.sweep()
    clock.set_synchronised(True)
    for _ in range(10):
        await expiry.sweep()
        assert expiry.stopped_since_ms is not None
        clock.advance(MINUTE)
    await expiry.sweep()
    assert expiry.stopped_since_ms is None
    assert len(store.swept_at) == 2


@on_loop
async def test_an_admin_resumes() -> None:
    """After `resume` the clock as it is now is the one to go by; without an alarm it does nothing."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.resume()
    assert store.kept == 0
    await expiry.sweep()
    clock.leap(72 * HOUR)
    await expiry.sweep()
    restarted = Expiry(store, clock)
    await restarted.resume()
    await restarted.sweep()
    assert restarted.stopped_since_ms is None
    assert len(store.swept_at) == 2


@on_loop
async def test_downtime_is_no_alarm() -> None:
    """A machine that was off for a week starts with another boot id, and sweeps at once."""
    clock = FakeClock()
    store = ScriptedStore()
    await Expiry(store, clock).sweep()
    clock.reboot("boot-2", after_ms=7 * 24 * HOUR)
    await Expiry(store, clock).sweep()
    assert len(store.swept_at) == 2


@on_loop
async def test_a_reboot_does_not_excuse_a_leap() -> None:
    """Expiry stopped by a leap forward stays stopped over a reboot with the wrong time, and goes on with the right."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.leap(72 * HOUR)
    await expiry.sweep()
    clock.reboot("boot-2", after_ms=MINUTE)
    expiry = Expiry(store, clock)
    assert await expiry.sweep() == 0
    assert expiry.stopped_since_ms is not None
    clock.leap(-72 * HOUR)
    await expiry.sweep()
    assert len(store.swept_at) == 2
    assert store.mark.stopped_since_ms is None


@on_loop
async def test_the_mark_is_kept_once_a_minute() -> None:
    """Sweeping each second does not write each second; within a boot the time moves on and the offset is kept."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    first = store.mark
    for _ in range(119):
        clock.advance(1000)
        await expiry.sweep()
    assert store.kept == 2
    clock.leap(5000)
    await expiry.sweep()
    assert store.kept == 2, "a small leap is no reason to write"
    clock.advance(1000)
    await expiry.sweep()
    assert store.kept == 3
    assert store.mark == Mark(first.boot_id, first.offset_ms, clock.now_ms())
    clock.reboot("boot-2", after_ms=MINUTE)
    await expiry.sweep()
    assert store.mark == Mark("boot-2", clock.now_ms(), clock.now_ms()), (
        "another boot has another offset, at once"
    )


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("restarted", [False, True])
@on_loop
async def test_many_small_leaps_are_one_large_one(way: int, restarted: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Leaps of 50 minutes, each of which would pass, add up to an alarm, over restarts of the daemon too."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    for leap in range(3):
        # Long enough for the mark to be written, and for a leap back not to fall behind it.
        clock.advance(HOUR)
        await expiry.sweep()
        clock.advance(HOUR)
        clock.leap(way * 50 * MINUTE)
        if restarted:
            expiry = Expiry(store, clock)
        await expiry.sweep()
        assert (expiry.stop_reason is not None) == (leap > 0)
    assert expiry.stop_reason is not None
    assert ("forward" if way > 0 else "back") in expiry.stop_reason


@on_loop
async def test_the_clock_is_judged_for_others_too() -> None:
    """`believed_now` is the wall time, and None as long as expiry is stopped, whoever asks first."""
    clock = FakeClock()
    expiry = Expiry(ScriptedStore(), clock)
    assert await expiry.believed_now() == clock.now_ms()
    clock.leap(72 * HOUR)
    assert await expiry.believed_now() is None
    assert expiry.stopped_since_ms == clock.now_ms()
    clock.leap(-72 * HOUR)
    assert await expiry.believed_now() == clock.now_ms()


@pytest.mark.parametrize("leap_ms", [96 * HOUR, -96 * HOUR])
@on_loop
async def test_what_a_wrong_clock_registered_is_dated_anew(leap_ms: int) -> None:
    """Once the clock is back, what was registered meanwhile counts from now on, before anything is expired."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.leap(leap_ms)
    stopped = clock.now_ms()
    await expiry.sweep()
    assert store.asked == [(stopped - MINUTE, stopped, 2**62)]
    clock.advance(5 * MINUTE)
    clock.leap(-leap_ms)
    await expiry.sweep()
    now = clock.now_ms()
    assert store.redated == [(7, now - MINUTE, now), (17, now - MINUTE, now)]
    assert store.swept_at[1:] == [now]
    assert len(store.asked) == 1


@pytest.mark.parametrize("way", ["admin", "synchronised"])
@on_loop
async def test_a_clock_that_was_right_after_all_dates_nothing_anew(way: str) -> None:
    """Trusted as it stood all the time, the clock dated right what was registered since the stop."""
    clock = FakeClock(synchronised=way == "synchronised")
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.leap(96 * HOUR)
    await expiry.sweep()
    if way == "admin":
        await expiry.resume()
    else:
        for _ in range(11):
            clock.advance(MINUTE)
            await expiry.sweep()
    assert expiry.stopped_since_ms is None
    assert store.redated == []


@on_loop
async def test_a_process_that_comes_later_knows_what_is_in_question() -> None:
    """Started anew while expiry is stopped, the daemon looks for what was registered since the stop by its time."""
    clock = FakeClock()
    store = ScriptedStore()
    await Expiry(store, clock).sweep()
    clock.leap(-96 * HOUR)
    await Expiry(store, clock).sweep()
    stopped = clock.now_ms()
    clock.advance(HOUR)
    later = Expiry(store, clock)
    await later.sweep()
    assert store.asked[1:] == [(stopped - MINUTE, stopped + HOUR, 2**62)]
    clock.leap(96 * HOUR)
    await later.sweep()
    assert len(store.redated) == 2


@pytest.mark.parametrize(
    ("leap_ms", "asks"), [(96 * HOUR, "the future"), (-96 * HOUR, None), (-START_MS + HOUR, "long ago")]
)
@on_loop
async def test_a_clock_set_right_while_the_daemon_was_down(leap_ms: int, asks: str | None) -> None:
    """Then only what bears an impossible time is dated anew: one in the future, or before this program was."""
    clock = FakeClock()
    store = ScriptedStore()
    await Expiry(store, clock).sweep()
    clock.leap(leap_ms)
    await Expiry(store, clock).sweep()
    clock.advance(HOUR)
    clock.leap(-leap_ms)
    store.asked.clear()
    await Expiry(store, clock).sweep()
    now = clock.now_ms()
    expected = {
        None: [],
        "the future": [(now + 1, 2**62, now - MINUTE)],
        "long ago": [(-(2**62), EARLIEST_MS - 1, now - MINUTE)],
    }
    assert store.asked == expected[asks]
    assert len(store.redated) == (2 if asks else 0)
    assert store.mark.stopped_since_ms is None


@on_loop
async def test_a_clock_without_a_battery_is_never_believed() -> None:
    """A new queue on a machine that starts in 1970 expires nothing until the clock is set, and then at once."""
    clock = FakeClock(5 * MINUTE)
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    for _ in range(3):
        assert await expiry.sweep() == 0
        clock.advance(1000)
    assert store.swept_at == []
    assert expiry.stop_reason is not None
    assert "1970-01-01" in expiry.stop_reason
    clock.leap(START_MS)
    await expiry.sweep()
    assert store.swept_at == [clock.now_ms()]
    assert len(store.redated) == 2


@on_loop
async def test_two_who_ask_at_once_judge_once() -> None:
    """Expiry and retention asking in the same moment date anew and trust the clock a single time."""
    clock = FakeClock()
    store = ScriptedStore()
    expiry = Expiry(store, clock)
    await expiry.sweep()
    clock.leap(-96 * HOUR)
    await expiry.sweep()
    clock.leap(96 * HOUR)
    kept = store.kept
    assert set(await asyncio.gather(expiry.believed_now(), expiry.believed_now())) == {clock.now_ms()}
    assert len(store.redated) == 2
    assert store.kept == kept + 1
