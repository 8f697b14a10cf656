"""The grammar of the command line: every command, option and help text.

Only argparse is needed to build it; what a command does is imported when it runs. Manual pages are made from the same
parsers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dlr_buffer import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

STATES = ("enroute", "delivered", "expired", "undeliverable", "accepted", "unknown", "rejected")
"""The seed's seven message states; `dlr_buffer.messages` has the same (a test compares them)."""
STATUSES = ("pending", "acknowledged", "superseded", "held", "dead")
"""The receipt statuses of `dlr_buffer.receipts` (a test compares them)."""

_LEAST_S, _MOST_S = 0.1, 60
"""What `bench --seconds` takes; a longer run would fill the disk with messages."""
_TARGET_HELP = """\
{what} are meant by exactly one of
  {ids}
  filter options    what fits all of them
  ALL               everything, in capitals (an id that is called ALL: {literal})
Without --yes the number is shown first and a question asked.
"""
_LINES_HELP = """\
Without ids, or with '-', lines are read from standard input, each
  {plain}
  a JSON object of the local API's fields: {fields}
Blank lines are skipped. Bad lines are printed with their number and do not stop the others; the exit code is 1 then.
Repeating the whole input is safe: what is stored already counts as known.
"""
_BACKUP_HELP = """\
The copy is the queue at one moment; it is checked, and only then gets its name. While it is made the daemon goes on,
and its log grows. The folder needs as much free space as the queue takes.
"""
_BENCH_HELP = """\
No queue in use is touched: a new folder is made in DIR and removed at the end. It needs 1 GiB of free space, and a
machine that does nothing else meanwhile; the daemon of this host should be stopped.
"""
_RELOAD_HELP = """\
`systemctl reload dlr-buffer` calls it. A configuration with an error changes nothing, and is told; the exit code is 1.
"""
_CHECK_HELP = """\
The daemon may run: nothing is written, and nothing waits. Exit code 0 if all is well, 1 if something was found.
"""
_DOCTOR_HELP = """\
Each finding is ok, a note, a warning or an error, with what to do in the line below. Ask as root to have everything
looked at; as another user it says what it could not look at. The daemon may run or not. Nothing is changed, and each
account's server is only connected to: no login and no password is sent.

--probe ACCOUNT sends one real request, with login and password: the state `enroute` for a message id that was made up,
under the request_id 0, which the queue never uses. Smartswitch answers it with an error about the message, if the
credentials are right, or takes it; it may write it down, and several wrong logins may lock an account there.

Exit codes: 0 no error was found, 1 at least one was, 2 wrong usage.
"""


def build_parser(*, simulate: bool = True) -> argparse.ArgumentParser:
    """Return the whole grammar; without ``simulate`` that command's own options are left out, which saves time."""
    parser = argparse.ArgumentParser(
        prog="dlr-buffer",
        description="A durable local queue for the delivery receipts owed to a Smartswitch server.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the daemon cannot be reached.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlr-buffer {__version__}")
    _add_global(parser)
    parser.set_defaults(config=None, socket=None, json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command_name", required=True)
    _add_service(commands, simulate=simulate)
    _add_bulk(commands)
    _add_inspection(commands)
    _add_steering(commands)
    _add_database(commands)
    _add_doctor(commands)
    return parser


def _add_global(parser: argparse.ArgumentParser) -> None:
    """Add the options that are taken before and after the command's name."""
    group = parser.add_argument_group("global options")
    add = group.add_argument
    add(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="configuration (default: $DLR_BUFFER_CONFIG, else /etc/dlr-buffer/config.toml)",
    )
    add(
        "--socket",
        type=Path,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="ask the daemon at this socket instead of the configured one",
    )
    add("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON lines instead of text")


def _command(  # noqa: PLR0913 - what makes a command, all by name
    commands: Commands,
    name: str,
    *,
    run: str,
    help: str,  # noqa: A002 - argparse's word
    epilog: str | None = None,
    global_options: bool = True,
) -> argparse.ArgumentParser:
    """Add a command whose code is ``module.function`` below this package, imported when it runs."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",  # simulate has a --json of its own
    )
    parser.set_defaults(command=_lazy(run))
    if global_options:
        _add_global(parser)
    return parser


def _lazy(name: str) -> Callable[[argparse.Namespace], int]:
    module, function = name.split(".")

    def command(args: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"dlr_buffer.cli.{module}"), function)(args)
        return code

    return command


def _add_service(commands: Commands, *, simulate: bool) -> None:
    _command(commands, "run", run="service.run", help="run the daemon in the foreground")
    _command(
        commands,
        "check-config",
        run="service.check_config",
        help="print the effective configuration, or everything that is wrong with it",
    )
    reload = _command(
        commands,
        "reload",
        run="service.reload",
        help="have the daemon read its configuration again (SIGHUP), and wait until it holds",
        epilog=_RELOAD_HELP,
    )
    reload.add_argument(
        "--pid",
        type=int,
        metavar="PID",
        help="the daemon's process id (default: as it says itself)",
    )
    stand_in = _command(
        commands,
        "simulate",
        run="service.simulate",
        help="run a Smartswitch stand-in on loopback",
        global_options=False,
    )
    if simulate:
        from dlr_buffer.simulator.command import add_arguments

        add_arguments(stand_in)
    _add_global(stand_in)
    demo = _command(
        commands,
        "demo",
        run="service.demo",
        help="show the whole job: a daemon and a stand-in on a throwaway queue",
    )
    demo.add_argument(
        "--messages", type=_positive, default=1000, metavar="N", help="how many to register (default 1000)"
    )
    demo.add_argument("--no-faults", action="store_true", help="let the stand-in answer everything well")
    demo.add_argument("--keep", action="store_true", help="keep the queue, its configuration and the log")
    bench = _command(
        commands,
        "bench",
        run="service.bench",
        help="measure this machine and its disk in a minute, and say what limits it",
        epilog=_BENCH_HELP,
    )
    bench.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="measure the disk that this is on (default: the configured queue's folder, else the current one)",
    )
    bench.add_argument(
        "--seconds", type=_seconds, default=8.0, metavar="N", help="for each of six measurements (default 8)"
    )


def _add_bulk(commands: Commands) -> None:
    register = _command(
        commands,
        "register",
        run="bulk.register",
        help="register messages, as an app does that accepted them",
        epilog=_LINES_HELP.format(
            plain="a message id without spaces", fields="message_id, account, validity_period (seconds)"
        ),
    )
    register.add_argument("ids", nargs="*", metavar="ID", help="message ids")
    register.add_argument(
        "--validity-period",
        type=_whole_seconds,
        metavar="DURATION",
        help="how long to wait for a final state, e.g. 72h (default: the daemon's)",
    )
    report = _command(
        commands,
        "report",
        run="bulk.report",
        help="report the state of messages: `report ID STATE`, or `report --state STATE ID...`",
        epilog=_LINES_HELP.format(
            plain="a message id, a tab or space, and its state (with --state: the id alone)",
            fields="message_id, message_state, account",
        ),
    )
    report.add_argument(
        "ids", nargs="*", metavar="ID", help="a message id and its state, or with --state any number of ids"
    )
    report.add_argument("--state", choices=STATES, metavar="STATE", help="one of: " + ", ".join(STATES))
    for parser in (register, report):
        parser.add_argument(
            "--account", help="the account (default: the only one, else the one called default)"
        )


def _add_inspection(commands: Commands) -> None:
    _command(
        commands, "status", run="inspection.status", help="show the accounts, what waits, and what is wrong"
    )
    listing = _command(commands, "list", run="inspection.listing", help="list messages or receipts")
    kinds = listing.add_subparsers(title="kinds", metavar="messages|receipts", dest="kind", required=True)
    for kind in ("messages", "receipts"):
        parser = _command(kinds, kind, run="inspection.listing", help=f"list {kind}, oldest first")
        _add_filters(parser, kind)
        parser.add_argument(
            "--limit",
            type=_natural,
            default=100,
            metavar="N",
            help="print at most so many (default 100; 0: all)",
        )
    show = _command(
        commands,
        "show",
        run="inspection.show",
        help="show one message: its receipts, its history, what comes next",
    )
    show.add_argument("message_id", metavar="MESSAGE_ID", help="the id that it was registered with")
    show.add_argument("--account", help="the account (default: the only one, else the one called default)")


def _add_steering(commands: Commands) -> None:
    for action, text in (
        ("retry", "make dead receipts pending again, and pending ones due now"),
        ("hold", "keep pending receipts from being sent"),
        ("release", "let held receipts be sent again"),
    ):
        _add_targets(_action(commands, action, text, "receipts"), "receipts")
    _add_targets(
        _action(commands, "expire", "end waiting messages now: they are reported as expired", "messages"),
        "messages",
    )
    delete = _command(
        commands, "delete", run="steering.act", help="delete messages or receipts from the queue"
    )
    kinds = delete.add_subparsers(title="kinds", metavar="messages|receipts", dest="kind", required=True)
    for kind, text in (
        ("messages", "delete messages with all their receipts"),
        ("receipts", "delete pending, held and dead receipts; their messages stay as they are"),
    ):
        _add_targets(_action(kinds, "delete", text, kind, name=kind), kind)
    for action, text in (
        ("pause", "stop sending for an account; registering and expiry go on"),
        ("resume", "send again for an account that was paused"),
    ):
        parser = _command(commands, action, run="steering.steer_account", help=text)
        parser.add_argument("account", metavar="ACCOUNT", help="the account's name in the configuration")
        parser.set_defaults(action=action)
    expiry = _command(commands, "expiry", run="steering.resume_expiry", help="control expiry as a whole")
    actions = expiry.add_subparsers(title="actions", metavar="resume", dest="action", required=True)
    _command(
        actions,
        "resume",
        run="steering.resume_expiry",
        help="let messages expire again after a clock alarm: the clock is right now",
    )


def _add_database(commands: Commands) -> None:
    backup = _command(
        commands,
        "backup",
        run="database.backup",
        help="copy the queue into a new file, while the daemon runs or not",
        epilog=_BACKUP_HELP,
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="the new file; nothing is ever overwritten")
    check = _command(
        commands,
        "check-db",
        run="database.check",
        help="look through the queue or a backup for damage and contradictions, and say what to do",
        epilog=_CHECK_HELP,
    )
    check.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="a database (default: the configured queue)"
    )
    how = check.add_mutually_exclusive_group()
    how.add_argument(
        "--quick", action="store_true", help="leave out what takes longest: indexes, links, history"
    )
    how.add_argument(
        "--repair",
        action="store_true",
        help="mend what can be without losing anything (the daemon has to be stopped)",
    )


def _add_doctor(commands: Commands) -> None:
    doctor = _command(
        commands,
        "doctor",
        run="doctor.doctor",
        help="look at the whole installation, and say in plain words what to mend",
        epilog=_DOCTOR_HELP,
    )
    doctor.add_argument(
        "--deep", action="store_true", help="look through the queue as `check-db --quick` does"
    )
    doctor.add_argument(
        "--no-network", dest="network", action="store_false", help="do not connect to the accounts' servers"
    )
    doctor.add_argument(
        "--probe", metavar="ACCOUNT", help="try its login and password with one made-up receipt (see below)"
    )


def _action(
    commands: Commands, action: str, text: str, kind: str, *, name: str | None = None
) -> argparse.ArgumentParser:
    literal, ids = ("--message-id ALL", "MESSAGE_ID...     these messages (of --account)")
    if kind == "receipts":
        ids = "REQUEST_ID...     these receipts"
    parser = _command(
        commands,
        name or action,
        run="steering.act",
        help=text,
        epilog=_TARGET_HELP.format(what=kind.capitalize(), ids=ids, literal=literal),
    )
    parser.set_defaults(action=action, kind=kind)
    return parser


def _add_targets(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="REQUEST_ID" if kind == "receipts" else "MESSAGE_ID",
        help="ids, or the word ALL",
    )
    _add_filters(parser, kind)
    parser.add_argument("--dry-run", action="store_true", help="only count")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_filters(parser: argparse.ArgumentParser, kind: str) -> None:
    add = parser.add_argument_group("filter options").add_argument
    add("--account", help="of this account")
    add("--message-id", metavar="ID", help="with this message id")
    add("--state", choices=STATES, metavar="STATE", help="in this state: " + ", ".join(STATES))
    if kind == "receipts":
        add("--status", choices=STATUSES, metavar="STATUS", help="in this status: " + ", ".join(STATUSES))
        add("--error-code", metavar="CODE", help="refused with this error code")
    waiting = "pending or held" if kind == "receipts" else "without a final state"
    add("--waiting", action="store_true", default=None, help=waiting)
    born = "created" if kind == "receipts" else "registered"
    add(
        "--older-than", type=_age, metavar="AGE", help=f"{born} before: an age (90s, 72h) or an RFC 3339 time"
    )
    add("--newer-than", type=_age, metavar="AGE", help=f"{born} since: an age (90s, 72h) or an RFC 3339 time")


def _whole_seconds(text: str) -> int:
    if (milliseconds := _duration_ms(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write e.g. 90s, 10m, 72h or 7d")
    seconds, rest = divmod(milliseconds, 1000)
    if rest or not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds, at least 1s")
    return seconds


def _age(text: str) -> str:
    if _duration_ms(text) is None and not _is_moment(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an age such as 90s or 72h nor a time such as 2026-11-23T18:41:00Z"
        )
    return text


def _duration_ms(text: str) -> int | None:
    from dlr_buffer.config.values import parse_duration

    try:
        return parse_duration(text)
    except ValueError:
        return None


def _is_moment(text: str) -> bool:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_S <= seconds <= _MOST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_LEAST_S} to {_MOST_S}")
    return seconds


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if (count := _natural(text)) == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count
