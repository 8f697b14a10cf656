"""What the README says first, on a fresh copy of the project: ``make demo`` and ``make test`` are all it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import copy_project
from tests.documents import IN_A_FRESH_COPY, blocks_of

COMMANDS = [
    command for section in IN_A_FRESH_COPY for block in blocks_of(section) for command in block.commands
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a clone would have: no environment, no cache."""
    return copy_project(tmp_path_factory.mktemp("fresh") / "dlr-buffer")


@pytest.mark.timeout(600)  # packages are fetched and installed
@pytest.mark.parametrize("command", COMMANDS)
def test_a_first_command_works_at_once(project: Path, command: str) -> None:
    """Each exits with 0 and ends as the README says, with nothing set up before."""
    assert not list(project.glob("*.egg-info"))
    # Of the outer make nothing may be felt but which Python the machine has (3.11 may not be its python3).
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PYTEST_", "COV_"))
    }
    environ |= {"PYTHON": os.path.realpath(sys.executable)}
    match command:
        case "make demo":
            said = "exactly one final state"
        case "make test":
            # The whole suite is running right now: here it is enough that it would be.
            command, said = 'make test ARGS="--collect-only -q tests/unit"', "tests/unit/test_backoff.py::"
        case _:
            said = ""
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=project,
        env=environ,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert said in done.stdout, done.stdout
