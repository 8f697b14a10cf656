"""How fast are states reported in bulk over a million waiting messages? Beside raw inserts into the same tables.

Reports in random order touch a page of the table each; those in about the order of arrival share pages. The account
is unreachable, so that nothing is flushed meanwhile. ``python -m benchmarks.reporting [ROUNDS [WAITING]]``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ids, raw
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import daemon
from benchmarks.harness.tables import Rounds, Table, short
from dlr_buffer.bench import load

WAITING = 1_000_000
REPORTS = 60_000
PER_BULK = 1000


def _bulks(message_ids: list[str]) -> list[bytes]:
    return [
        load.reports(message_ids[start : start + PER_BULK]) for start in range(0, len(message_ids), PER_BULK)
    ]


def _round(rounds: Rounds, folder: Path, number: int, waiting: int, names: list[str]) -> None:
    raw_path = folder / f"raw{number}.db"
    rounds.add("raw", raw.insert_many(raw_path, ids.in_order(100_000)))
    raw_path.unlink()
    database = folder / f"queue{number}.db"
    fill(database, Fill(waiting=waiting))
    with daemon(folder, database=database) as served:
        served.ask("POST", "/v1/accounts/default/pause")
        near = load.run(served.client_socket, _bulks(names[:REPORTS]), 2)
        mixed = ids.shuffled(names[REPORTS:], number)[:REPORTS]
        random_order = load.run(served.client_socket, _bulks(mixed), 2)
    assert not near.failed + random_order.failed, "refused"
    rounds.add("near", near.rate * PER_BULK)
    rounds.add("random", random_order.rate * PER_BULK)
    database.unlink()


def measure(count: int = 5, waiting: int = WAITING) -> list[Table]:
    """Run ``count`` rounds."""
    rounds = Rounds()
    names = ids.near_arrival(ids.in_order(waiting))
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            _round(rounds, Path(place), number, waiting, names)
    return [
        Table(
            "reporting",
            ("reports a second", "daemon", "least–most", "raw inserts", "ratio", "floor"),
            [
                (
                    what,
                    short(rounds.median(name)),
                    rounds.spread(name),
                    short(rounds.median("raw")),
                    f"{rounds.ratio(name, 'raw'):.3f}",
                    floor,
                )
                for what, name, floor in (
                    ("near the order of arrival", "near", "0.15"),
                    ("in random order", "random", "0.08"),
                )
            ],
            f"Medians of {count} rounds; 1,000 reports a request, 2 connections, over {waiting:,} waiting messages."
            " Raw: `executemany` into the same tables, 1,000 rows a commit.",
        )
    ]


if __name__ == "__main__":
    arguments = [int(each) for each in sys.argv[1:]]
    for table in measure(*arguments):
        print(table)
