"""What the machine gives without us: SQLite's own commits and inserts, and a bare httpx loop.

The bases of the ratios. The tables are the project's own, with all their columns, checks and indexes; WAL and
``synchronous=FULL`` as in the daemon; the log is checkpointed by SQLite's own rule.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from dlr_buffer.storage.migrate import ensure_schema

VALIDITY_MS = 72 * 3_600_000
_INSERT = (
    "INSERT INTO messages"
    " (id, account_id, message_id, state, implicit, registered_at, expires_at, changed_at, receipt_id)"
    " VALUES (?, 1, ?, 2, 0, ?, ?, ?, -1)"
)


def open_queue(path: Path) -> sqlite3.Connection:
    """Make a fresh queue at ``path`` and open it as the daemon's writer would."""
    ensure_schema(path)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=-16384")
    return db


def commit_rows(path: Path, message_ids: Sequence[str]) -> tuple[float, list[float]]:
    """Insert row by row, each committed before the next; returns rows a second and each one's latency in seconds."""
    db = open_queue(path)
    took: list[float] = []
    began = time.perf_counter()
    for number, message_id in enumerate(message_ids, 1):
        one = time.perf_counter()
        now = time.time_ns() // 1_000_000
        db.execute(_INSERT, (number, message_id, now, now + VALIDITY_MS, now))
        took.append(time.perf_counter() - one)
    elapsed = time.perf_counter() - began
    db.close()
    return len(message_ids) / elapsed, took


def insert_many(path: Path, message_ids: Sequence[str], each: int = 1000) -> float:
    """Insert with ``executemany``, so many a commit; returns rows a second."""
    db = open_queue(path)
    began = time.perf_counter()
    for start in range(0, len(message_ids), each):
        now = time.time_ns() // 1_000_000
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            _INSERT,
            (
                (number, message_id, now, now + VALIDITY_MS, now)
                for number, message_id in enumerate(message_ids[start : start + each], start + 1)
            ),
        )
        db.execute("COMMIT")
    elapsed = time.perf_counter() - began
    db.close()
    return len(message_ids) / elapsed


async def post_targets(port: int, targets: Sequence[str], concurrency: int) -> float:
    """Post to ready-made request targets with httpx, so many at a time; returns requests a second."""
    waiting = iter(targets)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    async def worker(client: httpx.AsyncClient) -> None:
        for target in waiting:
            response = await client.post(f"http://127.0.0.1:{port}{target}")
            response.raise_for_status()

    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=30) as client:
        began = time.perf_counter()
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
        return len(targets) / (time.perf_counter() - began)


def targets(message_ids: Sequence[str], each: int) -> list[str]:
    """Make request targets of ``each`` receipts as the daemon would."""
    made = []
    for start in range(0, len(message_ids), each):
        pairs = "&".join(
            f"message_id={message_id}&message_state=delivered&request_id={number}"
            for number, message_id in enumerate(message_ids[start : start + each], start + 1)
        )
        made.append(f"/api/dlr?{pairs}&_login=supplier&_password=secret")
    return made


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds an action took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
