"""Fresh receipts against a backlog of retries, and one account in trouble beside others that are well."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dlr_buffer.flusher.flusher import AccountPlan, Flusher
from dlr_buffer.flusher.ports import Upstream
from dlr_buffer.messages import MessageState
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import Receipt, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer
from tests.clocks import FakeClock
from tests.integration.flusher.bench import (
    HOUR,
    SECOND,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
    wrong_password,
)
from tests.integration.storage.harness import Queue, opened
from tests.loops import on_loop

ACKNOWLEDGED = ReceiptStatus.ACKNOWLEDGED


@pytest.mark.parametrize("concurrency", [1, 4])
@on_loop
async def test_fresh_ones_keep_half_of_the_sends_while_retries_drain(path: Path, concurrency: int) -> None:
    """With fifty due retries and a flood of new receipts, requests alternate: neither kind waits for the other."""
    settings = flush_settings(concurrency=concurrency, max_receipts=10)
    async with flushing(path, settings, start=False) as bench:
        retries = 50
        ids = await bench.fill(retries, "odd")
        assert await bench.queue.claim() == ids
        await bench.queue.settle(refused=ids, policy=settings.policy)
        bench.clock.advance(HOUR)
        await bench.report(*(f"fresh{number}" for number in range(20 * retries)))
        bench.flusher.start()
        await bench.drained(within_ms=SECOND)
        kinds = [names[0].startswith("odd") for names in bench.upstream.names]
        assert sum(kinds) == retries, "each retry goes alone"
        for end in range(2 * concurrency, 2 * retries):
            sent = sum(kinds[:end])
            assert sent <= end / 2 + concurrency, f"fresh ones had less than half of the first {end}"
            assert sent >= end / 2 - concurrency, f"retries starved within the first {end}"


@dataclass(slots=True)
class Server:
    """An account's Smartswitch: what it was asked, and when."""

    clock: FakeClock
    answer: Callable[[Sequence[Receipt]], Answer] = ok
    hangs_ms: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)
    """When (monotonic milliseconds) and how many receipts, for each request."""

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        """Answer, after a while."""
        self.asked.append((self.clock.monotonic_ms(), len(receipts)))
        await self.clock.sleep(self.hangs_ms)
        return self.answer(receipts)

    async def aclose(self) -> None:
        """Nothing is open."""


NAMES = ("a", "b", "c")
TROUBLES: dict[str, Callable[[FakeClock], Server]] = {
    "refused connections": lambda clock: Server(clock, lambda _: outage("refused")),
    "hangs until the timeout": lambda clock: Server(clock, lambda _: outage("timeout"), hangs_ms=30 * SECOND),
    "wrong password": lambda clock: Server(clock, lambda _: wrong_password()),
    "refuses everything": lambda clock: Server(clock, lambda _: refused()),
    "refuses every other": lambda clock: Server(
        clock, lambda receipts: refused() if any(each.request_id % 2 for each in receipts) else ok(receipts)
    ),
    "a 500 for every other": lambda clock: Server(
        clock,
        lambda receipts: outage() if any(each.request_id % 2 for each in receipts) else ok(receipts),
    ),
    "slow, but well": lambda clock: Server(clock, hangs_ms=29 * SECOND),
}


@dataclass(slots=True)
class Seen:
    """What the well accounts' servers were asked, and what was acknowledged by the end of each second."""

    asked: dict[str, list[tuple[int, int]]]
    acknowledged: list[tuple[int, ...]]


async def run(path: Path, trouble: Callable[[FakeClock], Server] | None) -> Seen:
    """Let three accounts work for 6 seconds, beside a fourth with dozens of receipts if it is in trouble."""
    async with opened(path, accounts=(*NAMES, "bad")) as queue:
        metrics = Metrics(counts=queue.store.counts, accounts=list, gauges=dict)
        flusher = Flusher(queue.store, queue.store, queue.clock, metrics)
        servers = {name: Server(queue.clock) for name in NAMES}
        plans = {name: _plan(name, server) for name, server in servers.items()}
        if trouble is not None:
            plans["bad"] = _plan("bad", trouble(queue.clock))
            await _report(queue, "bad", [f"m{number}" for number in range(40)])
        await flusher.apply(plans, grace_ms=0)
        acknowledged = []
        for second in range(6):
            for name in plans:
                await _report(queue, name, [f"s{second}-{number}" for number in range(5)])
            flusher.wake(dict.fromkeys(plans, 5))
            # The second passes in steps, so that the troubled account does what it would do meanwhile.
            for _ in range(4):
                await _quiet(queue, flusher)
                queue.clock.advance(SECOND // 4)
            counts = queue.store.counts().receipts
            acknowledged.append(tuple(counts[name][ACKNOWLEDGED.value] for name in NAMES))
        await flusher.stop(0)
        return Seen({name: server.asked for name, server in servers.items()}, acknowledged)


def _plan(name: str, server: Upstream) -> AccountPlan:
    settings = flush_settings(concurrency=4, max_receipts=20)
    return AccountPlan(replace(settings, name=name), lambda: server, 1)


async def _report(queue: Queue, account: str, message_ids: Sequence[str]) -> None:
    await queue.report(*((each, MessageState.DELIVERED) for each in message_ids), account=account)


async def _quiet(queue: Queue, flusher: Flusher) -> None:
    """Let happen what can happen while time stands still."""
    calm = 0
    while calm < 10:
        await asyncio.sleep(0)
        awake = any(each._wake.is_set() and not each._stopping for each in flusher._running.values())
        calm = 0 if awake or queue.store._writer.waiting_commands else calm + 1


@pytest.mark.parametrize("trouble", TROUBLES)
@on_loop
async def test_an_account_in_trouble_costs_the_others_nothing(
    path: Path, tmp_path: Path, trouble: str
) -> None:
    """The other accounts' requests, their times and sizes, are the very same as without it, second for second."""
    other = tmp_path / "other.db"
    shutil.copyfile(path, other)
    alone = await run(other, None)
    beside = await run(path, TROUBLES[trouble])
    assert alone.acknowledged[-1] == (30, 30, 30)
    assert beside.acknowledged == alone.acknowledged
    assert beside.asked == alone.asked
