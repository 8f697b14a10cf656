"""Blame by evidence: bisecting, refusals that count, and servers that refuse everything (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from dlr_buffer.health import HealthState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptError, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.flusher.bench import (
    BAD,
    HOUR,
    MINUTE,
    SECOND,
    bad_ones,
    dump,
    entries,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
)
from tests.loops import on_loop

ACKNOWLEDGED, DEAD, PENDING = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.DEAD, ReceiptStatus.PENDING
NOT_FOUND = ReceiptError("http-404", "Not Found", "")
INTERNAL = ReceiptError("internal", "Internal error", "Something went wrong")


@pytest.mark.parametrize(
    ("concurrency", "proven"),
    [(1, False), (4, True)],
    ids=["fresh start, one at once", "after successes, four"],
)
@on_loop
async def test_one_bad_in_a_hundred_wherever_it_stands(
    path: Path,
    concurrency: int,
    proven: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """One bad receipt in a batch of 100 dies with Smartswitch's error, the 99 others go through.

    In at most 20 requests with all the refusals, wherever it stands.
    """
    async with flushing(path, flush_settings(concurrency=concurrency), start=False) as bench:
        for position in range(100):
            bench.flusher = bench.new_flusher(bench.flusher.settings)
            bench.upstream.closed = False
            bench.upstream.answer = bad_ones(f"p{position}-{position}")
            bench.flusher.start()
            if proven:
                await bench.fill(3, f"proof{position}-")
                await bench.drained()
            bench.upstream.requests.clear()
            ids = await bench.fill(100, f"p{position}-")
            await bench.drained(within_ms=MINUTE)
            assert len(bench.upstream.requests) <= 20, (position, bench.upstream.sizes)
            dead = await bench.queue.receipt(ids[position])
            assert (dead.status, dead.refusals, dead.error) == (DEAD, 5, BAD)
            assert bench.counted(DEAD) == position + 1
            await bench.flusher.stop(5_000)
        assert bench.counted(ACKNOWLEDGED) == 9_900 + 300 * proven


@pytest.mark.parametrize("positions", [(0, 1), (0, 99), (49, 50), (98, 99), tuple(range(5, 100, 10))])
@pytest.mark.parametrize("concurrency", [1, 4])
@on_loop
async def test_several_bad_ones_in_a_hundred(
    path: Path, concurrency: int, positions: tuple[int, ...]
) -> None:
    """Two or ten bad receipts in a batch of 100 are found, and all the others go through."""
    async with flushing(path, flush_settings(concurrency=concurrency)) as bench:
        bench.upstream.answer = bad_ones(*(f"m{position}" for position in positions))
        ids = await bench.fill(100)
        await bench.drained(within_ms=5 * MINUTE)
        dead = [position for position in range(100) if await bench.queue.status(ids[position]) is DEAD]
        assert tuple(dead) == positions
        assert bench.counted(ACKNOWLEDGED) == 100 - len(positions)
        assert len(bench.upstream.requests) <= 20 * len(positions)


@on_loop
async def test_refusals_wait_their_own_backoff_and_go_alone(path: Path) -> None:
    """Between refusals lies the receipt's own growing backoff, and it is alone on the wire each time."""
    async with flushing(path, flush_settings(max_refusals=4)) as bench:
        bench.upstream.answer = bad_ones("bad")
        (bad,) = await bench.report("bad", wake=False)
        await bench.fill(20)
        await bench.drained()
        times = [
            at
            for at, request in zip(bench.upstream.times, bench.upstream.requests, strict=True)
            if [each.request_id for each in request] == [bad]
        ]
        waits = [later - earlier for earlier, later in pairwise(times)]
        assert waits[-3:] == [1000, 2000, 4000]
        receipt = await bench.queue.receipt(bad)
        assert (receipt.status, receipt.refusals) == (DEAD, 4)
        assert receipt.attempts == sum(
            bad in [each.request_id for each in request] for request in bench.upstream.requests
        )


@pytest.mark.parametrize("error", [NOT_FOUND, INTERNAL], ids=["404", "internal"])
@pytest.mark.parametrize("shape", ["refused", "entries"])
@pytest.mark.parametrize("proven", [False, True], ids=["from the start", "in mid-operation"])
@on_loop
async def test_a_server_that_refuses_everything_for_an_hour_kills_nothing(
    path: Path,
    proven: bool,  # noqa: FBT001 - a parameter of the test
    shape: str,
    error: ReceiptError,
) -> None:
    """An hour of the same refusal for everything.

    Rejecting, single probes each with another receipt, nothing refused; once it is mended everything goes
    through.
    """

    def refuse(receipts: Sequence[Receipt]) -> Answer:
        return refused(error) if shape == "refused" else entries(receipts, lambda _: error)

    async with flushing(path, flush_settings(max_receipts=20)) as bench:
        if proven:
            await bench.fill(200, "proof")
            await bench.drained()
        bench.upstream.answer = refuse
        ids = await bench.fill(300)
        await bench.until(lambda: bench.state() is HealthState.REJECTING)
        bench.upstream.requests.clear()
        before = dump(path)
        await bench.pass_time(HOUR)
        assert bench.state() is HealthState.REJECTING
        assert bench.flusher.view().cause == f"{error.code}: {error.title}"
        assert bench.counted(DEAD) == 0
        assert bench.counted(PENDING) == 300
        assert dump(path) == before
        probes = [each.request_id for request in bench.upstream.requests for each in request]
        assert set(bench.upstream.sizes) == {1}
        assert 10 <= len(probes) == len(set(probes)), "each time another one"
        bench.upstream.answer = ok
        await bench.drained(within_ms=15 * MINUTE)
        assert bench.counted(DEAD) == 0
        assert bench.counted(ACKNOWLEDGED) == 300 + 200 * proven
        assert bench.state() is HealthState.OPEN
        assert all([(await bench.queue.receipt(each)).refusals == 0 for each in ids[::30]])


@on_loop
async def test_the_only_receipt_refused_waits_for_evidence(path: Path) -> None:
    """A refused receipt that is alone in the queue is not blamed until another one is acknowledged."""
    async with flushing(path) as bench:
        bench.upstream.answer = bad_ones("bad")
        (bad,) = await bench.report("bad")
        await bench.pass_time(HOUR)
        assert (await bench.queue.receipt(bad)).refusals == 0
        assert bench.state() is HealthState.REJECTING
        await bench.fill(1)
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == 1, within_ms=10 * MINUTE)
        assert bench.state() is HealthState.OPEN
        await bench.drained()
        assert await bench.queue.status(bad) is DEAD


@on_loop
async def test_a_replay_begins_without_evidence(path: Path) -> None:
    """What was acknowledged before an admin's retry is no evidence after it.

    The replayed receipt alone makes the account rejecting, and dies only after another one was acknowledged
    since.
    """
    async with flushing(path, flush_settings(max_refusals=2)) as bench:
        bench.upstream.answer = bad_ones("bad")
        await bench.report("bad", "good")
        await bench.drained()
        (bad,) = [each.request_id for each in bench.upstream.requests[-1]]
        assert await bench.queue.status(bad) is DEAD
        bench.clock.advance(SECOND)
        assert await bench.queue.act(ReceiptAction.RETRY, bad) == (1, 0, 0)
        bench.flusher.wake()
        await bench.pass_time(HOUR)
        receipt = await bench.queue.receipt(bad)
        assert (receipt.status, receipt.refusals) == (PENDING, 0)
        assert bench.state() is HealthState.REJECTING
        await bench.fill(1)
        await bench.drained()
        assert await bench.queue.status(bad) is DEAD


@on_loop
async def test_fresh_receipts_keep_half_the_sends_while_refused_ones_drain(path: Path) -> None:
    """While 1,000 refused receipts are tried again one by one, at least every second request carries fresh ones."""
    async with flushing(path, flush_settings(concurrency=4, max_receipts=1, max_refusals=2)) as bench:
        refusing = True
        error = ReceiptError("status", "failed", "")
        bench.upstream.answer = lambda receipts: entries(
            receipts, lambda each: error if refusing and each.message_id.startswith("m") else None
        )
        bench.change(health=flush_settings(max_receipts=2000).health)
        await bench.report("witness", *(f"m{number}" for number in range(1_000)))
        await bench.idle()
        assert bench.pending() == 1000
        bench.change(health=flush_settings(concurrency=4, max_receipts=1).health)
        refusing = False
        await bench.fill(1000, "fresh")
        bench.upstream.requests.clear()
        bench.clock.advance(2 * SECOND)
        bench.upstream.shut_after = 500
        await bench.until(lambda: len(bench.upstream.requests) >= 500)
        kinds = [request[0].message_id.startswith("fresh") for request in bench.upstream.requests]
        assert abs(sum(kinds) - len(kinds) // 2) <= 4, "they take turns"
        longest = max(len(list(run)) for fresh, run in groupby(kinds) if not fresh)
        assert longest <= 2


@on_loop
async def test_suspects_given_up_elsewhere_do_not_strand_the_others(path: Path) -> None:
    """If an admin deletes the whole half that is to be sent next, the other half goes on without being woken."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        bench.upstream.answer = lambda receipts: (
            refused() if len(bench.upstream.requests) == 1 else ok(receipts)
        )
        bench.upstream.gate.clear()
        ids = await bench.fill(10)
        await bench.idle()
        bench.flusher.pause()
        bench.upstream.gate.set()
        await bench.idle()
        await bench.queue.act(ReceiptAction.DELETE, *ids[:5])
        bench.flusher.resume()
        await bench.drained(within_ms=0)
        assert bench.counted(ACKNOWLEDGED) == 5


@on_loop
async def test_a_first_state_refused_while_its_account_is_down_is_not_lost(path: Path) -> None:
    """Refusals and outages in turns end with every good receipt acknowledged and nothing in flight."""
    async with flushing(path, flush_settings(concurrency=2, max_receipts=10)) as bench:

        def answer(receipts: Sequence[Receipt]) -> Answer:
            if len(bench.upstream.requests) % 3 == 0:
                return outage()
            return refused() if any(each.message_id == "m17" for each in receipts) else ok(receipts)

        bench.upstream.answer = answer
        await bench.fill(60)
        await bench.drained(within_ms=HOUR)
        assert bench.counted(ACKNOWLEDGED) == 59
        assert bench.counted(DEAD) == 1
        assert bench.flusher.view().in_flight_receipts == 0
