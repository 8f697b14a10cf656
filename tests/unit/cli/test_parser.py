"""The grammar of the command line, and what a wrong command line gets."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dlr_buffer import config
from dlr_buffer.cli import connection, exits, main
from dlr_buffer.cli.parser import STATES, STATUSES, build_parser
from dlr_buffer.client import DaemonUnreachable
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptStatus

COMMANDS = [
    *("run", "check-config", "register", "report", "status", "list", "show", "retry", "hold", "release"),
    *(
        "expire",
        "delete",
        "pause",
        "resume",
        "expiry",
        "simulate",
        "demo",
        "bench",
        "backup",
        "check-db",
        "doctor",
    ),
]


def test_vocabulary_and_defaults_are_the_programs_own() -> None:
    """States, statuses and default paths, written down twice so that the command line starts quickly, agree."""
    assert list(STATES) == list(MessageState)
    assert set(STATUSES) == set(ReceiptStatus)
    assert connection.DEFAULT_CONFIG == config.DEFAULT_PATH
    assert connection.Sockets() == connection.Sockets(
        config.ApiSettings().client_socket, config.ApiSettings().admin_socket
    )


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in COMMANDS), ["delete", "receipts"], ["list", "messages"], ["expiry", "resume"]],
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help of every command prints how it is used and exits 0."""
    assert main([*command, "--help"]) == exits.OK
    assert "usage: dlr-buffer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["--json --socket /x status", "status --json --socket /x", "--json status --socket /x"]
)
def test_global_options_are_taken_on_both_sides_of_the_command(line: str) -> None:
    """Options before and after the command's name mean the same, and neither place resets the other."""
    args = build_parser().parse_args(line.split())
    assert (args.json, args.socket, args.config) == (True, Path("/x"), None)


def test_the_stand_in_takes_json_on_both_sides() -> None:
    """`simulate` brings an option --json of its own, which must not undo the global one."""
    parser = build_parser()
    assert parser.parse_args(["--json", "simulate"]).json
    assert parser.parse_args(["simulate", "--json"]).json
    assert not parser.parse_args(["simulate"]).json


@pytest.mark.parametrize(
    "line",
    [
        "",
        "frobnicate",
        "stat",
        "list",
        "delete",
        "expiry",
        "pause",
        "show",
        "list receipts --status lost",
        "list messages --status dead",
        "list messages --limit -1",
        "list messages --older-than 3x",
        "list messages --newer-than 2026-11-23T18:41:00",
        "register a --validity-period 72",
        "register a --validity-period 1500ms",
        "register a --validity-period 0s",
        "register a - b",
        "report a",
        "report a lost",
        "report a b delivered",
        "report a --state lost",
        "demo --messages 0",
        "bench --seconds 0",
        "bench --seconds 61",
        "bench --seconds nan",
        "bench --seconds soon",
        "backup",
        "backup a b",
        "check-db a b",
        "check-db --quick --repair",
        "show ",
    ],
)
def test_a_wrong_command_line_exits_2_before_anything_is_asked(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error says what is wrong on standard error, whether a daemon runs or not."""
    words = line.split(" ") if line else []
    assert main(["--socket", "/nonexistent/socket", *words]) == exits.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "dlr-buffer" in captured.err


def test_without_a_daemon_the_exit_code_is_69(capsys: pytest.CaptureFixture[str]) -> None:
    """An unreachable daemon is told apart from a failure, with the socket and where to look."""
    assert main(["--socket", "/nonexistent/socket", "status"]) == exits.UNREACHABLE == 69
    error = capsys.readouterr().err
    assert "/nonexistent/socket" in error
    assert "systemctl status dlr-buffer" in error


def test_a_forbidden_socket_names_the_group_to_join(folder: Path) -> None:
    """Where permission is missing, the hint names the socket's group instead of asking whether the daemon runs."""
    path = folder / "client.sock"
    path.touch()
    denied = DaemonUnreachable(path, "permission denied", errno=errno.EACCES)
    group = connection._group_name(path.stat().st_gid)
    assert connection.unreachable_hint(denied) == (
        f"{path} belongs to the group {group}: join it (usermod -aG {group} USER), or ask as root"
    )


def test_a_request_that_may_have_been_acted_on_is_not_called_unsent() -> None:
    """After a lost answer the hint is to look first, not to repeat."""
    lost = DaemonUnreachable(Path("/x"), "broke off", request_sent=True)
    assert "look before you repeat" in connection.unreachable_hint(lost)


def _sockets(text: str | None, folder: Path, *, named: bool = True) -> connection.Sockets:
    path = folder / "config.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    args = argparse.Namespace(socket=None, config=path if named else None)
    return connection.find_sockets(args, {"DLR_BUFFER_CONFIG": str(path)})


@pytest.mark.parametrize("named", ["by an option", ""])
def test_sockets_come_from_a_configuration_that_need_not_be_valid(folder: Path, named: str) -> None:
    """Only [api] is looked at, by --config or by the environment: an app needs no accounts and no passwords."""
    found = _sockets('[api]\nclient_socket = "/a"\n[accounts.x]\nurl = 7\n', folder, named=bool(named))
    assert found == connection.Sockets(Path("/a"), connection.DEFAULT_ADMIN_SOCKET)


def test_the_usual_configuration_need_not_be_readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of a socket's group who may not read /etc's configuration ask at the default socket, without a word."""
    unreadable = folder / "config.toml"
    monkeypatch.setattr(connection, "DEFAULT_CONFIG", unreadable)
    monkeypatch.setattr(Path, "read_bytes", _refused)
    args = argparse.Namespace(socket=None, config=None)
    assert connection.find_sockets(args, {}) == connection.Sockets()
    monkeypatch.setattr(Path, "open", _refused)
    gone = DaemonUnreachable(connection.DEFAULT_ADMIN_SOCKET, "there is no such socket", errno=errno.ENOENT)
    assert connection.unreachable_hint(gone).endswith(
        f"({unreadable}, which may name one, is not yours to read)"
    )
    with pytest.raises(connection.ConfigurationUnusable, match="Permission denied"):
        connection.find_sockets(args, {"DLR_BUFFER_CONFIG": str(unreadable)})
    with pytest.raises(connection.ConfigurationUnusable, match="Permission denied"):
        connection.find_sockets(argparse.Namespace(socket=None, config=unreadable), {})


def _refused(*_arguments: object) -> bytes:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    "text", [None, "[api", "api = 7", '[api]\nclient_socket = "rel"', "[api]\nadmin_socket = 7"]
)
def test_a_useless_configuration_is_an_error_that_names_it(folder: Path, text: str | None) -> None:
    """A configuration asked for by name that is missing or broken is never replaced by the defaults."""
    with pytest.raises(connection.ConfigurationUnusable, match=r"config\.toml.*--config.*--socket"):
        _sockets(text, folder)


def printed_by(code: str) -> str:
    """Run a program in a process of its own, which has loaded nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_starting_imports_nothing_heavy() -> None:
    """The parser is built for a client command without the daemon's libraries, rich or asyncio."""
    code = (
        "import sys; from dlr_buffer.cli import main; main(['--socket', '/nonexistent', 'status']);"
        "import dlr_buffer.cli.bulk, dlr_buffer.cli.steering, dlr_buffer.cli.inspection;"
        "heavy = {'sqlalchemy', 'alembic', 'httpx', 'starlette', 'uvicorn', 'rich', 'apscheduler', 'tenacity',"
        " 'asyncio', 'msgspec', 'h11', 'prometheus_client'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert printed_by(code) == "[]"


def test_the_daemon_imports_no_more_than_it_serves_with() -> None:
    """What shows things to people, and what migrates, is not loaded by a daemon that waits three days."""
    code = (
        "import sys, dlr_buffer.daemon.running;"
        "shown = {'rich', 'pygments', 'alembic', 'mako', 'dlr_buffer.cli', 'dlr_buffer.doctor',"
        " 'dlr_buffer.bench', 'dlr_buffer.demo', 'dlr_buffer.simulator'};"
        "print(sorted(shown & {name for name, found in sys.modules.items() if found}))"
    )
    assert printed_by(code) == "[]"
