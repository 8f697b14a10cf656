"""What dating messages anew does to rows, on a real file; when it is done is the unit tests' of expiry."""

from __future__ import annotations

from pathlib import Path

import dlr_buffer.storage.redating
from dlr_buffer.errors import Conflict
from dlr_buffer.receipts import Registered
from dlr_buffer.retention import Retention, RetentionSettings
from tests.clocks import START_MS, FakeClock
from tests.integration.storage.harness import DAY, DELIVERED, ENROUTE, HOUR, VALIDITY, Queue, opened
from tests.loops import on_loop

MINUTE = 60_000
ABOVE_ALL = 2**62


async def first(
    queue: Queue, at_least_ms: int, at_most_ms: int, passing_over_since_ms: int = ABOVE_ALL
) -> int:
    """Number of the first message in question."""
    return await queue.store.first_in_question(
        at_least_ms=at_least_ms, at_most_ms=at_most_ms, passing_over_since_ms=passing_over_since_ms
    )


async def date_anew(queue: Queue, first_number: int) -> None:
    """Date everything from that number on, in chunks."""
    now = queue.clock.now_ms()
    at: int | None = first_number
    while at is not None:
        at = await queue.store.redate_chunk(at, right_since_ms=now - MINUTE, now_ms=now)


@on_loop
async def test_what_is_in_question_is_found_from_the_newest_on(path: Path) -> None:
    """The run of newest messages between two times; newer ones that are right may be passed over; else none."""
    async with opened(path) as queue:
        assert await first(queue, 0, ABOVE_ALL) == 1, "an empty queue has none"
        for number, minute in enumerate((0, 10, 20, -500, -490, -480, 30, 31)):
            queue.clock.leap(START_MS + minute * MINUTE - queue.clock.now_ms())
            await queue.register(f"m{number + 1}")
        back = START_MS - 500 * MINUTE, START_MS - 480 * MINUTE
        assert await first(queue, *back, START_MS + 30 * MINUTE) == 4
        assert await first(queue, *back) == 9, "the newest ones are not in question"
        assert await first(queue, START_MS, ABOVE_ALL) == 7
        assert await first(queue, START_MS + 40 * MINUTE, ABOVE_ALL) == 9


@on_loop
async def test_a_long_run_is_found_in_steps(path: Path) -> None:
    """More messages than are looked at at once make no difference."""
    async with opened(path) as queue:
        await queue.register("before")
        queue.clock.leap(-96 * HOUR)
        for chunk in range(6):
            await queue.register(*(f"m{chunk}-{number}" for number in range(1_000)))
        assert dlr_buffer.storage.redating.LOOKED_AT_ONCE < 6_000
        assert await first(queue, queue.clock.now_ms(), queue.clock.now_ms()) == 2
        queue.clock.leap(96 * HOUR)
        await date_anew(queue, 2)
        assert await queue.expire() == 0
        queue.clock.advance(VALIDITY)
        assert await queue.expire() == 6_001


@on_loop
async def test_who_waits_is_dated_anew_and_who_is_right_or_final_is_not(path: Path) -> None:
    """Waiting and intermediate ones have their validity period from now on; final and right ones stay as they are."""
    async with opened(path) as queue:
        await queue.register("before")
        queue.clock.leap(-96 * HOUR)
        await queue.register("waiting", validity=3600)
        await queue.report(("enroute", ENROUTE))
        await queue.report(("delivered", DELIVERED))
        wrong = await queue.message("delivered")
        queue.clock.leap(96 * HOUR)
        await queue.register("right")
        queue.clock.advance(MINUTE // 2)
        await date_anew(queue, 2)
        now = queue.clock.now_ms()
        assert (await queue.message("waiting")).registered_at_ms == now
        assert (await queue.message("waiting")).expires_at_ms == now + HOUR
        assert (await queue.message("enroute")).expires_at_ms == now + VALIDITY
        assert await queue.message("delivered") == wrong
        assert (await queue.message("right")).registered_at_ms == now - MINUTE // 2
        assert (await queue.message("before")).registered_at_ms == START_MS
        again, other = (
            (await queue.register("waiting", validity=3600))[0],
            (await queue.register("waiting", validity=7200))[0],
        )
        assert isinstance(again, Registered)
        assert isinstance(other, Conflict)
        assert await queue.expire() == 0
        queue.clock.advance(HOUR - 1)
        assert await queue.expire() == 0
        queue.clock.advance(1)
        assert await queue.expire() == 1
        queue.clock.advance(VALIDITY)
        assert await queue.expire() == 3


@on_loop
async def test_expiry_looks_again_where_it_has_looked_in_the_future(path: Path) -> None:
    """A mark of expiry that a wrong clock left days ahead does not hide what is dated anew."""
    async with opened(path) as queue:
        queue.clock.leap(96 * HOUR)
        await queue.register("early", validity=1)
        queue.clock.advance(HOUR)
        assert await queue.expire() == 1
        await queue.register("ahead", validity=60)
        queue.clock.leap(-96 * HOUR)
        await date_anew(queue, 2)
        queue.clock.advance(MINUTE)
        assert await queue.expire() == 1


@on_loop
async def test_what_a_clock_without_battery_settled_is_kept_from_now_on(path: Path) -> None:
    """A dead letter of 1970, a minute old, is not purged: its retention begins with the first look at it."""
    clock = FakeClock(5 * MINUTE)
    async with opened(path, clock) as queue:
        dead = await queue.kill("dead")
        acknowledged = await queue.report_one("acknowledged", DELIVERED)
        await queue.acknowledge_all()
        queue.clock.leap(START_MS)

        async def now() -> int:
            return queue.clock.now_ms()

        retention = Retention(queue.store, now, RetentionSettings(7 * DAY, 30 * DAY))
        await retention.sweep()
        queue.clock.advance(7 * DAY)
        await retention.sweep()
        assert await queue.store.receipt(acknowledged) is not None
        queue.clock.advance(MINUTE)
        await retention.sweep()
        assert await queue.store.receipt(acknowledged) is None
        assert await queue.store.receipt(dead) is not None
        queue.clock.advance(23 * DAY)
        await retention.sweep()
        assert await queue.store.receipt(dead) is None
