"""How long a command takes from the shell, with a daemon that has nothing else to do.

``python -m benchmarks.shell [ROUNDS]`` prints the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from benchmarks.harness import ids
from benchmarks.harness.servers import daemon
from benchmarks.harness.tables import Rounds, Table

PROGRAM = Path(sys.executable).with_name("dlr-buffer")


def _took_ms(*words: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run([PROGRAM, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - began) * 1000


def measure(rounds_: int = 15) -> list[Table]:
    """Run each command so often, one after the other."""
    rounds = Rounds()
    numbers = count(1)
    with tempfile.TemporaryDirectory() as place, daemon(Path(place)) as served:
        admin, client = ("--socket", served.admin_socket), ("--socket", served.client_socket)
        for _ in range(rounds_ + 1):
            (message_id,) = ids.in_order(1, next(numbers))
            rounds.add("status", _took_ms(*admin, "status"))
            rounds.add("list", _took_ms(*admin, "list", "messages"))
            rounds.add("register", _took_ms(*client, "register", message_id))
            rounds.add("--help", _took_ms("--help"))
    for figures in rounds.figures.values():
        del figures[0]  # what had to be compiled or read from the disk
    return [
        Table(
            "shell",
            ("`dlr-buffer …`", "median, ms", "least–most", "bound"),
            [
                (
                    f"`{name}`",
                    f"{rounds.median(name):.0f}",
                    rounds.spread(name),
                    "200" if name == "status" else "",
                )
                for name in rounds.figures
            ],
            f"Medians of {rounds_} calls, most of which is the start of Python and its imports.",
        )
    ]


if __name__ == "__main__":
    for table in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 15):
        print(table)
