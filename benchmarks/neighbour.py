"""Does an account with a million pending receipts slow a small one? Requests of the small one, side by side.

A real queue on the disk with a paused account of many pending receipts, or without it; a second account sends receipts
one at a time. Run ``python -m benchmarks.neighbour [PENDING]``; it prints receipts a second, medians over rounds that
take turns, and their ratio.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Acknowledged, Cut, RefusalPolicy
from dlr_buffer.storage.migrate import ensure_schema
from tests.integration.storage.harness import Queue, opened

ROUNDS = 15
RECEIPTS = 100
POLICY = RefusalPolicy(5, 1_000_000, lambda _: 1_000)


async def one_round(queue: Queue, number: int) -> float:
    """Report, claim and acknowledge some receipts one by one; returns receipts a second."""
    began = time.perf_counter()
    for each in range(RECEIPTS):
        await queue.report((f"r{number}-{each}", MessageState.DELIVERED), account="small")
        claim = await queue.store.claim("small", limit=1, excluding=(), cut=lambda _: Cut(1))
        await queue.store.claim_due("small", now_ms=queue.clock.now_ms(), horizon_ms=600_000)
        await queue.store.settle(
            "small",
            acknowledged=[Acknowledged(claim.claimed[0].receipt.request_id, "1")],
            policy=POLICY,
            now_ms=queue.clock.now_ms(),
        )
    return RECEIPTS / (time.perf_counter() - began)


async def compare(pending: int) -> None:
    """Fill one of two queues, and take turns."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("empty.db", "full.db")]
        for path in paths:
            await asyncio.to_thread(ensure_schema, path)
        accounts = ("small", "big")
        async with opened(paths[0], accounts=accounts) as empty, opened(paths[1], accounts=accounts) as full:
            for start in range(0, pending, 1_000):
                await full.report(
                    *((f"m{start + each}", MessageState.DELIVERED) for each in range(1_000)), account="big"
                )
            rates: dict[str, list[float]] = {"empty": [], "full": []}
            for number in range(ROUNDS):
                rates["empty"].append(await one_round(empty, number))
                rates["full"].append(await one_round(full, number))
            alone, beside = (statistics.median(rates[name]) for name in ("empty", "full"))
            print(f"alone {alone:.0f}/s, beside {pending} pending {beside:.0f}/s, ratio {beside / alone:.2f}")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(compare(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
