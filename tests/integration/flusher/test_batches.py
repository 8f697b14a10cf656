"""When a batch closes, how many requests go at once, and how fast (DESIGN §4, *Request*)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptStatus
from dlr_buffer.smartswitch import wire
from dlr_buffer.smartswitch.answers import Answer, TooLarge
from tests.integration.flusher.bench import (
    HOUR,
    SECOND,
    bad_ones,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
)
from tests.loops import on_loop


@on_loop
async def test_a_batch_waits_for_company_exactly_as_long_as_linger(path: Path) -> None:
    """A batch that is not full goes `linger` after its oldest receipt came, with all that came meanwhile."""
    async with flushing(path, flush_settings(linger_ms=250)) as bench:
        await bench.fill(3)
        await bench.pass_time(100)
        await bench.fill(2, "later")
        await bench.pass_time(149)
        assert bench.upstream.requests == []
        await bench.pass_time(1)
        assert bench.upstream.names == [["m0", "m1", "m2", "later0", "later1"]]


@on_loop
async def test_a_full_batch_does_not_wait(path: Path) -> None:
    """A batch closes at `max_receipts` at once, whatever the linger; the rest waits on."""
    async with flushing(path, flush_settings(linger_ms=HOUR, max_receipts=10)) as bench:
        await bench.fill(23)
        await bench.idle()
        assert bench.upstream.sizes == [10, 10]
        await bench.pass_time(HOUR)
        assert bench.upstream.sizes == [10, 10, 3]


@on_loop
async def test_a_batch_closes_at_the_last_byte_that_fits(path: Path) -> None:
    """The budget of bytes is used to the last one and never passed, and what it closes does not linger."""
    async with flushing(path, start=False) as bench:
        await bench.fill(9)
        page = await bench.queue.store.claim_these("default", list(range(1, 10)))
        receipts = [each.receipt for each in page.claimed]
        await bench.queue.settle(returned=[each.request_id for each in receipts])
        exact = sum(wire.encoded_length(each) for each in receipts[:4])
        for budget, expected in ((exact, [4, 4]), (exact - 1, [3, 3, 3])):
            bench.upstream.requests.clear()
            bench.upstream.answer = lambda _: outage(retry_after_ms=HOUR)
            bench.upstream.gate.clear()
            bench.flusher = bench.new_flusher(flush_settings(linger_ms=HOUR, budget_bytes=budget))
            bench.upstream.closed = False
            bench.flusher.start()
            await bench.idle()
            # The last ones are a batch that is not full: with the first budget one receipt lingers.
            assert bench.upstream.sizes == expected[: len(bench.upstream.sizes)]
            assert sum(bench.upstream.sizes) >= 6
            bench.upstream.gate.set()
            await bench.idle()
            await bench.flusher.stop(0)


@on_loop
async def test_never_more_requests_at_once_than_configured(path: Path) -> None:
    """`concurrency` requests are under way at once when there is work, and never one more."""
    async with flushing(path, flush_settings(concurrency=3, max_receipts=5)) as bench:
        bench.upstream.gate.clear()
        await bench.fill(100)
        await bench.idle()
        assert bench.upstream.in_flight == 3
        view = bench.flusher.view()
        assert (view.in_flight_requests, view.in_flight_receipts) == (3, 15)
        bench.upstream.gate.set()
        await bench.drained()
        assert bench.upstream.most_in_flight == 3
        assert bench.upstream.sizes == [5] * 20


@pytest.mark.parametrize("rate", [2.0, 3.0, 0.5, 7000.0])
@on_loop
async def test_no_more_requests_a_second_than_configured(path: Path, rate: float) -> None:
    """However much waits, requests keep the distance that the rate limit asks for, also when it is no whole number."""
    async with flushing(path, flush_settings(max_receipts=1, rate_limit=rate)) as bench:
        await bench.fill(21)
        await bench.drained()
        assert len(bench.upstream.times) == 21
        span = bench.upstream.times[-1] - bench.upstream.times[0]
        assert 20 * SECOND / rate - 1 <= span <= 20 * SECOND / rate + 1, "to the clock's millisecond"


@pytest.mark.parametrize(("rate", "waits_ms"), [(0.0, 0), (0.5, SECOND), (0.01, 99 * SECOND)])
@on_loop
async def test_another_rate_limit_holds_at_once(path: Path, rate: float, waits_ms: int) -> None:
    """After a reload the next request keeps the new distance from the last one, whatever the old limit asked for."""
    async with flushing(path, flush_settings(max_receipts=1, rate_limit=0.001)) as bench:
        await bench.fill(2)
        await bench.pass_time(SECOND)
        assert bench.upstream.sizes == [1]
        bench.change(rate_limit=rate)
        await bench.pass_time(waits_ms - 2)
        assert bench.upstream.sizes == ([1] if waits_ms else [1, 1])
        await bench.pass_time(2)
        assert bench.upstream.sizes == [1, 1]


@on_loop
async def test_too_large_halves_and_grows_back(path: Path) -> None:
    """413 halves the account's batches until they fit; each acknowledged batch lets them grow by one."""
    async with flushing(path, flush_settings(concurrency=1, max_receipts=16)) as bench:
        fits = 5
        bench.upstream.answer = lambda receipts: TooLarge(413) if len(receipts) > fits else ok(receipts)
        await bench.fill(16)
        await bench.drained()
        assert bench.upstream.sizes[:3] == [16, 8, 4]
        assert all(size <= 6 for size in bench.upstream.sizes[3:])
        assert bench.counted(ReceiptStatus.DEAD) == 0
        fits = 100
        await bench.fill(300, "n")
        await bench.drained()
        limits = bench.upstream.sizes[-20:]
        assert max(bench.upstream.sizes[-25:]) == 16
        assert limits[:-1] == sorted(limits[:-1])
        assert bench.flusher.view().batch_limit == 16


@pytest.mark.parametrize("status", [413, 414, 431])
@on_loop
async def test_a_receipt_too_large_alone_is_refused(path: Path, status: int) -> None:
    """A receipt that is too large even alone is refused on the evidence of the others, and dies."""
    async with flushing(path, flush_settings(max_receipts=8)) as bench:
        bench.upstream.answer = lambda receipts: (
            TooLarge(status) if any(each.message_id == "m3" for each in receipts) else ok(receipts)
        )
        ids = await bench.fill(8)
        await bench.drained()
        dead = await bench.queue.receipt(ids[3])
        assert dead.status is ReceiptStatus.DEAD
        assert dead.error is not None
        assert dead.error.code == f"http-{status}"
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 7


@pytest.mark.parametrize("outcome", ["acknowledged", "outage", "refused"])
@on_loop
async def test_a_newer_state_waits_for_the_older_one_in_flight(path: Path, outcome: str) -> None:
    """A newer state is not sent while the older one is in flight.

    That ends as acknowledged, or superseded by any other outcome, and the newer one goes at once.
    """
    async with flushing(path) as bench:
        (older,) = await bench.report("m", state=MessageState.ENROUTE, wake=False)
        bench.upstream.gate.clear()
        bench.flusher.wake()
        await bench.until(lambda: bench.upstream.in_flight == 1)
        (newer,) = await bench.report("m")
        await bench.fill(5, "other")
        await bench.idle()
        assert ["m"] in bench.upstream.names
        assert sum("m" in names for names in bench.upstream.names) == 1

        def answer(receipts: Sequence[Receipt]) -> Answer:
            if older not in [each.request_id for each in receipts] or outcome == "acknowledged":
                return ok(receipts)
            return outage() if outcome == "outage" else refused()

        bench.upstream.answer = answer
        bench.upstream.gate.set()
        await bench.drained()
        expected = ReceiptStatus.ACKNOWLEDGED if outcome == "acknowledged" else ReceiptStatus.SUPERSEDED
        assert await bench.queue.status(older) is expected
        assert await bench.queue.status(newer) is ReceiptStatus.ACKNOWLEDGED
        order = [each.request_id for request in bench.upstream.requests for each in request]
        assert order.count(older) == 1
        assert order.index(older) < order.index(newer)


@on_loop
async def test_what_an_admin_takes_away_during_a_bisection_is_not_sent(path: Path) -> None:
    """Receipts deleted or held while they are suspects are left out; the others still go through."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        bench.upstream.answer = bad_ones("m70")
        bench.upstream.gate.clear()
        ids = await bench.fill(100)
        await bench.idle()
        bench.flusher.pause()
        bench.upstream.gate.set()
        await bench.idle()
        assert bench.upstream.sizes == [100]
        assert bench.flusher.view().set_aside == 100
        assert await bench.queue.act(ReceiptAction.DELETE, *ids[:50]) == (50, 0, 0)
        assert await bench.queue.act(ReceiptAction.HOLD, ids[60]) == (1, 0, 0)
        bench.flusher.resume()
        await bench.drained()
        assert bench.counted(ReceiptStatus.DEAD) == 1
        assert bench.counted(ReceiptStatus.ACKNOWLEDGED) == 48
        sent = {name for names in bench.upstream.names[1:] for name in names}
        assert sent == {f"m{number}" for number in range(50, 100) if number != 60}
