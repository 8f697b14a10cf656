"""Measures one machine: the disk on its own, then a daemon on it that registers, is reported to, and drains.

Each measurement takes so many seconds, in slices; a rate is the median of the slices' rates. The daemon keeps its queue
under the folder that is measured, the stand-in for Smartswitch runs in this process, which has nothing else to do then.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from dlr_buffer.bench import disk, load
from dlr_buffer.bench.limits import Figure
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.simulator import SimulatorSettings
from dlr_buffer.throwaway import Daemon, Place, StandIn, folder

_SLICES = 5
_APPS = 16
_BULK_APPS = 2
_PER_REQUEST = 1000
_MAX_RECEIPTS = 100
_FIRST_ID = 1_561_370_632_513
"""The seed's first message id."""
_NEEDED_BYTES = 1024**3
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_EVERY_S = 0.01

SYNCS = "syncs of 4 KiB"
COMMITS = "commits of one row, SQLite alone"
SINGLES = f"registrations one at a time, {_APPS} connections"
BULK = f"registrations, {_PER_REQUEST:,} a request"
REPORTS = f"reports, {_PER_REQUEST:,} a request"
DRAIN = f"receipts drained, {_MAX_RECEIPTS} a request"


class BenchFailed(DlrBufferError):
    """This folder, or what was run in it, can't be measured; the text says why and what to do."""


@contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """Make a folder under ``parent`` for what is measured; it is removed, whatever happens.

    Raises BenchFailed if there is no such folder, if it can't be written to, or if less than 1 GiB is free.
    """
    try:
        free = shutil.disk_usage(parent).free
        if free < _NEEDED_BYTES:
            raise BenchFailed(
                f"{parent} has {free / 2**20:,.0f} MiB free, and 1 GiB is needed: free some space, or name another"
                " folder with --folder"
            )
        path = Path(tempfile.mkdtemp(prefix="dlr-buffer-bench-", dir=parent))
    except OSError as error:
        raise BenchFailed(f"{parent}: {error.strerror}; name another folder with --folder") from None
    try:
        yield path
    except BrokenPipeError:  # whoever reads what is printed has gone
        raise
    except (OSError, sqlite3.Error) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "is full" in str(error)
        raise BenchFailed(
            f"{parent}: " + ("the disk is full: free some space" if full else f"it broke off: {error}")
        ) from None
    finally:
        shutil.rmtree(path, ignore_errors=True)


def measure(place: Path, seconds: float) -> Iterator[Figure]:
    """Measure everything in ``place``, ``seconds`` each, and give each figure as it comes.

    Raises BenchFailed, OSError and sqlite3.Error.
    """
    yield _of_each(SYNCS, lambda slice_s: disk.syncs(place, slice_s), seconds)
    databases = (place / f"raw{number}.db" for number in count())
    yield _of_each(COMMITS, lambda slice_s: disk.commits(next(databases), slice_s), seconds)
    with folder("bench") as sockets, StandIn(SimulatorSettings()) as stand_in:
        daemon = Daemon(
            Place(sockets, place / "queue.db"), stand_in, max_receipts=_MAX_RECEIPTS, timeout="30s"
        )
        try:
            with daemon:
                yield from _with_daemon(daemon, stand_in, seconds)
        except (DlrBufferError, ConnectionError) as error:
            raise BenchFailed(
                f"the daemon did not do what was asked: {error}\n{daemon.last_words()}"
            ) from None


def _of_each(name: str, run: Callable[[float], Iterator[float]], seconds: float) -> Figure:
    """Measure what is done one after the other."""
    rates: list[float] = []
    took: list[float] = []
    for _ in range(_SLICES):
        began = time.perf_counter()
        some = list(run(seconds / _SLICES))
        rates.append(len(some) / (time.perf_counter() - began))
        took += some
    return Figure(name, statistics.median(rates), *_middle_and_tail(took))


def _with_daemon(daemon: Daemon, stand_in: StandIn, seconds: float) -> Iterator[Figure]:
    with daemon.admin() as admin:
        admin.request("POST", "/v1/accounts/default/pause")
        singles = map(load.registration, map(str, count(_FIRST_ID)))
        yield _of_load(daemon, SINGLES, singles, _APPS, seconds)
        bulk = map(load.registrations, _in_thousands(_FIRST_ID * 2))
        yield _of_load(daemon, BULK, bulk, _BULK_APPS, seconds, each=_PER_REQUEST)
        reports = map(load.reports, _in_thousands(_FIRST_ID * 2))
        yield _of_load(daemon, REPORTS, reports, _BULK_APPS, seconds, each=_PER_REQUEST)
        pending = admin.request("GET", "/v1/status")["accounts"][0]["receipts"]["pending"]
        admin.request("POST", "/v1/accounts/default/resume")
        yield _of_drain(daemon, stand_in, pending, seconds)


def _in_thousands(first: int) -> Iterator[list[str]]:
    for start in count(first, _PER_REQUEST):
        yield [str(number) for number in range(start, start + _PER_REQUEST)]


def _of_load(  # noqa: PLR0913 - what makes a load
    daemon: Daemon, name: str, requests: Iterable[bytes], connections: int, seconds: float, *, each: int = 1
) -> Figure:
    """Measure apps that send ``requests`` of ``each`` items until the time is over."""
    rates: list[float] = []
    latencies: list[float] = []
    waiting = iter(requests)
    cpu_s, began = _cpu_s(daemon.pid), time.perf_counter()
    for _ in range(_SLICES):
        some = _until(waiting, time.perf_counter() + seconds / _SLICES)
        taken = load.run(str(daemon.place.client_socket), some, connections)
        if taken.failed:
            raise BenchFailed(f"{taken.failed} of {taken.requests} requests were refused")
        rates.append(taken.rate * each)
        latencies += taken.latencies_s
    cores = (_cpu_s(daemon.pid) - cpu_s) / (time.perf_counter() - began)
    return Figure(name, statistics.median(rates), *_middle_and_tail(latencies), cores)


def _until(requests: Iterator[bytes], ends: float) -> Iterator[bytes]:
    # One at least: a slice may be shorter than it takes to connect.
    yield next(requests)
    while time.perf_counter() < ends:
        yield next(requests)


def _of_drain(daemon: Daemon, stand_in: StandIn, pending: int, seconds: float) -> Figure:
    """Measure how many of the ``pending`` receipts the stand-in accepts until the time is over, or it has all."""
    rates: list[float] = []
    accepted = 0
    cpu_s, began = _cpu_s(daemon.pid), time.perf_counter()
    while accepted < pending and len(rates) < _SLICES:
        slice_began, before = time.perf_counter(), accepted
        while accepted < pending and (
            time.perf_counter() - slice_began < seconds / _SLICES or accepted == before
        ):
            daemon.expect_alive()
            time.sleep(_LOOK_EVERY_S)
            accepted = stand_in.summary()["accepted"]
        rates.append((accepted - before) / (time.perf_counter() - slice_began))
    cores = (_cpu_s(daemon.pid) - cpu_s) / (time.perf_counter() - began)
    return Figure(DRAIN, statistics.median(rates), cores=cores)


def _middle_and_tail(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.99 * len(ordered))]


def _cpu_s(pid: int) -> float:
    """The CPU seconds that a process took so far (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
