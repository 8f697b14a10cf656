"""The fenced blocks of README.md and docs/, and which test runs what stands in them.

`blocks` reads them. Every section with a block is either in ``IN_A_FRESH_COPY`` (tests/acceptance/test_fresh_clone.py)
or in ``ON_A_MACHINE`` and ``AT_THE_END`` (tests/systemd/test_service.py) or in ``WITH_THE_PACKAGE``
(tests/systemd/test_deb.py), which run all its commands, whatever they are; toml blocks are loaded by
tests/acceptance/test_documents.py, which also fails for a section that is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of one document; ``document`` is relative to the project."""

    document: str
    heading: str

    def __str__(self) -> str:
        """As a test's name shows it."""
        return f"{self.document}, {self.heading}"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its section, its language ("" if none is named) and the text between the fences."""

    section: Section
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a ``sh`` block, one a line."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


RUN_LANGUAGES = ("sh", "python", "ini")
"""Kinds of blocks that are run: commands, a program of an app, a drop-in for the unit."""

IN_A_FRESH_COPY = (Section("README.md", "See it work"),)

ON_A_MACHINE = (
    Section("README.md", "Install it as a service"),
    Section("docs/operations.md", "Install"),
    Section("docs/operations.md", "First steps"),
    Section("README.md", "A client in five lines"),
    Section("README.md", "An admin's first five commands"),
    Section("docs/api.md", "The local API"),
    Section("docs/operations.md", "Upgrade"),
    Section("docs/operations.md", "Start, stop, restart"),
    Section("docs/operations.md", "Look"),
    Section("docs/operations.md", "Doctor"),
    Section("docs/operations.md", "Alerts"),
    Section("docs/operations.md", "Steer"),
    Section("docs/operations.md", "Change the configuration"),
    Section("docs/operations.md", "Rotate credentials"),
    Section("docs/logging.md", "Read it"),
    Section("docs/operations.md", "Back up"),
    Section("docs/operations.md", "Check"),
    Section("docs/operations.md", "Restore a backup"),
    Section("docs/operations.md", "On the old host"),
    Section("docs/operations.md", "On the new host"),
    Section("docs/operations.md", "Measure a machine"),
    Section("docs/configuration.md", "Passwords"),
)
"""In the order in which an admin would come to them; the service has to be installed first."""

WITH_THE_PACKAGE = (
    Section("docs/operations.md", "Install the Debian package"),
    Section("docs/operations.md", "Remove the Debian package"),
)

AT_THE_END = (Section("docs/operations.md", "Remove"),)
"""On the machine of ``ON_A_MACHINE``, when all else is done."""


def documents() -> list[str]:
    """Return the README and every page of the documentation, relative to the project."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(document: str) -> Iterator[Block]:
    """Read the fenced blocks of one document, in their order. Raises ValueError if a fence is never closed."""
    heading = ""
    fence: tuple[str, str] | None = None
    lines: list[str] = []
    for line in (ROOT / document).read_text("utf-8").splitlines():
        if fence is not None:
            if line.strip() == fence[0]:
                yield Block(Section(document, heading), fence[1], "\n".join(lines) + "\n")
                fence = None
            else:
                lines.append(line)
        elif opened := re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", line):
            fence, lines = (opened[1], opened[2]), []
        elif titled := re.match(r"#+ (.*)", line):
            heading = titled[1].strip()
    if fence is not None:
        raise ValueError(f"{document}: the last block of {heading!r} is never closed")


def blocks_of(section: Section) -> list[Block]:
    """Return the blocks of one section."""
    return [block for block in blocks(section.document) if block.section == section]
