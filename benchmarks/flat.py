"""Does cost grow with the backlog? The same work over queues of ten thousand to ten million waiting messages.

For each size a queue is filled, with a tenth of it (at most a million) pending besides, and registering, claiming,
status, starting, memory and the size of the file are looked at. Then the sweeps: a hundred thousand messages that
expire at once, and as many receipts that retention may purge, while single requests come at a steady rate. The points
are drawn by `plots`. ``python -m benchmarks.flat [--full]`` prints the tables.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import plots
from benchmarks.harness import ids, machine, pace
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import DaemonProcess, daemon
from benchmarks.harness.tables import Rounds, Table, percentile, short
from dlr_buffer.bench import load
from dlr_buffer.receipts import Acknowledged, Claim, Cut, RefusalPolicy
from dlr_buffer.storage.store import SqliteStore, StoreListeners

SMALLEST = 10_000
SINGLES = 8_000
BULKS = 30
PER_BULK = 1000
ROUNDS = 5
CLAIMS = 100
IN_FLIGHT = 4
STATUSES = 50
DUE = 100_000
SWEEP_RATE = 500.0
_POLICY = RefusalPolicy(5, 1_000_000, lambda _: 1_000)


@dataclass(frozen=True, slots=True)
class Size:
    """How many messages wait, and what their ids look like."""

    waiting: int
    uuids: bool = False

    @property
    def pending(self) -> int:
        """How many receipts are pending beside them."""
        return min(max(self.waiting // 10, ROUNDS * CLAIMS * 100), 1_000_000)

    def __str__(self) -> str:
        """As the tables have it."""
        return f"{self.waiting:,}{' (UUIDs)' if self.uuids else ''}"


def _names(size: Size, total: int, start: int = 0) -> list[str]:
    return ids.uuids(total, seed=start + 1) if size.uuids else ids.in_order(total, start)


def _look(rounds: Rounds, size: Size, folder: Path, fresh: Iterator[int]) -> None:
    """One round over one queue; what it adds is little beside what is there."""
    start = size.waiting + size.pending + next(fresh) * (SINGLES + BULKS * PER_BULK)
    names = _names(size, SINGLES + BULKS * PER_BULK, start)
    singles = [load.registration(each) for each in names[:SINGLES]]
    bulks = [load.registrations(names[at : at + PER_BULK]) for at in range(SINGLES, len(names), PER_BULK)]
    with daemon(folder) as served:
        rounds.add("ready", served.ready_s)
        time.sleep(1)
        rounds.add("idle memory", machine.resident_mib(served.pid))
        one = load.run(served.client_socket, singles, 16)
        many = load.run(served.client_socket, bulks, 2)
        rounds.add("status", percentile(_statuses(served), 0.99) * 1000)
        rounds.add("memory", machine.peak_mib(served.pid))
    assert not one.failed + many.failed, "refused"
    rounds.add("single", one.rate)
    rounds.add("p99", percentile(one.latencies_s, 0.99) * 1000)
    rounds.add("bulk", many.rate * PER_BULK)
    claims = asyncio.run(_claims(folder / "queue.db"))
    rounds.add("claim", percentile(claims, 0.99) * 1000)


def _statuses(served: DaemonProcess) -> list[float]:
    took = []
    for _ in range(STATUSES):
        began = time.perf_counter()
        status, _ = served.ask("GET", "/v1/status")
        took.append(time.perf_counter() - began)
        assert status == 200
    return took


async def _claims(path: Path) -> list[float]:
    """Claim batches of a hundred at the store itself, some in flight, those before acknowledged; returns seconds."""
    listeners = StoreListeners(lambda _: None, lambda _: None, lambda _: None)
    store = await SqliteStore.open(
        path,
        accounts=["default"],
        min_free_bytes=0,
        first_request_id=1,
        listeners=listeners,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    took: list[float] = []
    in_flight: deque[Claim] = deque()
    try:
        for _ in range(CLAIMS):
            began = time.perf_counter()
            claim = await store.claim("default", limit=100, excluding=(), cut=lambda all_: Cut(len(all_)))
            took.append(time.perf_counter() - began)
            in_flight.append(claim)
            if len(in_flight) > IN_FLIGHT:
                oldest = in_flight.popleft()
                await store.settle(
                    "default",
                    acknowledged=[Acknowledged(each.receipt.request_id, "1") for each in oldest.claimed],
                    policy=_POLICY,
                    now_ms=time.time_ns() // 1_000_000,
                )
    finally:
        await store.close()
    return took


def _sizes(sizes: list[Size], count_: int) -> tuple[dict[Size, Rounds], dict[Size, float]]:
    found = {size: Rounds() for size in sizes}
    bytes_each: dict[Size, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            folder = Path(place) / f"{size.waiting}{size.uuids}"
            folder.mkdir()
            waiting_only = folder / "waiting.db"
            fill(waiting_only, Fill(waiting=size.waiting, message_ids=_names(size, size.waiting)))
            bytes_each[size] = waiting_only.stat().st_size / size.waiting
            waiting_only.unlink()
            total = size.waiting + size.pending
            fill(
                folder / "queue.db",
                Fill(
                    waiting=size.waiting, pending=size.pending, paused=True, message_ids=_names(size, total)
                ),
            )
        fresh = count()
        for _ in range(count_):
            for size in sizes:  # sizes take turns, so that noise hits all alike
                _look(found[size], size, Path(place) / f"{size.waiting}{size.uuids}", fresh)
    return found, bytes_each


def _flat_table(
    name: str, found: dict[Size, Rounds], bytes_each: dict[Size, float], base: Rounds, count_: int
) -> Table:
    return Table(
        name,
        (
            "waiting",
            "registrations a second, singly",
            "of the smallest's (0.8)",
            "in bulk",
            "of the smallest's (0.8)",
            "claim of 100, p99 ms",
            "of the smallest's (2)",
            "status, p99 ms (50)",
            "ready, s",
            "memory, MiB: idle",
            "under load (150)",
            "bytes a message (160)",
        ),
        [
            (
                str(size),
                short(rounds.median("single")),
                f"{rounds.median('single') / base.median('single'):.2f}",
                short(rounds.median("bulk")),
                f"{rounds.median('bulk') / base.median('bulk'):.2f}",
                f"{rounds.median('claim'):.1f}",
                f"{rounds.median('claim') / base.median('claim'):.1f}",
                f"{rounds.median('status'):.0f}",
                f"{rounds.median('ready'):.2f}",
                f"{rounds.median('idle memory'):.0f}",
                f"{rounds.median('memory'):.0f}",
                f"{bytes_each[size]:.0f}",
            )
            for size, rounds in found.items()
        ],
        f"Medians of {count_} rounds in which the sizes take turns; bounds in brackets. A tenth as many receipts are"
        f" pending, {ROUNDS * CLAIMS * 100:,} at least and a million at most. Bytes: the file over the messages,"
        " without receipts, all indexes included.",
    )


@dataclass(frozen=True, slots=True)
class _Sweep:
    p99_ms: float
    swept: int
    seconds: float


def _swept(wanted: Fill, total: str) -> _Sweep:
    """Register at a steady rate from the start of a daemon on, until its first sweep has done ``total``."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fill(folder / "queue.db", wanted)
        requests = (load.registration(each) for each in ids.in_order(100_000, 50_000_000))
        with daemon(folder, module="benchmarks.harness.hurried") as served:
            began = time.monotonic()
            taken = asyncio.run(pace.Paced(served.client_socket, SWEEP_RATE, 8).run(requests, 12))
            seconds = time.monotonic() - began
            swept = served.ask("GET", "/v1/status")[1]["totals"][total]
    return _Sweep(percentile(taken.latencies_s, 0.99) * 1000, swept, seconds)


def _sweeps(count_: int, waiting: int) -> Table:
    rounds = Rounds()
    for _ in range(count_):
        for name, wanted, total in (
            ("nothing to sweep", Fill(waiting=waiting, paused=True), "expired"),
            ("100,000 messages expire at once", Fill(waiting=waiting, due=DUE, paused=True), "expired"),
            (
                "100,000 receipts are purged",
                Fill(waiting=waiting, acknowledged=DUE, acknowledged_ago_ms=8 * 86_400_000, paused=True),
                "purged",
            ),
        ):
            found = _swept(wanted, total)
            rounds.add(f"{name} p99", found.p99_ms)
            rounds.add(f"{name} swept", found.swept)
    names = [name.removesuffix(" p99") for name in rounds.figures if name.endswith(" p99")]
    quiet = rounds.median("nothing to sweep p99")
    return Table(
        "sweeps",
        ("while", "p99 of a registration, ms", "more than without (20)", "rows swept meanwhile"),
        [
            (
                name,
                f"{rounds.median(f'{name} p99'):.1f}",
                f"{rounds.median(f'{name} p99') - quiet:.1f}",
                short(rounds.median(f"{name} swept")),
            )
            for name in names
        ],
        f"{SWEEP_RATE:.0f} single registrations a second for 12 s over {waiting:,} waiting messages, from the start of"
        f" the daemon on; medians of {count_}.",
    )


def measure(*, full: bool = False) -> list[Table]:
    """Run it; ``full``: up to ten million, random UUIDs too, and the plots drawn anew."""
    sizes = [Size(SMALLEST), Size(1_000_000)]
    if full:
        sizes = [Size(SMALLEST), Size(100_000), Size(1_000_000), Size(10_000_000)]
    count_ = ROUNDS
    found, bytes_each = _sizes(sizes, count_)
    tables = [_flat_table("flat", found, bytes_each, found[sizes[0]], count_)]
    if full:
        plots.draw(
            {
                size.waiting: {name: rounds.median(name) for name in rounds.figures}
                for size, rounds in found.items()
            },
            {size.waiting: each for size, each in bytes_each.items()},
        )
        random_found, random_bytes = _sizes(
            [Size(SMALLEST, uuids=True), Size(1_000_000, uuids=True), Size(10_000_000, uuids=True)], 3
        )
        base = random_found[Size(SMALLEST, uuids=True)]
        tables.append(_flat_table("flat-uuid", random_found, random_bytes, base, 3))
    tables.append(_sweeps(3 if full else 1, 1_000_000 if full else 200_000))
    return tables


if __name__ == "__main__":
    for table in measure(full="--full" in sys.argv):
        print(table)
