"""One peer measured once: put in one at a time, drained; put in by many, drained from a slower upstream."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.servers import SinkServer, sink
from benchmarks.peers import programs, receipt
from benchmarks.peers.catalogue import Peer
from benchmarks.peers.programs import Drained, Watch
from benchmarks.peers.servers import Store

PRODUCERS = 16
PROGRAMS = 4
"""Of four threads each: more programs starve each other on few cores, one alone is held back by its interpreter."""
PER_BULK = 1000
BULK_PRODUCERS = 2
"""In one program."""
_LEAST_BULKS = 10
SLOW_MS = 20
_START_WITHIN_S = 60.0
_END_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What putting in took."""

    receipts: int
    elapsed_s: float
    cpu_s: float
    """Of the programs that put in and of the server."""
    took_s: list[float]
    """Each call."""

    @property
    def rate(self) -> float:
        """Receipts a second."""
        return self.receipts / self.elapsed_s

    @property
    def cpu_s_per_million(self) -> float:
        """CPU seconds for a million receipts."""
        return self.cpu_s / self.receipts * 1_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures of one peer."""

    singles: Enqueued
    bulk: Enqueued | None
    """None for a peer without a call for many."""
    drained: Drained
    drained_slowly: Drained
    """With an upstream that takes `SLOW_MS`."""


def measure(peer: Peer, receipts: int) -> Measured:
    """Measure with so many receipts, on the disk under the folder for temporary files.

    Raises SystemExit with what went wrong.
    """
    each = receipts // PRODUCERS * PRODUCERS
    more = max(receipts // PER_BULK, _LEAST_BULKS) * PER_BULK if peer.bulk else each
    with tempfile.TemporaryDirectory() as place, peer.storing(Path(place)) as store:
        singles = _enqueue(peer, store, [_Share(PRODUCERS // PROGRAMS, each // PROGRAMS)] * PROGRAMS)
        drained = _drain(peer, store, Path(place), each, 0)
        if peer.bulk:
            bulk = _enqueue(peer, store, [_Share(BULK_PRODUCERS, more, PER_BULK)])
        else:
            bulk = None
            _enqueue(peer, store, [_Share(1, each // PROGRAMS)] * PROGRAMS)
        drained_slowly = _drain(peer, store, Path(place), more, SLOW_MS)
    return Measured(singles, bulk, drained, drained_slowly)


@dataclass(frozen=True, slots=True)
class _Share:
    """What one program puts in."""

    threads: int
    receipts: int
    per_call: int = 1


def _environment(store: Store, port: int = 9) -> dict[str, str]:
    return {
        **os.environ,
        receipt.STORE: store.address,
        receipt.UPSTREAM: f"http://127.0.0.1:{port}/api/dlr",
    }


def _roots(store: Store, *others: int) -> list[int]:
    return [*others, *([] if store.server is None else [store.server])]


def _enqueue(peer: Peer, store: Store, shares: Sequence[_Share]) -> Enqueued:
    with contextlib.ExitStack() as stack:
        running = []
        first = 0
        for share in shares:
            running.append(stack.enter_context(_producer(peer, store, share, first)))
            first += share.receipts
        for program in running:
            _line(program)
        server_cpu = programs.cpu_s(_roots(store))
        for program in running:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        said = [json.loads(_line(program)) for program in running]
        server_cpu = programs.cpu_s(_roots(store)) - server_cpu
    return Enqueued(
        receipts=first,
        elapsed_s=max(each["ended"] for each in said) - min(each["began"] for each in said),
        cpu_s=sum(each["cpu_s"] for each in said) + server_cpu,
        took_s=[took for each in said for took in each["took_s"]],
    )


def _producer(peer: Peer, store: Store, share: _Share, first: int) -> subprocess.Popen[str]:
    numbers = map(str, (share.threads, first, share.receipts, share.per_call))
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.producer", peer.app, peer.putting, *numbers],
        env=_environment(store),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    if line := program.stdout.readline():
        return line
    raise SystemExit(f"a program that puts receipts in ended with {program.wait()}; what it said is above")


def _drain(peer: Peer, store: Store, folder: Path, receipts: int, latency_ms: float) -> Drained:
    with (
        sink(latency_ms) as server,
        _worker(peer.command(), _environment(store, server.port), folder / "worker.log") as worker,
    ):
        # A worker takes a second to start: it is timed from the first receipt on.
        sent = worker.first(server)
        watch = Watch(_roots(store, worker.program.pid), sent)
        return watch.until(server, receipts, worker.alive)


@dataclass(frozen=True, slots=True)
class _Worker:
    program: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> None:
        if self.program.poll() is not None:
            self._give_up(f"ended with {self.program.returncode}")

    def first(self, server: SinkServer) -> int:
        deadline = time.monotonic() + _START_WITHIN_S
        while not (count := server.count()):
            self.alive()
            if time.monotonic() > deadline:
                self._give_up(f"sent nothing in {_START_WITHIN_S:.0f} s")
            time.sleep(0.002)
        return count

    def _give_up(self, what: str) -> None:
        raise SystemExit(f"the worker {what}:\n{self.log.read_text()[-4000:]}")


@contextlib.contextmanager
def _worker(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[_Worker]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as program,
    ):
        try:
            yield _Worker(program, log)
        finally:
            program.terminate()
            try:
                program.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                program.kill()
