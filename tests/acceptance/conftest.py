"""Fixtures: a folder for one queue, whose daemons are ended with the test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Site


@pytest.fixture
def site() -> Iterator[Site]:
    """A folder with a path short enough for sockets; nothing runs in it yet."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        site = Site(Path(name))
        try:
            yield site
        finally:
            site.close()
