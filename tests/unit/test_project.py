"""The scaffolding does what it says: the layers are really checked, and the locks are fit for any machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dlr_buffer"
LOCKS = ("requirements.txt", "requirements-dev.txt")
BUILD_LOCK = "requirements-build.txt"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the package and its contracts to where they may be broken."""
    shutil.copytree(PACKAGE, tmp_path / "dlr_buffer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of a copy, as `make check` does."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layers_hold(project: Path) -> None:
    """The tree as it is keeps every contract, so that the breaches below are what fails."""
    result = lint_imports(project)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("errors.py", "import dlr_buffer.config", "Each layer imports only those below it"),
        ("storage/zz.py", "import dlr_buffer.smartswitch", "Each layer imports only those below it"),
        ("simulator/zz.py", "import dlr_buffer.daemon", "Each layer imports only those below it"),
        ("zz.py", "", "Each layer imports only those below it"),
        ("receipt_queue/zz.py", "import sqlalchemy", "Only storage knows SQLAlchemy and Alembic"),
        ("cli/zz.py", "from alembic import command", "Only storage knows SQLAlchemy and Alembic"),
        ("local_api/zz.py", "import httpx", "Only smartswitch knows httpx"),
        ("metrics.py", "from starlette.responses import Response", "Only local_api knows Starlette"),
        (
            "expiry.py",
            "from apscheduler.schedulers.asyncio import AsyncIOScheduler",
            "Only daemon knows APScheduler",
        ),
        ("health.py", "import asyncio", "Rules are pure"),
        ("messages.py", "from logging import getLogger", "Rules are pure"),
    ],
)
def test_a_breach_of_the_layers_is_found(project: Path, module: str, line: str, contract: str) -> None:
    """One import in the wrong place, or a module in no layer, breaks exactly the contract that forbids it."""
    path = project / "dlr_buffer" / module
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(project)
    assert result.returncode != 0
    broken = [row for row in result.stdout.splitlines() if " BROKEN" in row]
    assert len(broken) == 1
    assert broken[0].startswith(contract)


@pytest.mark.parametrize("name", [*LOCKS, BUILD_LOCK])
def test_a_lock_names_no_host(name: str) -> None:
    """Where packages come from is the installing machine's choice: no address and no option stands in a lock."""
    text = (ROOT / name).read_text()
    assert not re.search(r"://|^-", text, flags=re.MULTILINE)
    assert not re.search(r"(?:^|\s)/\w+/", text)


@pytest.mark.parametrize("name", [*LOCKS, BUILD_LOCK])
def test_every_pin_has_hashes(name: str) -> None:
    """Nothing is installed that was not reviewed: each entry is an exact version with at least one hash."""
    text = (ROOT / name).read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > (5 if name == BUILD_LOCK else 20)
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_the_locks_agree() -> None:
    """The developers' lock has every pin of the users' one, so that one environment serves both."""
    pins = [
        set(re.findall(r"^(\S+==\S+) \\$", (ROOT / name).read_text(), flags=re.MULTILINE)) for name in LOCKS
    ]
    assert pins[0]
    assert pins[0] < pins[1]


def test_the_locks_have_what_pyproject_asks_for() -> None:
    """A dependency that was added or dropped without `make lock` is noticed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [project["dependencies"], project["dependencies"] + project["optional-dependencies"]["dev"]]
    for name, requirements in zip(LOCKS, asked, strict=True):
        # pip-tools notes by whom each pin was asked for; ours are those asked for by the project itself.
        entries = re.split(r"^(?=[a-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
        direct = {entry.partition("==")[0] for entry in entries if "dlr-buffer (pyproject.toml)" in entry}
        assert direct == {re.split(r"[<>=]", requirement)[0] for requirement in requirements}


def test_the_build_is_pinned() -> None:
    """The build backend and what writes manual pages are in a lock, whose pins fit beside those of the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["build-system"]["requires"] + project["dependency-groups"]["build"]
    pins = dict(re.findall(r"^(\S+)==(\S+) \\$", (ROOT / BUILD_LOCK).read_text(), flags=re.MULTILINE))
    assert {re.split(r"[<>=]", requirement)[0] for requirement in asked} <= set(pins)
    others = dict(re.findall(r"^(\S+)==(\S+) \\$", (ROOT / LOCKS[1]).read_text(), flags=re.MULTILINE))
    assert {name: version for name, version in pins.items() if others.get(name, version) != version} == {}


@pytest.mark.parametrize("file", ["Makefile", "systemd/install.sh", "debian/rules", "Containerfile"])
def test_no_installation_fetches_what_is_not_pinned(file: str) -> None:
    """Each call of pip either checks hashes or installs a single thing without what it depends on, or to build it."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / file).read_text())
    calls = [
        call
        for call in re.split(r"&&|\|\||\n", text)
        if re.search(r"(PIP\)|-m pip)(?: .*?)? (install|wheel) |^pip_install ", call)
        # install.sh's own function, and pip itself where Python brings none.
        and '"$@"' not in call
        and "install --quiet pip;" not in call
    ]
    assert len(calls) >= 2
    for call in calls:
        assert "--require-hashes" in call or "--no-deps" in call, call
        # What is not a wheel already is built, by a backend that must not be fetched for it.
        assert "--require-hashes" in call or ".whl" in call or "--no-build-isolation" in call, call


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("no-such-python", "no-such-python does not run"),
        ("./python3.9", "is Python 3.9, but 3.11 or newer is needed"),
    ],
)
def test_an_unfit_python_is_refused_before_anything_is_made(tmp_path: Path, python: str, said: str) -> None:
    """`make` says what is wrong with the Python it was given, and leaves nothing behind."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*LOCKS, BUILD_LOCK, "pyproject.toml"):
        (tmp_path / name).touch()
    old = tmp_path / "python3.9"
    # Answers as a Python 3.9 would: its version when asked for it, failure when asked whether it is new enough.
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9;; *) exit 1;; esac\n')
    old.chmod(0o755)
    result = subprocess.run(
        ["make", "demo", f"PYTHON={python}"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert said in result.stdout
    assert not (tmp_path / ".venv").exists()
