"""The documents print nothing that no test has tried. What is tried where: `tests.documents`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlr_buffer import config
from tests.documents import (
    AT_THE_END,
    IN_A_FRESH_COPY,
    ON_A_MACHINE,
    ROOT,
    RUN_LANGUAGES,
    WITH_THE_PACKAGE,
    Block,
    Section,
    blocks,
    blocks_of,
    documents,
)

BLOCKS = [block for document in documents() for block in blocks(document)]
SECTIONS = IN_A_FRESH_COPY + ON_A_MACHINE + AT_THE_END + WITH_THE_PACKAGE


def test_the_blocks_are_found() -> None:
    """Each document's opening and closing fences are all read, so that no block hides from the other tests."""
    fences = sum(
        len(re.findall(r"^\s*```", (ROOT / name).read_text(), flags=re.MULTILINE)) for name in documents()
    )
    assert fences == 2 * len(BLOCKS)
    commands = [command for block in BLOCKS if block.language == "sh" for command in block.commands]
    assert "make demo" in commands
    assert len(commands) > 30


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.section}, {block.language or 'text'}")
def test_a_block_is_run_by_a_test(block: Block) -> None:
    """A block of a kind that can be run stands in a section that some test runs; others are of a known kind."""
    if block.language in RUN_LANGUAGES:
        assert block.section in SECTIONS, (
            f"no test runs {block.text!r}: list its section in tests/documents.py"
        )
    else:
        assert block.language in ("", "toml"), f"nobody knows how to try a block in {block.language!r}"


def test_only_plain_commands_are_printed() -> None:
    """Each line of a block is one whole command, as the tests run them line by line."""
    for block in BLOCKS:
        if block.language == "sh":
            for command in block.commands:
                assert not re.search(r"\\$|^\s|^\$ |<<", command), command


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_listed_section_is_there(section: Section) -> None:
    """A section that was renamed or dropped is not believed to be run any longer, and none is listed twice."""
    assert SECTIONS.count(section) == 1
    assert any(block.language in RUN_LANGUAGES for block in blocks_of(section))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(block.text, id=f"{block.section} {number}")
        for number, block in enumerate(BLOCKS)
        if block.language == "toml"
    ]
    + [pytest.param((ROOT / "config/config.toml").read_text(), id="config/config.toml")],
)
def test_a_printed_configuration_loads(tmp_path: Path, text: str) -> None:
    """The daemon takes each configuration that is printed, once its password file exists."""
    password = tmp_path / "default.password"
    password.touch(0o600)
    password.write_text("secret\n")
    assert "/etc/dlr-buffer/default.password" in text
    file = tmp_path / "config.toml"
    file.write_text(text.replace("/etc/dlr-buffer/default.password", str(password)))
    assert config.load(file, {}).accounts


NAMED = sorted(
    {
        (document, name)
        for document in documents()
        for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", (ROOT / document).read_text("utf-8"))
    }
)


def test_the_proof_names_tests() -> None:
    """docs/reliability.md names the test that proves each promise."""
    assert sum(document == "docs/reliability.md" for document, _ in NAMED) > 30


@pytest.mark.parametrize(("document", "name"), NAMED)
def test_a_named_test_is_there(document: str, name: str) -> None:
    """A test that a document calls a proof was not renamed or dropped."""
    file, _, function = name.partition("::")
    source = (ROOT / file).read_text("utf-8")
    assert not function or re.search(
        rf"^\s*(async )?def {function}\(|^class {function}\b|^{function} = ", source, re.MULTILINE
    )
