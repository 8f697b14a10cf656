"""`dlr-buffer doctor` as an admin runs it: on a running daemon, on one that was killed, on a configuration alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.cli import exits
from dlr_buffer.client import Client
from dlr_buffer.doctor.examination import Wishes, examine
from dlr_buffer.doctor.findings import Level
from dlr_buffer.doctor.units import Systemctl
from tests.integration.storage.databases import change
from tests.integration.test_cli import CONFIGURATION, PASSWORD, PROGRAM, Cli, running


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """A running daemon whose files nobody else may read."""
    with running() as program:
        for name in ("config.toml", "password"):
            (program.folder / name).chmod(0o600)
        program.run("report", "--state", "delivered", "--account", "default", "m1", "m2")
        yield program


def found(cli: Cli, *args: str, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Run doctor without the network; the findings by check."""
    by_check: dict[str, list[dict[str, Any]]] = {}
    for line in cli.lines("doctor", "--no-network", *args, code=code):
        assert set(line) == {"section", "check", "level", "finding", "remedy"}
        by_check.setdefault(line["check"], []).append(line)
    return by_check


def levels(lines: list[dict[str, Any]]) -> list[str]:
    """Return the level of each."""
    return [line["level"] for line in lines]


def test_a_daemon_that_runs(cli: Cli) -> None:
    """All that is the installation's own is well: configuration, sockets, queue, lock, version; exit code 0."""
    seen = found(cli)
    for check in (
        "config",
        "socket",
        "answer",
        "version",
        "queue",
        "queue-owner",
        "queue-lock",
        "open-files",
    ):
        assert set(levels(seen[check])) == {"ok"}, seen[check]
    assert levels(seen["answer"]) == ["ok", "ok"]
    assert levels(seen["expiry"]) == ["ok"]
    assert "error" not in [line["level"] for lines in seen.values() for line in lines]
    assert levels(seen["upstream"]) == ["note"]


def test_the_text_has_a_line_for_what_is_and_one_for_what_to_do(cli: Cli) -> None:
    """Sections, levels and remedies are there to be read, and the last line counts them."""
    done = cli.both("doctor", "--no-network")
    assert done.returncode == exits.OK
    text = done.stdout.decode()
    assert text.startswith("configuration\n  ok       ")
    assert "\nsockets\n" in text
    assert "let no other program write to the queue" in text or "SQLite 3.5" in text
    assert text.splitlines()[-1] == "all is well" or "note" in text.splitlines()[-1]


def test_servers_are_connected_to_unless_told_otherwise(cli: Cli) -> None:
    """Nobody listens at the accounts' port: an error for each, and exit code 1."""
    lines = cli.lines("doctor", code=exits.FAILED)
    refused = [line for line in lines if line["check"] == "upstream-connect"]
    assert levels(refused) == ["error", "error"]
    assert "127.0.0.1:9 refused the connection" in refused[0]["finding"]


def test_a_probe_of_an_account_that_is_not_there(cli: Cli) -> None:
    """It is wrong usage, and names the accounts that there are."""
    done = cli.both("doctor", "--no-network", "--probe", "nobody")
    assert done.returncode == exits.USAGE
    assert b"default, other" in done.stderr


def test_a_probe_says_what_came_of_it(cli: Cli) -> None:
    """Also where the other servers are left alone."""
    seen = found(cli, "--probe", "other", code=exits.FAILED)
    assert levels(seen["upstream-probe"]) == ["error"]


def test_a_deep_look(cli: Cli) -> None:
    """Rows are looked through only when asked for."""
    assert "queue-rows" not in found(cli)
    assert levels(found(cli, "--deep")["queue-rows"]) == ["ok"]


def test_a_secret_that_others_may_read(cli: Cli) -> None:
    """The mode of the password file is an error while it is wrong."""
    (cli.folder / "password").chmod(0o644)
    try:
        lines = [line for lines in found(cli, code=exits.FAILED).values() for line in lines]
    finally:
        (cli.folder / "password").chmod(0o600)
    wrong = [line for line in lines if line["level"] == "error"]
    assert wrong
    for line in wrong:
        assert str(cli.folder / "password") in line["finding"]
        assert "mode 0644" in line["finding"]
        assert "sudo chmod" in line["remedy"]


def test_a_password_that_lies_about(cli: Cli) -> None:
    """A password file beside the configuration that nothing names any more is not for others either."""
    left = cli.folder / "left.password"
    left.write_text("another")
    left.chmod(0o644)
    try:
        lines = [line for lines in found(cli, code=exits.FAILED).values() for line in lines]
    finally:
        left.unlink()
    (wrong,) = [line for line in lines if line["level"] == "error"]
    assert str(left) in wrong["finding"]


def test_a_daemon_that_was_killed() -> None:
    """Stale sockets, an unclosed queue and its log are told; a wrong counter only by a deep look."""
    with running() as program:
        for name in ("config.toml", "password"):
            (program.folder / name).chmod(0o600)
        program.run("register", "--account", "default", "m1")
        killed = program.folder / "killed"
        killed.mkdir()
        configuration = program.folder / "config.toml"
        (killed / "config.toml").write_text(
            configuration.read_text().replace(str(program.folder), str(killed))
        )
        (killed / "password").write_text(PASSWORD)
        for name in ("config.toml", "password"):
            (killed / name).chmod(0o600)
        other = Cli(killed)
        with (killed / "log").open("wb") as log:
            daemon = subprocess.Popen([*PROGRAM, "run"], env=other.environment, stdout=log, stderr=log)
        try:
            with Client(killed / "client.sock", retry_for_s=30) as client:
                client.register("m1", "default")
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait(30)
        seen = found(other)
        assert levels(seen["answer"]) == ["warning", "warning"]
        assert "nobody listens" in seen["answer"][0]["finding"]
        assert (seen["answer"][0]["remedy"] or "").startswith(f"dlr-buffer run --config {killed}")
        assert levels(seen["queue-lock"]) == ["note"]
        assert levels(seen["queue-log"]) == ["note"]
        assert levels(seen["queue"]) == ["ok"]
        change(killed / "queue.db", "UPDATE message_counts SET rows = 7 WHERE rows > 0")
        assert "error" in levels(found(other, "--deep", code=exits.FAILED)["queue-rows"])


class ScriptedSystemctl(Systemctl):
    """A systemd that tells what a test wants of each unit."""

    def __init__(self, told: dict[str, dict[str, str]]) -> None:
        """Tell ``told``, and of all other units that there are none."""
        super().__init__()
        self.present = True
        self._told = told

    def show(self, unit: str) -> dict[str, str]:
        """Return what the test wants."""
        return self._told.get(unit, {"LoadState": "not-found"})

    def text(self, _unit: str) -> str:
        """Return nothing."""
        return ""


@pytest.mark.parametrize(("state", "connections"), [("inactive", 0), ("failed", 0), ("active", 1)])
def test_a_daemon_that_a_connection_would_start_is_left_alone(
    public_folder: Path, state: str, connections: int
) -> None:
    """Where systemd listens for a service that is down, nobody connects; where it runs, it is asked."""
    (public_folder / "password").write_text(PASSWORD)
    (public_folder / "config.toml").write_text(CONFIGURATION.format(folder=public_folder))
    listens = {"LoadState": "loaded", "ActiveState": "active", "SocketMode": "0660"}
    units = {
        "dlr-buffer.service": {"LoadState": "loaded", "ActiveState": state, "User": "root"},
        "dlr-buffer-client.socket": listens,
        "dlr-buffer-admin.socket": listens,
    }
    path = public_folder / "client.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()
        served = threading.Thread(target=_hang_up_on, args=(listening, connections))
        served.start()
        wishes = Wishes(public_folder / "config.toml", network=False)
        findings = [
            each for section in examine(wishes, {}, ScriptedSystemctl(units)) for each in section.findings
        ]
        served.join()
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        with pytest.raises(BlockingIOError):
            listening.accept()
    (answer,) = (each for each in findings if each.code == "answer" and str(path) in each.what)
    assert answer.level is (Level.ERROR if connections else Level.NOTE)
    assert ("starts the daemon at the first connection" in answer.what) is (not connections)


def _hang_up_on(listening: socket.socket, connections: int) -> None:
    for _ in range(connections):
        listening.accept()[0].close()


def test_a_configuration_alone(tmp_path: Path) -> None:
    """Without daemon and queue it says what is not there yet; a wrong key is an error, and all else is looked at."""
    cli = Cli(tmp_path)
    (tmp_path / "password").write_text(PASSWORD)
    text = CONFIGURATION.format(folder=tmp_path)
    (tmp_path / "config.toml").write_text(text)
    for name in ("config.toml", "password"):
        (tmp_path / name).chmod(0o600)
    seen = found(cli)
    assert levels(seen["queue"]) == ["note"]
    assert levels(seen["answer"]) == ["warning", "warning"]
    (tmp_path / "config.toml").write_text(text + "\n[databaes]\n")
    seen = found(cli, code=exits.FAILED)
    assert levels(seen["config"]) == ["error"]
    assert "did you mean database?" in seen["config"][0]["finding"]
    assert levels(seen["queue"]) == ["note"]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """A configuration that is not TOML is an error, and the defaults are looked at in its place."""
    (tmp_path / "config.toml").write_text("[api\n")
    (tmp_path / "config.toml").chmod(0o600)
    lines = Cli(tmp_path).both("doctor", "--json", "--no-network").stdout.splitlines()
    assert json.loads(lines[0])["check"] == "config"
    assert len(lines) > 5
    assert os.path.lexists(tmp_path / "config.toml")
