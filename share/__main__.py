"""``python -m share FOLDER``: write every manual page and completion script below the new folder."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from dlr_buffer import __version__
from share import commands, completion, documents


def write(folder: Path) -> None:
    """Write all, laid out as below ``/usr/share``. The date is that of SOURCE_DATE_EPOCH, if it is set, else today."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    day = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    date = f"{day:%Y-%m-%d}"
    for page in (*commands.pages(date, __version__), *documents.pages(date, __version__)):
        _write(folder / f"man/man{page.section}/{page.name}.{page.section}", page.source)
    for place, script in completion.scripts():
        _write(folder / place, script)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program's name and the folder
        sys.exit("usage: python -m share FOLDER")
    write(Path(sys.argv[1]))
