"""Fixtures: a queue's folder whose daemons are recorded, with an upstream that answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.power.bench import Bench
from tests.crash.power.recording import build


@pytest.fixture(scope="session")
def recorder_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorder, built once."""
    return build(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def bench(tmp_path: Path, recorder_library: Path) -> Iterator[Bench]:
    """A folder with a path short enough for sockets; nothing runs in it yet."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        bench = Bench(Path(name), tmp_path, recorder_library)
        try:
            yield bench
        finally:
            bench.close()
