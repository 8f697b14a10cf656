"""How does the daemon compare with the queues that others would use for this job? All measured in one run, in turns.

Each peer runs in its own folder with its own server; one that can't be run here is skipped, and its row says what to
install. ``python -m benchmarks.against_peers [RECEIPTS [ROUNDS]]`` prints the tables; see ``benchmarks/peers/``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.harness.tables import Rounds, Table, percentile, short
from benchmarks.peers import measuring, ours
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.measuring import PER_BULK, PRODUCERS, SLOW_MS, Enqueued
from benchmarks.peers.programs import Drained

FULL = (20_000, 5)
"""Receipts and rounds."""
SHORT = (2_000, 3)
MANY = 10
"""So many times as many receipts where the daemon takes or sends many at once: else it is done too soon to be timed."""
DRAIN_FLOOR = 6
CELERY_FLOOR = 10

_US = "dlr-buffer, batches of 100"
_US_SINGLY = "dlr-buffer, batches of one"
_BEST = "best peer"
_CELERY = next(peer.name for peer in PEERS if peer.name.startswith("Celery,"))
_NONE = "–"


@dataclass(frozen=True, slots=True)
class _Column:
    """A figure of each program, by the name that it has among the rounds' figures."""

    figure: str
    head: str

    def of(self, program: str) -> str:
        return f"{program}: {self.figure}"


_RATE = _Column("rate", f"put in by {PRODUCERS}, one at a time, a second")
_P50 = _Column("p50", "p50")
_P99 = _Column("p99", "p99")
_MAX = _Column("max", "max")
_BULK = _Column("bulk", f"put in by {PER_BULK:,}, a second")
_DRAIN = _Column("drain", "drained a second, 0 ms upstream")
_SLOWLY = _Column("drain slowly", f"{SLOW_MS} ms upstream")
_PEAK = _Column("peak", "peak memory, MiB")
_DRAIN_CPU = _Column("drain cpu", "CPU s for a million drained")
_CPU = _Column("cpu", "CPU s for a million, put in one at a time")
_BULK_CPU = _Column("bulk cpu", f"CPU s for a million, put in by {PER_BULK:,}")


def measure(*, full: bool) -> list[Table]:
    """Run the rounds, in short or at full length."""
    return _measure(*(FULL if full else SHORT))


def _measure(receipts: int, count: int) -> list[Table]:
    rounds = Rounds()
    skipped = {peer.name: why for peer in PEERS if (why := peer.missing())}
    present = [peer for peer in PEERS if peer.name not in skipped]
    for _ in range(count):
        _our_round(rounds, receipts)
        for peer in present:
            _peer_round(rounds, peer, receipts)
        if present:
            for column in (_DRAIN, _SLOWLY):
                best = max(rounds.figures[column.of(peer.name)][-1] for peer in present)
                rounds.add(column.of(_BEST), best)
    return [_peers(rounds, present, skipped, receipts, count), _cost(rounds, present)]


def _our_round(rounds: Rounds, receipts: int) -> None:
    taken = ours.measure(receipts, receipts * MANY)
    for part, single, bulk in (
        ("registered", taken.registered, taken.registered_in_bulk),
        ("reported", taken.reported, taken.reported_in_bulk),
    ):
        _add_enqueued(rounds, f"{_US} {part}", single)
        rounds.add(_BULK.of(f"{_US} {part}"), bulk.rate)
    _add_drained(rounds, _US, taken.drained, taken.drained_slowly)
    _add_drained(rounds, _US_SINGLY, taken.drained_singly, taken.drained_singly_slowly)
    singles = taken.registered.cpu_s_per_million + taken.reported.cpu_s_per_million
    bulk_cpu = taken.registered_in_bulk.cpu_s_per_million + taken.reported_in_bulk.cpu_s_per_million
    for program, drained in ((_US, taken.drained), (_US_SINGLY, taken.drained_singly)):
        rounds.add(_CPU.of(program), singles + drained.cpu_s_per_million)
        rounds.add(_BULK_CPU.of(program), bulk_cpu + drained.cpu_s_per_million)


def _peer_round(rounds: Rounds, peer: Peer, receipts: int) -> None:
    taken = measuring.measure(peer, receipts)
    _add_enqueued(rounds, peer.name, taken.singles)
    _add_drained(rounds, peer.name, taken.drained, taken.drained_slowly)
    drain_cpu = taken.drained.cpu_s_per_million
    rounds.add(_CPU.of(peer.name), taken.singles.cpu_s_per_million + drain_cpu)
    if taken.bulk is not None:
        rounds.add(_BULK.of(peer.name), taken.bulk.rate)
        rounds.add(_BULK_CPU.of(peer.name), taken.bulk.cpu_s_per_million + drain_cpu)


def _add_enqueued(rounds: Rounds, program: str, taken: Enqueued) -> None:
    rounds.add(_RATE.of(program), taken.rate)
    for column, part in ((_P50, 0.5), (_P99, 0.99), (_MAX, 1.0)):
        rounds.add(column.of(program), percentile(taken.took_s, part) * 1000)


def _add_drained(rounds: Rounds, program: str, at_once: Drained, slowly: Drained) -> None:
    rounds.add(_DRAIN.of(program), at_once.rate)
    rounds.add(_SLOWLY.of(program), slowly.rate)
    rounds.add(_DRAIN_CPU.of(program), at_once.cpu_s_per_million)
    rounds.add(_PEAK.of(program), max(at_once.peak_mib, slowly.peak_mib))


def _cell(rounds: Rounds, column: _Column, *programs: str) -> str:
    """Return the median of each that was measured, registering before reporting."""
    found = [short(rounds.median(name)) for each in programs if (name := column.of(each)) in rounds.figures]
    return " / ".join(found) or _NONE


def _peers(rounds: Rounds, present: list[Peer], skipped: dict[str, str], receipts: int, count: int) -> Table:
    enqueuing, draining = (_RATE, _BULK), (_DRAIN, _SLOWLY, _PEAK, _DRAIN_CPU)
    latencies = (_P50, _P99, _MAX)

    def row(title: str, drains: str, *enqueues: str) -> tuple[str, ...]:
        spent = ", ".join(
            f"{column.head} {value}"
            for column in latencies
            if (value := _cell(rounds, column, *enqueues)) != _NONE
        )
        rate, bulk = (_cell(rounds, column, *enqueues) for column in enqueuing)
        return (title, rate, spent or _NONE, bulk, *(_cell(rounds, column, drains) for column in draining))

    rows = [
        row(_US, _US, f"{_US} registered", f"{_US} reported"),
        row(_US_SINGLY, _US_SINGLY),
    ]
    for peer in PEERS:
        if peer.name in skipped:
            rows.append((peer.name, f"skipped: {skipped[peer.name]}", *[""] * (2 + len(draining))))
        else:
            rows.append(row(peer.title(), peer.name, peer.name))
    head = ("", _RATE.head, "of that one call, ms", _BULK.head, *(column.head for column in draining))
    note = (
        f"Medians of {count} rounds with {receipts:,} receipts ({receipts * MANY:,} for the daemon in bulk and in"
        " batches of 100). Everything is durable before it is answered. The daemon has two calls for each message,"
        " registering / reporting; the peers have one. All programs are counted, servers and apps included, except the"
        " sink. "
    )
    return Table("peers", head, rows, note + _drain_line(rounds, present))


def _drain_line(rounds: Rounds, present: list[Peer]) -> str:
    if not present:
        return "No peer could be run."

    def times(program: str, column: _Column) -> str:
        return f"{rounds.ratio(column.of(program), column.of(_BEST)):.1f} ×"

    return (
        f"In batches of 100 the daemon drains {times(_US, _DRAIN)} as fast as the best peer (floor {DRAIN_FLOOR} ×),"
        f" with {SLOW_MS} ms upstream {times(_US, _SLOWLY)}; in batches of one {times(_US_SINGLY, _DRAIN)} and"
        f" {times(_US_SINGLY, _SLOWLY)}."
    )


def _cost(rounds: Rounds, present: list[Peer]) -> Table:
    def row(title: str, program: str) -> tuple[str, ...]:
        cells = [title]
        for column in (_CPU, _BULK_CPU):
            name = column.of(program)
            known = name in rounds.figures
            cells.append(_cell(rounds, column, program))
            cells.append(f"{rounds.ratio(name, column.of(_US)):.2g}" if known else _NONE)
        return tuple(cells)

    rows = [
        row(_US, _US),
        row(_US_SINGLY, _US_SINGLY),
        *(row(peer.title(), peer.name) for peer in present),
    ]
    note = "End to end: put in and drained, with 0 ms upstream."
    if _CELERY in {peer.name for peer in present}:
        singly = rounds.ratio(_CPU.of(_CELERY), _CPU.of(_US))
        in_bulk = rounds.ratio(_CPU.of(_CELERY), _BULK_CPU.of(_US))
        note += (
            f" Celery takes {singly:.0f} × the CPU seconds of the daemon with both put in one at a time (floor"
            f" {CELERY_FLOOR} ×), and {in_bulk:.0f} × those of the daemon in bulk, for which Celery has no call."
        )
    head = ("", _CPU.head, "× ours", _BULK_CPU.head, "× ours")
    return Table("cost", head, rows, note)


def main() -> None:
    """Print the tables."""
    given = [int(each) for each in sys.argv[1:]]
    receipts, count = (*given, *SHORT[len(given) :])
    for table in _measure(receipts, count):
        print(table)


if __name__ == "__main__":
    main()
