"""Fixtures: one daemon with two accounts for a whole module, which has to be as well after it as before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Site


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    """A daemon with the accounts default and two, whose upstream is away; afterwards it lives and logged no defect."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        site = Site(Path(name))
        try:
            site.configure(others={"two": {"url": "http://127.0.0.1:9/api/dlr"}})
            daemon = site.start()
            yield site
            assert site.ask("GET", "/healthz") == {"status": "ok"}
            assert daemon.terminate() == 0
            log = site.log.read_text(encoding="utf-8")
            assert "Traceback" not in log
            assert "failed" not in log
        finally:
            site.close()
