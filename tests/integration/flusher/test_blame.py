"""Blame by evidence: bisecting, refusals that count, and servers that refuse everything (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dlr_buffer.health import HealthState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptError, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.flusher.bench import (
    BAD,
    HOUR,
    Bench,
    bad_ones,
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


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("proven", [False, True], ids=["fresh start", "after successes"])
@on_loop
async def test_one_bad_in_a_hundred_wherever_it_stands(path: Path, concurrency: int, proven: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """One bad receipt in a batch of 100 dies, the 99 others go through, in at most 20 requests, wherever it is."""
    async with flushing(path, flush_settings(concurrency=concurrency), start=False) as bench:
        worst = 0
        for position in range(100):
            bench.upstream.requests.clear()
            bench.flusher = bench.new_flusher(bench.flusher.settings)
            bench.upstream.closed = False
            bench.flusher.start()
            if proven:
                bench.upstream.answer = ok
                await bench.fill(3, f"proof{position}-")
                await bench.drained()
                bench.upstream.requests.clear()
            bench.upstream.answer = bad_ones(f"p{position}-{position}")
            ids = await bench.fill(100, f"p{position}-")
            await bench.drained()
            assert bench.counted(DEAD) == position + 1
            worst = max(worst, len(bench.upstream.requests))
            assert len(bench.upstream.requests) <= 20, (position, bench.upstream.sizes)
            dead = await bench.queue.receipt(ids[position])
            assert (dead.status, dead.refusals, dead.error) == (DEAD, 5, BAD)
            await bench.flusher.stop(0)
        print(worst)
