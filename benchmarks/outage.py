"""What an account in a total outage, with 100,000 receipts waiting, costs another one: the real daemon, two stand-ins.

Rounds take turns between a daemon whose first account has nothing to do and daemons whose first account meets refused
connections, silence until its timeout, or a 500 for everything. The second account's stand-in is the sink.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.fill import Fill, fill
from benchmarks.harness.servers import SinkServer, sink
from benchmarks.harness.tables import Rounds, Table, percentile, short
from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import Site, StandIn, eventually

PENDING = 100_000
SINGLES = 60
BULK = 10_000


@contextlib.contextmanager
def _silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api/dlr"


@contextlib.contextmanager
def _failing() -> Iterator[str]:
    with StandIn(SimulatorSettings(always_status=500)) as stand_in:
        yield stand_in.url


@contextlib.contextmanager
def _refusing() -> Iterator[str]:
    yield "http://127.0.0.1:9/api/dlr"


TROUBLES = {"nothing to do": _refusing, "refused": _refusing, "silent": _silent, "500": _failing}


def _reports(site: Site, sunk: SinkServer, prefix: str) -> tuple[list[float], float]:
    """Milliseconds from a report to the sink, one by one; and receipts a second, of many."""
    singles = []
    with site.client() as app:
        for number in range(SINGLES):
            before, began = sunk.count(), time.perf_counter()
            app.report(f"{prefix}{number}", "delivered", "two")
            while sunk.count() == before:
                time.sleep(0.0002)
            singles.append((time.perf_counter() - began) * 1000)
        before, began = sunk.count(), time.perf_counter()
        for start in range(0, BULK, 1_000):
            items = [
                {"message_id": f"{prefix}b{start + each}", "message_state": "delivered", "account": "two"}
                for each in range(1_000)
            ]
            app.request("POST", "/v1/receipts", items)
        eventually(sunk.count, lambda count: count >= before + BULK)
        return singles, BULK / (time.perf_counter() - began)


def _round(trouble: str, prefix: str) -> tuple[list[float], float]:
    with (
        tempfile.TemporaryDirectory(prefix="dlr") as name,
        TROUBLES[trouble]() as url,
        sink() as sunk,
    ):
        site = Site(Path(name))
        try:
            two = {"url": f"http://127.0.0.1:{sunk.port}/api/dlr"}
            site.configure(
                url,
                account={"timeout": "1s"},
                batch={"linger": "0ms"},
                others={"two": two},
                retry={"max": "1s"},
            )
            fill(site.database, Fill(pending=0 if trouble == "nothing to do" else PENDING))
            daemon = site.start()
            found = _reports(site, sunk, prefix)
            daemon.terminate()
            return found
        finally:
            site.close()


def measure(rounds: int) -> list[Table]:
    """The table of all troubles."""
    rates, medians, singles = Rounds(), Rounds(), dict[str, list[float]]()
    for turn in range(rounds):
        for trouble in TROUBLES:
            found, rate = _round(trouble, f"r{turn}-")
            singles.setdefault(trouble, []).extend(found)
            medians.add(trouble, percentile(found, 0.5))
            rates.add(trouble, rate)
    rows = [
        (
            trouble,
            short(percentile(found, 0.5)),
            short(percentile(found, 0.99)),
            f"{medians.ratio(trouble, 'nothing to do'):.2f}",
            short(rates.median(trouble)),
            f"{rates.ratio(trouble, 'nothing to do'):.2f}",
        )
        for trouble, found in singles.items()
    ]
    return [
        Table(
            "outage",
            ("the other account", "report to upstream, ms: median", "p99", "×", "drained a second", "×"),
            rows,
            f"{rounds} rounds of {SINGLES} single reports and {BULK:,} in bulk; {PENDING:,} receipts wait in the other"
            " account, which is tried again every second at the latest.",
        )
    ]


if __name__ == "__main__":
    for table in measure(2):
        print(table)
