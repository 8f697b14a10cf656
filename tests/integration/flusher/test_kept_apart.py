"""Receipts that the flusher keeps apart: what the queue offers of them, what that costs, and how admins get at them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from dlr_buffer.flusher.judgement import Work
from dlr_buffer.flusher.suspicion import Halving
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from dlr_buffer.storage.settling import FRESH, NEWEST
from tests.integration.flusher.bench import (
    BAD,
    MINUTE,
    SECOND,
    bad_ones,
    entries,
    flush_settings,
    flushing,
    ok,
    outage,
    refused,
)
from tests.integration.storage.harness import DELIVERED, POLICY, Queue, opened, rows
from tests.loops import on_loop

PENDING, ACKNOWLEDGED = ReceiptStatus.PENDING, ReceiptStatus.ACKNOWLEDGED


async def come_back(queue: Queue, returned: Sequence[int], apart: Sequence[int]) -> None:
    """Give claims back, some of them kept apart."""
    await queue.store.settle(
        queue.account,
        returned=returned,
        apart=frozenset(apart),
        policy=POLICY,
        now_ms=queue.clock.now_ms(),
    )


async def behind(queue: Queue, after: int = 0, excluding: Sequence[int] = ()) -> list[int]:
    """Claim one that was left behind."""
    claim = await queue.store.claim_behind(queue.account, after=after, excluding=excluding)
    return [each.receipt.request_id for each in claim.claimed]


async def newest(queue: Queue, excluding: Sequence[int] = ()) -> list[int]:
    """Claim the newest."""
    claim = await queue.store.claim_newest(queue.account, excluding=excluding)
    return [each.receipt.request_id for each in claim.claimed]


@on_loop
async def test_who_is_apart_is_not_fresh_but_can_be_had(path: Path) -> None:
    """Returned apart, a receipt is claimed by name, as left behind or as the newest; returned plainly, as fresh."""
    async with opened(path) as queue:
        ids = [await queue.report_one(f"m{number}", DELIVERED) for number in range(5)]
        assert await queue.claim() == ids
        await come_back(queue, ids, ids[:3])
        assert await queue.claim() == ids[3:]
        assert await behind(queue) == ids[:1]
        assert await behind(queue) == ids[1:2], "the first is in flight"
        assert await behind(queue, after=ids[1]) == ids[2:3]
        assert await behind(queue, after=ids[2]) == []
        await come_back(queue, ids, ids)
        assert await behind(queue, excluding=ids[:4]) == ids[4:]
        assert await newest(queue, excluding=ids[3:4]) == ids[2:3]
        assert await newest(queue, excluding=ids[3:4]) == ids[1:2]
        assert await queue.claim() == []
        await come_back(queue, ids, [])
        assert await queue.claim() == ids
        await queue.settle(acknowledged=ids)
        assert await newest(queue) == await behind(queue) == []


@on_loop
async def test_what_claim_has_not_come_to_is_not_left_behind(path: Path) -> None:
    """Fresh receipts above the cursor are no business of `claim_behind`."""
    async with opened(path) as queue:
        ids = [await queue.report_one(f"m{number}", DELIVERED) for number in range(4)]
        assert await queue.claim(limit=2) == ids[:2]
        await come_back(queue, ids[:2], ids[:1])
        assert await behind(queue) == ids[:1]
        assert await behind(queue, after=ids[0]) == []


@on_loop
async def test_a_claim_costs_the_same_with_a_thousand_apart(path: Path) -> None:
    """However many are kept apart, the next claim reads only what it takes and its look-ahead."""
    async with opened(path) as queue:
        await queue.report(*((f"m{number}", DELIVERED) for number in range(1_100)))
        apart = await queue.claim(limit=1_000)
        await come_back(queue, apart, apart)
        assert queue.store._writer.claims.next_fresh(1) > apart[-1]
        plan = ""
        for statement in (FRESH, NEWEST):
            written = re.sub(r":\w+", "?", statement.sql)
            plan += str(rows(path, f"EXPLAIN QUERY PLAN {written}", *[1] * written.count("?")))
        assert plan.count("USING INDEX receipts_fresh (account_id=? AND rowid") == 2, plan
        assert "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("action", [ReceiptAction.RETRY, ReceiptAction.RELEASE])
@on_loop
async def test_an_admin_hurries_what_was_set_aside(path: Path, action: ReceiptAction) -> None:
    """A receipt that waits apart in memory goes at once when an admin retries it, or holds and releases it."""
    async with flushing(path) as bench:
        bench.queue.heard.replayed = lambda replayed: bench.flusher.forget(replayed["default"])
        bench.upstream.answer = bad_ones("odd", answer=lambda _: outage("http-500"))
        await bench.fill(3)
        await bench.drained()
        (odd,) = await bench.report("odd")
        for number in range(6):
            await bench.report(f"good{number}")
            await bench.pass_time(MINUTE)
        await bench.report("after")
        await bench.pass_time(20 * SECOND)
        assert bench.flusher.view().set_aside == 1
        bench.upstream.answer = ok
        await bench.report("last")
        await bench.idle()
        assert await bench.queue.status(odd) is PENDING, "it waits for its own time"
        if action is ReceiptAction.RELEASE:
            assert await bench.queue.act(ReceiptAction.HOLD, odd) == (1, 0, 0)
        assert await bench.queue.act(action, odd) == (1, 0, 0)
        await bench.idle()
        assert await bench.queue.status(odd) is ACKNOWLEDGED
        assert bench.flusher.view().set_aside == 0


@on_loop
async def test_a_suspect_that_was_held_for_a_moment_is_not_forgotten(path: Path) -> None:
    """Held while its half is claimed and released while that is on the wire, a receipt still goes."""
    async with flushing(path, flush_settings(concurrency=1)) as bench:
        bench.upstream.answer = bad_ones("m9", answer=lambda _: refused(BAD))
        await bench.report("before")
        await bench.drained()
        ids = await bench.queue.report(*((f"m{number}", DELIVERED) for number in range(10)))
        assert len(ids) == 10
        bench.upstream.shut_after = len(bench.upstream.requests) + 1
        bench.flusher.arrived(10)
        await bench.idle()
        held = (await bench.queue.view("m2")).receipts[0].receipt.request_id
        # The batch is on the wire and will be refused; m2 is taken away as soon as it is back.
        bench.upstream.shut_after = len(bench.upstream.requests) + 1
        original = bench.queue.store.claim_these
        done: list[int] = []

        async def claim_these(account: str, request_ids: Sequence[int]) -> object:
            if held in request_ids and not done:
                done.append(held)
                assert await bench.queue.act(ReceiptAction.HOLD, held) == (1, 0, 0)
                claim = await original(account, request_ids)
                assert await bench.queue.act(ReceiptAction.RELEASE, held) == (1, 0, 0)
                return claim
            return await original(account, request_ids)

        bench.queue.store.claim_these = claim_these  # type: ignore[method-assign,assignment]
        bench.upstream.gate.set()
        bench.upstream.shut_after = None
        await bench.pass_time(10 * SECOND)
        assert done
        await bench.report("later")
        await bench.pass_time(MINUTE)
        assert await bench.queue.status(held) is ACKNOWLEDGED


@on_loop
async def test_who_leaves_a_half_before_it_is_sent_is_offered_again(path: Path) -> None:
    """Of a suspect half, those that could not be claimed with the rest are given back to the queue with its answer."""
    async with flushing(path, start=False) as bench:
        ids = await bench.fill(4)
        claim = await bench.queue.store.claim_these("default", ids[1:])
        judge = bench.flusher._judge
        judge.suspects.split(ids)
        judge.conclude(Work(claim.claimed, halving=Halving(tuple(ids), ())), ok([]))
        assert judge.acquitted == ids[:1]


@on_loop
async def test_who_is_still_in_flight_is_given_back_when_it_lands(path: Path) -> None:
    """Acquitted while it is on the wire, a receipt is offered again once it is back, and not forgotten."""
    async with flushing(path, start=False) as bench:
        ids = await bench.fill(2)
        assert await bench.queue.claim() == ids
        await come_back(bench.queue, ids, ids)
        flusher = bench.flusher
        flusher._in_flight.update([ids[0]])
        flusher._judge.acquitted = list(ids)
        await flusher._release_acquitted()
        assert await bench.queue.claim() == ids[1:]
        flusher._in_flight.clear()
        await flusher._release_acquitted()
        assert flusher._judge.acquitted == []
        assert await bench.queue.claim() == ids[:1]
        await bench.queue.settle(acknowledged=ids)


@on_loop
async def test_what_is_on_the_wire_again_before_its_last_exchange_has_ended_stays_in_flight(
    path: Path,
) -> None:
    """An exchange that ends late takes nothing away from the one that has its receipt by then."""
    async with flushing(path, flush_settings(concurrency=2)) as bench:
        store, late = bench.queue.store, asyncio.Event()
        settle = store.settle

        async def settle_and_tarry(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as the store's own
            settled = await settle(*arguments, **named)
            await late.wait()
            return settled

        with patch.object(store, "settle", settle_and_tarry):
            bench.upstream.answer = lambda receipts: entries(
                receipts, lambda each: BAD if each.message_id == "bad" else None
            )
            bad, _ = await bench.report("bad", "good")
            await bench.idle()
        # It is refused, and due again, while the task of its first exchange has not come to its end yet.
        bench.upstream.gate.clear()
        await bench.pass_time(2 * SECOND)
        assert bench.upstream.names[1:] == [["bad"]]
        late.set()
        await bench.idle()
        assert bench.flusher.view().in_flight_receipts == 1
        bench.flusher._judge.acquitted.append(bad)
        bench.flusher.arrived(1)
        await bench.idle()
        assert bench.upstream.names[1:] == [["bad"]]
