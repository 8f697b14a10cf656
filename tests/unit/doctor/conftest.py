"""A folder that any user of this machine gets to, which pytest's own are not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A new folder with mode 0755, no closed one above it; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if not all(each.stat().st_mode & 0o001 for each in folder.parents):
            pytest.skip(f"{folder.parent} is not open to everybody")
        yield folder
