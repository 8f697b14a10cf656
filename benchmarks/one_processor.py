"""Keeping the daemon on one processor (``systemd/examples/one-processor.conf``), beside where the kernel puts it.

Each round runs both, one after the other: single registrations, registrations in bulk, a drain. ``python -m
benchmarks.one_processor [ROUNDS]`` prints the table.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.draining import drain
from benchmarks.harness import ids
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import DaemonProcess, daemon, sink
from benchmarks.harness.tables import Rounds, Table, short
from dlr_buffer.bench import load

SINGLES = 10_000
BULKS = 60
PER_BULK = 1000
PENDING = 60_000
ROWS = (
    ("registrations one at a time, 1 connection", "one"),
    ("registrations one at a time, 16 connections", "sixteen"),
    ("registrations, 1,000 a request, 2 connections", "bulk"),
    ("receipts drained in batches of 100", "drain"),
)


def _anywhere(_served: DaemonProcess) -> None:
    """Leave the daemon where the kernel puts it."""


def _on_one(served: DaemonProcess) -> None:
    """Keep all threads of the daemon on the first processor; those that it starts later stay there too."""
    for thread in Path(f"/proc/{served.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {min(os.sched_getaffinity(0))})


def _round(rounds: Rounds, prefix: str, bind: Callable[[DaemonProcess], None]) -> None:
    names = ids.in_order(SINGLES)
    with tempfile.TemporaryDirectory() as place, daemon(Path(place)) as served:
        bind(served)
        one = load.run(served.client_socket, [load.registration(each) for each in names[: SINGLES // 4]], 1)
        sixteen = load.run(
            served.client_socket, [load.registration(each) for each in names[SINGLES // 4 :]], 16
        )
        many = [load.registrations(ids.in_order(PER_BULK, PER_BULK * (1000 + each))) for each in range(BULKS)]
        bulk = load.run(served.client_socket, many, 2)
    assert not one.failed + sixteen.failed + bulk.failed, "refused"
    rounds.add(f"{prefix} one", one.rate)
    rounds.add(f"{prefix} sixteen", sixteen.rate)
    rounds.add(f"{prefix} bulk", bulk.rate * PER_BULK)
    with tempfile.TemporaryDirectory() as place, sink() as upstream:
        fill(Path(place) / "queue.db", Fill(pending=PENDING, paused=True))
        with daemon(Path(place), port=upstream.port) as served:
            bind(served)
            rounds.add(f"{prefix} drain", drain(served, upstream, PENDING).rate)


def measure(count: int = 5) -> list[Table]:
    """Run ``count`` rounds."""
    rounds = Rounds()
    for _ in range(count):
        _round(rounds, "free", _anywhere)
        _round(rounds, "bound", _on_one)
    return [
        Table(
            "one-processor",
            ("a second", "where the kernel likes", "on one processor", "least–most", "ratio"),
            [
                (
                    what,
                    short(rounds.median(f"free {name}")),
                    short(rounds.median(f"bound {name}")),
                    rounds.spread(f"bound {name}"),
                    f"{rounds.ratio(f'bound {name}', f'free {name}'):.2f}",
                )
                for what, name in ROWS
            ],
            f"Medians of {count} rounds.",
        )
    ]


if __name__ == "__main__":
    for table in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(table)
