"""What the machines found, each as the shortest story that shows it (see docs/reliability.md)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dlr_buffer.receipts import ReceiptAction, Reported
from dlr_buffer.retention import Retention, RetentionSettings
from tests.integration.storage.harness import (
    ACCEPTED,
    ACKNOWLEDGED,
    DAY,
    DELIVERED,
    ENROUTE,
    HELD,
    PENDING,
    SUPERSEDED,
    Queue,
    crash_copy,
    opened,
)
from tests.loops import on_loop

HOLD, RELEASE, RETRY, DELETE = (
    ReceiptAction.HOLD,
    ReceiptAction.RELEASE,
    ReceiptAction.RETRY,
    ReceiptAction.DELETE,
)


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    """An empty queue of this test's own."""
    return Path(shutil.copyfile(migrated, tmp_path / "queue.db"))


async def killed_in_mid_flight(path: Path) -> Path:
    """Receipt 1 was overtaken by receipt 2 while it was on the wire, and then the daemon was killed."""
    killed = path.with_name("killed.db")
    async with opened(path) as queue:
        await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [1]
        await queue.report_one("m", ACCEPTED)
        crash_copy(path, killed)
    return killed


async def sweep(queue: Queue) -> None:
    """Retention, by a clock that is believed."""

    async def now() -> int:
        return queue.clock.now_ms()

    await Retention(queue.store, now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY)).sweep()


@on_loop
async def test_overtaken_and_refused_after_the_newer_was_deleted(path: Path) -> None:
    """A receipt overtaken on the wire ends superseded when refused, as when given back, though the newer is deleted."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [old]
        new = await queue.report_one("m", ACCEPTED)
        assert await queue.act(DELETE, new) == (1, 0, 0)
        settled = await queue.settle(refused=[old])
        assert (settled.superseded, settled.refused) == (1, 0)
        assert await queue.status(old) is SUPERSEDED
        assert (await queue.receipt(old)).refusals == 1


@on_loop
async def test_holding_what_a_kill_left_behind_overtaken(path: Path) -> None:
    """Held after a kill, an overtaken receipt is superseded; it does not wait for an admin for ever."""
    async with opened(await killed_in_mid_flight(path)) as queue:
        assert await queue.act(HOLD, 1, 2) == (2, 0, 0)
        assert await queue.status(1) is SUPERSEDED
        assert await queue.status(2) is HELD
        assert queue.heard.events["superseded"] == 1
        assert await queue.act(RELEASE, 1, 2) == (1, 1, 0)
        assert await queue.acknowledge_all() == 1


@on_loop
async def test_attempts_of_what_a_cancelled_claim_left_behind_overtaken(path: Path) -> None:
    """Superseded by an admin's retry, an overtaken receipt keeps the attempts that no row knew of."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        assert await queue.claim() == [old]
        await queue.settle(returned=[old])
        assert await queue.claim() == [old]
        await queue.report_one("m", ACCEPTED)
        queue.store._writer.claims.release(1, [old])
        assert await queue.act(RETRY, old) == (1, 0, 0)
        receipt = await queue.receipt(old)
        assert (receipt.status, receipt.attempts) == (SUPERSEDED, 1)
        assert not queue.store._writer.claims.unwritten_attempts(old)


@on_loop
async def test_deleting_the_newer_of_what_a_kill_left_behind_overtaken(path: Path) -> None:
    """The older receipt is not sent in place of the newer one that an admin deleted."""
    async with opened(await killed_in_mid_flight(path)) as queue:
        assert await queue.act(DELETE, 2) == (1, 0, 0)
        assert await queue.status(1) is SUPERSEDED
        assert await queue.claim() == []


@on_loop
async def test_a_deleted_final_receipt_beside_an_old_one(path: Path) -> None:
    """Purging an older receipt does not take a message with it whose final one was deleted a moment ago."""
    async with opened(path) as queue:
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
