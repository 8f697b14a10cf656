"""Completion offers what the parsers take, in each shell that is there to ask."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dlr_buffer.cli.parser import STATES, STATUSES
from share.completion import PLACES

BASH = """\
source {script}
COMP_WORDS=({words}); COMP_CWORD={last}
_shtab_dlr_buffer
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
LINES = [
    ("re", {"register", "report", "retry", "release", "resume"}),
    ("--json sta", {"status"}),
    ("list ", {"messages", "receipts"}),
    ("report --state ", set(STATES)),
    ("list receipts --status ", set(STATUSES)),
    ("check-db --q", {"--quick"}),
]


def asked(shell: str, script: Path, line: str) -> set[str]:
    """Return what a shell offers at the end of a line; skips where the shell is not installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = ["dlr-buffer", *line.split(" ")]
    if shell == "bash":
        quoted = " ".join(f"'{word}'" for word in words)
        program = BASH.format(script=script, words=quoted, last=len(words) - 1)
    else:
        program = f"source {script}; complete --do-complete 'dlr-buffer {line}'"
    done = subprocess.run(
        [shell, *(["--norc", "--noprofile"] if shell == "bash" else ["--no-config"]), "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return {offer.partition("\t")[0] for offer in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(("line", "offered"), LINES)
def test_a_shell_offers_what_fits(shared: Path, shell: str, line: str, offered: set[str]) -> None:
    """Commands, kinds, options, and the words that an option takes."""
    assert offered <= asked(shell, shared / PLACES[shell], line)
    if not line.endswith("re"):
        assert asked(shell, shared / PLACES[shell], line) == offered


def test_files_are_completed(shared: Path, tmp_path: Path) -> None:
    """Where a command takes a file, the files that are there are offered."""
    (tmp_path / "queue-of-monday.db").touch()
    assert asked("bash", shared / PLACES["bash"], f"backup {tmp_path}/queue") == {
        f"{tmp_path}/queue-of-monday.db"
    }


def test_zsh_takes_its_script(shared: Path) -> None:
    """It is parsed, and it says for which command it is."""
    script = shared / PLACES["zsh"]
    assert script.read_text().startswith("#compdef dlr-buffer\n")
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    subprocess.run(["zsh", "-f", "-n", script], check=True)
