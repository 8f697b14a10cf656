"""What the machines found, each as the shortest story that shows it (see docs/reliability.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from dlr_buffer.receipts import ReceiptAction, Reported
from dlr_buffer.retention import Retention, RetentionSettings
from dlr_buffer.storage.store import SqliteStore
from tests.clocks import FakeClock
from tests.integration.storage.harness import (
    ACCEPTED,
    ACKNOWLEDGED,
    DAY,
    DELIVERED,
    ENROUTE,
    HELD,
    PENDING,
    SUPERSEDED,
    Heard,
    Queue,
)
from tests.integration.store.database import Database
from tests.loops import on_loop

HOLD, RELEASE, RETRY, DELETE = (
    ReceiptAction.HOLD,
    ReceiptAction.RELEASE,
    ReceiptAction.RETRY,
    ReceiptAction.DELETE,
)


@asynccontextmanager
async def opened(database: Database, *, killed: bool = False) -> AsyncIterator[Queue]:
    """Open a queue with the account ``default``; it is killed or closed at the end, and checked then."""
    clock = FakeClock()
    await database.open(clock, ["default"])
    # The calls of `Queue` are those of the protocols; what its store's listeners hear is not seen here.
    yield Queue(cast(SqliteStore, database.store), clock, Heard())
    await (database.crash() if killed else database.close())
    database.check()


async def kill_in_mid_flight(database: Database) -> None:
    """Receipt 1 was overtaken by receipt 2 while it was on the wire, and then the daemon was killed."""
    async with opened(database, killed=True) as queue:
        await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [1]
        await queue.report_one("m", ACCEPTED)


async def sweep(queue: Queue) -> None:
    """Retention, by a clock that is believed."""

    async def now() -> int:
        return queue.clock.now_ms()

    await Retention(queue.store, now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY)).sweep()


@on_loop
async def test_overtaken_and_refused_after_the_newer_was_deleted(make: Callable[[], Database]) -> None:
    """A receipt overtaken on the wire ends superseded when refused, as when given back, though the newer is deleted."""
    async with opened(make()) as queue:
        old = await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [old]
        new = await queue.report_one("m", ACCEPTED)
        assert await queue.act(DELETE, new) == (1, 0, 0)
        settled = await queue.settle(refused=[old])
        assert (settled.superseded, settled.refused) == (1, 0)
        assert await queue.status(old) is SUPERSEDED
        assert (await queue.receipt(old)).refusals == 1


@on_loop
async def test_holding_what_a_kill_left_behind_overtaken(make: Callable[[], Database]) -> None:
    """Held after a kill, an overtaken receipt is superseded; it does not wait for an admin for ever."""
    database = make()
    await kill_in_mid_flight(database)
    async with opened(database) as queue:
        assert await queue.act(HOLD, 1, 2) == (2, 0, 0)
        assert await queue.status(1) is SUPERSEDED
        assert await queue.status(2) is HELD
        assert await queue.act(RELEASE, 1, 2) == (1, 1, 0)
        assert await queue.acknowledge_all() == 1


@on_loop
async def test_attempts_of_what_a_cancelled_claim_left_behind_overtaken(make: Callable[[], Database]) -> None:
    """Superseded by an admin's retry, an overtaken receipt keeps the attempts that no row knew of."""
    database = make()
    async with opened(database) as queue:
        old = await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [old]
        await queue.settle(returned=[old])
        assert await queue.claim() == [old]
        await queue.report_one("m", ACCEPTED)
        await database.lose_claims("default", [old])
        assert await queue.act(RETRY, old) == (1, 0, 0)
        receipt = await queue.receipt(old)
        assert (receipt.status, receipt.attempts) == (SUPERSEDED, 1)


@on_loop
async def test_deleting_the_newer_of_what_a_kill_left_behind_overtaken(make: Callable[[], Database]) -> None:
    """The older receipt is not sent in place of the newer one that an admin deleted."""
    database = make()
    await kill_in_mid_flight(database)
    async with opened(database) as queue:
        assert await queue.act(DELETE, 2) == (1, 0, 0)
        assert await queue.status(1) is SUPERSEDED
        assert await queue.claim() == []


@on_loop
async def test_a_deleted_final_receipt_beside_an_old_one(make: Callable[[], Database]) -> None:
    """Purging an older receipt does not take a message with it whose final one was deleted a moment ago."""
    async with opened(make()) as queue:
        await queue.register("m", validity=30 * 86_400)
        old = await queue.report_one("m", ENROUTE)
        assert await queue.acknowledge_all() == 1
        assert await queue.status(old) is ACKNOWLEDGED
        queue.clock.advance(8 * DAY)
        final = await queue.report_one("m", DELIVERED)
        assert await queue.status(final) is PENDING
        await queue.act(DELETE, final)
        await sweep(queue)
        (again,) = await queue.report(("m", DELIVERED))
        assert isinstance(again, Reported)
        assert again.receipt is None, "a deleted receipt was revived"
        queue.clock.advance(7 * DAY)
        await sweep(queue)
        assert not await queue.gone("m")
        queue.clock.advance(1)
        await sweep(queue)
        assert await queue.gone("m")


@on_loop
async def test_an_answer_that_is_written_twice(make: Callable[[], Database]) -> None:
    """What was settled already, or whose claim was lost, stays as it is; what came in the same answer is settled.

    Before, the whole answer failed, and would have been tried again for ever.
    """
    database = make()
    async with opened(database) as queue:
        first, lost, other = [await queue.report_one(each, DELIVERED) for each in ("a", "b", "c")]
        assert await queue.claim() == [first, lost, other]
        assert (await queue.settle(acknowledged=[first])).acknowledged == 1
        await database.lose_claims("default", [lost])
        assert await queue.act(HOLD, lost) == (1, 0, 0)
        settled = await queue.settle(acknowledged=[lost, other], refused=[first])
        assert (settled.acknowledged, settled.refused, settled.dead) == (1, 0, 0)
        assert await queue.status(first) is ACKNOWLEDGED
        assert await queue.status(lost) is HELD
        assert await queue.status(other) is ACKNOWLEDGED
        assert (await queue.receipt(first)).refusals == 0


@on_loop
async def test_what_is_given_back_after_it_was_settled(make: Callable[[], Database]) -> None:
    """A receipt that is returned a second time was not on the wire once more, and is nobody's to claim."""
    async with opened(make()) as queue:
        number = await queue.report_one("a", DELIVERED)
        assert await queue.claim() == [number]
        await queue.settle(refused=[number])
        await queue.settle(returned=[number])
        receipt = await queue.receipt(number)
        assert (receipt.attempts, receipt.refusals) == (1, 1)
        assert await queue.claim() == []
