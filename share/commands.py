"""The manual pages of the commands, made from the parsers that ``--help`` comes from.

Like git's: dlr-buffer(1) tells of the program as a whole, and each command has a page of its own, dlr-buffer-status(1),
which ``man dlr-buffer status`` finds too. What both do not know (files, environment) is said here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from dlr_buffer.cli import connection, exits
from dlr_buffer.cli.parser import build_parser
from share import roff

PROGRAM = "dlr-buffer"
CONFIGURATION_PAGE = "dlr-buffer-config"
EXIT_CODES = (
    (exits.OK, "Done."),
    (exits.FAILED, "Failed, or something was found; what, is said on standard error or in the output."),
    (exits.USAGE, "The command line makes no sense; nothing was done."),
    (exits.UNREACHABLE, "The daemon cannot be reached."),
    (exits.INTERRUPTED, "Interrupted by Ctrl-C."),
    (exits.BROKEN_PIPE, "Whoever read the output went away."),
)
_QUEUE = "/var/lib/dlr-buffer/queue.db"


@dataclass(frozen=True, slots=True)
class Page:
    """One manual page: its name, its section and all of its source."""

    name: str
    section: int
    source: str


def pages(date: str, version: str) -> Iterator[Page]:
    """Make the page of the program and that of each command. Raises ValueError for a help text that can't be set."""
    parser = build_parser()
    commands = _subcommands(parser)
    yield Page(PROGRAM, 1, roff.page(PROGRAM, 1, date, version, _program(parser, commands)))
    for name, (command, text) in commands.items():
        page = f"{PROGRAM}-{name}"
        yield Page(page, 1, roff.page(page, 1, date, version, _command(page, command, text)))


def _program(parser: argparse.ArgumentParser, commands: _Commands) -> str:
    described = (parser.description or PROGRAM).removesuffix(".")
    source = roff.heading("NAME") + _named(PROGRAM, described[0].lower() + described[1:])
    source += roff.heading("SYNOPSIS") + _synopsis(parser)
    source += roff.heading("DESCRIPTION") + roff.paragraph(
        "Apps register messages and report their states over a Unix socket, and every answer that they get is durable. "
        "The daemon waits, marks what expired, and brings the receipts in batches to Smartswitch, through outages, "
        "wrong passwords and crashes, until each is acknowledged or lies before an admin as a dead letter."
    )
    source += roff.heading("OPTIONS") + _options(parser)
    source += roff.heading("COMMANDS")
    for name, (_, text) in commands.items():
        source += roff.item(_reference(f"{PROGRAM}-{name}", 1), roff.marked(_sentence(text)))
    source += roff.heading("EXIT STATUS")
    for code, meaning in EXIT_CODES:
        source += roff.item(roff.bold(str(code)), roff.plain(meaning))
    source += roff.heading("ENVIRONMENT") + roff.item(
        roff.bold("DLR_BUFFER_CONFIG"), roff.marked("The configuration, where `--config` names none.")
    )
    source += roff.heading("FILES")
    sockets = connection.Sockets()
    for path, meaning in (
        (connection.DEFAULT_CONFIG, rf"The configuration; see {_reference(CONFIGURATION_PAGE, 5)}."),
        (sockets.client, "The socket of the apps."),
        (sockets.admin, "The socket of the admins and of these commands."),
        (_QUEUE, "The queue, unless the configuration names another file."),
    ):
        source += roff.item(roff.italic(str(path)), meaning)
    return source + _see_also([("systemctl", 1), ("journalctl", 1)])


def _command(page: str, parser: argparse.ArgumentParser, text: str) -> str:
    kinds = _subcommands(parser)
    source = roff.heading("NAME") + _named(page, text)
    source += roff.heading("SYNOPSIS")
    for one in [kind for kind, _ in kinds.values()] or [parser]:
        source += _synopsis(one)
    source += (
        roff.heading("DESCRIPTION")
        + roff.paragraph(roff.marked(parser.description or text))
        + _epilog(parser)
    )
    if not kinds:
        source += roff.heading("OPTIONS") + _options(parser)
    for name, (kind, _) in kinds.items():
        # The name says in the command's own words what is meant: LIST MESSAGES.
        source += roff.heading(f"{page.removeprefix(PROGRAM + '-')} {name}".upper())
        source += roff.paragraph(roff.marked(kind.description or "")) + _epilog(kind) + _options(kind)
    source += roff.heading("EXIT STATUS") + roff.paragraph(
        f"As told in {_reference(PROGRAM, 1)}: 0 done, 1 failed, 2 wrong usage, 69 the daemon cannot be reached."
    )
    return source + _see_also([(PROGRAM, 1)])


_Commands = dict[str, tuple[argparse.ArgumentParser, str]]


def _subcommands(parser: argparse.ArgumentParser) -> _Commands:
    """Return what can follow a parser's own name, with its parser and its one line of help."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to look into a parser
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            helps = {choice.dest: choice.help for choice in action._get_subactions()}  # noqa: SLF001 - as above
            return {name: (command, helps[name] or "") for name, command in action.choices.items()}
    return {}


def _named(name: str, text: str) -> str:
    # What apropos(1) and whatis(1) look for: no fonts, one line.
    return rf"{roff.plain(name)} \- {roff.plain(text.replace('`', ''))}" + "\n"


def _synopsis(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=10_000)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")  # noqa: SLF001 - no public way
    # What stands in one pair of brackets stays on one line.
    line = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "\xa0"), formatter.format_help().strip())
    words = re.split(r"(?<![\w-])(--?[a-z][\w-]*|[A-Z][A-Z_:]+)", line.removeprefix(parser.prog))
    shown = roff.bold(parser.prog)
    for word in words:
        if word.startswith("-"):
            shown += roff.bold(word)
        elif word.isupper():
            shown += roff.italic(word)
        else:
            shown += roff.plain(word)
    return roff.paragraph(shown)


def _options(parser: argparse.ArgumentParser) -> str:
    """Set every argument of a parser, group by group, those of commands left out."""
    source = ""
    for group in parser._action_groups:  # noqa: SLF001 - argparse has no public way to look into a parser
        actions = [
            action
            for action in group._group_actions  # noqa: SLF001 - as above
            if not isinstance(action, argparse._SubParsersAction) and action.help is not argparse.SUPPRESS  # noqa: SLF001 - as above
        ]
        if not actions:
            continue
        if group.title not in {"positional arguments", "options"}:
            source += roff.subheading((group.title or "").capitalize())
            source += roff.paragraph(roff.marked(group.description)) if group.description else ""
        source += "".join(_argument(parser, action) for action in actions)
    return source


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()  # noqa: SLF001 - fills in defaults as --help does
    text = formatter._expand_help(action) if action.help else ""  # noqa: SLF001 - as above
    if not action.option_strings:
        return roff.item(roff.italic(_metavar(action)), roff.marked(_sentence(text)))
    value = "" if action.nargs == 0 else " " + roff.italic(_metavar(action))
    tag = ", ".join(roff.bold(option) + value for option in action.option_strings)
    return roff.item(tag, roff.marked(_sentence(text)))


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar is not None:
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper() if action.option_strings else action.dest


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?")) else text + "."


def _epilog(parser: argparse.ArgumentParser) -> str:
    """Set the text below the options: lines that are set in stay as they are, others are prose."""
    source = ""
    prose: list[str] = []
    shown: list[str] = []
    for line in [*(parser.epilog or "").splitlines(), ""]:
        if line.startswith("  "):
            shown.append(line.removeprefix("  "))
            continue
        if shown:
            source += (roff.paragraph(roff.marked(" ".join(prose))) if prose else "") + roff.example(shown)
            prose, shown = [], []
        if line:
            prose.append(line)
    return source + (roff.paragraph(roff.marked(" ".join(prose))) if prose else "")


def _reference(name: str, section: int) -> str:
    return rf"{roff.bold(name)}({section})"


def _see_also(others: list[tuple[str, int]]) -> str:
    named = ", ".join(_reference(*other) for other in [(CONFIGURATION_PAGE, 5), *others])
    return roff.heading("SEE ALSO") + roff.paragraph(named)
