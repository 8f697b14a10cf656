"""The project as somebody else gets it: what is tracked, or new and not ignored, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.documents import ROOT

_MADE = (".git", ".venv", "dist", "__pycache__", "*.egg-info", ".hypothesis", ".*_cache")


def copy_project(to: Path) -> Path:
    """Copy the project to the new folder ``to``, and return it.

    Of a clean work tree that is what ``git clone`` gives; of an unpacked archive, all but what tools leave behind.
    """
    listed = subprocess.run(
        [
            "git",
            "-c",
            f"safe.directory={ROOT}",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode or not (ROOT / ".git").exists():
        shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_MADE))
        return to
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # deleted, but not committed yet
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to
