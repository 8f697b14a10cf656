"""Which indexes should a report have to touch? Bulk reports over many waiting messages, schemas side by side.

Raw ``sqlite3``, WAL and ``synchronous=FULL``, transactions of 1,000 reports, in random and in near-arrival order. Run
``python benchmarks/schema_indexes.py [MESSAGES]``; it prints reports a second per variant, medians over slices, and the
size of the file per waiting message. The choice made from it is in docs/decisions/0003-schema.md.
"""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

BASE = 1_561_370_632_513
SLICE = 1000
SLICES = 60

VARIANTS = {
    "pointer, plain expires": {"pointer": True, "due": "plain", "reserve": False},
    "pointer with reserved bytes, plain expires": {"pointer": True, "due": "plain", "reserve": True},
    "pointer, partial expires": {"pointer": True, "due": "partial", "reserve": False},
    "index on receipts(message), plain expires": {"pointer": False, "due": "plain", "reserve": False},
    "index on receipts(message), partial expires": {"pointer": False, "due": "partial", "reserve": False},
}


def create(path: Path, variant: dict[str, object], messages: int) -> sqlite3.Connection:
    """Make a queue of ``messages`` waiting ones."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=-16384")
    db.execute(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, account INT, message_id TEXT, state INT, registered_at INT,"
        " expires_at INT, state_at INT, receipt INT)"
    )
    db.execute("CREATE UNIQUE INDEX name ON messages (account, message_id)")
    where = " WHERE state < 4" if variant["due"] == "partial" else ""
    db.execute(f"CREATE INDEX expiry ON messages (expires_at){where}")
    db.execute(
        "CREATE TABLE receipts (id INTEGER PRIMARY KEY, message INT, account INT, state INT, status INT, attempts INT,"
        " created_at INT)"
    )
    db.execute("CREATE INDEX fresh ON receipts (account, id) WHERE status = 2")
    if not variant["pointer"]:
        db.execute("CREATE INDEX of_message ON receipts (message)")
    reserve = variant["reserve"]
    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO messages VALUES (?, 1, ?, ?, ?, ?, ?, ?)",
        (
            (
                n,
                str(BASE + n),
                2,
                BASE + n,
                BASE + n + 259_200_000,
                (BASE + n) if reserve else None,
                -1_000_000 if reserve else None,
            )
            for n in range(1, messages + 1)
        ),
    )
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return db


def report(db: sqlite3.Connection, ids: list[int], first: int, *, pointer: bool, by_json: bool) -> None:
    """Report one slice in one durable transaction."""
    db.execute("BEGIN IMMEDIATE")
    names = json.dumps([str(BASE + n) for n in ids])
    found = db.execute(
        "SELECT id, state FROM messages WHERE account = 1 AND message_id IN (SELECT value FROM json_each(?))",
        (names,),
    ).fetchall()
    now = BASE + 10_000_000
    rows = [(now, first + k, row[0]) for k, row in enumerate(found)]
    if by_json:
        change = "UPDATE messages SET state = 5, state_at = j.value->>0"
        change += ", receipt = j.value->>1" if pointer else ""
        db.execute(change + " FROM json_each(?) j WHERE messages.id = j.value->>2", (json.dumps(rows),))
        db.execute(
            "INSERT INTO receipts SELECT value->>1, value->>2, 1, 5, 2, 0, value->>0 FROM json_each(?)",
            (json.dumps(rows),),
        )
    else:
        change = "UPDATE messages SET state = 5, state_at = ?1"
        change += ", receipt = ?2" if pointer else ""
        db.executemany(change + " WHERE id = ?3", rows)
        db.executemany("INSERT INTO receipts VALUES (?2, ?3, 1, 5, 2, 0, ?1)", rows)
    db.execute("COMMIT")


def main() -> None:
    """Run every variant in both orders."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"{messages:,} waiting, {SLICES} transactions of {SLICE}; sqlite {sqlite3.sqlite_version}")
    print(f"{'variant':<52}{'order':<10}{'executemany':>12}{'json_each':>12}{'B/message':>11}")
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            db = create(Path(folder) / "queue.db", variant, messages)
            size = (Path(folder) / "queue.db").stat().st_size / messages
            numbers = list(range(1, messages + 1))
            shuffled = numbers[: messages // 2]
            random.Random(7).shuffle(shuffled)
            near = numbers[messages // 2 :]
            first = 1
            for order, ids in (("random", shuffled), ("arrival", near)):
                rates = {}
                for offset, by_json in ((0, False), (SLICES * SLICE, True)):
                    speeds = []
                    for start in range(offset, offset + SLICES * SLICE, SLICE):
                        part = ids[start : start + SLICE]
                        if order == "arrival":
                            random.Random(start).shuffle(part)
                        began = time.perf_counter()
                        report(db, part, first, pointer=bool(variant["pointer"]), by_json=by_json)
                        speeds.append(SLICE / (time.perf_counter() - began))
                        first += SLICE
                    rates[by_json] = statistics.median(speeds)
                print(
                    f"{name:<52}{order:<10}{rates[False]:>12,.0f}{rates[True]:>12,.0f}{size:>11.0f}",
                    flush=True,
                )
            db.close()


if __name__ == "__main__":
    main()
