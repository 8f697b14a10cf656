"""What bad receipts cost the good ones: requests, server time and CPU until all good ones are acknowledged.

The flusher on a real queue, against a scripted Smartswitch that takes 50 ms a request; time is simulated, CPU is real.
For each way of being bad and 0.1 %, 1 % and 10 % of bad ones, compared with none. Run
``python -m benchmarks.poison [RECEIPTS]`` from the project's folder. Only the ratios count.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlr_buffer.receipts import Receipt, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from dlr_buffer.storage.migrate import ensure_schema
from tests.integration.flusher.bench import HOUR, Bench, flush_settings, flushing
from tests.integration.flusher.poison import BATCH, KINDS, Poison

REQUEST_MS = 50
SHARES = (0.001, 0.01, 0.1)


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took until every good receipt was acknowledged."""

    requests: int
    simulated_ms: int
    cpu_s: float


class _Slow:
    """Answers as the bench's upstream does, after `REQUEST_MS`."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        await self._bench.clock.sleep(REQUEST_MS)
        return await self._bench.upstream.send(receipts)

    async def aclose(self) -> None:
        await self._bench.upstream.aclose()


async def measure(poison: Poison) -> Cost:
    """Send them all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue.db"
        await asyncio.to_thread(ensure_schema, path)
        async with flushing(path, flush_settings(max_receipts=BATCH), start=False) as bench:
            bench.upstream.answer = poison.answerer()
            bench.flusher._upstream = _Slow(bench)  # noqa: SLF001 - the bench has no slowness of its own
            await bench.fill(poison.rows)
            bench.flusher.start()
            began, cpu = bench.clock.monotonic_ms(), time.process_time()
            await bench.until(
                lambda: bench.counted(ReceiptStatus.ACKNOWLEDGED) == poison.good, within_ms=24 * HOUR
            )
            return Cost(
                len(bench.upstream.requests),
                bench.clock.monotonic_ms() - began,
                time.process_time() - cpu,
            )


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    none = asyncio.run(measure(Poison("errors", rows, 0)))
    print(f"{rows} receipts in batches of {BATCH}, {REQUEST_MS} ms a request, 4 at once")
    print(f"{'':18}{'requests':>10}{'good ones/s':>13}{'ratio':>8}{'CPU s':>8}{'ratio':>8}")
    for name, poison in [("none", None)] + [
        (f"{kind} {share:.1%}", Poison(kind, rows, share)) for kind in KINDS for share in SHARES
    ]:
        cost = none if poison is None else asyncio.run(measure(poison))
        good = rows if poison is None else poison.good
        rate = good / cost.simulated_ms * 1000
        print(
            f"{name:18}{cost.requests:>10}{rate:>13.0f}{rate / (rows / none.simulated_ms * 1000):>8.2f}"
            f"{cost.cpu_s:>8.1f}{cost.cpu_s / none.cpu_s:>8.1f}"
        )


if __name__ == "__main__":
    main()
