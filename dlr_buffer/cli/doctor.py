"""``doctor``: prints what `dlr_buffer.doctor` found, section by section as it comes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator

from rich.text import Text

from dlr_buffer.cli import exits
from dlr_buffer.cli.tables import output_console
from dlr_buffer.cli.text import counted, printable
from dlr_buffer.doctor.examination import Section, UnknownAccount, Wishes, examine
from dlr_buffer.doctor.findings import Finding, Level

_STYLES = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.ERROR: "bold red"}
_MARGIN = 11


def doctor(args: argparse.Namespace) -> int:
    """Look at everything; exit code 1 if something has to be mended."""
    wishes = Wishes(args.config, deep=args.deep, network=args.network, probe=args.probe)
    counts: Counter[Level] = Counter()
    for section in _examined(wishes):
        counts.update(finding.level for finding in section.findings)
        if args.json:
            _print_json(section)
        elif section.findings:
            _print_section(section)
    if not args.json:
        print(_sums(counts))
    return exits.FAILED if counts[Level.ERROR] else exits.OK


def _examined(wishes: Wishes) -> Iterator[Section]:
    try:
        yield from examine(wishes, os.environ)
    except UnknownAccount as error:
        raise exits.UsageError(str(error)) from None


def _print_json(section: Section) -> None:
    for finding in section.findings:
        line = {
            "section": section.title,
            "check": finding.code,
            "level": finding.level.value,
            "finding": finding.what,
            "remedy": finding.remedy,
        }
        sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _print_section(section: Section) -> None:
    console = output_console()
    console.print(Text(section.title, style="bold"))
    for finding in section.findings:
        for line in _lines(finding):
            console.print(line, soft_wrap=True)
    sys.stdout.flush()


def _lines(finding: Finding) -> list[Text]:
    mark = Text(f"  {finding.level.value:<{_MARGIN - 2}}", style=_STYLES[finding.level])
    lines = [mark + Text(printable(finding.what))]
    if finding.remedy is not None:
        lines.append(Text(f"{'':<{_MARGIN}}→ {printable(finding.remedy)}"))
    return lines


def _sums(counts: Counter[Level]) -> str:
    """Write ``1 error, 2 warnings, 3 notes``, or that all is well."""
    parts = [
        counted(counts[level], level.value)
        for level in (Level.ERROR, Level.WARNING, Level.NOTE)
        if counts[level]
    ]
    return ", ".join(parts) if parts else "all is well"
