"""Databases to be damaged: a rich one from a released schema, and what a killed process leaves behind."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

RELEASED = Path(__file__).parent / "released"
"""For each released schema a queue in it, as SQL: every state and status, two accounts, histories, dead letters."""

KILLED = """
import asyncio, os, pathlib, signal, sys
from dlr_buffer.messages import Registration
from dlr_buffer.storage.store import SqliteStore, StoreListeners

async def main():
    store = await SqliteStore.open(
        pathlib.Path(sys.argv[1]), accounts=["default"], min_free_bytes=0, first_request_id=1,
        listeners=StoreListeners(*[lambda _: None] * 3), now_ms=lambda: 1_800_000_000_000)
    for n in range(20):
        await store.register([Registration(f"m{n}", "default", None)], default_validity_ms=1000, now_ms=10)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
"""Registers twenty messages in as many commits, and is killed."""


def released_database(sql: Path, path: Path) -> Path:
    """Make the database at ``path`` that a released program had left."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql.read_text("utf-8"))
    return path


def killed_queue(path: Path) -> None:
    """Leave at ``path`` what a daemon leaves that was killed: the database, its log, its index, its lock file."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done


def copied_queue(path: Path, folder: Path) -> Path:
    """Copy all that belongs to a queue, as if it had been left where the copy is."""
    for each in path.parent.iterdir():
        shutil.copyfile(each, folder / each.name)
    copy = folder / path.name
    lock = copy.with_name(copy.name + ".lock")
    lock.write_text(re.sub(r"file \d+", f"file {copy.stat().st_ino}", lock.read_text()))
    return copy


def change(path: Path, *statements: str) -> None:
    """Write to a database as something does that knows none of its rules."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            database.execute(statement)


def flip(path: Path, at: int, count: int = 1) -> None:
    """Turn bytes of a file over."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(count)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in old))


def dump(path: Path) -> list[str]:
    """Everything in a database, as SQL."""
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def beside(path: Path) -> set[str]:
    """The names of the files in the folder."""
    return {each.name for each in path.parent.iterdir()}
