"""The language of manual pages (man(7)), as far as our pages need it: plain text in, macros out.

What a page says is none of this module's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = str.maketrans(
    {
        "\\": r"\e",
        "-": r"\-",
        "'": r"\(aq",
        "`": r"\(ga",
        '"': r"\(dq",
        "^": r"\(ha",
        "~": r"\(ti",
        "\xa0": r"\ ",
    }
)


def plain(text: str) -> str:
    """Escape text so that it is shown as it is, wherever in a line it stands; newlines become spaces."""
    return re.sub(r"\s*\n\s*", " ", text).translate(_SPECIAL)


def bold(text: str) -> str:
    """Show text as what is typed literally."""
    return rf"\fB{plain(text)}\fR"


def italic(text: str) -> str:
    """Show text as what stands for something else."""
    return rf"\fI{plain(text)}\fR"


def marked(text: str) -> str:
    """Escape prose in which what is typed stands between backquotes, as help texts have it."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        raise ValueError(f"a backquote is never closed: {text!r}")
    return "".join(bold(part) if number % 2 else plain(part) for number, part in enumerate(parts))


def page(name: str, section: int, date: str, version: str, body: str) -> str:
    """Make a whole page of its sections; it is neither hyphenated nor stretched, so that words can be copied."""
    title = f".TH {_argument(name.upper())} {section} {date} {_argument(f'dlr-buffer {version}')}\n"
    title += ".nh\n.nr HY 0\n.ad l\n"
    # A section begins a paragraph already.
    return title + re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", body, flags=re.MULTILINE)


def heading(text: str) -> str:
    """Begin a section."""
    return f".SH {_argument(text)}\n"


def subheading(text: str) -> str:
    """Begin a section within one."""
    return f".SS {_argument(text)}\n"


def paragraph(text: str) -> str:
    """Begin a paragraph with roff text: what the functions above return."""
    return f".PP\n{_line(text)}\n"


def item(tag: str, text: str, *more: str) -> str:
    """Set a term of a list and what is said of it, both roff text; ``more`` are further paragraphs of that."""
    further = "".join(f".IP\n{_line(part)}\n" for part in more)
    return f".TP\n{_line(tag)}\n{_line(text)}\n{further}"


def bullet(text: str) -> str:
    """Set one point of a list."""
    return f".IP \\(bu 2\n{_line(text)}\n"


def example(lines: Iterable[str]) -> str:
    """Show plain lines as they are, without filling, set in."""
    shown = "\n".join(_line(line.translate(_SPECIAL)) for line in lines)
    return f".PP\n.in +4n\n.EX\n{shown}\n.EE\n.in\n"


def _line(text: str) -> str:
    """Keep a line from being taken for a macro, or an empty one for a break."""
    return r"\&" + text if text[:1] in {".", ""} else text


def _argument(text: str) -> str:
    return f'"{plain(text)}"'
