"""The machine that a run was made on, as it is printed beside the figures; and what a process takes of it."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how fast it is."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    file_system: str
    sync_ms: float
    """The median of 4 KiB written to a file and synced."""
    python: str
    sqlite: str

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.cores} cores of {self.cpu}, {self.memory_gib:.0f} GiB, Linux {self.kernel}, {self.file_system}"
            f" where 4 KiB are written and synced in {self.sync_ms:.2f} ms, Python {self.python}, SQLite {self.sqlite}"
        )


def look(folder: Path) -> Machine:
    """Describe this machine and the disk under ``folder``."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3,
        kernel=platform.release(),
        file_system=_file_system(folder),
        sync_ms=sync_ms(folder),
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
    )


def sync_ms(folder: Path, rounds: int = 200) -> float:
    """Return how long 4 KiB take to be written and synced; the median."""
    path = folder / "sync.probe"
    took: list[float] = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for number in range(rounds):
            began = time.perf_counter()
            os.pwrite(descriptor, b"\0" * 4096, number * 4096)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(took)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its ended children took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def resident_mib(pid: int) -> float:
    """Return how much memory a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


def peak_mib(pid: int) -> float:
    """Return the most memory that a process held so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    best = ("", "an unknown file system")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if str(folder.resolve()).startswith(mount) and len(mount) > len(best[0]):
            best = (mount, kind)
    return best[1]
