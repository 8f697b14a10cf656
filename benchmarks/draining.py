"""How fast do pending receipts drain to Smartswitch? Beside a bare httpx loop that sends ready-made requests to a sink.

In batches of 100, and one receipt a request; and with an upstream that takes 50 ms, where all of the pipeline has to be
full. The account is paused while it is filled, and the time runs from `resume` until the sink has everything.
``python -m benchmarks.draining [ROUNDS]`` prints the tables. Peers are in `against_peers`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ids, raw
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import DaemonProcess, SinkServer, daemon, sink
from benchmarks.harness.tables import Rounds, Table, short

CONCURRENCY = 4
SLOW_MS = 50


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain came to."""

    rate: float
    """Receipts a second."""
    cpu_s: float
    """CPU seconds of the daemon for a million receipts."""


def drain(served: DaemonProcess, upstream: SinkServer, pending: int) -> Drained:
    """Resume the account and wait until the sink has as many receipts more as were pending."""
    before, cpu_s = upstream.count(), served.cpu_s()
    began = time.perf_counter()
    served.ask("POST", "/v1/accounts/default/resume")
    while upstream.count() - before < pending:
        time.sleep(0.02)
    elapsed = time.perf_counter() - began
    return Drained(pending / elapsed, (served.cpu_s() - cpu_s) * 1_000_000 / pending)


def drained(
    pending: int, *, latency_ms: float = 0, max_receipts: int = 100, concurrency: int = CONCURRENCY
) -> Drained:
    """Fill a queue with pending receipts, and drain it."""
    with tempfile.TemporaryDirectory() as place, sink(latency_ms) as upstream:
        folder = Path(place)
        fill(folder / "queue.db", Fill(pending=pending, paused=True))
        with daemon(folder, port=upstream.port, max_receipts=max_receipts, concurrency=concurrency) as served:
            return drain(served, upstream, pending)


def bare(pending: int, *, each: int, concurrency: int = CONCURRENCY) -> float:
    """Send as many receipts with nothing but httpx; returns receipts a second."""
    targets = raw.targets(ids.in_order(pending), each)
    with sink() as upstream:
        return each * asyncio.run(raw.post_targets(upstream.port, targets, concurrency))


def measure(count: int = 5, pending: int = 200_000) -> list[Table]:
    """Run ``count`` rounds."""
    rounds = Rounds()
    singles = pending // 100
    slow = pending // 5
    for _ in range(count):
        rounds.add("bare", bare(pending, each=100))
        batches = drained(pending)
        rounds.add("batches", batches.rate)
        rounds.add("cpu", batches.cpu_s)
        rounds.add("bare singles", bare(singles, each=1))
        rounds.add("singles", drained(singles, max_receipts=1).rate)
        rounds.add("slow", drained(slow, latency_ms=SLOW_MS).rate)
        rounds.add("slow limit", CONCURRENCY * 100 * 1000 / SLOW_MS)

    def row(what: str, name: str, base: str, floor: str) -> tuple[str, ...]:
        return (
            what,
            short(rounds.median(name)),
            rounds.spread(name),
            short(rounds.median(base)),
            f"{rounds.ratio(name, base):.2f}",
            floor,
        )

    return [
        Table(
            "draining",
            ("receipts drained a second", "daemon", "least–most", "compared", "ratio", "floor"),
            [
                row("in batches of 100, beside bare httpx", "batches", "bare", "0.5"),
                row("one a request, beside bare httpx", "singles", "bare singles", ""),
                row(
                    f"upstream takes {SLOW_MS} ms, beside concurrency × batch / latency",
                    "slow",
                    "slow limit",
                    "0.9",
                ),
            ],
            f"Medians of {count} rounds; {pending:,} receipts in batches, {singles:,} singly, {slow:,} slowly;"
            f" concurrency {CONCURRENCY}. In batches, a million receipts take {short(rounds.median('cpu'))} CPU s.",
        )
    ]


if __name__ == "__main__":
    for table in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(table)
