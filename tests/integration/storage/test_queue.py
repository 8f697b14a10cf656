"""The receipt queue's use cases over a real store: accounts, bulk, interruptions, steering by filter."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dlr_buffer.errors import (
    DlrBufferError,
    InvalidItem,
    MessageFinal,
    NotFound,
    Overloaded,
    StorageFull,
    UnknownAccount,
)
from dlr_buffer.messages import Registration, Report
from dlr_buffer.receipt_queue.queue import CHUNK, Interrupted, QueueSettings, ReceiptQueue
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus, Registered, Reported
from dlr_buffer.selection import ActionCount, MessageAction, MessageFilter, MessageName, ReceiptFilter
from dlr_buffer.storage.store import NO_LIMITS, SqliteStore
from tests.integration.storage.harness import DELIVERED, ENROUTE, UNDELIVERABLE, VALIDITY, Queue, opened, rows
from tests.loops import on_loop


def use_cases(
    queue: Queue, *accounts: str, register_unknown: bool = True, store: SqliteStore | None = None
) -> ReceiptQueue:
    """The use cases as the daemon makes them, with these accounts configured."""
    settings = QueueSettings(frozenset(accounts or ("default",)), VALIDITY, register_unknown)
    return ReceiptQueue(store or queue.store, queue.clock, settings)


@on_loop
async def test_which_account_is_meant(path: Path) -> None:
    """A named one, else the only one, else `default`, else 422; one with rows but no configuration is known."""
    async with opened(path, accounts=["old", "x", "y", "default"]) as queue:
        assert use_cases(queue, "x").resolve_account(None) == "x"
        assert use_cases(queue, "x", "default").resolve_account(None) == "default"
        assert use_cases(queue, "x", "y").resolve_account("y") == "y"
        assert use_cases(queue, "x").resolve_account("old") == "old"
        with pytest.raises(UnknownAccount, match=r"several.*x, y") as caught:
            use_cases(queue, "x", "y").resolve_account(None)
        assert caught.value.account is None
        with pytest.raises(UnknownAccount, match="nobody") as caught:
            use_cases(queue, "x", "y").resolve_account("nobody")
        assert caught.value.known == ("x", "y")


@on_loop
async def test_an_unconfigured_account_takes_reports_only(path: Path) -> None:
    """Without configuration nothing new is registered, by report neither, but states of known messages are taken."""
    async with opened(path, accounts=["old", "x"]) as queue:
        await queue.register("m", account="old")
        use = use_cases(queue, "x")
        (registered,) = await use.register([Registration("n", "old")])
        assert isinstance(registered, UnknownAccount)
        new, known = await use.report([Report("n", ENROUTE, "old"), Report("m", DELIVERED, "old")])
        assert isinstance(new, NotFound)
        assert isinstance(known, Reported)


@on_loop
async def test_bulk_keeps_order_and_indexes(path: Path) -> None:
    """Over several chunks each outcome stands at its item's place, and good items are stored beside bad ones."""
    async with opened(path) as queue:
        use = use_cases(queue)
        broken = InvalidItem("a line that could not be read")
        items: list[Registration | DlrBufferError] = [Registration(f"m{n}") for n in range(2 * CHUNK + 100)]
        bad: dict[int, tuple[Registration | DlrBufferError, type[DlrBufferError]]] = {
            0: (Registration(""), InvalidItem),
            5: (broken, InvalidItem),
            CHUNK - 1: (Registration("x" * 300), InvalidItem),
            CHUNK: (Registration("m", "nobody"), UnknownAccount),
            CHUNK + 7: (Registration("m", None, 0), InvalidItem),
            2 * CHUNK + 99: (Registration("a\nb"), InvalidItem),
        }
        for index, (item, _) in bad.items():
            items[index] = item
        items[9] = items[8]
        outcomes = await use.register(items)
        assert len(outcomes) == len(items)
        for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
            if index in bad:
                assert isinstance(outcome, bad[index][1])
            else:
                assert isinstance(outcome, Registered)
                assert isinstance(item, Registration)
                assert outcome.message.message_id == item.message_id
                assert outcome.new is (index != 9)
        assert outcomes[5] is broken
        assert rows(path, "SELECT count(*) FROM messages") == [(len(items) - len(bad) - 1,)]
        assert queue.store._writer.commits == 3


@on_loop
async def test_a_chunk_of_bad_items_stores_nothing(path: Path) -> None:
    """If all items are bad, all are answered and nothing is committed."""
    async with opened(path) as queue:
        outcomes = await use_cases(queue).report([Report("", ENROUTE), Report("a\x00", ENROUTE)])
        assert [type(each) for each in outcomes] == [InvalidItem, InvalidItem]
        assert queue.store._writer.commits == 0
        assert await use_cases(queue).register([]) == []


@on_loop
async def test_unknown_messages_may_be_rejected(path: Path) -> None:
    """With `unknown_messages = "reject"` a report of an unknown message is 404, of a known one taken."""
    async with opened(path) as queue:
        use = use_cases(queue, register_unknown=False)
        await use.register([Registration("known")])
        outcomes = await use.report([Report("unknown", ENROUTE), Report("known", DELIVERED)])
        assert [type(each) for each in outcomes] == [NotFound, Reported]
        (late,) = await use.report([Report("known", UNDELIVERABLE)])
        assert isinstance(late, MessageFinal)


class FailingStore(SqliteStore):
    """A real store whose disk is full at the third chunk."""

    calls = 0

    def register(
        self,
        items: Sequence[Registration],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int] = NO_LIMITS,
        now_ms: int,
    ) -> asyncio.Future[list[Registered | DlrBufferError]]:
        """Register, or refuse the third time."""
        self.calls += 1
        if self.calls == 3:
            raise StorageFull("the disk is full")
        return super().register(
            items, default_validity_ms=default_validity_ms, max_waiting=max_waiting, now_ms=now_ms
        )


@on_loop
async def test_a_failure_in_the_middle_says_what_was_done(path: Path) -> None:
    """If the store fails in a later chunk, the outcomes so far come with the cause, and they are stored."""
    async with opened(path) as queue:
        queue.store.__class__ = FailingStore
        items = [Registration(f"m{n}") for n in range(4 * CHUNK)]
        with pytest.raises(Interrupted) as caught:
            await use_cases(queue).register(items)
        assert len(caught.value.done) == 2 * CHUNK
        assert isinstance(caught.value.cause, StorageFull)
        assert rows(path, "SELECT count(*) FROM messages") == [(2 * CHUNK,)]
        outcomes = await use_cases(queue).register(items)
        new = [each.new for each in outcomes if isinstance(each, Registered)]
        assert new == [False] * (2 * CHUNK) + [True] * (2 * CHUNK), "sent again, it is idempotent"


@on_loop
async def test_look_ups(path: Path) -> None:
    """A message or receipt that is not there is NotFound, a forbidden id is InvalidItem."""
    async with opened(path) as queue:
        use = use_cases(queue)
        await use.report([Report("m", DELIVERED)])
        assert (await use.message("m", None)).message.state is DELIVERED
        assert (await use.receipt(1)).receipt.message_id == "m"
        with pytest.raises(NotFound, match="'n'"):
            await use.message("n", None)
        with pytest.raises(NotFound, match="4711"):
            await use.receipt(4711)
        with pytest.raises(InvalidItem):
            await use.message("", None)
        assert use.counts().receipts["default"]["pending"] == 1
        assert (await use.oldest()).pending_ms == {"default": queue.clock.now_ms()}


@on_loop
async def test_steering_by_filter_in_chunks(path: Path) -> None:
    """A filter over several chunks is worked off whole, each row once, and a dry run counts the same."""
    async with opened(path) as queue:
        use = use_cases(queue)
        number = 2 * CHUNK + 50
        await use.report([Report(f"m{n}", DELIVERED) for n in range(number)])
        everything = ReceiptFilter()
        assert await use.steer_receipts(
            ReceiptAction.HOLD, everything, by="ada", dry_run=True
        ) == ActionCount(number)
        assert use.counts().receipts["default"]["held"] == 0
        in_flight = await queue.claim(limit=10)
        count = await use.steer_receipts(ReceiptAction.HOLD, everything, by="ada", dry_run=False)
        assert count == ActionCount(number - 10, 0, 10)
        held = ReceiptFilter(status=ReceiptStatus.HELD)
        assert await use.steer_receipts(ReceiptAction.RELEASE, held, by="ada", dry_run=False) == ActionCount(
            number - 10
        )
        assert await use.steer_receipts(
            ReceiptAction.RELEASE, everything, by="ada", dry_run=False
        ) == ActionCount(0, number - 10, 10)
        await queue.settle(acknowledged=in_flight)
        pending = ReceiptFilter(status=ReceiptStatus.PENDING)
        assert await use.steer_receipts(
            ReceiptAction.DELETE, pending, by="ada", dry_run=False
        ) == ActionCount(number - 10)
        assert use.counts().receipts["default"] == {
            "pending": 0,
            "held": 0,
            "acknowledged": 10,
            "superseded": 0,
            "dead": 0,
        }


@on_loop
async def test_steering_messages_by_filter(path: Path) -> None:
    """Messages are expired and deleted by filter in chunks, and by name with duplicates counted once."""
    async with opened(path) as queue:
        use = use_cases(queue)
        number = CHUNK + 20
        await use.register([Registration(f"m{n}") for n in range(number)])
        await use.report([Report("m0", DELIVERED)])
        waiting = MessageFilter(waiting=True)
        assert await use.steer_messages(MessageAction.EXPIRE, waiting, by="ada", dry_run=True) == ActionCount(
            number - 1
        )
        assert await use.steer_messages(
            MessageAction.EXPIRE, waiting, by="ada", dry_run=False
        ) == ActionCount(number - 1)
        assert use.counts().messages["default"]["expired"] == number - 1
        names = [MessageName("default", name) for name in ("m1", "m2", "m1", "never")]
        assert await use.steer_messages(MessageAction.DELETE, names, by="ada", dry_run=False) == ActionCount(
            2, 1, 0
        )
        count = await use.steer_messages(MessageAction.DELETE, MessageFilter(), by="ada", dry_run=False)
        assert count == ActionCount(number - 2)
        assert rows(path, "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM receipts)") == [
            (0,)
        ]


@on_loop
async def test_named_receipts_count_once(path: Path) -> None:
    """An id named twice is changed and counted once, an unknown one is skipped."""
    async with opened(path) as queue:
        use = use_cases(queue)
        await use.report([Report("m", DELIVERED)])
        count = await use.steer_receipts(ReceiptAction.HOLD, [1, 1, 9, 1], by="ada", dry_run=False)
        assert count == ActionCount(1, 1, 0)
        page = await use.list_receipts(ReceiptFilter(waiting=True), after=0, limit=10)
        assert [each.status for each in page.items] == [ReceiptStatus.HELD]
        assert len((await use.list_messages(MessageFilter(), after=0, limit=10)).items) == 1


def test_errors_carry_their_facts() -> None:
    """What the local API needs of an error is an attribute of it, and the text says what to do."""
    assert Overloaded("too much", 3).retry_after_s == 3
    assert StorageFull("full").retry_after_s == 30
    assert MessageFinal("delivered").state == "delivered"
    assert "configured: none" in str(UnknownAccount("x", ()))
