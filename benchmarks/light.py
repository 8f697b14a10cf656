"""What does the daemon take when nothing happens, and how soon is it ready? On an empty queue and on a large one.

``python -m benchmarks.light [MESSAGES]`` prints the table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import daemon
from benchmarks.harness.tables import Rounds, Table

STARTS = 5
SETTLE_S = 5.0


def _look(rounds: Rounds, name: str, folder: Path, idle_s: float) -> None:
    for _ in range(STARTS):
        with daemon(folder) as served:
            rounds.add(f"{name} ready", served.ready_s)
    with daemon(folder) as served:
        time.sleep(SETTLE_S)
        cpu_s = served.cpu_s()
        time.sleep(idle_s)
        rounds.add(f"{name} cpu", (served.cpu_s() - cpu_s) / idle_s * 100)
        rounds.add(f"{name} memory", machine.resident_mib(served.pid))


def measure(*, full: bool = False, messages: int | None = None) -> list[Table]:
    """Run it; ``full``: ten million messages instead of a million."""
    many = messages or (10_000_000 if full else 1_000_000)
    idle_s = 60.0 if full else 10.0
    rounds = Rounds()
    with tempfile.TemporaryDirectory() as place:
        empty, large = Path(place) / "empty", Path(place) / "large"
        for folder in (empty, large):
            folder.mkdir()
        fill(large / "queue.db", Fill(waiting=many, pending=many // 10, paused=True))
        _look(rounds, "empty", empty, idle_s)
        _look(rounds, "large", large, idle_s)

    def row(what: str, name: str, digits: int, bounds: tuple[str, str]) -> tuple[str, ...]:
        return (
            what,
            f"{rounds.median(f'empty {name}'):.{digits}f}",
            bounds[0],
            f"{rounds.median(f'large {name}'):.{digits}f}",
            bounds[1],
        )

    return [
        Table(
            "light",
            ("", "empty queue", "bound", f"{many:,} waiting, {many // 10:,} pending", "bound"),
            [
                row("from the start to the first answer, s", "ready", 2, ("1", "2")),
                row("resident memory when idle, MiB", "memory", 0, ("75", "150")),
                row("CPU when idle, % of a core", "cpu", 2, ("0.5", "0.5")),
            ],
            f"Start: the median of {STARTS}, files in the page cache. Idle: over {idle_s:.0f} s.",
        )
    ]


if __name__ == "__main__":
    for table in measure(messages=int(sys.argv[1]) if len(sys.argv) > 1 else None):
        print(table)
