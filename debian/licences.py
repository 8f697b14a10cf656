"""``licences.py VENV``: write what debian/copyright has to say of each library that the package brings along.

A stanza for each, in the machine-readable format, from what its wheel says and the licence files that lie in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

OURS = "dlr-buffer"
_COMMON = {"Apache-2.0": "Apache-2.0", "MPL-2.0": "MPL-2.0"}
"""Licences whose text Debian has in /usr/share/common-licenses, by their SPDX names."""
_DEBIAN_NAMES = {"MIT": "Expat", "MIT License": "Expat"}


def stanzas(venv: Path) -> Iterator[str]:
    """Give a stanza for each library. Raises ValueError for one that says nothing of its licence."""
    for folder in sorted(venv.glob("lib/python3*/site-packages/*.dist-info")):
        metadata = message_from_string((folder / "METADATA").read_text("utf-8"))
        if metadata["Name"] != OURS:
            yield _stanza(metadata["Name"], folder, metadata, venv)


def _stanza(name: str, folder: Path, metadata: Message, venv: Path) -> str:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and re.match(r"(licen[cs]e|copying|notice|authors)", path.name, re.IGNORECASE)
    )
    texts = [path.read_text("utf-8") for path in files]
    holders = dict.fromkeys(
        line.strip(" #*/.")
        for text in texts
        for line in text.splitlines()
        if re.match(r"[\s#*/]*(copyright|©|\(c\))(?=.*(\d{4}|©|\(c\)))", line, re.IGNORECASE)
    )
    author = metadata["Author"] or metadata["Author-email"]
    short = _short(name, metadata)
    licence = " and ".join(_DEBIAN_NAMES.get(part, part) for part in short.split(" AND "))
    said = "\n\n".join(text for text in texts if not _is_common(text))
    for part in short.split(" AND "):
        if part in _COMMON:
            said += f"\n\nThe text of {part} is in /usr/share/common-licenses/{_COMMON[part]}."
    if not said.strip():
        raise ValueError(f"{name} brings no text of its licence")
    base = folder.parent.relative_to(venv)
    stem = folder.name.partition("-")[0]
    return "\n".join(
        [
            f"Files: usr/lib/dlr-buffer/{base}/{stem}*",
            "Copyright: " + "\n ".join(holders or [author or name]),
            f"License: {licence}",
            *(f" {line.rstrip()}" if line.strip() else " ." for line in said.strip().splitlines()),
            "",
        ]
    )


def _short(name: str, metadata: Message) -> str:
    if short := metadata["License-Expression"] or metadata["License"]:
        return str(short)
    for classifier in metadata.get_all("Classifier") or []:
        if classifier.startswith("License :: OSI Approved :: "):
            return str(classifier.rpartition(" :: ")[2])
    raise ValueError(f"{name} does not say under which licence it is")


def _is_common(text: str) -> bool:
    """Tell whether this is the whole text of a licence that the machine has anyway."""
    return "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text


if __name__ == "__main__":
    print("\n".join(stanzas(Path(sys.argv[1]))))
