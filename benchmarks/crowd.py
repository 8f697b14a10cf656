"""What each kind of client that misbehaves costs the others: latencies of a good client, alone and beside each kind.

The daemon, the good client and the crowd (`tests.acceptance.misuse.crowd`) each have a process of their own; rounds
take turns. Where two cores are shared by three, a crowd that never rests takes its part of them whatever the daemon
does, so the last row puts the same load on the machine without touching the daemon.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import servers
from benchmarks.harness.tables import Rounds, Table, percentile, short
from tests.acceptance.misuse.crowd import CROWD, connected, crowded, register

EACH = 300
"""Registrations a round, one after another on one connection."""
_BUSY = "while True: bytes(65536)"


def good(path: Path, prefix: str) -> list[float]:
    """Latencies of registrations, in milliseconds."""
    found = []
    with connected(path) as raw:
        for number in range(EACH):
            began = time.perf_counter()
            register(raw, f"{prefix}{number}")
            found.append((time.perf_counter() - began) * 1000)
    return found


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A process that takes a core and speaks with nobody."""
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as program:
        try:
            yield
        finally:
            program.kill()


def _apart(path: Path, prefix: str) -> list[float]:
    """As `good`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.crowd", str(path), prefix], stdout=subprocess.PIPE, check=True
    )
    found: list[float] = json.loads(done.stdout)
    return found


def measure(rounds: int) -> list[Table]:
    """The table of all kinds."""
    kinds: dict[str, dict[str, int]] = {kind: {kind: number} for kind, number in CROWD.items()}
    kinds["all of them"] = dict(CROWD)
    latencies: dict[str, list[float]] = {}
    medians = Rounds()
    with tempfile.TemporaryDirectory(prefix="dlr") as name, servers.daemon(Path(name)) as daemon:
        client, admin = Path(daemon.client_socket), Path(daemon.admin_socket)

        def one(what: str, prefix: str) -> None:
            found = _apart(client, prefix)
            latencies.setdefault(what, []).extend(found)
            medians.add(what, percentile(found, 0.5))

        _apart(client, "warm")
        for turn in range(rounds):
            one("alone", f"a{turn}-")
            for number, (kind, crowd) in enumerate(kinds.items()):
                with crowded(client, admin, crowd):
                    one(kind, f"c{turn}-{number}-")
            with _busy(), _busy():
                one("two busy processes that do not touch the daemon", f"b{turn}-")
    rows = [
        (
            f"{kind}, {sum(kinds[kind].values()):,}" if kind in kinds else kind,
            short(percentile(found, 0.5)),
            short(percentile(found, 0.99)),
            short(max(found)),
            f"{medians.ratio(kind, 'alone'):.1f}",
        )
        for kind, found in latencies.items()
    ]
    return [
        Table(
            "crowd",
            (
                "registrations of a good client beside",
                "median, ms",
                "p99, ms",
                "longest, ms",
                "median, × alone",
            ),
            rows,
            f"{rounds} rounds of {EACH} each, one after another.",
        )
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(good(Path(sys.argv[1]), sys.argv[2])))
    else:
        for table in measure(3):
            print(table)
