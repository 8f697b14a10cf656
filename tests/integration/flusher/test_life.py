# ruff: noqa: ANN401 - stand-ins pass on whatever they are given
"""Starting, pausing, stopping, and what goes wrong beside Smartswitch: the database, the clock, our own faults."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.errors import NotFound, StoreUnavailable
from dlr_buffer.flusher.flusher import AccountPlan, Flusher
from dlr_buffer.flusher.ports import FlushSettings
from dlr_buffer.health import HealthState
from dlr_buffer.logs import Event
from dlr_buffer.messages import MessageState
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import Receipt, ReceiptError, ReceiptStatus
from dlr_buffer.smartswitch.answers import Answer, Answered
from dlr_buffer.storage.store import SqliteStore
from tests.integration.flusher.bench import (
    BAD,
    HOUR,
    MINUTE,
    SECOND,
    Answerer,
    Bench,
    ScriptedUpstream,
    bad_ones,
    entries,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
)
from tests.integration.storage.harness import Queue, opened
from tests.loops import on_loop

ACKNOWLEDGED, DEAD, PENDING = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.DEAD, ReceiptStatus.PENDING
CANARY = "canary " + "password"


def fail_settling(bench: Bench, monkeypatch: pytest.MonkeyPatch, times: int) -> list[bool]:
    """Let the database refuse to settle so many times; returns what was refused (whether it had been sent)."""
    real = bench.queue.store.settle
    failed: list[bool] = []

    async def settle(account: str, **settlement: Any) -> Any:
        if len(failed) < times:
            failed.append(settlement.get("sent", True))
            raise StoreUnavailable("the disk has a moment of weakness")
        return await real(account, **settlement)

    monkeypatch.setattr(bench.queue.store, "settle", settle)
    return failed


@on_loop
async def test_an_answer_is_written_when_the_database_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If settling fails twice, the acknowledgement is kept and written the third time; nothing is sent again."""
    async with flushing(path) as bench:
        failed = fail_settling(bench, monkeypatch, 2)
        await bench.fill(10)
        await bench.drained(within_ms=MINUTE)
        assert failed == [True, True]
        assert bench.upstream.sizes == [10]
        assert bench.counted(ACKNOWLEDGED) == 10
        assert bench.metrics.totals()["store_failures"] == 2
        await bench.fill(5, "n")
        await bench.drained(within_ms=0)


@on_loop
async def test_a_failing_read_of_the_queue_does_not_end_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If claiming fails, the account tries again a second later, and says so in the log once a minute."""
    async with flushing(path) as bench:
        real, failures = bench.queue.store.claim, 0

        async def claim(*args: Any, **kwargs: Any) -> Any:
            nonlocal failures
            if failures < 5:
                failures += 1
                raise StoreUnavailable("the disk has a moment of weakness")
            return await real(*args, **kwargs)

        monkeypatch.setattr(bench.queue.store, "claim", claim)
        await bench.fill(3)
        await bench.drained(within_ms=10 * SECOND)
        assert failures == 5


@on_loop
async def test_acquitted_receipts_survive_a_failing_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receipts that a bisection clears are let go again though the database refuses just then."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        await bench.fill(2, "proof")
        await bench.drained()
        real, refusals = bench.queue.store.settle, 0

        async def settle(account: str, **settlement: Any) -> Any:
            nonlocal refusals
            if not settlement.get("sent", True) and refusals < 3:
                refusals += 1
                raise StoreUnavailable("the disk has a moment of weakness")
            return await real(account, **settlement)

        monkeypatch.setattr(bench.queue.store, "settle", settle)
        bench.upstream.answer = bad_ones("m3")
        await bench.fill(100)
        await bench.drained(within_ms=5 * MINUTE)
        assert refusals == 3
        assert bench.counted(ACKNOWLEDGED) == 101


@pytest.mark.parametrize("where", ["send", "conclude"])
@on_loop
async def test_a_fault_of_ours_strands_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """An unforeseen exception gives the receipts back, backs off like an outage.

    Logs where it happened but not its text; afterwards everything goes through.
    """
    async with flushing(path, flush_settings(concurrency=2)) as bench:
        faulty = True
        conclude = bench.flusher._judge._conclude

        def fail(receipts: Sequence[Receipt]) -> Answer:
            if faulty and where == "send":
                raise ValueError(CANARY)
            return ok(receipts)

        def conclude_or_fail(*args: Any) -> Any:
            if faulty and where == "conclude":
                raise ValueError(CANARY)
            return conclude(*args)

        monkeypatch.setattr(bench.flusher._judge, "_conclude", conclude_or_fail)
        bench.upstream.answer = fail
        await bench.fill(10)
        await bench.idle()
        assert bench.state() is HealthState.BACKING_OFF
        await bench.pass_time(MINUTE)
        assert len(bench.upstream.requests) < 10
        assert bench.flusher.view().in_flight_receipts == 0
        assert "ValueError" in caplog.text
        assert "canary" not in caplog.text
        faulty = False
        await bench.drained(within_ms=MINUTE)
        assert bench.counted(ACKNOWLEDGED) == 10
        (first, *_) = bench.upstream.requests[0]
        attempts = (await bench.queue.receipt(first.request_id)).attempts
        assert attempts == sum(first.request_id in [e.request_id for e in r] for r in bench.upstream.requests)


@on_loop
async def test_stopping_gives_back_what_is_under_way(path: Path) -> None:
    """What is not answered within the grace is given back.

    After a restart it is sent again under the same request_id.
    """
    async with flushing(path, flush_settings(concurrency=2, max_receipts=5)) as bench:
        bench.upstream.gate.clear()
        await bench.fill(20)
        await bench.idle()
        assert bench.upstream.in_flight == 2
        await bench.flusher.stop(0)
        assert bench.upstream.is_closed()
        cut_off = {each.request_id for request in bench.upstream.requests for each in request}
        assert len(cut_off) == 10
        for request_id in cut_off:
            receipt = await bench.queue.receipt(request_id)
            assert (receipt.status, receipt.attempts, receipt.in_flight) == (PENDING, 1, False)
        assert bench.flusher.failed is None
    async with flushing(path) as bench:
        await bench.drained()
        again = [each.request_id for request in bench.upstream.requests for each in request]
        assert cut_off < set(again)
        assert len(again) == len(set(again)) == 20


@on_loop
async def test_stopping_waits_for_answers_within_the_grace(path: Path) -> None:
    """A request that is answered within the grace ends as acknowledged; no new one is started."""
    async with flushing(path, flush_settings(concurrency=1, max_receipts=5)) as bench:
        bench.upstream.gate.clear()
        await bench.fill(20)
        await bench.idle()
        stop = asyncio.create_task(bench.flusher.stop(60_000))
        await bench.idle()
        assert not stop.done()
        bench.upstream.gate.set()
        await stop
        assert bench.upstream.sizes == [5]
        assert bench.counted(ACKNOWLEDGED) == 5


@pytest.mark.parametrize("how", ["stop", "pause"])
@on_loop
async def test_what_was_just_claimed_is_given_back(path: Path, how: str) -> None:
    """Stopping (or pausing) in the very moment in which receipts are claimed sends none and leaves none in flight."""
    async with flushing(path, start=False) as bench:
        await bench.fill(10)
        async with bench.queue.hold_writer():
            bench.flusher.start()
            for _ in range(5):
                await asyncio.sleep(0)
            assert bench.queue.store._writer.waiting_commands == 2, "the claim waits behind the writer's work"
            if how == "pause":
                bench.flusher.pause()
                stop = None
            else:
                stop = asyncio.create_task(bench.flusher.stop(60_000))
        await bench.idle()
        if stop is not None:
            await stop
        assert bench.upstream.requests == []
        assert bench.flusher.view().in_flight_receipts == 0
        assert await bench.queue.claim() == list(range(1, 11))
        await bench.queue.settle(returned=list(range(1, 11)))


@on_loop
async def test_a_batch_claimed_before_bad_news_is_not_sent(path: Path) -> None:
    """Receipts claimed while the answer to another request says to wait are given back unsent."""
    async with flushing(path, flush_settings(concurrency=2, max_receipts=5)) as bench:
        bench.upstream.answer = lambda _: outage(retry_after_ms=MINUTE)
        bench.upstream.gate.clear()
        await bench.fill(5)
        await bench.idle()
        await bench.report(*(f"n{number}" for number in range(5)), wake=False)
        async with bench.queue.hold_writer():
            bench.flusher.wake()
            for _ in range(5):
                await asyncio.sleep(0)
            bench.upstream.gate.set()
        await bench.idle()
        assert bench.upstream.sizes == [5]
        assert bench.state() is HealthState.BACKING_OFF
        bench.upstream.answer = ok
        await bench.drained(within_ms=2 * MINUTE)


@on_loop
async def test_pause_lets_requests_under_way_finish(path: Path) -> None:
    """A pause starts no more requests, not even by waiting; those under way are settled; resume goes on."""
    async with flushing(path, flush_settings(concurrency=1, max_receipts=5)) as bench:
        bench.upstream.gate.clear()
        await bench.fill(10)
        await bench.idle()
        bench.flusher.pause()
        bench.upstream.gate.set()
        await bench.pass_time(HOUR)
        assert bench.upstream.sizes == [5]
        assert bench.counted(ACKNOWLEDGED) == 5
        assert bench.state() is HealthState.PAUSED
        bench.flusher.resume()
        await bench.drained(within_ms=0)


@on_loop
async def test_resume_probes_an_account_that_is_not_open_at_once(path: Path) -> None:
    """An admin's resume does not wait for the next probe."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        bench.upstream.answer = lambda _: outage(retry_after_ms=HOUR)
        await bench.fill(3)
        await bench.idle()
        bench.flusher.pause()
        assert bench.flusher.view().next_probe_at_ms is None
        bench.upstream.answer = ok
        bench.flusher.resume()
        await bench.drained(within_ms=0)


LEAPS = [-30 * 24 * HOUR, -HOUR, -5 * MINUTE, -SECOND, HOUR, 30 * 24 * HOUR]


@pytest.mark.parametrize("leap_ms", LEAPS)
@pytest.mark.parametrize("situation", ["linger", "rate limit", "backing-off", "aside", "due"])
@on_loop
async def test_a_leap_of_the_clock_never_stalls_sending(path: Path, situation: str, leap_ms: int) -> None:
    """Wherever the wall clock leaps to, whatever waits goes out within the longest wait that is configured."""
    settings = {
        "linger": flush_settings(linger_ms=10 * SECOND),
        "rate limit": flush_settings(rate_limit=0.1, max_receipts=1),
    }.get(situation, flush_settings(max_refusals=50))
    async with flushing(path, settings) as bench:
        mended = False

        def answer(receipts: Sequence[Receipt]) -> Answer:
            if mended or not any(each.message_id == "odd" for each in receipts):
                return ok(receipts)
            return refused(ReceiptError("x", "", "")) if situation == "due" else outage("http-500")

        bench.upstream.answer = answer
        if situation == "backing-off":
            bench.upstream.answer = lambda receipts: ok(receipts) if mended else outage()
        await bench.report("before", *(["odd"] if situation in ("aside", "due", "backing-off") else []))
        await bench.pass_time(100)
        if situation == "aside":
            await bench.report("after")
            await bench.pass_time(100)
        await bench.fill(3)
        if situation in ("aside", "due"):
            await bench.pass_time(100)
            assert bench.pending() == 1
        assert bench.pending() > 0
        bench.clock.leap(leap_ms)
        mended = True
        await bench.drained(within_ms=11 * MINUTE)


@on_loop
async def test_linger_after_a_small_step_back_is_never_longer_than_twice(path: Path) -> None:
    """A clock that is set back by less than linger makes a batch wait so much longer, not more."""
    async with flushing(path, flush_settings(linger_ms=10 * SECOND)) as bench:
        await bench.fill(1)
        await bench.pass_time(9 * SECOND)
        bench.clock.leap(-8 * SECOND)
        await bench.drained(within_ms=9 * SECOND)


def plan(name: str, upstream: ScriptedUpstream, key: object, **settings: Any) -> AccountPlan:
    """An account as configured."""
    made = flush_settings(**settings)
    renamed = FlushSettings(
        name, made.health, made.policy, made.linger_ms, made.budget_bytes, made.rate_limit, made.paused
    )
    return AccountPlan(renamed, lambda: upstream, key)


def new_flusher(queue: Queue) -> Flusher:
    """All accounts of a queue, none of which is flushed yet."""
    metrics = Metrics(counts=queue.store.counts, accounts=list, gauges=dict)
    return Flusher(queue.store, queue.store, queue.clock, metrics)


async def settled(flusher: Flusher, store: SqliteStore) -> None:
    """Let everything happen that can happen while time stands still."""
    calm = 0
    while calm < 20:
        busy = store._writer.waiting_commands or any(
            each._wake.is_set() for each in flusher._running.values()
        )
        calm = 0 if busy else calm + 1
        await asyncio.sleep(0)


@on_loop
async def test_accounts_come_change_and_go(path: Path) -> None:
    """`apply` starts what is new, keeps the memory of what is not, reconnects what changed.

    Stops what is not configured any more: its receipts stay, it shows as unconfigured, and goes on when it
    comes back.
    """
    async with opened(path, accounts=("a", "b")) as queue:
        metrics = Metrics(counts=queue.store.counts, accounts=list, gauges=dict)
        flusher = Flusher(queue.store, queue.store, queue.clock, metrics)
        a, b = ScriptedUpstream(queue.clock), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", a, 1), "b": plan("b", b, 1)}, grace_ms=5_000)
        await queue.report(("m1", MessageState.DELIVERED), account="a")
        await queue.report(("m1", MessageState.DELIVERED), account="b")
        flusher.wake({"a": 1, "b": 1, "strange": 1})
        await settled(flusher, queue.store)
        assert (a.sizes, b.sizes) == ([1], [1])
        assert [view.name for view in flusher.views()] == ["a", "b"]

        await flusher.apply({"a": plan("a", a, 1, concurrency=2)}, grace_ms=5_000)
        assert b.is_closed()
        assert not a.is_closed()
        assert flusher.views()[0].concurrency == 2
        assert flusher.views()[1].health is HealthState.UNCONFIGURED
        await queue.report(("m2", MessageState.DELIVERED), account="b")
        flusher.wake({"b": 1})
        await settled(flusher, queue.store)
        assert b.sizes == [1]
        assert (await flusher.pause("b")).health is HealthState.UNCONFIGURED
        assert (await flusher.resume("b")).health is HealthState.UNCONFIGURED

        b2, a2 = ScriptedUpstream(queue.clock), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", a2, 2), "b": plan("b", b2, 1)}, grace_ms=5_000)
        await queue.report(("m2", MessageState.DELIVERED), account="a")
        flusher.wake({"a": 1})
        await settled(flusher, queue.store)
        assert (a.sizes, a2.sizes, b2.names) == ([1], [1], [["m2"]])
        assert a.is_closed()
        assert flusher.problems() == ()
        await flusher.stop(5_000)
        assert a2.is_closed()
        assert b2.is_closed()
        assert flusher.problems() == ()


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (ok, []),
        (lambda receipts: entries(receipts, lambda each: BAD if each.message_id == "bad" else None), ["bad"]),
        (lambda _: outage(), ["good", "bad"]),
    ],
)
@on_loop
async def test_an_answer_is_written_though_its_account_left(
    path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answerer, again: list[str]
) -> None:
    """What can't be written as its account leaves is an alarm until it is, and nothing is sent before or for nothing.

    Also if the account has come back meanwhile; only what was not acknowledged is sent again, in its time.
    """
    async with opened(path, accounts=("a",)) as queue:
        flusher = new_flusher(queue)
        real, weak = queue.store.settle, True

        async def settle(account: str, **settlement: Any) -> Any:
            if weak:
                raise StoreUnavailable("the disk has a moment of weakness")
            return await real(account, **settlement)

        monkeypatch.setattr(queue.store, "settle", settle)
        before, after = ScriptedUpstream(queue.clock, answer), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", before, 1)}, grace_ms=0)
        await queue.report(("good", MessageState.DELIVERED), ("bad", MessageState.DELIVERED), account="a")
        flusher.wake({"a": 2})
        await settled(flusher, queue.store)
        await flusher.apply({}, grace_ms=0)
        assert before.is_closed()
        (problem,) = flusher.problems()
        assert "1 answers of Smartswitch can't be written" in problem
        await flusher.apply({"a": plan("a", after, 2)}, grace_ms=0)
        await settled(flusher, queue.store)
        assert after.requests == []
        weak = False
        for _ in range(3):
            queue.clock.advance(SECOND)
            await settled(flusher, queue.store)
        assert flusher.problems() == ()
        assert before.names == [["good", "bad"]]
        assert [name for names in after.names for name in names] == again
        for request_id in (1, 2):
            receipt = await queue.receipt(request_id)
            assert (receipt.status, receipt.in_flight) == (ACKNOWLEDGED, False)
        await flusher.apply({}, grace_ms=0)
        assert flusher._leaving == []


@contextmanager
def unwritable(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that became of receipts can be written."""

    async def settle(_account: str, **_settlement: Any) -> Any:
        raise StoreUnavailable("the disk has a moment of weakness")

    with monkeypatch.context() as weak:
        weak.setattr(queue.store, "settle", settle)
        yield


@on_loop
async def test_what_is_cut_off_while_nothing_can_be_written_is_not_in_flight(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account that left with a request under way, and could not write that, sends it again when it comes back."""
    async with opened(path, accounts=("a",)) as queue:
        flusher = new_flusher(queue)
        before, after = ScriptedUpstream(queue.clock), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", before, 1)}, grace_ms=0)
        before.gate.clear()
        old, kept = (
            await queue.report_one("m", MessageState.ENROUTE, "a"),
            await queue.report_one("n", MessageState.DELIVERED, "a"),
        )
        flusher.wake({"a": 2})
        await settled(flusher, queue.store)
        new = await queue.report_one("m", MessageState.DELIVERED, "a")

        with unwritable(queue, monkeypatch):
            await flusher.apply({}, grace_ms=0)
        assert flusher.problems() == ()
        await flusher.apply({"a": plan("a", after, 1)}, grace_ms=0)
        await settled(flusher, queue.store)
        assert sorted(name for names in after.names for name in names) == ["m", "n"]
        assert [await queue.status(each) for each in (old, kept, new)] == [
            ReceiptStatus.SUPERSEDED,
            ACKNOWLEDGED,
            ACKNOWLEDGED,
        ]
        assert (await queue.receipt(kept)).attempts == 2
        await flusher.stop(5_000)


@on_loop
async def test_what_could_not_be_given_back_unsent_is_not_in_flight_either(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receipts that were claimed as the account left, and could not be returned, are sent when it comes back."""
    async with opened(path, accounts=("a",)) as queue:
        flusher = new_flusher(queue)
        before, after = ScriptedUpstream(queue.clock), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", before, 1)}, grace_ms=0)
        await settled(flusher, queue.store)
        request_id = await queue.report_one("m", MessageState.DELIVERED, "a")

        with unwritable(queue, monkeypatch):
            async with queue.hold_writer():
                flusher.wake({"a": 1})
                for _ in range(5):
                    await asyncio.sleep(0)
                flusher._running["a"].pause()
            await settled(flusher, queue.store)
            assert (await queue.receipt(request_id)).in_flight
            await flusher.apply({}, grace_ms=0)
        assert before.requests == []
        await flusher.apply({"a": plan("a", after, 1)}, grace_ms=0)
        await settled(flusher, queue.store)
        assert after.names == [["m"]]
        assert (await queue.receipt(request_id)).attempts == 1
        await flusher.stop(5_000)


@on_loop
async def test_an_account_without_rows_is_not_shown_once_it_left(path: Path) -> None:
    """One that was configured by mistake, or whose last row was purged, is no account to be brought back."""
    async with opened(path, accounts=("a", "b")) as queue:
        flusher = new_flusher(queue)
        upstream = ScriptedUpstream(queue.clock)
        await flusher.apply({name: plan(name, upstream, 1) for name in ("a", "b")}, grace_ms=0)
        await queue.register("m", account="b")
        assert [view.name for view in flusher.views()] == ["a", "b"]
        await flusher.apply({}, grace_ms=0)
        assert [(view.name, view.health) for view in flusher.views()] == [("b", HealthState.UNCONFIGURED)]
        assert (await flusher.resume("a")).health is HealthState.UNCONFIGURED


@on_loop
async def test_pausing_is_durable_and_per_account(path: Path) -> None:
    """A pause is remembered by the database, stops only its account, and an unknown account is an error."""
    async with opened(path, accounts=("a", "b")) as queue:
        metrics = Metrics(counts=queue.store.counts, accounts=list, gauges=dict)
        flusher = Flusher(queue.store, queue.store, queue.clock, metrics)
        a, b = ScriptedUpstream(queue.clock), ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", a, 1), "b": plan("b", b, 1)}, grace_ms=5_000)
        assert (await flusher.pause("a")).health is HealthState.PAUSED
        for account in ("a", "b"):
            await queue.report(("m", MessageState.DELIVERED), account=account)
        flusher.wake({"a": 1, "b": 1})
        await settled(flusher, queue.store)
        assert (a.sizes, b.sizes) == ([], [1])
        assert queue.store.paused("a")
        with pytest.raises(NotFound, match="nowhere"):
            await flusher.pause("nowhere")
        with pytest.raises(NotFound, match="nowhere"):
            await flusher.resume("nowhere")
        await flusher.stop(5_000)
    async with opened(path, accounts=("a", "b")) as queue:
        assert queue.store.paused("a")
        assert not queue.store.paused("b")
        flusher = Flusher(queue.store, queue.store, queue.clock, metrics)
        a = ScriptedUpstream(queue.clock)
        await flusher.apply({"a": plan("a", a, 1, paused=queue.store.paused("a"))}, grace_ms=5_000)
        await settled(flusher, queue.store)
        assert a.sizes == []
        assert (await flusher.resume("a")).health is HealthState.OPEN
        await settled(flusher, queue.store)
        assert a.sizes == [1]
        await flusher.stop(5_000)


@on_loop
async def test_a_loop_that_ends_by_itself_is_a_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A flusher that died of a fault is named by `problems`, for /healthz, and the log says where; not the text."""
    async with opened(path) as queue:
        flusher = new_flusher(queue)

        async def claim(*_args: Any, **_kwargs: Any) -> Any:
            raise LookupError(CANARY)

        monkeypatch.setattr(queue.store, "claim", claim)
        await flusher.apply({"default": plan("default", ScriptedUpstream(queue.clock), 1)}, grace_ms=5_000)
        await settled(flusher, queue.store)
        (problem,) = flusher.problems()
        assert "default" in problem
        assert "LookupError" in problem
        (line,) = [each for each in caplog.records if getattr(each, "event", None) is Event.DEFECT]
        assert line.levelno == logging.ERROR
        assert (
            "account default: flushing ended in a way that nobody foresaw (LookupError)" in line.getMessage()
        )
        assert "in _fresh" in line.getMessage()
        assert "canary" not in problem + caplog.text
        await flusher.stop(5_000)


@on_loop
async def test_violations_of_the_protocol_are_counted(path: Path) -> None:
    """Entries that were ignored are counted by account, and bisections and resends too."""
    async with flushing(path) as bench:
        await bench.fill(1)
        await bench.drained()

        def answer(receipts: Sequence[Receipt]) -> Answer:
            good = ok(receipts)
            assert isinstance(good, Answered)
            return Answered(good.acknowledged, (), 2)

        bench.upstream.answer = answer
        await bench.fill(1, "n")
        await bench.drained()
        assert bench.metrics.totals()["violations"] == 2
        assert bench.metrics.totals()["requests"] == 2
