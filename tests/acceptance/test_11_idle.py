"""An idle daemon is small and quiet."""

from __future__ import annotations

import subprocess
import time

import psutil  # type: ignore[import-untyped] # publishes no types
import pytest

from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import Site, StandIn

MEASURED_S = 12.0
MAX_RESIDENT_BYTES = 85 * 2**20
MAX_OF_A_CORE = 0.006


def test_idle(site: Site) -> None:
    """After some work, nothing to do: under 85 MiB resident, and under 0.6% of a core by its own CPU time."""
    with StandIn(SimulatorSettings()) as stand_in:
        # The second account's connection brings the system's certificates into memory.
        site.configure(stand_in.url, others={"tls": {"url": "https://smartswitch.example.com/api/dlr"}})
        daemon = site.start()
        with site.client() as app:
            app.report_many([(f"m{number}", "delivered") for number in range(1000)])
            app.register_many([f"waiting-{number}" for number in range(1000)])
        assert site.wait_until_sent()["receipts"]["acknowledged"] == 1000
        process = psutil.Process(daemon.pid)
        before, began = process.cpu_times(), time.monotonic()
        # The one thing here that takes time to measure; it also proves that the daemon lives on.
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(MEASURED_S)
        after, lasted = process.cpu_times(), time.monotonic() - began
        used = after.user + after.system - before.user - before.system
        assert used / lasted < MAX_OF_A_CORE
        assert process.memory_info().rss < MAX_RESIDENT_BYTES
        assert process.children() == []
