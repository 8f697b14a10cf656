"""The recipe for a container image, as far as it can be checked where no image can be built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dlr_buffer.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
RECIPE = re.sub(r"\\\n\s*", " ", (ROOT / "Containerfile").read_text("utf-8"))
STEPS = [line.split(maxsplit=1) for line in RECIPE.splitlines() if line and not line.startswith("#")]
DOCUMENT = (ROOT / "docs/containers.md").read_text("utf-8")


def said(word: str) -> list[str]:
    """Return what stands after each instruction of a name."""
    return [rest for name, rest in STEPS if name == word]


def test_what_is_copied_is_there() -> None:
    """Each source of a COPY is in the project, or made by an earlier stage."""
    copied = [words.split() for words in said("COPY")]
    sources = [name for words in copied if not words[0].startswith("--from=") for name in words[:-1]]
    assert len(sources) > 5
    for name in sources:
        assert (ROOT / name).exists(), name
    assert [words for words in copied if words[0].startswith("--from=")] == [
        ["--from=build", "/opt/dlr-buffer", "/opt/dlr-buffer"]
    ]


def test_nothing_is_installed_unchecked() -> None:
    """Each installation is of hashed wheels, or of the project's own wheel without what it depends on."""
    commands = [part.strip() for run in said("RUN") for part in run.split("&&")]
    installing = [part for part in commands if re.search(r"pip (install|wheel)", part)]
    assert len(installing) == 4
    for part in installing:
        assert "--require-hashes" in part or "--no-deps" in part, part
    assert all("--no-build-isolation" in part for part in installing if "pip wheel" in part)


def test_it_runs_as_nobody_s_user_and_stops_as_the_daemon_does() -> None:
    """Not as root, with the queue in a volume, ended by the signal that the daemon knows."""
    (user,) = said("USER")
    assert user == "970:970"
    assert f"--uid {user.partition(':')[0]} " in RECIPE
    assert said("STOPSIGNAL") == ["SIGTERM"]
    (volumes,) = said("VOLUME")
    assert json.loads(volumes) == ["/var/lib/dlr-buffer", "/run/dlr-buffer"]


@pytest.mark.parametrize("word", ["CMD", "HEALTHCHECK"])
def test_its_commands_are_the_program_s(word: str) -> None:
    """What the image runs is known to the command line."""
    (entry,) = said("ENTRYPOINT")
    (text,) = said(word)
    words = json.loads(text[text.index("[") :])
    if words[0] == "dlr-buffer":
        words = words[1:]
    assert json.loads(entry) == ["dlr-buffer"]
    assert build_parser().parse_args(words).command_name == words[0]


def test_podman_is_told_to_keep_the_health_check() -> None:
    """Its own format of images has no HEALTHCHECK, so each command that builds one asks for docker's."""
    assert said("HEALTHCHECK")
    building = re.findall("podman build.*", (ROOT / "Containerfile").read_text("utf-8") + DOCUMENT)
    assert len(building) == 2
    for command in building:
        assert "--format docker " in command


def test_the_document_says_the_same() -> None:
    """User, folders and the image's name in the document are the recipe's."""
    for folder in ("/etc/dlr-buffer", "/var/lib/dlr-buffer", "/run/dlr-buffer"):
        assert f"`{folder}`" in DOCUMENT
    assert "970" in DOCUMENT
    assert "not built" in DOCUMENT
