"""A large backlog costs a daemon no more memory than a small one, and no more reading at its start."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.fill import Fill, fill
from tests.acceptance.harness import Site

SMALL, LARGE = 1_000, 50_000
"""Messages of each kind: waiting, pending, and acknowledged but kept."""
MEMORY_BYTES = 2 * 1024 * 1024
"""Less than a number for each row would take; 0.3 MiB were measured."""
READ_BYTES = 512 * 1024
"""A few more pages of deeper trees; to visit each row once would take five times as much. One byte was measured."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of the daemon took, in bytes."""

    read_at_start: int
    peak_at_start: int
    peak_at_work: int


def cost(rows: int) -> Cost:
    """Start a daemon on a queue with so many rows of each kind, and let it work a little."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        site = Site(Path(name))
        try:
            site.configure()
            fill(site.database, Fill(waiting=rows, pending=rows, acknowledged=rows))
            daemon = site.start()
            started = _proc(daemon.pid, "io", "rchar"), _proc(daemon.pid, "status", "VmHWM") * 1024
            # Its account meets outages all the while.
            site.wait_for_account(lambda account: account["health"] == "backing-off")
            with site.client() as app:
                app.register_many([f"new{number}" for number in range(200)])
                app.report_many([(f"new{number}", "delivered") for number in range(200)])
            counts = site.account()
            assert counts["messages"]["waiting"] == rows
            assert counts["receipts"]["pending"] == rows + 200
            site.ask("GET", "/v1/receipts?status=pending&limit=100")
            site.ask("GET", "/v1/messages?waiting=true&limit=100")
            peak = _proc(daemon.pid, "status", "VmHWM") * 1024
            assert daemon.terminate() == 0
            return Cost(*started, peak)
        finally:
            site.close()


def _proc(pid: int, file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/{file}").read_text("ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_large_backlog_costs_no_more_than_a_small_one() -> None:
    """With fifty times the rows it reads no more until it is ready, and takes no more memory then and at work."""
    cost(SMALL)  # writes what Python keeps compiled
    small, large = cost(SMALL), cost(LARGE)
    assert large.read_at_start - small.read_at_start < READ_BYTES, (small, large)
    assert large.peak_at_start - small.peak_at_start < MEMORY_BYTES, (small, large)
    assert large.peak_at_work - small.peak_at_work < MEMORY_BYTES, (small, large)
