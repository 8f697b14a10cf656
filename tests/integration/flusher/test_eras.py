"""Evidence and eras: what an outage, a long wait, or a server's change of mind must not do to a queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dlr_buffer.flusher.suspicion import MAX_BLAMED
from dlr_buffer.health import HealthState
from dlr_buffer.receipts import Receipt, ReceiptError, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.flusher.bench import (
    HOUR,
    MINUTE,
    SECOND,
    bad_ones,
    entries,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
    wrong_password,
)
from tests.loops import on_loop

ACKNOWLEDGED, DEAD, PENDING = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.DEAD, ReceiptStatus.PENDING
DAY = 24 * HOUR


@pytest.mark.parametrize("rows", [MAX_BLAMED - 5, 100])
@on_loop
async def test_an_outage_and_then_refusals_of_everything_kill_nothing(path: Path, rows: int) -> None:
    """What was tried during an outage is no evidence: the first success after it speaks against nobody."""
    async with flushing(path) as bench:
        bench.upstream.answer = lambda _: outage()
        await bench.fill(rows)
        await bench.pass_time(HOUR)
        went_through = 0

        def once_then_refuse(receipts: Sequence[Receipt]) -> Answer:
            nonlocal went_through
            went_through += 1
            return ok(receipts) if went_through == 1 else refused()

        bench.upstream.answer = once_then_refuse
        await bench.pass_time(2 * HOUR)
        assert bench.counted(ACKNOWLEDGED) == 1
        assert bench.counted(DEAD) == 0
        assert bench.state() is HealthState.REJECTING
        bench.upstream.answer = ok
        await bench.drained()
        assert bench.counted(ACKNOWLEDGED) == rows


@on_loop
async def test_a_server_that_turns_bad_in_the_middle_kills_few(path: Path) -> None:
    """Refusals one after another with no success between put the account in question, evidence or not."""
    async with flushing(path, flush_settings(concurrency=1, max_receipts=1)) as bench:
        await bench.fill(200)
        bench.upstream.shut_after = 1
        await bench.idle()
        bench.upstream.gate.set()
        bench.upstream.answer = lambda _: refused()
        await bench.pass_time(6 * HOUR)
        assert bench.state() is HealthState.REJECTING
        assert bench.counted(DEAD) <= MAX_BLAMED
        bench.upstream.answer = ok
        await bench.drained()


@on_loop
async def test_a_long_suspension_is_not_held_against_a_receipt(path: Path) -> None:
    """After eight days of a wrong password, a first refusal does not kill: lifetime begins with it."""
    async with flushing(path, flush_settings(auth_probe_ms=HOUR)) as bench:
        bench.upstream.answer = lambda _: wrong_password()
        ids = await bench.fill(10)
        await bench.pass_time(8 * DAY)
        fault = ReceiptError("missing-entry", "No entry", "")
        faulted: list[int] = []

        def lack_one(receipts: Sequence[Receipt]) -> Answer:
            lacking = [each.request_id for each in receipts if each.request_id == ids[5] and not faulted]
            faulted.extend(lacking)
            return entries(receipts, lambda each: fault if each.request_id in lacking else None)

        bench.upstream.answer = lack_one
        await bench.drained()
        assert bench.counted(DEAD) == 0
        assert bench.counted(ACKNOWLEDGED) == 10
        assert faulted == [ids[5]]


@on_loop
async def test_refusals_after_the_lifetime_kill(path: Path) -> None:
    """A receipt that is refused again, a lifetime after its first refusal, is given up before max_refusals."""
    async with flushing(path, flush_settings(lifetime_ms=10 * MINUTE, max_refusals=1000)) as bench:
        bench.upstream.answer = bad_ones("m0")
        (bad, *_) = await bench.fill(10)
        await bench.drained(within_ms=HOUR)
        receipt = await bench.queue.receipt(bad)
        assert receipt.status is DEAD
        assert 2 <= receipt.refusals < 20


@on_loop
async def test_a_poison_receipts_retry_after_is_its_own(path: Path) -> None:
    """A receipt that alone draws 503 with a long Retry-After waits by itself; the others go on."""
    async with flushing(path) as bench:
        bench.upstream.answer = bad_ones("poison", answer=lambda _: outage(retry_after_ms=2 * MINUTE))
        await bench.fill(5, "before")
        await bench.drained()
        (poison,) = await bench.report("poison")
        stopped = 0
        for turn in range(400):
            await bench.fill(2, f"good{turn}-")
            await bench.pass_time(10 * SECOND)
            stopped += bench.state() is not HealthState.OPEN
            if await bench.queue.status(poison) is DEAD:
                break
        assert await bench.queue.status(poison) is DEAD
        assert stopped <= 40, "of hundreds of looks: a few first doubts"


@on_loop
async def test_a_late_success_does_not_end_a_backoff(path: Path) -> None:
    """An acknowledgement of a request sent before the account fell leaves the wait that the server asked for."""
    async with flushing(path, flush_settings(concurrency=2, max_receipts=1)) as bench:
        bench.upstream.gate.clear()
        bench.upstream.answer = bad_ones("m0", answer=lambda _: outage(retry_after_ms=MINUTE))
        await bench.fill(20)
        await bench.idle()
        assert len(bench.upstream.requests) == 2
        bench.upstream.gate.set()
        await bench.pass_time(MINUTE - SECOND)
        assert len(bench.upstream.requests) == 2
        assert bench.state() is HealthState.BACKING_OFF
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == 19)


@on_loop
async def test_an_account_that_comes_back_leaves_nobody_behind(path: Path) -> None:
    """Suspects and asides of a flusher that was stopped by a reload are sent by the next one."""
    async with flushing(path, flush_settings(concurrency=2)) as bench:
        bench.upstream.answer = bad_ones("m3", "m60", answer=lambda _: outage())
        await bench.fill(5, "proof")
        await bench.fill(100)
        await bench.pass_time(2 * SECOND)
        assert bench.flusher.view().set_aside > 0
        await bench.flusher.stop(1_000)
        bench.upstream.closed = False
        bench.upstream.answer = ok
        bench.flusher = bench.new_flusher(bench.flusher.settings)
        bench.flusher.start()
        await bench.drained(within_ms=HOUR)
        assert bench.counted(ACKNOWLEDGED) == 105


@on_loop
async def test_a_lingering_batch_is_not_looked_at_for_every_arrival(path: Path) -> None:
    """While a batch lingers, arrivals that can't fill it don't wake the loop; one that fills it does."""
    async with flushing(path, flush_settings(linger_ms=10 * SECOND, max_receipts=10)) as bench:
        await bench.report("first")
        await bench.idle()
        turns = bench.flusher.turns
        for number in range(8):
            await bench.report(f"more{number}")
            await bench.idle()
        assert bench.flusher.turns == turns
        assert bench.pending() == 9
        await bench.report("last")
        await bench.idle()
        assert bench.upstream.sizes == [10]
        assert bench.counted(PENDING) == 0
