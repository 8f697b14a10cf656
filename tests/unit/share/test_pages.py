"""Manual pages say what ``--help`` and the documents say, all of it, in a form that man takes without complaint."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlr_buffer.cli.parser import build_parser
from share import documents, roff

ROOT = Path(__file__).parents[3]


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the words of each command, those that only lead to others included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*path, name)
                yield from commands(command, (*path, name))


def shown(page: Path) -> str:
    """Return a page as a reader sees it, each run of spaces as one; skips where nothing can show it."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-k", "-man", "-Tutf8", "-ww", "-rLL=2000n", "-P-cbou", page],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return re.sub(r"\s+", " ", done.stdout).replace("\N{MINUS SIGN}", "-").replace("\N{HYPHEN}", "-")


@pytest.mark.parametrize("command", [*commands(build_parser())], ids=" ".join)
def test_each_command_has_all_of_its_help_in_a_page(shared: Path, command: tuple[str, ...]) -> None:
    """Description, every option and argument with its text, and what stands below them."""
    text = shown(shared / f"man/man1/dlr-buffer-{command[0]}.1")
    parser = build_parser()
    for name in command:
        (choices,) = (
            action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        )
        parser = choices[name]
    told = [parser.description or "", *(parser.epilog or "").splitlines()]
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            told += [*action.option_strings, parser._get_formatter()._expand_help(action)[1:]]
    for part in told:
        assert re.sub(r"\s+", " ", part.replace("`", "")).strip() in text


def test_the_program_s_page_names_every_page(shared: Path) -> None:
    """dlr-buffer(1) refers to each page, and no page is there for a command that is not."""
    text = shown(shared / "man/man1/dlr-buffer.1")
    pages = {page.stem for page in (shared / "man/man1").iterdir()}
    assert pages == {"dlr-buffer"} | {f"dlr-buffer-{path[0]}" for path in commands(build_parser())}
    for page in pages - {"dlr-buffer"}:
        assert f"{page}(1)" in text
    assert "dlr-buffer-config(5)" in text


def test_the_configuration_s_page_has_all_of_the_document(shared: Path) -> None:
    """Each section, and each key with what stands in its row."""
    text = shown(shared / "man/man5/dlr-buffer-config.5")
    document = (ROOT / "docs/configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*?) \|", document, re.MULTILINE)
    assert len(rows) > 25
    for key, default in rows:
        assert re.search(rf" {key} .*?Default: {re.escape(default.replace('`', ''))}\. Allowed: ", text), key
    for section in re.findall(r"^##+ `(.*)`$", document, re.MULTILINE):
        assert f" {section} " in text


def test_every_page_is_clean(shared: Path) -> None:
    """The check of mandoc has nothing to say, and the date is the one that was given."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    pages = sorted((shared / "man").rglob("*.[15]"))
    assert len(pages) > 20
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], check=False, capture_output=True, text=True
    )
    assert done.stdout == ""
    for page in pages:
        assert ' 2026-11-21 "dlr\\-buffer ' in page.read_text().splitlines()[0]


@pytest.mark.parametrize(
    "text", [".starts like a macro", "'so does this", r"C:\new \fBtext", '"quoted" -- `x` ~ ^', ""]
)
def test_text_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    """Nothing in a text acts as a command of roff, wherever it stands."""
    page = tmp_path / "x.1"
    source = (
        roff.heading("NAME") + roff.paragraph(roff.plain(text)) + roff.item(roff.plain(text), roff.bold(text))
    )
    page.write_text(roff.page("x", 1, "2026-11-21", "0", source + roff.example([text])))
    assert shown(page).count(text) >= 4


@pytest.mark.parametrize(
    "text", ["1. numbered\n", "> quoted\n", "- a\n\n  b\n", "![picture](x.svg)\n", "#### deep\n"]
)
def test_markdown_that_is_not_known_is_an_error(text: str) -> None:
    """What a page could not show stops the build instead of vanishing."""
    with pytest.raises(ValueError, match=r"no manual page can show|has to be one paragraph"):
        documents.body(text)


def test_a_backquote_that_is_never_closed_is_an_error() -> None:
    """A slip in a help text does not turn half of a page bold."""
    with pytest.raises(ValueError, match="never closed"):
        roff.marked("see `dlr-buffer status")
