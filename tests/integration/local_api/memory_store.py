# ruff: noqa: D102 - the Store protocol says what these methods promise
"""An honest Store in memory: the rules of DESIGN §2 without a disk, for tests of the local API over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from dlr_buffer.errors import Conflict, DlrBufferError, MessageFinal, NotFound, Overloaded
from dlr_buffer.messages import (
    Message,
    MessageState,
    Registration,
    Report,
    Verdict,
    check_validity_period,
    judge_registration,
    judge_report,
)
from dlr_buffer.receipts import (
    HistoryEntry,
    MessageView,
    QueueCounts,
    QueueOldest,
    Receipt,
    ReceiptAction,
    ReceiptStatus,
    ReceiptView,
    Registered,
    Reported,
    takes,
)
from dlr_buffer.selection import (
    ActionCount,
    MessageAction,
    MessageFilter,
    MessageName,
    Page,
    ReceiptFilter,
)

T = TypeVar("T")

_UNSETTLED = (ReceiptStatus.PENDING, ReceiptStatus.HELD)


@dataclass(slots=True)
class _Row:
    number: int
    message: Message
    implicit: bool
    validity_ms: int


@dataclass(slots=True)
class MemoryStore:
    """Keeps everything in dictionaries.

    ``faults`` are raised by the next commands, one each (None: no fault), ``unreadable`` by every look-up of a message.
    A fault that no Store has raises at once where another is told.
    While ``gate`` is closed, commands that change something wait; ``entered`` says that one does.
    """

    rows: dict[MessageName, _Row] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    history: dict[int, list[HistoryEntry]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Exception | None] = field(default_factory=list)
    gate: asyncio.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    numbers: int = 0
    unreadable: DlrBufferError | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def _begin(self) -> None:
        if self.gate is not None:
            self.entered.set()
            await self.gate.wait()
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault

    async def register(
        self,
        items: Sequence[Registration],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> list[Registered | DlrBufferError]:
        await self._begin()
        return [self._register(item, default_validity_ms, max_waiting, now_ms) for item in items]

    def _register(
        self, item: Registration, default_ms: int, max_waiting: Mapping[str, int], now_ms: int
    ) -> Registered | DlrBufferError:
        assert item.account is not None
        name = MessageName(item.account, item.message_id)
        asked = check_validity_period(item.validity_period)
        if (row := self.rows.get(name)) is None:
            if (full := self._full(name.account, max_waiting)) is not None:
                return full
            row = self._add(name, asked or default_ms, now_ms, implicit=False)
            return Registered(row.message, new=True)
        final = row.message.state is not None and row.message.state.final
        match judge_registration(
            final=final, implicit=row.implicit, current_validity_ms=row.validity_ms, asked_validity_ms=asked
        ):
            case Verdict.CONFLICTING:
                return Conflict("it is registered with another validity period")
            case Verdict.NEW:
                row.implicit = False
                row.validity_ms = asked or row.validity_ms
                row.message = replace(
                    row.message, expires_at_ms=row.message.registered_at_ms + row.validity_ms
                )
            case Verdict.REPEATED:
                pass
        return Registered(row.message, new=False)

    def _full(self, account: str, max_waiting: Mapping[str, int]) -> Overloaded | None:
        waiting = sum(
            row.message.account == account and row.message.finalized_at_ms is None
            for row in self.rows.values()
        )
        limit = max_waiting.get(account, 0)
        return Overloaded(f"{waiting} wait already", 10) if limit and waiting >= limit else None

    def _add(self, name: MessageName, validity_ms: int, now_ms: int, *, implicit: bool) -> _Row:
        self.numbers += 1
        message = Message(name.account, name.message_id, None, now_ms, now_ms + validity_ms, None)
        self.rows[name] = row = _Row(self.numbers, message, implicit, validity_ms)
        return row

    def register_one(
        self,
        item: Registration,
        then: Callable[[Registered | DlrBufferError], None],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> None:
        self._answer_later(lambda: self._register(item, default_validity_ms, max_waiting, now_ms), then)

    def report_one(
        self,
        item: Report,
        then: Callable[[Reported | DlrBufferError], None],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> None:
        self._answer_later(
            lambda: self._report(item, default_validity_ms, register_in, max_waiting, now_ms), then
        )

    def _answer_later(self, change: Callable[[], T], then: Callable[[T | DlrBufferError], None]) -> None:
        if self.faults and not isinstance(self.faults[0], DlrBufferError | None):
            raise self.faults.pop(0) or AssertionError

        async def tell() -> None:
            try:
                await self._begin()
            except DlrBufferError as error:
                then(error)
            else:
                then(change())

        task = asyncio.get_running_loop().create_task(tell())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def report(
        self,
        items: Sequence[Report],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> list[Reported | DlrBufferError]:
        await self._begin()
        return [self._report(item, default_validity_ms, register_in, max_waiting, now_ms) for item in items]

    def _report(
        self,
        item: Report,
        default_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> Reported | DlrBufferError:
        assert item.account is not None
        name = MessageName(item.account, item.message_id)
        if (row := self.rows.get(name)) is None:
            if item.account not in register_in:
                return NotFound(f"no message {item.message_id!r} is registered")
            if (full := self._full(item.account, max_waiting)) is not None:
                return full
            row = self._add(name, default_ms, now_ms, implicit=True)
        match judge_report(row.message.state, item.message_state):
            case Verdict.REPEATED:
                return Reported(row.message, None)
            case Verdict.CONFLICTING:
                assert row.message.state is not None
                return MessageFinal(row.message.state)
            case Verdict.NEW:
                return self._tell(row, item.message_state, now_ms)

    def _tell(self, row: _Row, state: MessageState, now_ms: int) -> Reported:
        row.message = replace(row.message, state=state, finalized_at_ms=now_ms if state.final else None)
        message = row.message
        for receipt in self._receipts_of(message):
            if receipt.status in _UNSETTLED:
                self.receipts[receipt.request_id] = replace(receipt, status=ReceiptStatus.SUPERSEDED)
                self.history[receipt.request_id].append(HistoryEntry(now_ms, "superseded", f"by {state}"))
        request_id = len(self.history) + 1
        self.history[request_id] = []
        self.receipts[request_id] = receipt = Receipt(
            request_id, message.account, message.message_id, state, ReceiptStatus.PENDING, 0, 0, now_ms
        )
        return Reported(message, receipt)

    def _receipts_of(self, message: Message) -> list[Receipt]:
        return [
            receipt
            for receipt in self.receipts.values()
            if (receipt.account, receipt.message_id) == (message.account, message.message_id)
        ]

    async def message(self, name: MessageName) -> MessageView | None:
        if self.unreadable is not None:
            raise self.unreadable
        if (row := self.rows.get(name)) is None:
            return None
        views = tuple(self._view(receipt) for receipt in self._receipts_of(row.message))
        return MessageView(row.message, views)

    def _view(self, receipt: Receipt) -> ReceiptView:
        return ReceiptView(receipt, tuple(self.history[receipt.request_id]))

    async def receipt(self, request_id: int) -> ReceiptView | None:
        receipt = self.receipts.get(request_id)
        return None if receipt is None else self._view(receipt)

    async def list_messages(self, narrow: MessageFilter, *, after: int, limit: int) -> Page[Message]:
        found = [
            (row.number, row.message)
            for row in self.rows.values()
            if row.number > after and _fits_message(narrow, row.message)
        ]
        return _page(found, limit)

    async def list_receipts(self, narrow: ReceiptFilter, *, after: int, limit: int) -> Page[Receipt]:
        found = [
            (receipt.request_id, receipt)
            for receipt in self.receipts.values()
            if receipt.request_id > after and _fits_receipt(narrow, receipt)
        ]
        return _page(found, limit)

    async def select_messages(
        self, narrow: MessageFilter, *, after: int, limit: int
    ) -> tuple[list[MessageName], int | None]:
        page = await self.list_messages(narrow, after=after, limit=limit)
        return [MessageName(item.account, item.message_id) for item in page.items], page.next_after

    async def select_receipts(
        self, narrow: ReceiptFilter, *, after: int, limit: int
    ) -> tuple[list[int], int | None]:
        page = await self.list_receipts(narrow, after=after, limit=limit)
        return [item.request_id for item in page.items], page.next_after

    async def steer_receipts(
        self, action: ReceiptAction, request_ids: Sequence[int], *, by: str, now_ms: int, dry_run: bool
    ) -> ActionCount:
        await self._begin()
        changed = skipped = in_flight = 0
        for request_id in request_ids:
            receipt = self.receipts.get(request_id)
            if receipt is None or not takes(action, receipt.status):
                skipped += 1
            elif receipt.in_flight:
                in_flight += 1
            else:
                changed += 1
                if not dry_run:
                    self._steer(action, receipt, by, now_ms)
        return ActionCount(changed, skipped, in_flight)

    def _steer(self, action: ReceiptAction, receipt: Receipt, by: str, now_ms: int) -> None:
        self.history[receipt.request_id].append(HistoryEntry(now_ms, action, f"by {by}"))
        match action:
            case ReceiptAction.RETRY:
                receipt = replace(receipt, status=ReceiptStatus.PENDING, refusals=0)
            case ReceiptAction.HOLD:
                receipt = replace(receipt, status=ReceiptStatus.HELD)
            case ReceiptAction.RELEASE:
                receipt = replace(receipt, status=ReceiptStatus.PENDING)
            case ReceiptAction.DELETE:
                del self.receipts[receipt.request_id]
                return
        self.receipts[receipt.request_id] = receipt

    async def steer_messages(
        self, action: MessageAction, names: Sequence[MessageName], *, by: str, now_ms: int, dry_run: bool
    ) -> ActionCount:
        await self._begin()
        changed = skipped = 0
        for name in names:
            row = self.rows.get(name)
            final = row is not None and row.message.state is not None and row.message.state.final
            if row is None or (action is MessageAction.EXPIRE and final):
                skipped += 1
                continue
            changed += 1
            if dry_run:
                continue
            match action:
                case MessageAction.EXPIRE:
                    told = self._tell(row, MessageState.EXPIRED, now_ms)
                    assert told.receipt is not None
                    self.history[told.receipt.request_id].append(HistoryEntry(now_ms, "expired", f"by {by}"))
                case MessageAction.DELETE:
                    for receipt in self._receipts_of(row.message):
                        del self.receipts[receipt.request_id]
                    del self.rows[name]
        return ActionCount(changed, skipped, 0)

    async def set_paused(self, account: str, *, paused: bool) -> None:
        """Not asked for by the API itself."""
        raise NotImplementedError

    def accounts(self) -> tuple[str, ...]:
        return tuple(sorted({name.account for name in self.rows}))

    def counts(self) -> QueueCounts:
        messages: dict[str, Counter[str]] = defaultdict(Counter)
        receipts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows.values():
            messages[row.message.account][row.message.state or "waiting"] += 1
        for receipt in self.receipts.values():
            receipts[receipt.account][receipt.status] += 1
        return QueueCounts(
            {account: dict(counts) for account, counts in messages.items()},
            {account: dict(counts) for account, counts in receipts.items()},
        )

    async def oldest(self) -> QueueOldest:
        pending: dict[str, int] = {}
        waiting: dict[str, int] = {}
        for receipt in self.receipts.values():
            if receipt.status is ReceiptStatus.PENDING:
                pending.setdefault(receipt.account, receipt.created_at_ms)
        for row in self.rows.values():
            if row.message.finalized_at_ms is None:
                waiting.setdefault(row.message.account, row.message.registered_at_ms)
        return QueueOldest(pending, waiting)


def _page(found: list[tuple[int, T]], limit: int) -> Page[T]:
    found.sort(key=lambda pair: pair[0])
    items = tuple(item for _, item in found[:limit])
    return Page(items, found[limit - 1][0] if len(found) > limit else None)


def _fits_message(narrow: MessageFilter, message: Message) -> bool:
    return (
        narrow.account in {None, message.account}
        and narrow.message_id in {None, message.message_id}
        and narrow.state in {None, message.state}
        and narrow.waiting in {None, message.finalized_at_ms is None}
        and (narrow.before_ms is None or message.registered_at_ms < narrow.before_ms)
        and (narrow.after_ms is None or message.registered_at_ms > narrow.after_ms)
    )


def _fits_receipt(narrow: ReceiptFilter, receipt: Receipt) -> bool:
    return (
        narrow.account in {None, receipt.account}
        and narrow.message_id in {None, receipt.message_id}
        and narrow.state in {None, receipt.message_state}
        and narrow.status in {None, receipt.status}
        and narrow.waiting in {None, receipt.status in _UNSETTLED}
        and (narrow.before_ms is None or receipt.created_at_ms < narrow.before_ms)
        and (narrow.after_ms is None or receipt.created_at_ms > narrow.after_ms)
        and narrow.error_code in {None, receipt.error.code if receipt.error else None}
    )
