"""How fast are messages registered, one at a time and in bulk? Beside SQLite's own inserts into the same tables.

Each round runs the raw loop and the daemon one after the other, each with a new queue on the same disk; a ratio is the
median of the rounds' ratios. ``python -m benchmarks.registering [ROUNDS]`` prints the tables.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ids, raw
from benchmarks.harness.servers import daemon
from benchmarks.harness.tables import Rounds, Table, percentile, short
from dlr_buffer.bench import load

SINGLES = 20_000
BULKS = 100
PER_BULK = 1000


def _round(rounds: Rounds, number: int, singles: int, bulks: int) -> None:
    names = ids.in_order(singles)
    one_by_one = [load.registration(each) for each in names]
    many = [load.registrations(ids.in_order(PER_BULK, PER_BULK * (1000 + each))) for each in range(bulks)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rate, took = raw.commit_rows(folder / "raw1.db", names[: singles // 4])
        rounds.add("raw commits", rate)
        rounds.add("raw p50", percentile(took, 0.5) * 1000)
        rounds.add("raw executemany", raw.insert_many(folder / "raw2.db", ids.in_order(PER_BULK * bulks)))
        with daemon(folder) as served:
            # A queue of its own order for each: what one leaves to the other is the same in all rounds.
            few = [load.registration(each) for each in ids.in_order(singles // 4, 10_000_000)]
            alone = load.run(served.client_socket, few, 1)
            taken = load.run(served.client_socket, one_by_one, 16)
            bulk = load.run(served.client_socket, many, 2)
    assert not alone.failed + taken.failed + bulk.failed, f"round {number}: refused"
    rounds.add("1 connection", alone.rate)
    rounds.add("1 p50", percentile(alone.latencies_s, 0.5) * 1000)
    rounds.add("16 connections", taken.rate)
    rounds.add("16 p50", percentile(taken.latencies_s, 0.5) * 1000)
    rounds.add("16 p99", percentile(taken.latencies_s, 0.99) * 1000)
    rounds.add("16 tail", percentile(taken.latencies_s, 0.99) / percentile(taken.latencies_s, 0.5))
    rounds.add("bulk", bulk.rate * PER_BULK)


def measure(count: int = 5, singles: int = SINGLES, bulks: int = BULKS) -> list[Table]:
    """Run ``count`` rounds."""
    rounds = Rounds()
    for number in range(count):
        _round(rounds, number, singles, bulks)

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
            "registering",
            ("registrations a second", "daemon", "least–most", "raw SQLite", "ratio", "floor"),
            [
                row("one at a time, 16 connections", "16 connections", "raw commits", "2"),
                row("one at a time, 1 connection", "1 connection", "raw commits", ""),
                row("1,000 a request, 2 connections", "bulk", "raw executemany", "0.25"),
            ],
            f"Medians of {count} rounds. Raw: one row a commit; `executemany` with 1,000 rows a commit.",
        ),
        Table(
            "registering-latency",
            ("latency of one registration, ms", "median", "p99", "compared", "bound"),
            [
                (
                    "16 connections",
                    f"{rounds.median('16 p50'):.2f}",
                    f"{rounds.median('16 p99'):.2f}",
                    f"p99 is {rounds.median('16 tail'):.1f} × the median",
                    "8 ×",
                ),
                (
                    "1 connection",
                    f"{rounds.median('1 p50'):.3f}",
                    "",
                    f"{rounds.ratio('1 p50', 'raw p50'):.2f} × raw ({rounds.median('raw p50'):.3f} ms)",
                    "2.2 ×",
                ),
            ],
        ),
    ]


if __name__ == "__main__":
    for table in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(table)
