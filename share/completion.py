"""Completion for bash, zsh and fish, made by shtab from the parsers that ``--help`` comes from.

Written once at installation: a shell that completes starts no Python. What only the machine knows is looked up by the
shell itself: files, and the names of accounts in the configuration, if the user may read it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from dlr_buffer.cli.parser import build_parser

_ACCOUNTS = shtab.cmd(
    r"sed -n 's/^ *\[accounts\.\([a-z0-9_-]*\)\].*/\1/p' /etc/dlr-buffer/config.toml 2>/dev/null"
)
PLACES = {
    "bash": Path("bash-completion/completions/dlr-buffer"),
    "zsh": Path("zsh/site-functions/_dlr-buffer"),
    "fish": Path("fish/vendor_completions.d/dlr-buffer.fish"),
}
"""Where each shell looks below a ``share`` folder."""


def scripts() -> Iterator[tuple[Path, str]]:
    """Make the script of each shell, with its place below ``share``."""
    for shell, place in PLACES.items():
        parser = build_parser()
        _say_what_fits(parser)
        yield place, shtab.complete(parser, shell)


def _say_what_fits(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are files, and which are accounts."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to look into a parser
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for command in action.choices.values():
                _say_what_fits(command)
        elif action.dest == "account":
            action.complete = _ACCOUNTS  # type: ignore[attr-defined]  # shtab's way to attach it
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
