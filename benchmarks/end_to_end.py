"""The whole way at a steady rate: registered in bulk, reported in bulk, acknowledged upstream, with nothing piling up.

Messages are registered and reported 100 a request at a fixed rate for the whole time; the sink notes when it answered
those of every hundredth message, so the time from a report's sending to the acknowledgement is known for each of them.
Then the other side: single registrations while the queue drains, at half the drain's own rate (`rate_limit`) and at
full speed. ``python -m benchmarks.end_to_end [SECONDS [RATE]]`` prints the tables.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.draining import drained as drained_alone
from benchmarks.harness import ids, pace
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import DaemonProcess, SinkServer, daemon, sink
from benchmarks.harness.tables import Rounds, Table, percentile, short
from dlr_buffer.bench import load

PER_BULK = 100
WATCHED = "00"
"""Ids that end so are followed: one of each bulk of a hundred."""
LINGER_MS = 250


@dataclass(frozen=True, slots=True)
class Flow:
    """What a steady flow came to."""

    rate: float
    """Messages a second that were acknowledged."""
    left: int
    """Messages that were not acknowledged a second after the last report: they have piled up."""
    p50_ms: float
    p99_ms: float
    """From a report's sending to its acknowledgement."""
    cpu: float
    """CPU seconds for a million messages."""
    failed: int


def flow(rate: float, seconds: float) -> Flow:
    """Run a steady flow of ``rate`` messages a second."""
    with (
        tempfile.TemporaryDirectory() as place,
        sink(watch=WATCHED) as upstream,
        daemon(Path(place), port=upstream.port, linger_ms=LINGER_MS) as served,
    ):
        cpu_s = served.cpu_s()
        reported_at, failed, acknowledged, elapsed = asyncio.run(_flow(served, upstream, rate, seconds))
        cpu_s = served.cpu_s() - cpu_s
    took = [
        (at - reported_at[message_id]) * 1000
        for message_id, at in upstream.summary["answered_at"].items()
        if message_id in reported_at
    ]
    sent = len(reported_at) * PER_BULK
    return Flow(
        acknowledged / elapsed,
        sent - acknowledged,
        percentile(took, 0.5),
        percentile(took, 0.99),
        cpu_s * 1_000_000 / sent,
        failed,
    )


async def _flow(
    served: DaemonProcess, upstream: SinkServer, rate: float, seconds: float
) -> tuple[dict[str, float], int, int, float]:
    bulks = int(rate * seconds / PER_BULK)
    names = [ids.in_order(PER_BULK, (number + 1) * PER_BULK - 12) for number in range(bulks)]
    reported_at: dict[str, float] = {}

    def sent(number: int) -> None:
        watched = next(each for each in names[number] if each.endswith(WATCHED))
        reported_at[watched] = time.monotonic()

    registering = pace.Paced(served.client_socket, rate / PER_BULK, 4)
    reporting = pace.Paced(served.client_socket, rate / PER_BULK, 4, sent)
    began = time.monotonic()
    first = asyncio.create_task(registering.run(map(load.registrations, names), seconds))
    await asyncio.sleep(1)  # every message is registered a second before it is reported
    second = await reporting.run(map(load.reports, names), seconds)
    elapsed = time.monotonic() - began - 1
    await asyncio.sleep(1)
    acknowledged = await asyncio.to_thread(upstream.count)
    return reported_at, (await first).failed + second.failed, acknowledged, elapsed


@dataclass(frozen=True, slots=True)
class Beside:
    """Single registrations, alone or while a queue drains."""

    rate: float
    p99_ms: float
    drained: float
    """Receipts a second that were drained meanwhile."""


def registering_beside(pending: int, *, requests: int, rate_limit: float = 0, idle: bool = False) -> Beside:
    """Register over 16 connections while ``pending`` receipts drain; ``idle``: while they wait, paused."""
    with tempfile.TemporaryDirectory() as place, sink() as upstream:
        folder = Path(place)
        fill(folder / "queue.db", Fill(pending=pending, paused=True))
        with daemon(folder, port=upstream.port, rate_limit=rate_limit) as served:
            content = [load.registration(each) for each in ids.in_order(requests, 50_000_000)]
            if not idle:
                served.ask("POST", "/v1/accounts/default/resume")
            before, began = upstream.count(), time.monotonic()
            taken = load.run(served.client_socket, content, 16)
            drained = (upstream.count() - before) / (time.monotonic() - began)
    assert not taken.failed, "refused"
    return Beside(taken.rate, percentile(taken.latencies_s, 0.99) * 1000, drained)


def _flows(seconds: float, rates: tuple[float, ...], count: int) -> Table:
    rows = []
    for rate in rates:
        rounds = Rounds()
        for _ in range(count):
            found = flow(rate, seconds)
            for name in ("rate", "left", "p50_ms", "p99_ms", "cpu", "failed"):
                rounds.add(name, getattr(found, name))
        rows.append(
            (
                short(rate),
                short(rounds.median("rate")),
                short(rounds.median("left")),
                f"{rounds.median('p50_ms'):.0f}",
                f"{rounds.median('p99_ms'):.0f} ({rounds.spread('p99_ms')})",
                short(rounds.median("cpu")),
            )
        )
    return Table(
        "end-to-end",
        (
            "messages a second, offered",
            "acknowledged",
            "left a second after the end",
            "report to acknowledgement, ms: median",
            "p99",
            "CPU s for a million",
        ),
        rows,
        f"{count} rounds of {seconds:.0f} s each; registered and reported {PER_BULK} a request, linger {LINGER_MS} ms.",
    )


def _besides(count: int, pending: int, requests: int) -> Table:
    rounds = Rounds()
    for _ in range(count):
        idle = registering_beside(1000, requests=requests, idle=True)
        full = registering_beside(pending, requests=requests)
        # Half of what a drain alone reaches is measured first, in requests of a hundred.
        alone = drained_alone(pending).rate
        half = registering_beside(pending, requests=requests, rate_limit=alone / 2 / 100)
        for name, found in (("idle", idle), ("half", half), ("full", full)):
            rounds.add(f"{name} rate", found.rate)
            rounds.add(f"{name} p99", found.p99_ms)
            rounds.add(f"{name} drained", found.drained)
    return Table(
        "registering-beside-draining",
        (
            "single registrations, 16 connections",
            "a second",
            "of the idle rate",
            "p99, ms",
            "drained beside, a second",
        ),
        [
            (
                what,
                short(rounds.median(f"{name} rate")),
                f"{rounds.ratio(f'{name} rate', 'idle rate'):.2f}",
                f"{rounds.median(f'{name} p99'):.1f}",
                short(rounds.median(f"{name} drained")),
            )
            for what, name in (
                ("alone", "idle"),
                ("beside a drain at half of its rate (floor 0.5, p99 25 ms)", "half"),
                ("beside a drain at full speed", "full"),
            )
        ],
        f"Medians of {count} rounds.",
    )


def measure(*, full: bool = False) -> list[Table]:
    """Run it; ``full``: two minutes at each rate."""
    seconds = 120.0 if full else 10.0
    pending, requests = (300_000, 40_000) if full else (80_000, 8_000)
    return [_flows(seconds, (4_000.0, 8_000.0), 1), _besides(5, pending, requests)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_flows(float(sys.argv[1]), tuple(map(float, sys.argv[2:])) or (4_000.0, 8_000.0), 1))
    else:
        for table in measure():
            print(table)
