"""Fresh receipts against a backlog of retries, and one account in trouble beside others that are well."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import dlr_buffer.flusher.suspicion
from dlr_buffer.flusher.flusher import AccountPlan, Flusher
from dlr_buffer.flusher.ports import Upstream
from dlr_buffer.messages import MessageState
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptStatus, RefusalPolicy
from dlr_buffer.smartswitch.answers import Answer
from tests.clocks import FakeClock
from tests.integration.flusher.bench import (
    HOUR,
    MINUTE,
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


@pytest.mark.parametrize(("concurrency", "retries"), [(1, 50), (4, 400)])
@on_loop
async def test_fresh_ones_keep_half_of_the_sends_while_retries_drain(
    path: Path, concurrency: int, retries: int
) -> None:
    """With a backlog of due retries and a flood of new receipts, requests alternate: neither waits for the other."""
    settings = flush_settings(concurrency=concurrency, max_receipts=10)
    async with flushing(path, settings, start=False) as bench:
        ids = await bench.fill(retries, "odd")
        assert await bench.queue.claim(retries) == ids
        await bench.queue.settle(refused=ids, policy=settings.policy)
        bench.clock.advance(HOUR)
        await bench.report(*(f"fresh{number}" for number in range(11 * retries)))
        bench.flusher.start()
        await bench.drained(within_ms=SECOND)
        kinds = [names[0].startswith("odd") for names in bench.upstream.names]
        assert sum(kinds) == retries, "each retry goes alone"
        assert_shared(kinds[: 2 * retries], concurrency)


def assert_shared(old: Sequence[bool], concurrency: int) -> None:
    """From the first request on each kind had half of the requests, give or take what is under way at once."""
    sent = 0
    for end, is_old in enumerate(old, start=1):
        sent += is_old
        assert sent <= end / 2 + concurrency, f"fresh ones had less than half of the first {end}"
        assert sent >= end / 2 - concurrency, f"retries starved within the first {end}"


@pytest.mark.parametrize(("concurrency", "state"), [(1, "dead"), (4, "backing off")])
@on_loop
async def test_fresh_ones_keep_half_of_the_sends_while_replays_drain(
    path: Path, concurrency: int, state: str
) -> None:
    """With thousands that an admin replays, all older than a flood of new ones, requests alternate as well.

    Nothing is held against replays, so they go in full batches, and so does what comes after a restart.
    """
    settings = flush_settings(concurrency=concurrency, max_receipts=10)
    async with flushing(path, settings, start=False) as bench:
        replays = 2_000
        ids = await bench.fill(replays, "odd")
        assert await bench.queue.claim(replays) == ids
        policy = settings.policy if state == "backing off" else RefusalPolicy(1, HOUR, lambda _: SECOND)
        await bench.queue.settle(refused=ids, policy=policy)
        await bench.report(*(f"fresh{number}" for number in range(replays)))
        assert await bench.queue.act(ReceiptAction.RETRY, *ids) == (replays, 0, 0)
        assert (await bench.queue.receipt(ids[-1])).refusals == 0
        bench.flusher.start()
        await bench.drained(within_ms=SECOND)
        assert bench.upstream.sizes == [10] * (2 * replays // 10)
        kinds = [names[0].startswith("odd") for names in bench.upstream.names]
        assert_shared(kinds, concurrency)
        sent = [each for names in bench.upstream.names for each in names if each.startswith("odd")]
        assert sent == [f"odd{number}" for number in range(replays)], "the oldest first, each once"


@on_loop
async def test_a_bad_one_among_replays_is_found(path: Path) -> None:
    """A batch of replays that is refused is bisected like any other: the good ones go, the bad one dies again."""
    settings = flush_settings(max_receipts=10)
    async with flushing(path, settings, start=False) as bench:
        ids = await bench.fill(100, "odd")
        assert await bench.queue.claim() == ids
        await bench.queue.settle(refused=ids, policy=RefusalPolicy(1, HOUR, lambda _: SECOND))
        await bench.queue.act(ReceiptAction.RETRY, *ids)
        bench.upstream.answer = lambda receipts: (
            refused() if any(each.message_id == "odd42" for each in receipts) else ok(receipts)
        )
        bench.flusher.start()
        await bench.until(lambda: bench.counted(ACKNOWLEDGED) == 99, within_ms=SECOND)
        for turn in range(60):
            await bench.report(f"good{turn}")
            await bench.pass_time(10 * MINUTE)
        assert await bench.queue.status(ids[42]) is ReceiptStatus.DEAD
        assert not bench.pending()


@on_loop
async def test_replays_that_draw_outages_are_not_sent_over_and_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more replays draw outages than can be kept apart, the others go, and these wait as others do."""
    monkeypatch.setattr(dlr_buffer.flusher.suspicion, "MAX_ASIDES", 5)
    async with flushing(path, flush_settings(max_receipts=10), start=False) as bench:
        ids = await bench.fill(60, "odd")
        assert await bench.queue.claim() == ids
        await bench.queue.settle(refused=ids, policy=RefusalPolicy(1, HOUR, lambda _: SECOND))
        await bench.queue.act(ReceiptAction.RETRY, *ids)
        bad = {f"odd{number}" for number in range(0, 60, 3)}
        bench.upstream.answer = lambda receipts: (
            outage() if any(each.message_id in bad for each in receipts) else ok(receipts)
        )
        bench.flusher.start()
        # New ones keep coming and going through, so that what draws outages is known for what it is.
        for turn in range(600):
            await bench.report(f"good{turn}")
            before = len(bench.upstream.requests)
            await bench.pass_time(MINUTE)
            assert len(bench.upstream.requests) - before < 400
            if not bench.pending():
                break
        assert bench.counted(ACKNOWLEDGED) == 40 + turn + 1
        assert bench.counted(ReceiptStatus.DEAD) == len(bad)


@on_loop
async def test_a_retry_does_not_wait_for_what_others_drew(path: Path) -> None:
    """After twenty refusals in a row the refused wait; what an admin replays goes at once all the same."""
    async with flushing(path, flush_settings(max_refusals=1)) as bench:
        await bench.report("first")
        await bench.drained(within_ms=SECOND)
        bench.upstream.answer = lambda _receipts: refused()
        ids = await bench.fill(30, "odd")
        await bench.pass_time(MINUTE)
        dead = [each for each in ids if await bench.queue.status(each) is ReceiptStatus.DEAD]
        bench.upstream.answer = ok
        await bench.queue.act(ReceiptAction.RETRY, *ids)
        bench.flusher.forget(ids)
        bench.flusher.resume()
        await bench.drained(within_ms=SECOND)
        assert bench.counted(ACKNOWLEDGED) == 31, dead


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
