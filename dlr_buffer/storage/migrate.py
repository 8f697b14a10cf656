"""Bringing a database to the schema of this program, in a process of its own.

The daemon only compares the version (one query); if migrations have to run, a child process runs them with
Alembic, which so never stays in the daemon's memory. They are one transaction: a child that is killed leaves
the old schema whole. A database that a newer program made is refused, and so is a file that is something else.
The migrations themselves are in `migrations/versions/`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.storage.connection import disk_failed, make_engine, require_durable, translate, translated
from dlr_buffer.storage.lock import LastRun, lock_path
from dlr_buffer.storage.recovery import bring_in_log, unreliable
from dlr_buffer.storage.schema import HEAD
from dlr_buffer.storage.whole import RESTORE, require_there, vanished

MIGRATIONS: Final = Path(__file__).parent / "migrations"
KNOWN: Final = frozenset(each.name.split("_")[0] for each in (MIGRATIONS / "versions").glob("[0-9]*.py"))
"""Every version that this program can read or migrate from."""
_NEW: Final = LastRun()
_PR_SET_PDEATHSIG: Final = 1
_LOOK_EVERY_S: Final = 0.1


def ensure_schema(path: Path, last: LastRun = _NEW, given_up: Callable[[], bool] = bool) -> None:
    """Create or migrate the database at ``path``, whose place the store has looked at and locked already.

    Raises StoreUnavailable if that can't be done, if ``given_up`` comes to say so while it goes on, or if ``last``
    shows that a queue was here which is not any more.
    """
    require_there(path, last)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"cannot open {path}: {error.strerror}; let the daemon's user read and write it",
            fatal=True,
        ) from error
    version = _version(path, last)
    if version == HEAD:
        return
    if version is None and last.kept_a_queue:
        raise StoreUnavailable(vanished(path, "has no tables", [lock_path(path).name]), fatal=True)
    if version is not None and version not in KNOWN:
        raise StoreUnavailable(
            f"{path} has the schema {version}, which this program does not know: a newer dlr-buffer made it;"
            " run that one",
            fatal=True,
        )
    _migrate(path, given_up)


def _migrate(path: Path, given_up: Callable[[], bool]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "dlr_buffer.storage.migrate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        told: str | None = str(path)
        while True:
            try:
                _, said = child.communicate(told, timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                told = None
            if given_up():
                child.kill()
    if child.returncode != 0:
        raise StoreUnavailable(
            f"{path} could not be migrated to schema {HEAD}: {_reason(child.returncode, said)}; nothing of it was kept",
            fatal=True,
        )


def _version(path: Path, last: LastRun) -> str | None:
    """The schema version of a database, None of an empty one; first what the last run left in its log is brought in."""
    try:
        bring_in_log(path, last)
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
            versions = [row[0] for row in database.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.DatabaseError as error:
        if isinstance(known := translate(error, path), (Overloaded, StorageFull)):
            raise StoreUnavailable(str(known), fatal=True) from error
        if disk_failed(error):
            raise unreliable(path, str(error)) from error
        raise StoreUnavailable(
            f"{path} cannot be read as a database: {error}; {RESTORE}, or move it away to begin anew",
            fatal=True,
        ) from error
    if len(versions) != 1:
        raise StoreUnavailable(
            f"{path} is damaged, it does not tell which schema it has (alembic_version has {len(versions)} rows);"
            f" {RESTORE}",
            fatal=True,
        )
    return str(versions[0])


def _reason(code: int, said: str) -> str:
    if code < 0:
        return f"the migration was killed by {signal.Signals(-code).name}"
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"the migration ended with code {code} and without a word"


def upgrade(path: Path, revision: str = "head") -> None:
    """Run the migrations as one transaction, here and now; needs Alembic."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with make_engine(path, cache_kib=4096, read_only=False).connect() as connection:
        require_durable(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.exec_driver_sql("COMMIT")


def _end_with_the_daemon() -> None:
    """Be killed when the daemon is: the next one must not find a migration still at work."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _main() -> int:
    """Migrate the database named on standard input; the last line on standard error is the reason of a failure."""
    parent = os.getppid()
    _end_with_the_daemon()
    if os.getppid() != parent:
        return 1
    path = Path(sys.stdin.read())
    try:
        with translated(path):
            upgrade(path)
    except DlrBufferError as error:
        print(error, file=sys.stderr)  # noqa: T201 - how the daemon is told
        return 1
    except Exception as error:  # noqa: BLE001 - whatever a migration does, the daemon is told in one line
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)  # noqa: T201 - as above
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
