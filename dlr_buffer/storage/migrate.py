"""Bringing a database to the schema of this program, in a process of its own.

The daemon only compares the version (one query); if migrations have to run, a child process runs them with
Alembic, which so never stays in the daemon's memory. A database that a newer program made is refused, and so
is a file that is something else. The migrations themselves are in `migrations/versions/`.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from dlr_buffer.errors import Overloaded, StoreUnavailable
from dlr_buffer.storage.connection import translate
from dlr_buffer.storage.schema import HEAD

KNOWN = frozenset({HEAD})
"""Every version that this program can read or migrate from."""


def ensure_schema(path: Path) -> None:
    """Create or migrate the database at ``path``, whose place the store has looked at already.

    Raises StoreUnavailable if that can't be done.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"cannot open {path}: {error.strerror}; let the daemon's user read and write it",
            fatal=True,
        ) from error
    version = _version(path)
    if version == HEAD:
        return
    if version is not None and version not in KNOWN:
        raise StoreUnavailable(
            f"{path} has the schema {version}, which this program does not know: a newer dlr-buffer made it;"
            " run that one",
            fatal=True,
        )
    child = subprocess.run(
        [sys.executable, "-m", "dlr_buffer.storage.migrate"],
        input=str(path),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise StoreUnavailable(f"{path} could not be migrated to schema {HEAD}: {reason[0]}", fatal=True)


def _version(path: Path) -> str | None:
    """The schema version of a database, None of an empty one."""
    try:
        with closing(sqlite3.connect(path)) as database:
            tables = {
                name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if not tables:
                return None
            if "alembic_version" not in tables:
                raise StoreUnavailable(
                    f"{path} is a database of another program; give [database] url another path",
                    fatal=True,
                )
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            return row[0] if row else None
    except sqlite3.DatabaseError as error:
        if isinstance(translated := translate(error, path), Overloaded):
            raise StoreUnavailable(str(translated), fatal=True) from error
        raise StoreUnavailable(
            f"{path} cannot be read as a database: {error}; restore it from a backup, or move it away to begin anew",
            fatal=True,
        ) from error


def upgrade(path: Path, revision: str = "head") -> None:
    """Run the migrations as one transaction, here and now; needs Alembic."""
    from alembic import command
    from alembic.config import Config

    from dlr_buffer.storage.connection import make_engine, require_durable

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with make_engine(path, cache_kib=4096, read_only=False).connect() as connection:
        require_durable(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.exec_driver_sql("COMMIT")


if __name__ == "__main__":
    upgrade(Path(sys.stdin.read()))
