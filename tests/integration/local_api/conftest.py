"""Fixtures: the running local API."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.local_api.harness import Api


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        yield Path(name)


@pytest.fixture
def api(folder: Path) -> Iterator[Api]:
    """The local API for two accounts, default and other."""
    with Api(folder, accounts=frozenset({"default", "other"})) as running:
        yield running
