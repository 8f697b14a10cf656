"""What a set of programs takes together, each with all that it started: CPU seconds, memory; and how a drain is timed.

Memory is counted as PSS: what programs share (PostgreSQL's buffers, say) counts once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.harness.servers import SinkServer

_POLL_S = 0.005
_MEMORY_EVERY_S = 0.25
_QUIET_S = 0.25
_QUIET_CPU_S = 0.03
_QUIET_WITHIN_S = 10.0
_STUCK_S = 60.0


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain took."""

    receipts: int
    elapsed_s: float
    cpu_s: float
    """Of all programs but the sink, until they were idle again: what follows a receipt's answer is counted too."""
    peak_mib: float

    @property
    def rate(self) -> float:
        """Receipts a second."""
        return self.receipts / self.elapsed_s

    @property
    def cpu_s_per_million(self) -> float:
        """CPU seconds for a million receipts."""
        return self.cpu_s / self.receipts * 1_000_000


def cpu_s(roots: Sequence[int]) -> float:
    """Return the CPU seconds that these processes and all below them took so far."""
    return _sum(machine.cpu_s, roots)


def memory_mib(roots: Sequence[int]) -> float:
    """Return how much memory these processes and all below them hold now."""
    return _sum(_pss_mib, roots)


class Watch:
    """Times a drain from where it is made."""

    def __init__(self, roots: Sequence[int], sent: int = 0) -> None:
        """Begin: ``sent`` receipts had reached the sink before."""
        self._roots = roots
        self._sent = sent
        self._cpu = cpu_s(roots)
        self._began = time.perf_counter()

    def until(self, server: SinkServer, wanted: int, alive: Callable[[], None]) -> Drained:
        """Wait until the sink has all; ``alive`` raises when that can't happen any more.

        Raises SystemExit when nothing comes for a minute.
        """
        peak = memory_mib(self._roots)
        looked = time.perf_counter()
        count, moved = self._sent, looked
        while count < wanted:
            time.sleep(_POLL_S)
            alive()
            now = time.perf_counter()
            count, before = server.count(), count
            if count > before:
                moved = now
            elif now - moved > _STUCK_S:
                raise SystemExit(f"{wanted - count} of {wanted} receipts never came to the sink")
            if now - looked > _MEMORY_EVERY_S:
                peak = max(peak, memory_mib(self._roots))
                looked = now
        elapsed = time.perf_counter() - self._began
        peak = max(peak, memory_mib(self._roots))
        return Drained(wanted - self._sent, elapsed, _when_quiet(self._roots) - self._cpu, peak)


def _when_quiet(roots: Sequence[int]) -> float:
    """Return the CPU seconds taken by the time that hardly any more are."""
    deadline = time.monotonic() + _QUIET_WITHIN_S
    used = cpu_s(roots)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        before, used = used, cpu_s(roots)
        if used - before <= _QUIET_CPU_S:
            break
    return used


def _sum(of: Callable[[int], float], roots: Sequence[int]) -> float:
    total = 0.0
    for root in roots:
        for pid in _tree(root):
            # One that ended meanwhile is in its parent's figures.
            with contextlib.suppress(OSError):
                total += of(pid)
    return total


def _tree(root: int) -> Iterator[int]:
    yield root
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{root}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
