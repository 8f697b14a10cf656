"""Lists, look-ups and figures on a real file, compared with a plain filter in Python."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from dlr_buffer.messages import Message, MessageState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptStatus
from dlr_buffer.selection import MessageFilter, ReceiptFilter
from dlr_buffer.storage import reading
from tests.clocks import START_MS
from tests.integration.storage.harness import DELIVERED, ENROUTE, HOUR, PENDING, Queue, opened, rows
from tests.loops import on_loop

ACCOUNTS = ["a", "b"]


async def fill(queue: Queue, seed: int) -> None:
    """A small queue with something of everything in two accounts."""
    dice = random.Random(seed)
    for _ in range(60):
        account = dice.choice(ACCOUNTS)
        queue.clock.advance(dice.randrange(1000))
        names = [f"m{dice.randrange(25)}" for _ in range(3)]
        match dice.randrange(6):
            case 0:
                await queue.register(*names, account=account)
            case 1 | 2:
                state = dice.choice(list(MessageState))
                await queue.report(*((name, state) for name in names), account=account)
            case 3 | 4:
                ids = await queue.claim(limit=4, account=account)
                parts: list[list[int]] = [[], [], []]
                for each in ids:
                    parts[dice.randrange(3)].append(each)
                await queue.settle(
                    acknowledged=parts[0], refused=parts[1], returned=parts[2], account=account
                )
                due = await queue.claim_due(account=account)
                if due.claimed is not None:
                    await queue.settle(refused=[due.claimed.receipt.request_id], account=account)
            case _:
                await queue.act(
                    dice.choice([ReceiptAction.HOLD, ReceiptAction.DELETE]), dice.randrange(1, 60)
                )


async def all_receipts(queue: Queue, narrow: ReceiptFilter, limit: int) -> list[Receipt]:
    """Page through a list to its end."""
    found: list[Receipt] = []
    after: int | None = 0
    while after is not None:
        page = await queue.store.list_receipts(narrow, after=after, limit=limit)
        assert len(page.items) <= limit
        assert page.next_after is None or page.next_after > after
        found += page.items
        after = page.next_after
    return found


async def all_messages(queue: Queue, narrow: MessageFilter, limit: int) -> list[Message]:
    """Page through a list to its end."""
    found: list[Message] = []
    after: int | None = 0
    while after is not None:
        page = await queue.store.list_messages(narrow, after=after, limit=limit)
        assert len(page.items) <= limit
        assert page.next_after is None or page.next_after > after
        found += page.items
        after = page.next_after
    return found


def takes_receipt(narrow: ReceiptFilter, each: Receipt) -> bool:
    """What the filter means, in Python."""
    waiting = each.status in (ReceiptStatus.PENDING, ReceiptStatus.HELD)
    return (
        narrow.account in (None, each.account)
        and narrow.message_id in (None, each.message_id)
        and narrow.state in (None, each.message_state)
        and narrow.status in (None, each.status)
        and narrow.waiting in (None, waiting)
        and (narrow.before_ms is None or each.created_at_ms < narrow.before_ms)
        and (narrow.after_ms is None or each.created_at_ms > narrow.after_ms)
        and (narrow.error_code is None or (each.error is not None and each.error.code == narrow.error_code))
    )


def takes_message(narrow: MessageFilter, each: Message) -> bool:
    """What the filter means, in Python."""
    waiting = each.state is None or not each.state.final
    return (
        narrow.account in (None, each.account)
        and narrow.message_id in (None, each.message_id)
        and narrow.state in (None, each.state)
        and narrow.waiting in (None, waiting)
        and (narrow.before_ms is None or each.registered_at_ms < narrow.before_ms)
        and (narrow.after_ms is None or each.registered_at_ms > narrow.after_ms)
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
@on_loop
async def test_receipt_filters_equal_a_plain_filter(path: Path, seed: int) -> None:
    """Each filter, in pages of several sizes, gives exactly the rows that it should, in order, each once."""
    async with opened(path, accounts=ACCOUNTS) as queue:
        await fill(queue, seed)
        everything = await all_receipts(queue, ReceiptFilter(), 1000)
        assert [each.request_id for each in everything] == [
            row[0] for row in rows(path, "SELECT request_id FROM receipts ORDER BY 1")
        ]
        assert len({each.status for each in everything}) == 5, "something of everything"
        for status, waiting, account in itertools.product(
            [None, *ReceiptStatus], [None, True, False], [None, "a", "nobody"]
        ):
            narrow = ReceiptFilter(status=status, waiting=waiting, account=account)
            expected = [each for each in everything if takes_receipt(narrow, each)]
            assert await all_receipts(queue, narrow, 7) == expected, narrow
            ids, after = await queue.store.select_receipts(narrow, after=0, limit=1000)
            assert (ids, after) == ([each.request_id for each in expected], None)
        middle = everything[len(everything) // 2]
        for narrow in (
            ReceiptFilter(message_id=middle.message_id),
            ReceiptFilter(message_id=middle.message_id, account=middle.account),
            ReceiptFilter(message_id=middle.message_id, status=middle.status),
            ReceiptFilter(message_id="never"),
            ReceiptFilter(before_ms=middle.created_at_ms),
            ReceiptFilter(after_ms=middle.created_at_ms, waiting=True),
            ReceiptFilter(error_code="no-such-message"),
            ReceiptFilter(error_code="no-such-message", status=PENDING),
            *(ReceiptFilter(state=state) for state in MessageState),
            *(ReceiptFilter(state=state, waiting=True) for state in MessageState),
        ):
            expected = [each for each in everything if takes_receipt(narrow, each)]
            for limit in (1, 2, 5, 1000):
                assert await all_receipts(queue, narrow, limit) == expected, narrow


@pytest.mark.parametrize("seed", [1, 2, 3])
@on_loop
async def test_message_filters_equal_a_plain_filter(path: Path, seed: int) -> None:
    """Each filter of messages, in pages of several sizes, gives exactly the rows that it should, each once."""
    async with opened(path, accounts=ACCOUNTS) as queue:
        await fill(queue, seed)
        everything = await all_messages(queue, MessageFilter(), 1000)
        assert len(everything) == rows(path, "SELECT count(*) FROM messages")[0][0]
        middle = everything[len(everything) // 2]
        twice = next(
            each.message_id
            for each in everything
            if sum(other.message_id == each.message_id for other in everything) == 2
        )
        for narrow in (
            MessageFilter(account="b"),
            MessageFilter(account="nobody"),
            MessageFilter(waiting=True),
            MessageFilter(waiting=False, account="a"),
            MessageFilter(before_ms=middle.registered_at_ms),
            MessageFilter(after_ms=middle.registered_at_ms),
            MessageFilter(message_id=twice),
            MessageFilter(message_id=twice, account="a"),
            MessageFilter(message_id=twice, waiting=True),
            *(MessageFilter(state=state) for state in MessageState),
        ):
            expected = [each for each in everything if takes_message(narrow, each)]
            for limit in (1, 2, 5, 1000):
                assert await all_messages(queue, narrow, limit) == expected, narrow


@on_loop
async def test_ids_far_apart_take_no_empty_pages(path: Path) -> None:
    """With ids that begin in the billions and a wide gap between, a list still has everything in one page."""
    async with opened(path) as queue:
        await queue.report_one("one", DELIVERED)
        await queue.acknowledge_all()
    for first in (3_000_000_000, 10**15):
        async with opened(path, first_request_id=first) as queue:
            await queue.report_one(f"m{first}", DELIVERED)
            await queue.acknowledge_all()
    async with opened(path) as queue:
        page = await queue.store.list_receipts(ReceiptFilter(), after=0, limit=100)
        assert [each.request_id for each in page.items] == [1, 3_000_000_000, 10**15]
        assert page.next_after is None


@on_loop
async def test_windows_meet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into windows much smaller than the queue, lists still have each row exactly once, and pages may be short."""
    monkeypatch.setattr(reading, "WINDOW", 3)
    monkeypatch.setattr(reading, "WINDOWS_PER_PAGE", 2)
    async with opened(path, accounts=ACCOUNTS) as queue:
        await fill(queue, 4)
        monkeypatch.undo()
        receipts = await all_receipts(queue, ReceiptFilter(), 1000)
        messages = await all_messages(queue, MessageFilter(), 1000)
        monkeypatch.setattr(reading, "WINDOW", 3)
        monkeypatch.setattr(reading, "WINDOWS_PER_PAGE", 2)
        for limit in (1, 3, 4, 100):
            assert await all_receipts(queue, ReceiptFilter(), limit) == receipts
            assert await all_messages(queue, MessageFilter(), limit) == messages
            for status in ReceiptStatus:
                narrow = ReceiptFilter(status=status)
                assert await all_receipts(queue, narrow, limit) == [
                    each for each in receipts if each.status is status
                ]


@on_loop
async def test_many_accounts(path: Path) -> None:
    """A list over more accounts than SQLite takes parts of a UNION is complete and in order."""
    accounts = [f"account{n}" for n in range(300)]
    async with opened(path, accounts=accounts) as queue:
        tasks = [queue.report_one("m", DELIVERED, account) for account in accounts]
        await asyncio.gather(*tasks)
        found = await all_receipts(queue, ReceiptFilter(status=PENDING), 50)
        assert [each.request_id for each in found] == list(range(1, 301))
        assert len(await all_receipts(queue, ReceiptFilter(waiting=True), 1000)) == 300
        assert len(await all_messages(queue, MessageFilter(message_id="m"), 7)) == 300


@on_loop
async def test_each_row_once_while_others_come(path: Path) -> None:
    """Rows that were there at the beginning of a walk appear exactly once, though others are added and settled."""
    async with opened(path) as queue:
        await queue.report(*((f"m{n}", ENROUTE) for n in range(40)))
        seen: list[int] = []
        after: int | None = 0
        extra = 0
        while after is not None:
            page = await queue.store.list_receipts(ReceiptFilter(), after=after, limit=7)
            seen += [each.request_id for each in page.items]
            after = page.next_after
            if extra < 10:
                await queue.report_one(f"extra{extra}", ENROUTE)
                await queue.settle(acknowledged=await queue.claim(limit=2))
                extra += 1
        assert seen == sorted(set(seen))
        assert set(range(1, 41)) <= set(seen)


@on_loop
async def test_the_history_of_a_message(path: Path) -> None:
    """A message shows its receipts oldest first, each with what happened to it and when."""
    async with opened(path) as queue:
        one = await queue.report_one("m", ENROUTE)
        queue.clock.advance(10)
        await queue.act(ReceiptAction.HOLD, one)
        queue.clock.advance(10)
        await queue.act(ReceiptAction.RELEASE, one)
        queue.clock.advance(10)
        await queue.report_one("m", DELIVERED)
        await queue.acknowledge_all()
        view = await queue.view("m")
        history = [[(each.at_ms - START_MS, each.event) for each in r.history] for r in view.receipts]
        assert history == [
            [(0, "created"), (10, "held"), (20, "released"), (30, "superseded")],
            [(30, "created"), (30, "acknowledged")],
        ]
        assert "answer-2" in view.receipts[1].history[1].detail


@on_loop
async def test_the_oldest_are_found(path: Path) -> None:
    """The oldest pending receipt and the oldest waiting message of each account are what a scan finds."""
    async with opened(path, accounts=ACCOUNTS) as queue:
        dice = random.Random(3)
        for step in range(60):
            queue.clock.advance(1000)
            account = dice.choice(ACCOUNTS)
            await queue.register(f"w{step}", account=account)
            await queue.report(
                (f"w{dice.randrange(step + 1)}", dice.choice([ENROUTE, DELIVERED])), account=account
            )
            ids = await queue.claim(limit=2, account=account)
            await queue.settle(refused=ids[:1], acknowledged=ids[1:], account=account)
            for _ in range(6):
                await queue.store.look_for_oldest()
            oldest = await queue.store.oldest()
            names = dict(rows(path, "SELECT id, name FROM accounts"))
            scan = "SELECT account_id, min({}) FROM {} WHERE {} GROUP BY 1"
            pending = rows(path, scan.format("created_at", "receipts", "status = 2"))
            waiting = rows(path, scan.format("registered_at", "messages", "state < 6"))
            assert oldest.pending_ms == {names[each]: at for each, at in pending}
            assert oldest.waiting_ms == {names[each]: at for each, at in waiting}
        queue.clock.advance(HOUR)
