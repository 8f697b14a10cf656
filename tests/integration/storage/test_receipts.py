"""Receipts on a real file: in flight, superseded, refused, given back, and after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.receipts import Cut, DueClaim, Receipt, ReceiptAction, ReceiptStatus, RefusalPolicy, Settled
from dlr_buffer.selection import MessageAction
from dlr_buffer.storage import schema
from dlr_buffer.storage.writer import Lane
from tests.integration.storage.harness import (
    ACCEPTED,
    ACKNOWLEDGED,
    DAY,
    DEAD,
    DELIVERED,
    ENROUTE,
    HELD,
    HOUR,
    PENDING,
    POLICY,
    SUPERSEDED,
    UNKNOWN,
    VALIDITY,
    WRONG,
    Queue,
    crash_copy,
    opened,
)
from tests.loops import on_loop


@pytest.mark.parametrize("how", ["pending", "held", "backing off"])
@on_loop
async def test_a_newer_state_supersedes_what_waits(path: Path, how: str) -> None:
    """A pending, held or backing-off intermediate receipt is superseded in the report's own transaction."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        if how == "held":
            await queue.act(ReceiptAction.HOLD, old)
        if how == "backing off":
            await queue.claim()
            await queue.settle(refused=[old])
            assert (await queue.receipt(old)).next_attempt_at_ms == queue.clock.now_ms() + 1000
        new = await queue.report_one("m", DELIVERED)
        assert await queue.status(old) is SUPERSEDED
        assert (await queue.receipt(old)).next_attempt_at_ms is None
        queue.clock.advance(HOUR)
        assert (await queue.claim_due()).claimed is None
        assert await queue.claim() == [new]


@on_loop
async def test_many_are_superseded_by_one_request(path: Path) -> None:
    """A bulk report supersedes the older receipts of all its messages at once."""
    async with opened(path) as queue:
        names = [f"m{n}" for n in range(50)]
        await queue.report(*((name, ENROUTE) for name in names))
        await queue.report(*((name, ACCEPTED) for name in names))
        assert queue.store.counts().receipts["default"]["superseded"] == 50
        assert len(await queue.claim()) == 50


@pytest.mark.parametrize("outcome", ["acknowledged", "refused", "returned"])
@on_loop
async def test_in_flight_and_overtaken(path: Path, outcome: str) -> None:
    """Overtaken in flight, a receipt ends acknowledged or superseded; the newer one waits, then goes at once."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        other = await queue.report_one("other", ENROUTE)
        assert await queue.claim() == [old, other]
        middle = await queue.report_one("m", ACCEPTED)
        new = await queue.report_one("m", DELIVERED)
        assert await queue.status(middle) is SUPERSEDED
        assert await queue.status(old) is PENDING
        assert (await queue.receipt(old)).in_flight
        assert await queue.claim() == []
        assert (await queue.store.claim_these("default", [new])).claimed == ()
        settled = await queue.settle(**{outcome: [old]})  # type: ignore[arg-type]
        if outcome == "acknowledged":
            assert settled == Settled(1, 0, 0, 0)
            assert await queue.status(old) is ACKNOWLEDGED
        else:
            assert settled.superseded == 1
            assert await queue.status(old) is SUPERSEDED
        receipt = await queue.receipt(old)
        assert receipt.attempts == 1
        assert not receipt.in_flight
        assert await queue.claim() == [new]


@on_loop
async def test_one_in_flight_per_message(path: Path) -> None:
    """However often it is asked, no second receipt of a message is handed out while one is in flight."""
    async with opened(path) as queue:
        for name in ("a", "b", "c"):
            await queue.report_one(name, ENROUTE)
        first = await queue.claim(limit=2)
        for state in (ACCEPTED, UNKNOWN, DELIVERED):
            await queue.report(("a", state), ("b", state), ("c", state))
            claimed = await queue.claim()
            if claimed:
                await queue.settle(acknowledged=claimed)
            assert not set(claimed) & set(first)
        assert queue.store.counts().receipts["default"]["pending"] == 4
        await queue.settle(returned=first)
        assert len(await queue.claim()) == 2


@pytest.mark.parametrize("order", ["report first", "settle first", "expiry"])
@on_loop
async def test_overtaken_and_given_back_in_the_same_moment(path: Path, order: str) -> None:
    """A report or an expiry that meets the return of the older receipt in one group still supersedes it at once."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        noise = await queue.report_one("noise", ENROUTE)
        assert await queue.claim() == [old, noise]
        queue.clock.advance(4 * DAY if order == "expiry" else 1)

        async def report() -> None:
            if order == "expiry":
                await queue.expire()
            else:
                await queue.report(("m", DELIVERED))

        async def give_back() -> None:
            # `noise` is acknowledged, so this is a transaction; alone it would only be a read.
            await queue.settle(acknowledged=[noise], returned=[old])

        async with queue.hold_writer():
            calls = [report, give_back] if order == "report first" else [give_back, report]
            tasks = [asyncio.create_task(call()) for call in calls]
            while queue.store._writer.waiting_commands < 3:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert await queue.status(old) is SUPERSEDED
        assert (await queue.receipt(old)).attempts == 1
        assert await queue.acknowledge_all() == (2 if order == "expiry" else 1)
        assert not queue.store._writer.claims._newer
        assert not queue.store._writer.claims._unwritten_attempts


@on_loop
async def test_overtaken_between_asking_and_giving_back(path: Path) -> None:
    """A report committed after the flusher decided to give a receipt back, and before that is done, supersedes it."""
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        await queue.claim()
        async with queue.hold_writer():
            report = asyncio.create_task(queue.report(("m", DELIVERED)))
            back = asyncio.create_task(queue.settle(returned=[old]))
        await asyncio.gather(report, back)
        assert await queue.status(old) is SUPERSEDED
        assert await queue.claim() == [2]


@on_loop
async def test_giving_back_writes_nothing(path: Path) -> None:
    """An outage commits nothing, and still the attempts are shown, kept while held, and written at the end."""
    async with opened(path) as queue:
        one = await queue.report_one("m", DELIVERED)
        commits = queue.store._writer.commits
        for _ in range(3):
            assert await queue.claim() == [one]
            assert await queue.settle(returned=[one]) == Settled(0, 0, 0, 0)
        assert await queue.claim() == [one]
        await queue.settle(returned=[one], sent=False)
        assert queue.store._writer.commits == commits
        assert (await queue.receipt(one)).attempts == 3
        await queue.act(ReceiptAction.HOLD, one)
        assert (await queue.receipt(one)).attempts == 3
        await queue.act(ReceiptAction.RELEASE, one)
        assert await queue.claim() == [one]
        await queue.settle(acknowledged=[one])
        receipt = await queue.receipt(one)
        assert (receipt.status, receipt.attempts, receipt.refusals) == (ACKNOWLEDGED, 4, 0)
        assert receipt.response_id == "answer-1"
        assert receipt.acknowledged_at_ms == queue.clock.now_ms()


@on_loop
async def test_after_a_crash_nothing_is_in_flight(path: Path, tmp_path: Path) -> None:
    """A copy of the files made in mid-flight is a sound queue: same ids, nothing in flight, stale ones dropped."""
    copy = tmp_path / "after.db"
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        alone = await queue.report_one("alone", ENROUTE)
        due = await queue.report_one("due", ENROUTE)
        assert await queue.claim() == [old, alone, due]
        await queue.settle(refused=[due], returned=[])
        queue.clock.advance(5000)
        claim = await queue.claim_due()
        assert claim.claimed is not None
        new = await queue.report_one("m", DELIVERED)
        newer_due = await queue.report_one("due", DELIVERED)
        crash_copy(path, copy)
    async with opened(copy, queue.clock) as after:
        assert await after.status(old) is PENDING
        assert not (await after.receipt(old)).in_flight
        assert await after.claim() == [alone, new, newer_due]
        assert await after.status(old) is SUPERSEDED
        assert (await after.claim_due()).claimed is None
        assert await after.status(due) is SUPERSEDED
        assert await after.report_one("next", ENROUTE) == newer_due + 1


@on_loop
async def test_stale_ones_named_are_dropped_too(path: Path, tmp_path: Path) -> None:
    """A stale receipt asked for by id is not sent but superseded."""
    copy = tmp_path / "after.db"
    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        await queue.claim()
        await queue.report_one("m", DELIVERED)
        crash_copy(path, copy)
    async with opened(copy) as after:
        assert (await after.store.claim_these("default", [old])).claimed == ()
        assert await after.status(old) is SUPERSEDED


@on_loop
async def test_fresh_ones_are_claimed_oldest_first(path: Path) -> None:
    """Receipts are handed out in the order of their ids, each once, as many as the cut takes."""
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", ENROUTE) for n in range(300)))

        def cut(waiting: object) -> Cut:
            seen.append([each.request_id for each in waiting])  # type: ignore[attr-defined]
            return Cut(40)

        seen: list[list[int]] = []
        first = await queue.store.claim("default", limit=100, excluding=(), cut=cut)
        second = await queue.store.claim("default", limit=100, excluding=(), cut=cut)
        assert seen == [list(range(1, 101)), list(range(41, 141))]
        assert [each.receipt.request_id for each in first.claimed] == list(range(1, 41))
        assert [each.receipt.request_id for each in second.claimed] == list(range(41, 81))
        await queue.settle(returned=list(range(5, 30)))
        assert await queue.claim(limit=30) == [*range(5, 30), *range(81, 86)]


@on_loop
async def test_a_lingering_batch_takes_nothing(path: Path) -> None:
    """A cut of nothing leaves all where it was and hands on when the batch will be ready."""
    async with opened(path) as queue:
        await queue.report_one("m", ENROUTE)
        claim = await queue.store.claim("default", limit=10, excluding=(), cut=lambda _: Cut(0, 12345))
        assert (claim.claimed, claim.ready_at_ms) == ((), 12345)
        assert not (await queue.receipt(1)).in_flight
        assert await queue.claim() == [1]


@on_loop
async def test_those_kept_apart_come_back(path: Path) -> None:
    """Excluded receipts are passed over, and come when they were claimed by name and given back."""
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", ENROUTE) for n in range(5)))
        assert await queue.claim(excluding={2, 3}) == [1, 4, 5]
        claim = await queue.store.claim_these("default", [2, 3, 4, 99])
        assert [each.receipt.request_id for each in claim.claimed] == [2, 3]
        await queue.settle(returned=[2, 3], sent=False)
        assert await queue.claim() == [2, 3]


@on_loop
async def test_whoever_cancels_a_claim_does_not_keep_it(path: Path) -> None:
    """A claim whose caller was cancelled is given back, before or after the writer came to it."""
    async with opened(path) as queue:
        await queue.report_one("m", ENROUTE)
        async with queue.hold_writer():
            task = asyncio.create_task(queue.claim())
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert await queue.claim() == [1]
        await queue.settle(returned=[1])


@on_loop
async def test_a_cancelled_caller_undoes_nothing(path: Path) -> None:
    """A client that goes away while its registration is under way breaks nothing: it is stored all the same."""
    async with opened(path) as queue:
        async with queue.hold_writer():
            task = asyncio.create_task(queue.register("gone"))
            stays = asyncio.create_task(queue.register("stays"))
            await asyncio.sleep(0)
            task.cancel()
        await stays
        assert task.cancelled()
        await queue.message("gone")
        await queue.message("stays")
        assert queue.store.facts().waiting_rows == 0


# Refusals


@on_loop
async def test_refusals_count_back_off_and_kill(path: Path) -> None:
    """Each refusal counts and waits longer, the last one makes a dead letter with Smartswitch's own words."""
    async with opened(path) as queue:
        one = await queue.report_one("m", DELIVERED)
        await queue.claim()
        await queue.settle(returned=[one])
        await queue.claim()
        assert await queue.settle(refused=[one]) == Settled(0, 1, 0, 0)
        receipt = await queue.receipt(one)
        assert (receipt.status, receipt.refusals, receipt.attempts, receipt.error) == (PENDING, 1, 2, WRONG)
        assert receipt.next_attempt_at_ms == queue.clock.now_ms() + 1000
        assert await queue.claim() == []
        waiting = await queue.claim_due()
        assert (waiting.claimed, waiting.next_due_at_ms) == (None, receipt.next_attempt_at_ms)
        queue.clock.advance(1000)
        due = await queue.claim_due()
        assert due.claimed is not None
        assert due.claimed.receipt.refusals == 1
        await queue.settle(refused=[one])
        assert (await queue.receipt(one)).next_attempt_at_ms == queue.clock.now_ms() + 2000
        queue.clock.advance(2000)
        await queue.claim_due()
        assert await queue.settle(refused=[one]) == Settled(0, 0, 1, 0)
        receipt = await queue.receipt(one)
        assert (receipt.status, receipt.refusals, receipt.attempts, receipt.error) == (DEAD, 3, 4, WRONG)
        assert receipt.next_attempt_at_ms is None
        assert (await queue.message("m")).state is DELIVERED
        view = await queue.store.receipt(one)
        assert view is not None
        assert [each.event for each in view.history] == ["created", "refused", "refused", "refused", "dead"]
        assert queue.heard.events["dead"] == 1
        assert queue.heard.events["refused"] == 3


@on_loop
async def test_one_in_a_batch_is_refused(path: Path) -> None:
    """Of one request's receipts some are acknowledged, one refused, others given back: each has its own end."""
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", DELIVERED) for n in range(6)))
        ids = await queue.claim()
        assert await queue.settle(acknowledged=ids[:3], refused=[4], returned=[5, 6]) == Settled(3, 1, 0, 0)
        assert queue.store.counts().receipts["default"] == {
            "pending": 3,
            "held": 0,
            "acknowledged": 3,
            "superseded": 0,
            "dead": 0,
        }
        assert await queue.claim() == [5, 6]


@on_loop
async def test_age_alone_never_kills(path: Path) -> None:
    """Far beyond its lifetime a receipt that was never refused is still sent, and lives from its first refusal on."""
    async with opened(path) as queue:
        one = await queue.report_one("m", DELIVERED)
        queue.clock.advance(60 * DAY)
        for _ in range(3):
            assert await queue.claim() == [one]
            await queue.settle(returned=[one])
        assert await queue.status(one) is PENDING
        await queue.claim()
        await queue.settle(refused=[one])
        assert await queue.status(one) is PENDING
        queue.clock.advance(POLICY.lifetime_ms)
        claim = await queue.claim_due()
        assert claim.claimed is not None
        assert claim.claimed.counted_since_ms == queue.clock.now_ms() - POLICY.lifetime_ms
        await queue.settle(refused=[one])
        assert await queue.status(one) is DEAD


@on_loop
async def test_retry_and_release_restart_the_lifetime(path: Path) -> None:
    """After a retry or a release the lifetime counts anew, so the next refusal does not kill."""
    async with opened(path) as queue:
        for action, name in ((ReceiptAction.RETRY, "retried"), (ReceiptAction.RELEASE, "released")):
            one = await queue.report_one(name, DELIVERED)
            assert await queue.claim() == [one]
            await queue.settle(refused=[one])
            if action is ReceiptAction.RELEASE:
                await queue.act(ReceiptAction.HOLD, one)
            queue.clock.advance(8 * DAY)
            assert await queue.act(action, one) == (1, 0, 0)
            claim = queue.claim_replays if action is ReceiptAction.RETRY else queue.claim
            assert await claim() == [one]
            await queue.settle(refused=[one])
            assert await queue.status(one) is PENDING


@on_loop
async def test_an_acknowledgement_clears_the_error(path: Path) -> None:
    """A receipt that was refused and then acknowledged shows no error, its history does."""
    async with opened(path) as queue:
        one = await queue.report_one("m", DELIVERED)
        await queue.claim()
        await queue.settle(refused=[one])
        queue.clock.advance(HOUR)
        await queue.claim_due()
        await queue.settle(acknowledged=[one])
        receipt = await queue.receipt(one)
        assert (receipt.status, receipt.error, receipt.refusals) == (ACKNOWLEDGED, None, 1)
        view = await queue.store.receipt(one)
        assert view is not None
        assert [each.event for each in view.history] == ["created", "refused", "acknowledged"]
        assert WRONG.code in view.history[1].detail


@pytest.mark.parametrize("how", ["refused", "replayed"])
@on_loop
async def test_the_database_is_asked_for_due_ones_only_while_there_may_be_some(path: Path, how: str) -> None:
    """Once it was seen that none waits for a time of its own, that costs nothing until one does; then it is found."""
    async with opened(path, accounts=("default", "other")) as queue:
        writer = queue.store._writer
        dead = await queue.kill("dead")
        elsewhere = await queue.report_one("elsewhere", DELIVERED, "other")
        await queue.claim(account="other")
        one = await queue.report_one("m", DELIVERED)
        assert await queue.claim() == [one]
        for account in ("default", "other"):
            assert (await queue.claim_due(account=account)).claimed is None
        before = writer.deliveries
        for _ in range(3):
            assert await queue.claim_due() == DueClaim(None, None)
        assert writer.deliveries == before
        await queue.settle(refused=[elsewhere], account="other")
        await queue.settle(acknowledged=[one])
        before = writer.deliveries
        assert await queue.claim_due() == DueClaim(None, None)
        assert writer.deliveries == before
        expected = dead
        if how == "refused":
            expected = await queue.report_one("n", DELIVERED)
            assert await queue.claim() == [expected]
            await queue.settle(refused=[expected])
            assert (await queue.claim_due()).next_due_at_ms is not None
            queue.clock.advance(1000)
        else:
            await queue.act(ReceiptAction.RETRY, dead)
        due = await queue.claim_due()
        assert due.claimed is not None
        assert due.claimed.receipt.request_id == expected
        queue.clock.advance(1000)
        assert (await queue.claim_due(account="other")).claimed is not None


@on_loop
async def test_a_deadline_days_ahead_is_due(path: Path) -> None:
    """After the clock was set back, a next attempt further ahead than the longest backoff counts as due."""
    async with opened(path) as queue:
        near = await queue.report_one("near", DELIVERED)
        far = await queue.report_one("far", DELIVERED)
        await queue.claim()
        queue.clock.leap(30 * DAY)
        await queue.settle(refused=[far], policy=RefusalPolicy(5, 100 * DAY, lambda _: 1000))
        queue.clock.leap(-30 * DAY)
        await queue.settle(refused=[near])
        claim = await queue.claim_due(horizon_ms=600_000)
        assert claim.claimed is not None
        assert claim.claimed.receipt.request_id == far
        again = await queue.claim_due(horizon_ms=600_000)
        assert again.claimed is None
        assert again.next_due_at_ms == queue.clock.now_ms() + 1000


@on_loop
async def test_due_ones_pass_over_those_in_flight(path: Path) -> None:
    """With many in flight or kept apart, the next due one is still found, oldest deadline first."""
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", DELIVERED) for n in range(200)))
        ids = await queue.claim()
        for each in ids:
            await queue.settle(refused=[each], policy=RefusalPolicy(5, DAY, lambda _, each=each: each))  # type: ignore[misc]
        queue.clock.advance(HOUR)
        for expected in ids:
            claim = await queue.claim_due()
            assert claim.claimed is not None
            assert claim.claimed.receipt.request_id == expected
        assert (await queue.claim_due()).claimed is None


@on_loop
async def test_a_settlement_that_cannot_be_is_refused_whole(path: Path) -> None:
    """Settling what is in flight and not pending is a fault: nothing of it is stored and its neighbours go on.

    (What is not in flight any more is left alone: tests/integration/store/test_found.py.)
    """

    def put(queue: Queue, status: ReceiptStatus) -> Awaitable[object]:
        """Change the first receipt's row behind everybody's back."""
        statement = f"UPDATE receipts SET status = {schema.STATUS_CODES[status]} WHERE request_id = 1"
        return queue.store._writer.submit(
            Lane.ADMIN, run=lambda tx: tx.connection.exec_driver_sql(statement).rowcount
        )

    async with opened(path) as queue:
        await queue.report(("a", DELIVERED), ("b", DELIVERED))
        await queue.claim()
        await put(queue, HELD)
        async with queue.hold_writer():
            bad = asyncio.create_task(queue.settle(acknowledged=[2, 1]))
            good = asyncio.create_task(queue.register("c"))
        with pytest.raises(StoreUnavailable):
            await bad
        await good
        assert (await queue.receipt(2)).in_flight
        await put(queue, PENDING)
        await queue.settle(acknowledged=[2, 1])


@on_loop
async def test_attempts_are_counted_once_even_if_a_group_is_run_again(path: Path) -> None:
    """A settlement rolled back for a bad neighbour, and run again alone, counts its time on the wire once."""

    def fail(_tx: object) -> None:
        raise RuntimeError("a neighbour's fault")

    async with opened(path) as queue:
        old = await queue.report_one("m", ENROUTE)
        await queue.claim()
        await queue.report_one("m", DELIVERED)
        async with queue.hold_writer():
            back = asyncio.create_task(queue.store._writer.submit(Lane.SETTLE, run=fail))
            settle = asyncio.create_task(queue.settle(returned=[old]))
            await asyncio.sleep(0)
            bad = asyncio.create_task(queue.store._writer.submit(Lane.SETTLE, run=fail))
        outcomes = await asyncio.gather(back, settle, bad, return_exceptions=True)
        assert isinstance(outcomes[0], StoreUnavailable)
        assert isinstance(outcomes[2], StoreUnavailable)
        receipt: Receipt = await queue.receipt(old)
        assert (receipt.status, receipt.attempts) == (SUPERSEDED, 1)


@on_loop
async def test_request_ids_are_never_reused(path: Path) -> None:
    """Ids go on after a delete, a purge and a restart, though the highest row is gone."""
    async with opened(path) as queue:
        one = await queue.report_one("a", DELIVERED)
        await queue.act(ReceiptAction.DELETE, one)
        two = await queue.report_one("b", DELIVERED)
        await queue.acknowledge_all()
        queue.clock.advance(30 * DAY)
        now = queue.clock.now_ms()
        found, _ = await queue.store.purge_candidates(after=0, settled_before_ms=now, dead_before_ms=now)
        assert found == [two]
        await queue.store.purge(found, settled_before_ms=now, dead_before_ms=now)
        assert await queue.store.receipt(two) is None
    async with opened(path) as queue:
        assert await queue.report_one("c", DELIVERED) == 3


@dataclass(slots=True)
class Superseded:
    """How many receipts a test has seen superseded, compared with what the queue and the metrics count."""

    queue: Queue
    expected: int = 0

    def more(self, number: int) -> None:
        """So many more than before."""
        self.expected += number
        assert self.queue.store.counts().receipts["default"]["superseded"] == self.expected
        assert self.queue.heard.events["superseded"] == self.expected


@on_loop
async def test_each_that_waits_is_counted_once_when_superseded(path: Path) -> None:
    """Pending, held, backing off, in one transaction, by expiry or by a retry: the metrics count each exactly once."""
    async with opened(path) as queue:
        superseded = Superseded(queue)
        await queue.report_one("pending", ENROUTE)
        await queue.report_one("pending", ACCEPTED)
        superseded.more(1)
        await queue.act(ReceiptAction.HOLD, await queue.report_one("held", ENROUTE))
        await queue.report_one("held", ACCEPTED)
        superseded.more(1)
        await queue.report(("together", ENROUTE), ("together", ACCEPTED), ("together", DELIVERED))
        superseded.more(2)
        await queue.acknowledge_all()
        backing_off = await queue.report_one("backing off", ENROUTE)
        await queue.claim()
        await queue.settle(refused=[backing_off])
        await queue.report_one("backing off", DELIVERED)
        superseded.more(1)
        dead = await queue.kill("dead", ENROUTE)
        await queue.report_one("dead", ACCEPTED)
        superseded.more(0)
        await queue.act(ReceiptAction.RETRY, dead)
        superseded.more(1)
        await queue.report_one("by an admin", ENROUTE)
        await queue.act_on_messages(MessageAction.EXPIRE, "by an admin")
        superseded.more(1)
        await queue.acknowledge_all()
        await queue.act(ReceiptAction.HOLD, await queue.report_one("expires", ENROUTE))
        queue.clock.advance(VALIDITY)
        assert await queue.expire() > 1
        superseded.more(1)


@on_loop
async def test_each_in_flight_is_counted_once_when_superseded(path: Path, tmp_path: Path) -> None:
    """Overtaken on the wire, a receipt counts when it comes back, or when a crash has left it behind; never twice."""
    copy = tmp_path / "after.db"
    async with opened(path) as queue:
        superseded = Superseded(queue)
        names = ("refused", "returned", "answered", "left")
        for name in names:
            await queue.report_one(name, ENROUTE)
        refused, returned, answered, left = await queue.claim()
        for name in names:
            await queue.report_one(name, DELIVERED)
        superseded.more(0)
        await queue.settle(refused=[refused])
        superseded.more(1)
        await queue.settle(returned=[returned])
        superseded.more(1)
        await queue.settle(acknowledged=[answered])
        superseded.more(0)
        crash_copy(path, copy)
    async with opened(copy, queue.clock) as after:
        assert await after.status(left) is PENDING
        await after.claim()
        assert await after.status(left) is SUPERSEDED
        assert after.heard.events["superseded"] == 1
