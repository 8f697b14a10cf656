"""The daemon measured once, as the peers are: messages registered and their states reported, then drained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ids
from benchmarks.harness.servers import DaemonProcess, SinkServer, daemon, sink
from benchmarks.peers import programs
from benchmarks.peers.measuring import BULK_PRODUCERS, PER_BULK, PRODUCERS, SLOW_MS, Enqueued
from benchmarks.peers.programs import Drained, Watch
from dlr_buffer.bench import load

BATCH = 100
BATCHES_AT_ONCE = 8
SINGLES_AT_ONCE = 32
"""As many as the peers with threads have."""


@dataclass(frozen=True, slots=True)
class Ours:
    """All figures of the daemon."""

    registered: Enqueued
    reported: Enqueued
    """Both one at a time, over as many connections as the peers have producers."""
    registered_in_bulk: Enqueued
    reported_in_bulk: Enqueued
    drained: Drained
    drained_slowly: Drained
    drained_singly: Drained
    """With one receipt in each request, as all peers but celery-batches do it."""
    drained_singly_slowly: Drained


def measure(receipts: int, many: int) -> Ours:
    """Measure: ``receipts`` where a request carries one, ``many`` where it carries more."""
    with (
        tempfile.TemporaryDirectory() as place,
        sink() as server,
        daemon(Path(place), port=server.port, max_receipts=BATCH, concurrency=BATCHES_AT_ONCE) as served,
    ):
        _ask(served, "pause")
        names = ids.in_order(receipts)
        registered = _load(served, [load.registration(each) for each in names], 1, PRODUCERS)
        reported = _load(served, [load.report(each) for each in names], 1, PRODUCERS)
        registered_in_bulk, reported_in_bulk = _fill(served, receipts, many)
        drained = _drain(served, server, receipts + many)
    return Ours(
        registered,
        reported,
        registered_in_bulk,
        reported_in_bulk,
        drained,
        _alone(many, BATCH, BATCHES_AT_ONCE, SLOW_MS),
        _alone(receipts, 1, SINGLES_AT_ONCE, 0),
        _alone(receipts, 1, SINGLES_AT_ONCE, SLOW_MS),
    )


def _alone(receipts: int, max_receipts: int, concurrency: int, latency_ms: float) -> Drained:
    with (
        tempfile.TemporaryDirectory() as place,
        sink(latency_ms) as server,
        daemon(Path(place), port=server.port, max_receipts=max_receipts, concurrency=concurrency) as served,
    ):
        _ask(served, "pause")
        _fill(served, 0, receipts)
        return _drain(served, server, receipts)


def _fill(served: DaemonProcess, start: int, count: int) -> tuple[Enqueued, Enqueued]:
    names = ids.in_order(count, start)
    parts = [names[first : first + PER_BULK] for first in range(0, count, PER_BULK)]
    registered = _load(served, [load.registrations(each) for each in parts], PER_BULK, BULK_PRODUCERS)
    reported = _load(served, [load.reports(each) for each in parts], PER_BULK, BULK_PRODUCERS)
    return registered, reported


def _load(served: DaemonProcess, requests: Sequence[bytes], each: int, connections: int) -> Enqueued:
    # The load is sent by this program, which is all it does meanwhile: its CPU seconds are the app's.
    cpu = programs.cpu_s([served.pid]) + time.process_time()
    taken = load.run(served.client_socket, requests, connections)
    cpu = programs.cpu_s([served.pid]) + time.process_time() - cpu
    if taken.failed:
        raise SystemExit(f"the daemon refused {taken.failed} of {taken.requests} requests")
    return Enqueued(taken.requests * each, taken.elapsed_s, cpu, taken.latencies_s)


def _drain(served: DaemonProcess, server: SinkServer, receipts: int) -> Drained:
    def alive() -> None:
        if served.program.poll() is not None:
            raise SystemExit(f"the daemon ended with {served.program.returncode}")

    watch = Watch([served.pid])
    _ask(served, "resume")
    return watch.until(server, receipts, alive)


def _ask(served: DaemonProcess, what: str) -> None:
    status, answer = served.ask("POST", f"/v1/accounts/default/{what}")
    if status != 200:
        raise SystemExit(f"the daemon answered {status} to {what}: {answer}")
