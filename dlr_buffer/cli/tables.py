"""Tables on standard output, by rich: colour only on a terminal, and never a line broken for a pipe.

Which columns and rows there are is the commands' to say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlr_buffer.cli.text import printable

_PIPE_WIDTH = 4000
"""Characters that a line may have where no terminal limits it; rich would cut it at 80."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, its least width in characters, and whether it holds numbers."""

    title: str
    width: int = 0
    number: bool = False


Cell = str | tuple[str, str]
"""What stands in a cell: text, or text and a rich style."""


def output_console() -> Console:
    """Return the console that writes on standard output; it reads no markup, since ids may hold brackets."""
    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout, markup=False, emoji=False, highlight=False, width=None if terminal else _PIPE_WIDTH
    )


def styled(cell: Cell) -> Text:
    """Return a cell's text, escaped for the terminal."""
    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text(printable(text), style=style)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    header: bool = True,
    lined: bool = False,
    title: str | None = None,
) -> Table:
    """Return a table; ``lined`` draws a rule below the header. Cells that do not fit a terminal are folded."""
    drawn = Table(
        box=box.SIMPLE_HEAD if lined else None,
        show_header=header,
        header_style="bold",
        pad_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        drawn.add_column(
            column.title,
            min_width=column.width,
            justify="right" if column.number else "left",
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(styled(cell) for cell in row))
    return drawn
