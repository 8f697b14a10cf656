"""Upgrades: from every released schema with data in it, killed in the middle, and while clients knock."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dlr_buffer
from dlr_buffer.client import Client, DaemonUnreachable
from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.checking import check
from dlr_buffer.storage.migrate import KNOWN, MIGRATIONS, ensure_schema
from tests.acceptance.harness import eventually
from tests.extent import LONG
from tests.integration.storage.databases import RELEASED, change, dump, released_database
from tests.integration.storage.harness import DELIVERED, opened, rows
from tests.loops import on_loop

NEXT = f"{int(schema.HEAD) + 1:04}"
"""The schema of a release that is not there yet."""
SLOW = f'''
"""Rewrites every receipt and every message."""
from alembic import op
from dlr_buffer.storage.migrate import stop
revision, down_revision, branch_labels, depends_on = "{NEXT}", "{schema.HEAD}", None, None

def upgrade():
    stop("at its beginning")
    op.execute("UPDATE receipts SET attempts = attempts + 100")
    stop("in the middle")
    op.execute("UPDATE messages SET changed_at = changed_at + 1")
'''
STOPS = '''
def stop(point):
    """Wait here, if told to by the environment, while the file WAIT names is there."""
    import time
    if os.environ.get("POINT", "in the middle") == point:
        wait = Path(os.environ["WAIT"])
        wait.with_name("migrating").touch()
        while wait.exists():
            time.sleep(0.01)


if __name__ == "__main__":
'''
COMMIT = '        connection.exec_driver_sql("COMMIT")\n'
POINTS = ("at its beginning", "in the middle", "before its commit", "after its commit")
CONFIGURATION = """\
[api]
client_socket = "{folder}/client.sock"
admin_socket = "{folder}/admin.sock"

[database]
url = "sqlite:///{folder}/queue.db"
min_free = "1MiB"

[accounts.default]
url = "http://127.0.0.1:9/api/dlr"
login = "login"
password_file = "{folder}/password"
retry = {{ initial = "10m" }}
"""


@pytest.mark.parametrize("sql", sorted(RELEASED.glob("*.sql")), ids=lambda sql: sql.stem)
@on_loop
async def test_a_released_database_is_upgraded_whole(tmp_path: Path, sql: Path) -> None:
    """Whatever lies in a database of an earlier release is there after the upgrade, contradicts nothing, goes on."""
    path = released_database(sql, tmp_path / "queue.db")
    tables = ("messages", "receipts", "history", "accounts", "bereft")
    before = {table: rows(path, f"SELECT count(*) FROM {table}") for table in tables}
    names = rows(path, "SELECT message_id, state, expires_at FROM messages ORDER BY id")
    ids = rows(
        path, "SELECT request_id, state, status, refusals, error_code FROM receipts ORDER BY request_id"
    )
    async with opened(path, accounts=("default", "other")) as queue:
        assert queue.store.paused("other")
        assert await queue.acknowledge_all() > 0
        assert await queue.acknowledge_all("other") == 0
        await queue.report_one("007", DELIVERED)
    assert check(path).findings == ()
    path = released_database(sql, tmp_path / "again.db")
    ensure_schema(path)
    assert check(path).findings == ()
    assert {table: rows(path, f"SELECT count(*) FROM {table}") for table in tables} == before
    assert rows(path, "SELECT message_id, state, expires_at FROM messages ORDER BY id") == names
    assert (
        rows(path, "SELECT request_id, state, status, refusals, error_code FROM receipts ORDER BY request_id")
        == ids
    )


def test_every_release_has_a_rich_example() -> None:
    """Each migration has its frozen database, and every state and status is in each, so that the upgrade meets all."""
    assert {sql.stem for sql in RELEASED.glob("*.sql")} == KNOWN
    assert {each.name.split("_")[0] for each in (MIGRATIONS / "versions").glob("0*.py")} == KNOWN
    for sql in RELEASED.glob("*.sql"):
        with tempfile.TemporaryDirectory() as folder:
            path = released_database(sql, Path(folder) / "queue.db")
            assert rows(path, "SELECT version_num FROM alembic_version") == [(sql.stem,)]
            assert {row[0] for row in rows(path, "SELECT DISTINCT state FROM messages")} == set(
                schema.STATE_NAMES
            )
            assert {row[0] for row in rows(path, "SELECT DISTINCT status FROM receipts")} == set(
                schema.STATUSES
            )
            assert rows(path, "SELECT count(*) FROM accounts") == [(2,)]


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as it is, and one more migration, which takes as long as a test wants."""
    folder = tmp_path_factory.mktemp("next")
    package = Path(dlr_buffer.__file__).parent
    shutil.copytree(package, folder / "dlr_buffer", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dlr_buffer/storage/migrations/versions" / f"{NEXT}_slow.py").write_text(SLOW)
    module = folder / "dlr_buffer/storage/schema.py"
    text = module.read_text()
    head = f'HEAD: Final = "{schema.HEAD}"'
    assert text.count(head) == 1
    module.write_text(text.replace(head, f'HEAD: Final = "{NEXT}"'))
    module = folder / "dlr_buffer/storage/migrate.py"
    text = module.read_text()
    assert text.count(COMMIT) == 1
    text = text.replace(
        COMMIT, f'        stop("before its commit")\n{COMMIT}        stop("after its commit")\n'
    )
    # As a program it is a module of another name than the one that the migration imports.
    module.write_text(text.replace('\nif __name__ == "__main__":\n', STOPS))
    return folder


@pytest.fixture(params=sorted(RELEASED.glob("*.sql")), ids=lambda sql: sql.stem)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with a short name (a socket's may have 107 bytes), a queue of each release and its configuration."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        folder = Path(name)
        (folder / "password").touch(0o600)
        (folder / "password").write_text("secret")
        (folder / "config.toml").write_text(CONFIGURATION.format(folder=folder))
        released_database(request.param, folder / "queue.db")
        yield folder


@contextmanager
def daemon(
    next_release: Path, folder: Path, point: str = "in the middle"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the next release's daemon, whose migration waits at ``point``; it is killed at the end if it still runs."""
    environment = os.environ | {
        "PYTHONPATH": str(next_release),
        "WAIT": str(folder / "wait"),
        "POINT": point,
    }
    command = [sys.executable, "-m", "dlr_buffer", "run", "--config", str(folder / "config.toml")]
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(command, cwd=next_release, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def child_of(pid: int) -> int:
    """The process that a daemon has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    (child,) = " ".join((task / "children").read_text() for task in tasks).split()
    return int(child)


async def until(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file is there."""
    await asyncio.to_thread(eventually, lambda: path.exists() or process.poll() is not None, bool)
    assert process.poll() is None, path.with_name("log").read_text()


def register(folder: Path, message_id: str) -> None:
    """Register a message as an app does that goes on trying, and believe only an answer."""
    while True:
        try:
            with Client(folder / "client.sock", retry_for_s=30) as client:
                client.connect()
                assert client.register(message_id, account="default")
                return
        except DaemonUnreachable:
            continue


@on_loop
async def test_an_upgrade_under_load_answers_nobody_falsely(next_release: Path, folder: Path) -> None:
    """Apps that register while it migrates wait; whatever is answered then is there, with all that was there before."""
    queue = folder / "queue.db"
    messages = rows(queue, "SELECT count(*) FROM messages")[0][0]
    (folder / "wait").touch()
    with daemon(next_release, folder) as process:
        await until(folder / "migrating", process)
        apps = [asyncio.create_task(asyncio.to_thread(register, folder, f"app-{n}")) for n in range(5)]
        with pytest.raises(DaemonUnreachable):
            await asyncio.to_thread(Client(folder / "client.sock", retry_for_s=0).connect)
        assert not any(app.done() for app in apps)
        (folder / "wait").unlink()
        await asyncio.gather(*apps)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    assert rows(queue, "SELECT version_num FROM alembic_version") == [(NEXT,)]
    assert rows(queue, "SELECT count(*) FROM messages WHERE message_id LIKE 'app-%'") == [(5,)]
    assert rows(queue, "SELECT count(*) FROM messages") == [(messages + 5,)]
    assert rows(queue, "SELECT min(attempts) >= 100 FROM receipts") == [(1,)]


@pytest.mark.parametrize(
    ("point", "alone"),
    [
        *((point, False) for point in (POINTS if LONG else ("before its commit",))),
        ("before its commit", True),
    ],
)
@on_loop
async def test_an_upgrade_that_is_killed_leaves_the_old_schema(
    next_release: Path,
    folder: Path,
    point: str,
    alone: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Killed anywhere before its commit the old database is whole, after it the new one; no migration goes on alone.

    The next start does what is left, once.
    """
    queue = folder / "queue.db"
    before = dump(queue)
    (folder / "wait").touch()
    with daemon(next_release, folder, point) as process:
        await until(folder / "migrating", process)
        if alone:
            os.kill(child_of(process.pid), signal.SIGKILL)
            assert await asyncio.to_thread(process.wait, 30) == 1
            assert "the migration was killed by SIGKILL" in (folder / "log").read_text()
        else:
            process.kill()
            process.wait()
    # The file that it waits for stays: were the child still at work, it would hold the database.
    change(queue, "PRAGMA user_version = 1", "PRAGMA user_version = 0")
    if point == "after its commit":
        assert rows(queue, "SELECT version_num FROM alembic_version") == [(NEXT,)]
        assert rows(queue, "SELECT min(attempts), max(attempts) < 200 FROM receipts") == [(100, 1)]
    else:
        assert dump(queue) == before
        assert check(queue).findings == ()
    (folder / "wait").unlink()
    with daemon(next_release, folder) as process:
        await asyncio.to_thread(register, folder, "after")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    assert rows(queue, "SELECT version_num FROM alembic_version") == [(NEXT,)]
    assert rows(queue, "SELECT min(attempts), max(attempts) < 200 FROM receipts") == [(100, 1)]


def test_a_downgrade_is_refused(folder: Path) -> None:
    """A database of a later release is refused by this one with what to do, and stays as it is."""
    queue = folder / "queue.db"
    change(queue, f"UPDATE alembic_version SET version_num = '{NEXT}'")
    before = dump(queue)
    with pytest.raises(
        StoreUnavailable,
        match=f"has the schema {NEXT}, which this program does not know: a newer dlr-buffer made it; run that one",
    ):
        ensure_schema(queue)
    assert dump(queue) == before


def test_a_migration_that_fails_says_why(next_release: Path, folder: Path) -> None:
    """The reason of a failure is one line that a human understands, and the old schema stays whole."""
    queue = folder / "queue.db"
    change(queue, "CREATE TRIGGER t BEFORE UPDATE ON messages BEGIN SELECT RAISE(ABORT, 'not today'); END")
    before = dump(queue)
    with daemon(next_release, folder) as process:
        assert process.wait(60) == 1
    log = (folder / "log").read_text()
    assert f"could not be migrated to schema {NEXT}" in log
    assert "not today" in log
    assert "nothing of it was kept" in log
    assert "sqlalche.me" not in log
    assert dump(queue) == before
