"""The command line as a program, against a daemon as a program: real sockets, a real queue, nobody upstream."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from dlr_buffer.client import Client, DaemonUnreachable

PROGRAM = [sys.executable, "-m", "dlr_buffer"]
PASSWORD = "s3cret-canary"
CONFIGURATION = """\
[api]
client_socket = "{folder}/client.sock"
admin_socket = "{folder}/admin.sock"

[database]
url = "sqlite:///{folder}/queue.db"
min_free = "1MiB"

[accounts.default]
url = "http://127.0.0.1:9/api/dlr"  # the discard port: nobody listens, so receipts stay pending
login = "login-canary"
password_file = "{folder}/password"
retry = {{ initial = "10m" }}

[accounts.other]
url = "http://127.0.0.1:9/api/dlr"
login = "login-canary"
password_file = "{folder}/password"
"""


class Cli:
    """The command line of one daemon."""

    def __init__(self, folder: Path) -> None:
        """Use the daemon whose configuration is in ``folder``."""
        self.folder = folder
        self.environment = os.environ | {"DLR_BUFFER_CONFIG": str(folder / "config.toml"), "COLUMNS": "200"}

    def run(self, *args: str, stdin: bytes = b"", code: int = 0) -> str:
        """Run a command, expect the exit code, and return what it printed."""
        done = self.both(*args, stdin=stdin)
        assert done.returncode == code, done
        return done.stdout.decode()

    def both(self, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command and return what came of it; the credentials must be in none of it."""
        done = subprocess.run(
            [*PROGRAM, *args], input=stdin, capture_output=True, env=self.environment, check=False, timeout=60
        )
        for canary in (PASSWORD, "login-canary"):
            assert canary.encode() not in done.stdout + done.stderr
        return done

    def lines(self, *args: str, stdin: bytes = b"", code: int = 0) -> list[Any]:
        """Run a command with --json; every line that it prints has to be JSON."""
        return [json.loads(line) for line in self.run("--json", *args, stdin=stdin, code=code).splitlines()]


@contextmanager
def running() -> Iterator[Cli]:
    """Start a daemon on a fresh queue, and stop it."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        folder = Path(name)
        (folder / "password").touch(0o600)
        (folder / "password").write_text(PASSWORD)
        (folder / "config.toml").write_text(CONFIGURATION.format(folder=folder))
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [*PROGRAM, "run", "--config", str(folder / "config.toml")], stdout=log, stderr=log
            )
        until_it_answers = Retrying(
            retry=retry_if_exception_type(DaemonUnreachable),
            wait=wait_fixed(0.02),
            stop=stop_after_delay(30),
            reraise=True,
        )
        try:
            with Client(folder / "client.sock", retry_for_s=0) as client:
                until_it_answers(client.connect)
            yield Cli(folder)
        finally:
            daemon.terminate()
            code = daemon.wait(30)
        assert code == 0, (folder / "log").read_text()


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """A daemon that the tests share; each uses message ids of its own."""
    with running() as program:
        yield program


@pytest.fixture
def fresh_cli() -> Iterator[Cli]:
    """A daemon of a test's own."""
    with running() as program:
        yield program


def test_a_message_is_registered_reported_and_shown(cli: Cli) -> None:
    """The ordinary way: register, report, look; repeating is no error, contradicting is."""
    assert cli.run("register", "a1", "--validity-period", "1h") == "1 registered, 0 known already\n"
    assert cli.run("register", "a1") == "0 registered, 1 known already\n"
    assert cli.run("report", "a1", "delivered") == "1 queued, 0 known already\n"
    refused = cli.both("report", "--state", "rejected", "a1")
    assert refused.returncode == 1
    assert b"'a1': the message is final already" in refused.stderr
    (message,) = cli.lines("show", "a1")
    assert (message["message_id"], message["state"]) == ("a1", "delivered")
    shown = cli.run("show", "a1")
    assert "registered" in shown
    assert shown.splitlines()[-1].startswith(
        f"next: Receipt {message['receipts'][0]['request_id']} (delivered)"
    )
    assert cli.both("show", "a-unknown").returncode == 1


def test_ids_are_kept_and_shown_byte_for_byte(cli: Cli) -> None:
    """Leading zeros, brackets that rich would read as markup, spaces and slashes come back as they went in."""
    ids = ["007", "7", "[bold]b", ":smile:", "s p a c e", "a/b%41", "ünï"]
    cli.run("register", *ids, "--account", "other")
    listed = cli.run("list", "messages", "--account", "other")
    for name in ids:
        assert any(line.rstrip().endswith("other     " + name) for line in listed.splitlines()), name
        assert cli.lines("show", "--account", "other", name)[0]["message_id"] == name


def test_lines_from_standard_input_good_and_bad(cli: Cli) -> None:
    """Plain ids and JSON mixed: the good ones are stored, each bad one is told by line, the exit code is 1."""
    lines = [
        b"b1",
        b"",
        b"b 2",
        b'{"message_id": "b 3", "validity_period": 60}',
        b'{"message_id": 4}',
        b"{",
        b"\xff",
        b"b" * 256,
        b"b1\r",
    ]
    done = cli.both("register", stdin=b"\n".join(lines))
    assert done.returncode == 1
    assert done.stdout.decode() == "2 registered, 1 known already, 5 bad\n"
    named = sorted(line.split(b":")[1] for line in done.stderr.splitlines())
    assert named == [b" line 3", b" line 5", b" line 6", b" line 7", b" line 8"]
    reports = b"b1\tdelivered\nb1 rejected\nb1\n" + b'{"message_id": "b 3", "message_state": "enroute"}\n'
    done = cli.both("--json", "report", "-", stdin=reports)
    assert json.loads(done.stdout) == {"queued": 2, "duplicates": 0, "errors": 2}
    assert [line.split(b": ")[1] for line in done.stderr.splitlines()] == [b"line 3", b"line 2"]
    assert cli.run("report", "--state", "unknown", stdin=b"b 3\n", code=1).endswith("1 bad\n")
    assert cli.run("report", "--state", "unknown", "b 3") == "1 queued, 0 known already\n"


def test_long_input_keeps_its_line_numbers(cli: Cli) -> None:
    """Over several chunks of a thousand, the daemon's errors are still told with the line of the whole input."""
    lines = [f"c{number}" for number in range(2500)]
    lines[1777] = '{"message_id": 7}'
    done = cli.both("register", "-", stdin="\n".join(lines).encode())
    assert done.stdout == b"2,499 registered, 0 known already, 1 bad\n"
    assert done.stderr.startswith(b"dlr-buffer: line 1778: ")


def test_slow_input_is_stored_as_it_comes(cli: Cli) -> None:
    """Lines of a pipe that stays open are registered without waiting for a thousand of them."""
    with subprocess.Popen([*PROGRAM, "register"], stdin=subprocess.PIPE, env=cli.environment) as program:
        assert program.stdin is not None
        program.stdin.write(b"d1\n")
        program.stdin.flush()

        def look() -> None:
            cli.run("show", "d1")

        Retrying(retry=retry_if_exception_type(AssertionError), stop=stop_after_delay(30), reraise=True)(look)
        program.stdin.close()
        assert program.wait(30) == 0


def test_lists_are_filtered_limited_and_machine_readable(cli: Cli) -> None:
    """--json prints a line for each row and nothing else; filters and limits are kept; no row is no line."""
    cli.run("register", *(f"e{number}" for number in range(3)))
    cli.run("report", "--state", "enroute", "e1")
    assert [row["message_id"] for row in cli.lines("list", "messages", "--message-id", "e1")] == ["e1"]
    assert [row["message_state"] for row in cli.lines("list", "receipts", "--message-id", "e1")] == [
        "enroute"
    ]
    assert len(cli.lines("list", "messages", "--limit", "2")) == 2
    everything = cli.lines("list", "messages", "--limit", "0")
    assert len({(row["account"], row["message_id"]) for row in everything}) == len(everything)
    assert {"e0", "e1", "e2"} <= {row["message_id"] for row in everything}
    nothing = cli.both("list", "receipts", "--message-id", "no-such")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, b"", b"no such receipts\n")
    unknown = cli.both("list", "receipts", "--account", "nobody")
    assert unknown.returncode == 1
    assert b"nobody" in unknown.stderr


def test_status_tells_what_waits_and_why(cli: Cli) -> None:
    """One table for people with the accounts and the trouble of an unreachable Smartswitch; one line for machines."""
    cli.run("register", "f1")
    cli.run("report", "f1", "delivered")
    (found,) = cli.lines("status")
    assert {account["name"] for account in found["accounts"]} == {"default", "other"}
    text = cli.run("status")
    assert "ACCOUNT" in text
    assert "default" in text
    assert "\x1b" not in text


def test_hold_release_retry_and_delete_receipts(cli: Cli) -> None:
    """Each action tells how many it changed and skipped, and the receipt is then as it says."""
    cli.run("register", "g1")
    cli.run("report", "g1", "delivered")
    cli.run("pause", "default")  # nothing of it is in flight from here on
    ((receipt,),) = [cli.lines("list", "receipts", "--message-id", "g1")]
    request_id = receipt["request_id"]

    def status() -> str:
        return str(cli.lines("show", "g1")[0]["receipts"][0]["status"])

    assert cli.run("hold", request_id, "--dry-run") == "1 receipt would be held\n"
    assert status() == "pending"
    assert cli.run("hold", request_id, "999999", "--yes").startswith("1 receipt held, 1 skipped")
    assert status() == "held"
    assert cli.lines("release", "--message-id", "g1", "--status", "held", "--yes") == [
        {
            "action": "release",
            "kind": "receipts",
            "changed": 1,
            "skipped": 0,
            "in_flight": 0,
            "dry_run": False,
        }
    ]
    assert cli.run("retry", request_id, "--yes") == "1 receipt retried\n"
    assert cli.run("delete", "receipts", "--message-id", "g1", "--yes") == "1 receipt deleted\n"
    assert cli.lines("show", "g1")[0]["receipts"] == []
    assert cli.run("delete", "messages", "g1", "--yes") == "1 message deleted\n"
    assert cli.run("retry", "999999", "--yes", code=1).startswith("0 receipts retried, 1 skipped")
    cli.run("resume", "default")


def test_expire_now(cli: Cli) -> None:
    """`expire` gives a waiting message its final state and its receipt at once."""
    cli.run("register", "h1")
    assert cli.run("expire", "h1", "--account", "default", "--yes") == "1 message expired\n"
    (message,) = cli.lines("show", "h1")
    assert message["state"] == "expired"
    assert [receipt["message_state"] for receipt in message["receipts"]] == ["expired"]


def test_accounts_and_expiry_are_steered(cli: Cli) -> None:
    """A pause shows in status until resume; an unknown account is a failure; expiry that runs may be resumed."""
    assert cli.run("pause", "other") == "account other is paused\n"
    assert cli.lines("status")[0]["accounts"][1]["health"] == "paused"
    assert cli.lines("resume", "other")[0]["health"] != "paused"
    assert cli.run("expiry", "resume") == "expiry runs\n"
    assert cli.both("pause", "nobody").returncode == 1


def test_nobody_is_asked_where_nobody_can_answer(cli: Cli) -> None:
    """Without a terminal, --yes or --dry-run an action is refused with the reason, and nothing changes."""
    done = cli.both("delete", "messages", "ALL")
    assert done.returncode == 2
    assert b"--yes" in done.stderr


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 0), (b"n\n", 1, 3), (b"\n", 1, 3)])
def test_on_a_terminal_the_number_is_shown_and_a_question_asked(
    fresh_cli: Cli, answer: bytes, code: int, left: int
) -> None:
    """ALL deletes everything after a yes and nothing after anything else; the number stands in the question."""
    fresh_cli.run("register", "1", "2", "3")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [*PROGRAM, "delete", "messages", "ALL"],
            stdin=theirs,
            capture_output=True,
            env=fresh_cli.environment,
            check=False,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code
    assert b"3 messages would be deleted" in done.stderr
    assert b"Delete 3 messages? [y/N]" in done.stderr
    assert len(fresh_cli.lines("list", "messages")) == left


def test_colour_and_progress_are_for_terminals(fresh_cli: Cli) -> None:
    """Long input draws a bar on a terminal's standard error; NO_COLOR keeps the table on a terminal without colour."""

    def on_terminal(environment: dict[str, str], *args: str, stdin: bytes = b"") -> bytes:
        ours, theirs = pty.openpty()
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            terminal = environment | {"TERM": "xterm-256color"}
            with subprocess.Popen(
                [*PROGRAM, *args], stdin=file, stdout=theirs, stderr=theirs, env=terminal
            ) as program:
                os.close(theirs)
                shown = b""
                try:
                    while part := os.read(ours, 65_536):
                        shown += part
                except OSError:  # the other end is closed
                    pass
                os.close(ours)
                assert program.wait(30) == 0
        return shown

    lines = b"\n".join(b"%d" % number for number in range(5000))
    assert "━".encode() in on_terminal(fresh_cli.environment, "register", "-", stdin=lines)
    assert b"\x1b[3" in on_terminal(fresh_cli.environment, "status")
    assert b"\x1b[3" not in on_terminal(fresh_cli.environment | {"NO_COLOR": "1"}, "status")


def test_a_reader_that_goes_away_is_not_an_error_to_shout_about(cli: Cli) -> None:
    """`list | head -1` ends quietly."""
    cli.run("register", *(f"i{number}" for number in range(2000)))
    with subprocess.Popen(
        [*PROGRAM, "--json", "list", "messages", "--limit", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(30) == 141


def test_check_config_shows_what_holds_and_hides_secrets(cli: Cli) -> None:
    """The effective configuration is printed without its secrets, and every problem of a bad one on its own line."""
    assert 'client_socket = "' in cli.run("check-config")
    bad = cli.folder / "bad.toml"
    bad.write_text('[api]\nclient_sockte = "/x"\n[messages]\nvalidity_period = "soon"\n')
    done = cli.both("check-config", "--config", str(bad))
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"client_socket" in done.stderr
    assert any(line.startswith(b"messages.validity_period: ") for line in done.stderr.splitlines())
