"""``backup`` and ``check-db``: what is done to the file of the queue itself, whether the daemon runs or not.

Both only look at the file, but for ``check-db --repair``, which takes the queue's lock. What a backup or a check is
lives in `dlr_buffer.storage`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dlr_buffer.cli import exits
from dlr_buffer.cli.connection import DEFAULT_CONFIG, ConfigurationUnusable
from dlr_buffer.cli.text import counted, printable, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dlr_buffer.storage.checking import Checked, Finding

_DRAW_EVERY_S = 0.1


def backup(args: argparse.Namespace) -> int:
    """Copy the queue into a new file."""
    from dlr_buffer.storage.backup import back_up

    with _Progress() as progress:
        done = back_up(find_database(args, os.environ), args.file, progress=progress.advance)
    if args.json:
        facts = {
            "path": str(done.path),
            "bytes": done.size_bytes,
            "messages": done.messages,
            "receipts": done.receipts,
            "next_request_id": str(done.next_request_id),
        }
        print(json.dumps(facts))
        return exits.OK
    print(
        f"{printable(str(done.path))}: {counted(done.messages, 'message')}, {counted(done.receipts, 'receipt')},"
        f" {size(done.size_bytes)}; the next request_id was {done.next_request_id}"
    )
    print(
        'To restore it, see docs/operations.md, "Restore a backup": request ids that were used since must be left out.'
    )
    return exits.OK


def check(args: argparse.Namespace) -> int:
    """Look through the queue, or a backup, and print what is wrong and what to do; mend what can be, if asked."""
    from dlr_buffer.storage import checking
    from dlr_buffer.storage.repairing import repair

    path = Path(os.path.realpath(args.file or find_database(args, os.environ)))
    with _Progress() as progress:
        found = checking.check(path, quick=args.quick, progress=progress.advance)
    mended: list[str] = []
    if args.repair and any(finding.mendable for finding in found.findings):
        mended = repair(path, found.findings, now_ms=time.time_ns() // 1_000_000)
        if not args.json:
            _print_findings(found)
            for words in mended:
                print(f"mended: {words}")
        with _Progress() as progress:
            found = checking.check(path, quick=args.quick, progress=progress.advance)
    if args.json:
        print(json.dumps(_resource(found, mended)))
    else:
        _print_findings(found)
        print(_sums(found))
    return exits.FAILED if found.findings else exits.OK


def find_database(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Return the database that the configuration names; nothing else of it is read, least of all a password.

    Raises ConfigurationUnusable if it was asked for by name and is missing, or if its ``[database]`` makes no sense.
    """
    import tomllib

    from dlr_buffer.config import DatabaseSettings

    named = args.config or environ.get("DLR_BUFFER_CONFIG")
    path = Path(named) if named else DEFAULT_CONFIG
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("database", {})
        url = table.get("url", DatabaseSettings().url) if isinstance(table, dict) else None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _unusable(path, f"is not TOML: {error}") from None
    except OSError as error:
        if not named and isinstance(error, FileNotFoundError):
            return DatabaseSettings().path
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    if not isinstance(url, str) or not url.startswith("sqlite:////"):
        raise _unusable(path, "has a database.url that is not sqlite:/// and an absolute path")
    return DatabaseSettings(url=url).path


def _unusable(path: Path, problem: str) -> ConfigurationUnusable:
    return ConfigurationUnusable(f"the configuration {path} {problem}; name another with --config")


def _print_findings(found: Checked) -> None:
    for finding in found.findings:
        print(printable(f"{finding.code}: {finding.detail}"))
    remedies = dict.fromkeys(finding.remedy for finding in found.findings)
    for remedy in remedies:
        concerned = dict.fromkeys(each.code for each in found.findings if each.remedy == remedy)
        print(printable(f"what to do about {', '.join(concerned)}: {remedy}"))


def _sums(found: Checked) -> str:
    what = counted(len(found.findings), "finding") if found.findings else "nothing is wrong"
    return printable(
        f"{found.path}: schema {found.version or 'unknown'}, {counted(found.messages, 'message')},"
        f" {counted(found.receipts, 'receipt')}: {what}"
    )


def _resource(found: Checked, mended: list[str]) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "schema": found.version,
        "messages": found.messages,
        "receipts": found.receipts,
        "findings": [_finding(each) for each in found.findings],
        "mended": mended,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "detail": finding.detail,
        "remedy": finding.remedy,
        "rows": finding.rows,
        "mendable": finding.mendable,
    }


class _Progress:
    """A progress bar on a terminal's standard error."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, total: int, words: str) -> None:
        """Draw how far it has come, at most ten times a second."""
        if not self._shown or (time.monotonic() - self._drawn_at < _DRAW_EVERY_S and done < total):
            return
        self._drawn_at = time.monotonic()
        if self._bar is None or self._task is None:
            self._bar, self._task = self._start(words)
        self._bar.update(self._task, completed=done, total=total, words=words)

    def _start(self, words: str) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        bar = Progress(
            TextColumn("{task.fields[words]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = bar.add_task("", total=None, words=words)
        bar.start()
        return bar, task
