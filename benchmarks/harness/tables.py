"""Figures, their tables, and the page that they are written into (docs/performance.md).

A benchmark gives back `Table`s. Each stands in the page between ``<!-- table: NAME -->`` and ``<!-- end -->``, where
the next run puts its own; the words around them are written by hand.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: cells are text already."""

    name: str
    """What the page calls the place that it goes to."""
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    """A line below it: how it was made."""

    def __str__(self) -> str:
        """In Markdown."""
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{text}\n\n{self.note}\n" if self.note else f"{text}\n"


@dataclass(slots=True)
class Rounds:
    """The same figures measured again and again, side by side."""

    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One more measurement."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle one."""
        return statistics.median(self.figures[name])

    def spread(self, name: str) -> str:
        """The least and the most."""
        return f"{short(min(self.figures[name]))}–{short(max(self.figures[name]))}"

    def ratio(self, name: str, base: str) -> float:
        """The median of the rounds' own ratios: what was measured side by side is compared side by side."""
        pairs = zip(self.figures[name], self.figures[base], strict=True)
        return statistics.median(value / reference for value, reference in pairs)


def short(value: float) -> str:
    """Three digits that can be read: 61,300, 8,540, 14.2, 0.83."""
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percentile(values: Iterable[float], part: float) -> float:
    """The value that ``part`` (0 to 1) of the values are at most."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def write_page(tables: Iterable[Table], machine: str, page: Path = PAGE) -> list[str]:
    """Put ``tables`` in their places; returns the names of those that have no place in the page."""
    text = page.read_text()
    missing: list[str] = []
    for table in tables:
        place = re.compile(rf"(<!-- table: {re.escape(table.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        body = f"{table}\nOn {machine}.\n"
        if (found := place.search(text)) is None:
            missing.append(table.name)
        else:
            text = text[: found.start()] + found[1] + body + found[2] + text[found.end() :]
    page.write_text(text)
    return missing
