"""A manual page made from a page of docs/: dlr-buffer-config(5) is docs/configuration.md.

Only the Markdown that our documents use is known, and anything else is an error, so that nothing is dropped unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from share import roff
from share.commands import CONFIGURATION_PAGE, PROGRAM, Page

ROOT = Path(__file__).parents[1]
_SECTIONS = {"h2": roff.heading, "h3": roff.subheading}


def pages(date: str, version: str) -> Iterator[Page]:
    """Make the pages that come from documents. Raises ValueError for Markdown that this module doesn't know."""
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    also = ", ".join(rf"{roff.bold(name)}(1)" for name in (PROGRAM, f"{PROGRAM}-check-config"))
    source = (
        roff.heading("NAME")
        + roff.plain(CONFIGURATION_PAGE)
        + r" \- the configuration of dlr\-buffer"
        + "\n"
        + roff.heading("DESCRIPTION")
        + body(text)
        + roff.heading("SEE ALSO")
        + roff.paragraph(also)
    )
    yield Page(CONFIGURATION_PAGE, 5, roff.page(CONFIGURATION_PAGE, 5, date, version, source))


def body(markdown: str) -> str:
    """Turn a document into roff, without its title; links to other files keep only their text."""
    root = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown))
    return "".join(_block(node) for node in root.children if (node.type, node.tag) != ("heading", "h1"))


def _block(node: SyntaxTreeNode) -> str:
    match node.type:
        case "heading" if node.tag in _SECTIONS:
            return _SECTIONS[node.tag](_words(node.children[0]))
        case "paragraph":
            return roff.paragraph(_inline(node.children[0]))
        case "fence":
            return roff.example(node.content.rstrip("\n").split("\n"))
        case "bullet_list":
            return "".join(roff.bullet(_only_paragraph(point)) for point in node.children)
        case "table":
            return _table(node)
        case other:
            raise ValueError(
                f"line {(node.map or (0,))[0] + 1}: no manual page can show {node.tag or other} yet"
            )


def _table(table: SyntaxTreeNode) -> str:
    """Set each row as an item: the first cell is the term, the last is what it is, those between keep their heads."""
    head, *rows = (row.children for part in table.children for row in part.children)
    names = [_words(cell.children[0]) for cell in head[1:-1]]
    source = ""
    for tag, *facts, what in rows:
        told = [
            f"{roff.plain(name[0].upper() + name[1:])}: {_inline(cell.children[0])}."
            for name, cell in zip(names, facts, strict=True)
        ]
        meaning = _inline(what.children[0])
        source += roff.item(_inline(tag.children[0]), meaning[:1].upper() + meaning[1:] + ".", *told)
    return source


def _only_paragraph(point: SyntaxTreeNode) -> str:
    paragraph, *more = point.children
    if more or paragraph.type != "paragraph":
        raise ValueError(f"line {(point.map or (0,))[0] + 1}: a point of a list has to be one paragraph")
    return _inline(paragraph.children[0])


def _inline(node: SyntaxTreeNode) -> str:
    parts = []
    for part in node.children:
        match part.type:
            case "text":
                parts.append(roff.plain(part.content))
            case "softbreak":
                parts.append(" ")
            case "code_inline":
                parts.append(roff.bold(part.content))
            case "strong":
                parts.append(rf"\fB{_inline(part)}\fR")
            case "em":
                parts.append(rf"\fI{_inline(part)}\fR")
            case "link":
                href = str(part.attrs["href"])
                parts.append(_inline(part) + (f" <{roff.plain(href)}>" if "://" in href else ""))
            case other:
                raise ValueError(f"no manual page can show {other} yet")
    return "".join(parts)


def _words(node: SyntaxTreeNode) -> str:
    """Return the text alone, without fonts."""
    return "".join(part.content or _words(part) for part in node.children)
