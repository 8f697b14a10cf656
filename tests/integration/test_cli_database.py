"""`backup` and `check-db` as an admin runs them: on a running daemon's queue, on a stopped one's, on a copy."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.cli import exits
from dlr_buffer.cli.connection import ConfigurationUnusable
from dlr_buffer.cli.database import find_database
from dlr_buffer.config import DatabaseSettings
from tests.integration.storage.databases import change, flip
from tests.integration.test_cli import PROGRAM, Cli, running


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """A running daemon with a few messages, for tests that only look or make new files."""
    with running() as program:
        program.run("report", "--state", "delivered", "--account", "default", *(f"m{n}" for n in range(20)))
        yield program


@pytest.fixture(scope="module")
def stopped_queue() -> Iterator[Cli]:
    """The folder of a daemon that was stopped in order."""
    with running() as program:
        program.run("report", "--state", "enroute", "--account", "other", *(f"m{n}" for n in range(5)))
        copy = program.folder / "backup.db"
        program.run("backup", str(copy))
        for each in ("queue.db", "config.toml"):
            (program.folder / f"{each}.kept").write_bytes((program.folder / each).read_bytes())
        configuration = (program.folder / "config.toml").read_text()
        (program.folder / "config.toml").write_text(configuration.replace("queue.db", "stopped.db"))
        copy.rename(program.folder / "sound.db")
        yield program


@pytest.fixture
def stopped(stopped_queue: Cli) -> Cli:
    """Its queue, sound again, as ``stopped.db``."""
    queue = stopped_queue.folder / "stopped.db"
    for end in ("-wal", "-shm", ".lock"):
        queue.with_name(queue.name + end).unlink(missing_ok=True)
    queue.write_bytes((stopped_queue.folder / "sound.db").read_bytes())
    return stopped_queue


def test_a_backup_of_a_running_daemon(cli: Cli) -> None:
    """The copy is made, told in numbers, sound, and nobody else's to read; a second one of that name is refused."""
    target = cli.folder / "one.db"
    said = cli.run("backup", str(target))
    assert said.startswith(f"{target}: 20 messages, 20 receipts, ")
    assert "the next request_id was 21" in said
    assert target.stat().st_mode & 0o777 == 0o600
    assert cli.run("check-db", str(target)).endswith("20 messages, 20 receipts: nothing is wrong\n")
    again = cli.both("backup", str(target))
    assert again.returncode == exits.FAILED
    assert b"exists and is not overwritten" in again.stderr
    assert not again.stdout
    (facts,) = cli.lines("backup", str(cli.folder / "two.db"))
    assert facts == {
        "path": str(cli.folder / "two.db"),
        "bytes": (cli.folder / "two.db").stat().st_size,
        "messages": 20,
        "receipts": 20,
        "next_request_id": "21",
    }


def test_a_check_of_a_running_daemon(cli: Cli) -> None:
    """The configured queue is found without naming it, and is sound; a repair is refused while the daemon runs."""
    assert cli.run("check-db") == (
        f"{cli.folder}/queue.db: schema 0001, 20 messages, 20 receipts: nothing is wrong\n"
    )
    (found,) = cli.lines("check-db", "--quick")
    assert found == {
        "path": f"{cli.folder}/queue.db",
        "schema": "0001",
        "messages": 20,
        "receipts": 20,
        "findings": [],
        "mended": [],
    }
    with closing(sqlite3.connect(cli.folder / "queue.db", isolation_level=None)) as other:
        other.execute("INSERT INTO bereft VALUES (99, 1)")
        refused = cli.both("check-db", "--repair")
        other.execute("DELETE FROM bereft")
    assert refused.returncode == exits.FAILED
    assert b"stop it first" in refused.stderr


def test_findings_are_told_in_words_and_as_json(stopped: Cli) -> None:
    """Each finding with what to do, exit code 1; a repair tells what it did, and what is left decides the exit code."""
    queue = stopped.folder / "stopped.db"
    change(
        queue,
        "UPDATE receipt_counts SET rows = 7 WHERE status = 6",
        "INSERT INTO history (request_id, at, event, detail) VALUES (0, 1, 'held', '')",
        "UPDATE messages SET state = 1 WHERE message_id = 'm0'",
    )
    said = stopped.run("check-db", code=exits.FAILED)
    assert (
        "counter: receipt_counts says 7 for account 'default' and status 6, but there are 0 receipts" in said
    )
    assert "orphaned-history: 1 row of history belong to no receipt" in said
    assert "constraint: 1 row of messages break the constraint messages_state" in said
    assert "what to do about constraint: restore it from a backup" in said
    assert "stop the daemon and run `dlr-buffer check-db --repair`" in said
    (found,) = stopped.lines("check-db", code=exits.FAILED)
    assert {each["code"] for each in found["findings"]} == {"counter", "orphaned-history", "constraint"}
    assert {each["code"] for each in found["findings"] if each["mendable"]} == {"counter", "orphaned-history"}
    mended = stopped.run("check-db", "--repair", code=exits.FAILED)
    assert "mended: removed 1 row of history" in mended
    assert "mended: counted receipts again" in mended
    (left,) = stopped.lines("check-db", code=exits.FAILED)
    assert {each["code"] for each in left["findings"]} == {"constraint"}
    change(queue, "UPDATE messages SET state = 3 WHERE message_id = 'm0'")
    (done,) = stopped.lines("check-db", "--repair")
    assert done["mended"] == ["counted messages again", "counted receipts again"]
    assert done["findings"] == []


def test_a_damaged_file_is_told(stopped: Cli) -> None:
    """A file that is no database any more is a finding with what to do, not a traceback; a repair leaves it."""
    queue = stopped.folder / "stopped.db"
    flip(queue, 0, 100)
    content = queue.read_bytes()
    said = stopped.run("check-db", "--repair", code=exits.FAILED)
    assert "damaged: " in said
    assert "restore it from a backup" in said
    assert queue.read_bytes() == content
    assert stopped.both("backup", str(stopped.folder / "b.db")).returncode == exits.FAILED
    assert not (stopped.folder / "b.db").exists()


def test_ctrl_c_leaves_no_file(cli: Cli) -> None:
    """A backup that is interrupted on a terminal ends with 130 and leaves nothing behind."""
    folder = cli.folder / "interrupted"
    folder.mkdir()
    code = (
        "import os, signal, sys\n"
        "import dlr_buffer.storage.backup as backup\n"
        "real = backup._publish\n"
        "def publish(*args): os.kill(os.getpid(), signal.SIGINT); real(*args)\n"
        "backup._publish = publish\n"
        "from dlr_buffer.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    master, slave = pty.openpty()
    done = subprocess.run(
        [PROGRAM[0], "-c", code, "backup", str(folder / "b.db")],
        stderr=slave,
        stdout=subprocess.PIPE,
        env=cli.environment,
        check=False,
        timeout=60,
    )
    os.close(slave)
    with os.fdopen(master, "rb") as terminal:
        shown = b""
        with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012 - what a terminal's end gives
            while True:
                shown += terminal.read1(4096)
    assert done.returncode == exits.INTERRUPTED == 128 + signal.SIGINT
    assert "copying" in shown.decode()
    assert list(folder.iterdir()) == []


def args(config: Path | None) -> argparse.Namespace:
    """What the parser gives."""
    return argparse.Namespace(config=config)


def test_the_database_is_found_without_reading_anything_else(tmp_path: Path) -> None:
    """Only [database] is looked at, by --config or by the environment; without a configuration it is the default."""
    file = tmp_path / "config.toml"
    file.write_text('[database]\nurl = "sqlite:////srv/q.db"\n[accounts.x]\nurl = 7\n')
    assert find_database(args(file), {}) == Path("/srv/q.db")
    assert find_database(args(None), {"DLR_BUFFER_CONFIG": str(file)}) == Path("/srv/q.db")
    file.write_text("[api]\n")
    assert find_database(args(file), {}) == DatabaseSettings().path


@pytest.mark.parametrize(
    "text", [None, "[database", "database = 7", "[database]\nurl = 7", '[database]\nurl = "sqlite:///rel.db"']
)
def test_a_useless_configuration_is_an_error_that_names_it(tmp_path: Path, text: str | None) -> None:
    """A configuration that was named and makes no sense is never replaced by the default."""
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationUnusable, match=r"config\.toml.*--config"):
        find_database(args(file), {})


def test_a_copy_is_checked_by_json_line(cli: Cli) -> None:
    """With --json there is exactly one line on standard output, whatever is found."""
    target = cli.folder / "json.db"
    cli.run("backup", str(target))
    change(target, "DELETE FROM queue_state")
    output = cli.run("check-db", str(target), "--json", code=exits.FAILED)
    assert len(output.splitlines()) == 1
    assert json.loads(output)["findings"][0]["code"] == "queue-state"
