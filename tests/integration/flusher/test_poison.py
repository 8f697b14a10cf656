"""One poison receipt must not stop an account: receipts that draw outages while others go through (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dlr_buffer.health import HealthState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.flusher.bench import (
    HOUR,
    MINUTE,
    SECOND,
    Bench,
    bad_ones,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
    wrong_password,
)
from tests.loops import on_loop

ACKNOWLEDGED, DEAD, PENDING = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.DEAD, ReceiptStatus.PENDING
POISONS = {
    "500": lambda: outage("http-500"),
    "timeout": lambda: outage("timeout"),
    "403 without the code": lambda: wrong_password(coded=False),
    "503 with Retry-After": lambda: outage("http-503", retry_after_ms=2 * SECOND),
}


async def trickle(bench: Bench, *, every_ms: int, rows: int, times: int) -> None:
    """Report a few good messages now and then."""
    for turn in range(times):
        await bench.fill(rows, f"good{bench.clock.monotonic_ms()}-{turn}-")
        await bench.pass_time(every_ms)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", POISONS)
@on_loop
async def test_poison_among_a_trickle_dies_and_stops_nobody(path: Path, kind: str, concurrency: int) -> None:
    """A receipt that alone draws 500s.

    Timeouts or bare 403s among good ones is a dead letter (`upstream-error`) after ten strikes and then
    `max_refusals`; good ones go through all the time.
    """
    settings = flush_settings(concurrency=concurrency, max_refusals=3, auth_probe_ms=30 * SECOND)
    async with flushing(path, settings) as bench:
        bench.upstream.answer = bad_ones("poison", answer=lambda _: POISONS[kind]())
        await bench.fill(5, "before")
        await bench.drained()
        (poison,) = await bench.report("poison")
        most_waiting = 0
        for turn in range(600):
            await bench.fill(3, f"good{turn}-")
            await bench.pass_time(10 * SECOND)
            waiting = bench.pending() - (await bench.queue.status(poison) is PENDING)
            most_waiting = max(most_waiting, waiting)
            if await bench.queue.status(poison) is DEAD:
                break
        receipt = await bench.queue.receipt(poison)
        assert receipt.status is DEAD
        assert receipt.error is not None
        assert receipt.error.code == "upstream-error"
        assert receipt.refusals == 3
        alone = sum([each.request_id for each in request] == [poison] for request in bench.upstream.requests)
        assert alone >= 10 + 3 - 1
        assert most_waiting <= 3 * 10, "the others were held up for longer than a few probes take"
        await bench.fill(1)
        await bench.drained()
        assert bench.state() is HealthState.OPEN


@pytest.mark.parametrize("position", [0, 50, 99])
@pytest.mark.parametrize("concurrency", [1, 2, 4])
@on_loop
async def test_poison_in_a_flood_of_good_ones(path: Path, concurrency: int, position: int) -> None:
    """In a backlog of thousands, poison keeps neither the queue nor its neighbours of the batch.

    They all go through, in not many more requests than without it, and it dies.
    """
    async with flushing(path, flush_settings(concurrency=concurrency)) as bench:
        bench.upstream.answer = bad_ones(f"m{position}", answer=lambda _: outage("http-500"))
        ids = await bench.fill(3000)
        await bench.until(lambda: bench.pending() == 1, within_ms=10 * MINUTE)
        assert await bench.queue.status(ids[position]) is PENDING
        assert len(bench.upstream.requests) < 150, bench.upstream.sizes
        await trickle(bench, every_ms=MINUTE, rows=1, times=120)
        assert await bench.queue.status(ids[position]) is DEAD
        assert bench.counted(DEAD) == 1


@on_loop
async def test_a_refused_and_a_poisonous_one_in_the_same_batch(path: Path) -> None:
    """A batch with one receipt that is refused and one that draws 500s is sorted out while good ones go on."""
    async with flushing(path, flush_settings(concurrency=4)) as bench:

        def answer(receipts: Sequence[Receipt]) -> Answer:
            names = {each.message_id for each in receipts}
            if "m70" in names:
                return refused()
            return outage("http-500") if "m20" in names else ok(receipts)

        bench.upstream.answer = answer
        ids = await bench.fill(100)
        await trickle(bench, every_ms=10 * SECOND, rows=5, times=200)
        assert await bench.queue.status(ids[70]) is DEAD
        assert await bench.queue.status(ids[20]) is DEAD
        assert bench.counted(DEAD) == 2
        assert bench.counted(ACKNOWLEDGED) == 98 + 1000
        assert bench.pending() == 0


@on_loop
async def test_an_outage_of_everything_convicts_nobody(path: Path) -> None:
    """A receipt that drew some outages alone while others went through is not held guilty of a general outage."""
    async with flushing(path, flush_settings(concurrency=2)) as bench:
        down = False

        def answer(receipts: Sequence[Receipt]) -> Answer:
            odd = any(each.message_id == "odd" for each in receipts)
            return outage("http-500") if down or odd else ok(receipts)

        bench.upstream.answer = answer
        await bench.fill(3, "before")
        await bench.drained()
        (odd,) = await bench.report("odd")
        await trickle(bench, every_ms=10 * SECOND, rows=1, times=6)
        down = True
        await bench.fill(5, "later")
        await bench.pass_time(8 * HOUR)
        receipt = await bench.queue.receipt(odd)
        assert (receipt.status, receipt.refusals) == (PENDING, 0)
        bench.upstream.answer = ok
        await bench.drained()
        assert bench.counted(DEAD) == 0


@on_loop
async def test_outages_with_successes_between_are_no_strikes(path: Path) -> None:
    """Ten in a row are needed: random outages of a flaky server never convict a receipt."""
    async with flushing(path, flush_settings(concurrency=4, max_receipts=1)) as bench:
        bench.upstream.answer = lambda receipts: (
            outage("timeout") if len(bench.upstream.requests) % 3 == 0 else ok(receipts)
        )
        await bench.fill(200)
        await bench.drained(within_ms=HOUR)
        assert bench.counted(ACKNOWLEDGED) == 200


@on_loop
async def test_a_flaky_server_costs_few_requests(path: Path) -> None:
    """Where every twentieth request fails for no reason, the batches stay batches."""
    async with flushing(path, flush_settings(concurrency=4)) as bench:
        bench.upstream.answer = lambda receipts: (
            outage("timeout") if len(bench.upstream.requests) % 20 == 19 else ok(receipts)
        )
        await bench.fill(8_000)
        await bench.drained(within_ms=MINUTE)
        assert len(bench.upstream.requests) < 120


@on_loop
async def test_a_replay_is_innocent_again(path: Path) -> None:
    """A dead letter of ten strikes that is retried has to draw ten outages again before one counts."""
    async with flushing(path, flush_settings(max_refusals=1)) as bench:
        bench.upstream.answer = bad_ones("poison", answer=lambda _: outage("http-500"))
        (poison,) = await bench.report("poison")

        async def strikes_until_dead() -> int:
            bench.upstream.requests.clear()
            for turn in range(60):
                await bench.fill(1, f"good{bench.clock.monotonic_ms()}-{turn}")
                await bench.pass_time(10 * MINUTE)
                if await bench.queue.status(poison) is DEAD:
                    break
            else:
                raise AssertionError
            return sum(
                [each.request_id for each in request] == [poison] for request in bench.upstream.requests
            )

        assert await strikes_until_dead() >= 10
        bench.clock.advance(SECOND)
        await bench.queue.act(ReceiptAction.RETRY, poison)
        assert await strikes_until_dead() >= 10
