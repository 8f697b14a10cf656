"""Bad receipts among good ones, few and many: the good ones go, exactly the bad ones die, at a bounded price."""

from __future__ import annotations

from pathlib import Path

import pytest

import dlr_buffer.flusher.suspicion
from dlr_buffer.health import HealthState
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from tests.integration.flusher.bench import HOUR, MINUTE, SECOND, Bench, flush_settings, flushing
from tests.integration.flusher.poison import BATCH, KINDS, MAX_REFUSALS, Poison
from tests.loops import on_loop

ACKNOWLEDGED, DEAD, PENDING = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.DEAD, ReceiptStatus.PENDING
SETTINGS = flush_settings(max_receipts=BATCH, max_refusals=MAX_REFUSALS)


async def trickle_until_sorted(bench: Bench, *, at_most: int) -> int:
    """Let one good message a minute come until nothing of the bad ones waits; returns how many came."""
    for turn in range(at_most):
        if not bench.pending():
            return turn
        await bench.report(f"late{turn}")
        await bench.pass_time(MINUTE)
    raise AssertionError(f"still waiting: {bench.pending()}, {bench.flusher.view()}")


# 10,000 where a bad one is rare, fewer where one in ten is: the price is the bad ones'. The full table is printed
# by benchmarks/poison.py.
@pytest.mark.parametrize(
    ("kind", "share", "rows"),
    [
        ("mixed", 0.001, 10_000),
        *((kind, 0.01, 1_000) for kind in KINDS),
        *((kind, 0.1, 200) for kind in KINDS),
    ],
)
@on_loop
async def test_all_good_ones_go_and_exactly_the_bad_ones_die(
    path: Path, kind: str, share: float, rows: int
) -> None:
    """Every good one is acknowledged, each bad one is dead with its own code, within the bound of requests."""
    poison = Poison(kind, rows, share)
    async with flushing(path, SETTINGS) as bench:
        bench.upstream.answer = poison.answerer()
        ids = await bench.fill(rows)
        # Each bare 403 of a batch suspends the account, until it is known which receipt draws it.
        patience_ms = 12 * HOUR if kind == "403" else 10 * MINUTE
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == poison.good, within_ms=patience_ms)
        later = await trickle_until_sorted(bench, at_most=600)
        assert bench.counted(ACKNOWLEDGED) == poison.good + later
        assert bench.counted(DEAD) == len(poison.bad)
        assert len(bench.upstream.requests) <= poison.most_requests + later
        for number in sorted(int(name[1:]) for name in poison.bad):
            receipt = await bench.queue.receipt(ids[number])
            assert receipt.status is DEAD
            assert receipt.error is not None
            assert receipt.error.code == poison.code(f"m{number}")


@on_loop
async def test_more_poison_than_is_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more draw outages than can be kept apart, good ones go through all the same, and all bad ones die."""
    monkeypatch.setattr(dlr_buffer.flusher.suspicion, "MAX_ASIDES", 5)
    poison = Poison("500", 150, 0.15)
    async with flushing(path, SETTINGS) as bench:
        bench.upstream.answer = poison.answerer()
        await bench.fill(150)
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == poison.good, within_ms=10 * MINUTE)
        later = 0
        while bench.pending():
            assert later < 600, bench.flusher.view()
            later += 1
            (fresh,) = await bench.report(f"late{later}")
            await bench.pass_time(MINUTE)
            assert await bench.queue.status(fresh) is ACKNOWLEDGED, "a good one had to wait for the bad ones"
            assert len(bench.flusher._judge.asides) <= 5
        assert bench.counted(DEAD) == len(poison.bad)


@pytest.mark.parametrize("kind", ["errors", "500"])
@on_loop
async def test_known_poison_does_not_close_an_account(path: Path, kind: str) -> None:
    """With two dozen bad ones that are known, and nothing else for an hour, a good one still goes as soon as it comes.

    What is known to be bad, tried while nothing else goes through, says nothing about the account.
    """
    poison = Poison(kind, 100, 0.25)
    async with flushing(path, flush_settings(max_refusals=1000, lifetime_ms=1000 * HOUR)) as bench:
        bench.upstream.answer = poison.answerer()
        await bench.fill(100)
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == poison.good, within_ms=HOUR)
        for turn in range(2):
            await bench.report(f"early{turn}")
            await bench.pass_time(3 * MINUTE)
            assert bench.state() is HealthState.OPEN
            await bench.pass_time(7 * MINUTE)
        for turn in range(2):
            before = len(bench.upstream.requests)
            await bench.pass_time(HOUR)
            # Each of them once in the longest backoff, not more.
            assert len(bench.upstream.requests) - before <= 7 * len(poison.bad)
            (fresh,) = await bench.report(f"late{turn}")
            await bench.pass_time(10 * MINUTE)
            assert await bench.queue.status(fresh) is ACKNOWLEDGED
        if kind == "500":
            assert bench.state() is HealthState.OPEN
        assert bench.pending() == len(poison.bad)


@on_loop
async def test_probes_come_from_both_ends(path: Path) -> None:
    """Where bad ones lie side by side at the head of the queue, an account that backs off recovers all the same."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        poison = Poison("500", 40, 1.0)
        bench.upstream.answer = poison.answerer()
        await bench.fill(40)
        await bench.pass_time(SECOND // 2)
        assert bench.state() is HealthState.BACKING_OFF
        await bench.fill(10, "good")
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == 10, within_ms=2 * MINUTE)


@on_loop
async def test_an_account_with_nothing_to_probe_says_so(path: Path) -> None:
    """Once all that waited is held, `status` shows no next probe and says why; the next receipt opens the account."""
    async with flushing(path) as bench:
        poison = Poison("500", 1, 1.0)
        bench.upstream.answer = poison.answerer()
        (bad,) = await bench.fill(1)
        await bench.pass_time(MINUTE)
        assert bench.flusher.view().next_probe_at_ms is not None
        await bench.queue.act(ReceiptAction.HOLD, bad)
        await bench.pass_time(10 * MINUTE)
        view = bench.flusher.view()
        assert (view.health, view.next_probe_at_ms, view.backoff_ms) == (HealthState.BACKING_OFF, None, None)
        assert (
            view.cause == "http-500; nothing waits to be sent, the next receipt will show whether it is over"
        )
        await bench.report("good")
        await bench.drained(within_ms=SECOND)
        assert bench.flusher.view().cause is None
        assert bench.state() is HealthState.OPEN
