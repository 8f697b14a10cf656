"""What time does, on a real file: expiry in chunks, retention, and the use of disk."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.expiry import Expiry
from dlr_buffer.messages import Registration
from dlr_buffer.receipts import ReceiptAction, RefusalPolicy
from dlr_buffer.retention import Retention, RetentionSettings
from dlr_buffer.storage import sweeping, writer
from tests.integration.storage.harness import (
    ACCEPTED,
    ACKNOWLEDGED,
    DAY,
    DEAD,
    DELIVERED,
    ENROUTE,
    EXPIRED,
    HELD,
    HOUR,
    PENDING,
    SUPERSEDED,
    VALIDITY,
    Queue,
    opened,
    rows,
)
from tests.loops import on_loop


def retention(queue: Queue) -> Retention:
    """Retention of 7 and 30 days over a queue, by a clock that is believed."""

    async def now() -> int:
        return queue.clock.now_ms()

    return Retention(queue.store, now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY))


@on_loop
async def test_each_message_at_its_own_deadline(path: Path) -> None:
    """A message expires at the millisecond its own period ends, not before, and once."""
    async with opened(path) as queue:
        await queue.register("short", validity=1)
        await queue.register("long", validity=30 * 86_400)
        await queue.register("default")
        queue.clock.advance(999)
        assert await queue.expire() == 0
        queue.clock.advance(1)
        assert await queue.expire() == 1
        assert await queue.expire() == 0
        queue.clock.advance(VALIDITY)
        assert await queue.expire() == 1
        assert (await queue.message("long")).state is None
        queue.clock.advance(30 * DAY)
        assert await queue.expire() == 1
        for name in ("short", "default", "long"):
            view = await queue.view(name)
            assert [each.receipt.message_state for each in view.receipts] == [EXPIRED]
        assert queue.heard.events["expired"] == 3
        assert queue.heard.fresh["default"] == 3


@pytest.mark.parametrize("extra", [-1, 0, 1])
@on_loop
async def test_equal_deadlines_over_chunk_borders(path: Path, extra: int) -> None:
    """Messages with one deadline are all expired, once each, where a chunk ends among them."""
    number = 2 * sweeping.EXPIRED_AT_ONCE + extra
    async with opened(path) as queue:
        await queue.register(*(f"m{n}" for n in range(number)))
        queue.clock.advance(VALIDITY)
        first = await queue.store.expire_chunk(queue.clock.now_ms())
        assert (first.expired, first.more) == (sweeping.EXPIRED_AT_ONCE, True)
        await queue.register("late")
        assert await queue.expire() == number - sweeping.EXPIRED_AT_ONCE
        assert rows(path, "SELECT count(*), count(DISTINCT message) FROM receipts") == [(number, number)]


@on_loop
async def test_final_ones_are_passed_over(path: Path) -> None:
    """Thousands of final messages before a waiting one are looked at once and do not hide it."""
    number = sweeping.EXAMINED_AT_ONCE + 10
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", DELIVERED) for n in range(number)))
        queue.clock.advance(1)
        await queue.register("waits")
        queue.clock.advance(VALIDITY)
        first = await queue.store.expire_chunk(queue.clock.now_ms())
        assert (first.expired, first.examined, first.more) == (0, sweeping.EXAMINED_AT_ONCE, True)
        assert await queue.expire() == 1
        assert (await queue.message("waits")).state is EXPIRED


@on_loop
async def test_catching_up_oldest_first(path: Path) -> None:
    """After downtime the overdue follow in the order of their deadlines, whatever the order of registration."""
    async with opened(path) as queue:
        for n in (5, 1, 4, 2, 3):
            await queue.register(f"m{n}", validity=n * 1000)
    queue.clock.advance(90 * DAY)
    async with opened(path, queue.clock) as queue:
        assert await queue.expire() == 5
        claim = await queue.store.claim_these("default", [1, 2, 3, 4, 5])
        assert [each.receipt.message_id for each in claim.claimed] == ["m1", "m2", "m3", "m4", "m5"]


@on_loop
async def test_expiry_supersedes_what_waits(path: Path) -> None:
    """Pending, backing-off and held intermediate receipts are superseded by expiry; one in flight ends first."""
    async with opened(path) as queue:
        ids = {name: await queue.report_one(name, ENROUTE) for name in ("flies", "refused", "held", "dead")}
        await queue.claim()
        await queue.settle(refused=[ids["refused"]], returned=[ids["held"]])
        await queue.settle(refused=[ids["dead"]], policy=RefusalPolicy(1, DAY, lambda _: 1))
        await queue.act(ReceiptAction.HOLD, ids["held"])
        ids["pending"] = await queue.report_one("pending", ENROUTE)
        queue.clock.advance(VALIDITY)
        assert await queue.expire() == 5
        expected = {
            "flies": PENDING,
            "refused": SUPERSEDED,
            "held": SUPERSEDED,
            "dead": DEAD,
            "pending": SUPERSEDED,
        }
        for name, status in expected.items():
            assert await queue.statuses(name) == [(ENROUTE, status), (EXPIRED, PENDING)], name
        assert len(await queue.claim()) == 4
        await queue.settle(acknowledged=[ids["flies"]])
        assert len(await queue.claim()) == 1
        assert await queue.statuses("flies") == [(ENROUTE, ACKNOWLEDGED), (EXPIRED, PENDING)]


@on_loop
async def test_the_mark_follows_a_clock_set_back(path: Path) -> None:
    """Messages registered after the clock was set back behind the mark still expire at their deadlines."""
    async with opened(path) as queue:
        await queue.register("first", validity=60)
        queue.clock.advance(HOUR)
        assert await queue.expire() == 1
        queue.clock.leap(-2 * HOUR)
        await queue.register("second", validity=60)
        await queue.report(("third", ENROUTE))
        await queue.register("third", validity=60)
        assert await queue.expire() == 0
        queue.clock.advance(60_000)
        assert await queue.expire() == 2
        assert rows(path, "SELECT count(*) FROM receipts WHERE state = 7") == [(3,)]


@on_loop
async def test_an_idle_sweep_writes_nothing(path: Path) -> None:
    """Looking for what is due, expiry or retention, commits nothing if there is none."""
    async with opened(path) as queue:
        await queue.register("m")
        commits = queue.store._writer.commits
        assert await queue.expire() == 0
        assert await retention(queue).sweep() == 0
        assert queue.store._writer.commits == commits


@on_loop
async def test_a_clock_alarm_outlives_a_restart(path: Path) -> None:
    """Expiry stopped by a leap is stopped after a restart too, and an admin's word is kept as well."""
    async with opened(path) as queue:
        await queue.register("m")
        expiry = Expiry(queue.store, queue.clock)
        assert await expiry.sweep() == 0
        queue.clock.leap(100 * HOUR)
        assert await expiry.sweep() == 0
        stopped = expiry.stopped_since_ms
    async with opened(path, queue.clock) as queue:
        expiry = Expiry(queue.store, queue.clock)
        assert await expiry.sweep() == 0
        assert (expiry.stopped_since_ms, "leapt forward" in (expiry.stop_reason or "")) == (stopped, True)
        assert (await queue.message("m")).state is None
        await expiry.resume()
    async with opened(path, queue.clock) as queue:
        assert await Expiry(queue.store, queue.clock).sweep() == 1


@on_loop
async def test_retention_by_status(path: Path) -> None:
    """Acknowledged and superseded ones go after 7 days, dead ones after 30, what is pending or held never."""
    async with opened(path) as queue:
        await queue.report_one("acknowledged", ENROUTE)
        await queue.report_one("acknowledged", DELIVERED)
        await queue.acknowledge_all()
        await queue.kill("dead")
        held = await queue.report_one("held", DELIVERED)
        await queue.act(ReceiptAction.HOLD, held)
        await queue.report_one("pending", DELIVERED)
        queue.clock.advance(7 * DAY)
        assert await retention(queue).sweep() == 0
        queue.clock.advance(1)
        assert await retention(queue).sweep() == 2
        assert await queue.gone("acknowledged")
        queue.clock.advance(23 * DAY)
        assert await retention(queue).sweep() == 1
        assert await queue.gone("dead")
        assert queue.heard.events["purged_dead"] == 1
        assert queue.heard.events["purged"] == 2
        queue.clock.advance(900 * DAY)
        assert await retention(queue).sweep() == 0
        assert await queue.statuses("held") == [(DELIVERED, HELD)]
        assert await queue.statuses("pending") == [(DELIVERED, PENDING)]
        assert await queue.report_one("acknowledged", ENROUTE) == 6, "purged, so the id is new"


@on_loop
async def test_a_waiting_message_stays(path: Path) -> None:
    """A message without final state keeps its place when its last receipt is purged, and goes on as ever."""
    async with opened(path) as queue:
        await queue.register("m", validity=30 * 86_400)
        await queue.report_one("m", ENROUTE)
        await queue.acknowledge_all()
        queue.clock.advance(8 * DAY)
        assert await retention(queue).sweep() == 1
        view = await queue.view("m")
        assert (view.message.state, view.receipts) == (ENROUTE, ())
        assert await queue.report_one("m", DELIVERED) == 2
        await queue.acknowledge_all()
        queue.clock.advance(8 * DAY)
        await retention(queue).sweep()
        assert await queue.gone("m")


@on_loop
async def test_chains_lose_their_oldest_first(path: Path) -> None:
    """While an older receipt must stay, the newer ones of its message stay too, so the chain is never cut."""
    async with opened(path) as queue:
        dead = await queue.kill("m", ENROUTE)
        await queue.report_one("m", ACCEPTED)
        await queue.acknowledge_all()
        await queue.report_one("m", DELIVERED)
        await queue.acknowledge_all()
        queue.clock.advance(8 * DAY)
        assert await retention(queue).sweep() == 0
        assert len((await queue.view("m")).receipts) == 3
        await queue.act(ReceiptAction.DELETE, dead)
        assert await retention(queue).sweep() == 2
        assert await queue.gone("m")


@on_loop
async def test_the_bereft_go_after_their_time(path: Path) -> None:
    """A final message whose last receipt was deleted is remembered for the retention, then the id is new."""
    async with opened(path) as queue:
        await queue.register("other")
        one = await queue.report_one("m", DELIVERED)
        await queue.act(ReceiptAction.DELETE, one)
        queue.clock.advance(7 * DAY)
        await retention(queue).sweep()
        assert not await queue.gone("m")
        queue.clock.advance(1)
        await retention(queue).sweep()
        assert await queue.gone("m")
        assert not await queue.gone("other")


@on_loop
async def test_the_future_does_not_stop_retention(path: Path) -> None:
    """Receipts made while the clock stood years ahead do not keep all later ones from being purged."""
    async with opened(path) as queue:
        queue.clock.leap(3000 * DAY)
        await queue.report_one("future", DELIVERED)
        queue.clock.leap(-3000 * DAY)
        await queue.report_one("now", DELIVERED)
        await queue.acknowledge_all()
        queue.clock.advance(8 * DAY)
        assert await retention(queue).sweep() == 2


@on_loop
async def test_a_long_walk_meets_every_chunk(path: Path) -> None:
    """More receipts than one window and one chunk hold are all purged in one sweep, young ones left alone."""
    async with opened(path) as queue:
        number = 3 * sweeping.PURGED_AT_ONCE + 7
        await queue.report(*((f"m{n}", DELIVERED) for n in range(number)))
        await queue.acknowledge_all()
        queue.clock.advance(8 * DAY)
        await queue.report(*((f"young{n}", DELIVERED) for n in range(5)))
        await queue.acknowledge_all()
        assert await retention(queue).sweep() == number
        assert rows(path, "SELECT count(*) FROM messages") == [(5,)]


@on_loop
async def test_looking_for_the_bereft_writes_nothing(path: Path) -> None:
    """As long as no final message without receipts is old enough, looking for one commits nothing."""
    async with opened(path) as queue:
        await queue.act(ReceiptAction.DELETE, await queue.report_one("m", DELIVERED))
        commits = queue.store.facts().commits
        deleted_at = queue.clock.now_ms()
        assert (await queue.store.purge_bereft(before_ms=deleted_at)).messages == 0
        assert queue.store.facts().commits == commits
        assert (await queue.store.purge_bereft(before_ms=deleted_at + 1)).messages == 1
        assert queue.store.facts().commits == commits + 1
        assert await queue.gone("m")


@on_loop
async def test_retention_stops_with_expiry(path: Path) -> None:
    """A clock that leapt a year ahead purges nothing; once it is back, retention goes on by the right time."""
    async with opened(path) as queue:
        expiry = Expiry(queue.store, queue.clock)
        walk = Retention(
            queue.store, expiry.believed_now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY)
        )
        await queue.report_one("m", DELIVERED)
        await queue.acknowledge_all()
        assert await walk.sweep() == 0
        queue.clock.leap(365 * DAY)
        assert await walk.sweep() == 0
        assert await queue.statuses("m") == [(DELIVERED, ACKNOWLEDGED)]
        queue.clock.leap(-365 * DAY)
        queue.clock.advance(7 * DAY + 1)
        assert await walk.sweep() == 1


@on_loop
async def test_freed_space_is_reused(path: Path) -> None:
    """Rounds of filling and purging do not let the file grow: the pages of what was purged are used again."""
    sizes = []
    async with opened(path) as queue:
        for round_ in range(4):
            await queue.report(*((f"{round_}-{n}", DELIVERED) for n in range(2000)))
            await queue.acknowledge_all()
            queue.clock.advance(8 * DAY)
            await retention(queue).sweep()
            with closing(sqlite3.connect(path)) as database:
                sizes.append(database.execute("PRAGMA page_count").fetchone()[0])
    assert sizes[3] <= sizes[1] * 1.05


@on_loop
async def test_the_log_is_bounded(path: Path) -> None:
    """After many megabytes of commits the write-ahead log was started over, again and again."""
    async with opened(path) as queue:
        highest = 0
        for chunk in range(60):
            await queue.register(*(f"{chunk}-{n}-{'x' * 200}" for n in range(1000)))
            highest = max(highest, queue.store.facts().wal_bytes)
        assert queue.store.facts().checkpoints >= 2
        assert highest < 14 * 2**20


@on_loop
async def test_a_foreign_reader_does_not_stop_the_writer(path: Path) -> None:
    """A program that sits on a snapshot keeps the log from starting over, but commits go on without waiting for it."""
    async with opened(path) as queue:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            for chunk in range(30):
                await queue.register(*(f"{chunk}-{n}-{'x' * 200}" for n in range(1000)))
                if other.in_transaction:
                    other.execute("COMMIT")
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM accounts").fetchone()
            for n in range(50):
                await queue.register(f"single{n}")
            other.execute("COMMIT")
        # The first brings all of the log in, the second is written at its start.
        for late in ("last", "one more"):
            await queue.register(late)
            async with queue.hold_writer():
                pass
        assert not queue.store._writer.files.log_reaches(writer.CHECKPOINT_BYTES)
        assert queue.store.facts().wal_bytes <= writer.LONGEST_LOG_BYTES


@on_loop
async def test_a_log_that_became_too_long_is_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a foreign reader made of the log is given back once it is gone; else the file keeps its length."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 1_000_000)
    monkeypatch.setattr(writer, "LONGEST_LOG_BYTES", 4_000_000)
    lengths: list[int] = []
    async with opened(path) as queue:
        for reading in (False, True, False):
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                if reading:
                    other.execute("BEGIN")
                    other.execute("SELECT count(*) FROM accounts").fetchone()
                for chunk in range(8):
                    await queue.register(*(f"{len(lengths)}-{chunk}-{n}-{'x' * 200}" for n in range(1000)))
                async with queue.hold_writer():
                    lengths.append(queue.store.facts().wal_bytes)
        assert 1_000_000 < lengths[0] < 4_000_000 < lengths[1]
        assert lengths[2] < 4_000_000


@on_loop
async def test_sweeps_wait_for_singles(path: Path) -> None:
    """A chunk of expiry is small, and what apps ask meanwhile is committed with it, not after the whole sweep."""
    async with opened(path) as queue:
        items = [Registration(f"m{n}", "default", 1) for n in range(5 * sweeping.EXPIRED_AT_ONCE)]
        await queue.store.register(items, default_validity_ms=VALIDITY, now_ms=queue.clock.now_ms())
        queue.clock.advance(HOUR)
        sweep = asyncio.create_task(queue.expire())
        expired_at_answer: list[int] = []
        while not sweep.done():
            await queue.register(f"single{len(expired_at_answer)}")
            expired_at_answer.append(queue.store.counts().messages["default"]["expired"])
        await sweep
        assert expired_at_answer[0] < len(items)
