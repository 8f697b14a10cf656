"""The use cases of the queue: what an app or an admin can ask, in the words of the contract.

Items are validated and accounts resolved here, bulk work is cut into chunks that let others in between, and
the rest is the Store's. HTTP, JSON and who may ask live in `dlr_buffer.local_api`; sending lives in
`dlr_buffer.flusher`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from dlr_buffer.clock import Clock
from dlr_buffer.errors import DlrBufferError, InvalidItem, NotFound, UnknownAccount
from dlr_buffer.messages import (
    Message,
    Registration,
    Report,
    check_message_id,
    check_validity_period,
)
from dlr_buffer.receipt_queue.store import Store
from dlr_buffer.receipts import (
    MessageView,
    QueueCounts,
    QueueOldest,
    Receipt,
    ReceiptAction,
    ReceiptView,
    Registered,
    Reported,
)
from dlr_buffer.selection import (
    ActionCount,
    MessageAction,
    MessageFilter,
    MessageName,
    Page,
    ReceiptFilter,
)

CHUNK = 1000
"""Items per transaction of a bulk request: small enough for single requests to slip in between."""

_Item = TypeVar("_Item", Registration, Report)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What the use cases need of the configuration."""

    accounts: frozenset[str]
    default_validity_ms: int
    register_unknown: bool
    max_waiting: Mapping[str, int] = field(default_factory=dict)
    """By account, most messages without a final state; an account that is left out has no limit."""


@dataclass(slots=True)
class Interrupted(Exception):
    """A bulk request broke off in the middle.

    ``done`` are the results so far (committed), ``cause`` is why: the store failed, or nobody waits any longer (then
    the chunk in work may be carried out all the same).
    """

    done: Sequence[Registered | Reported | DlrBufferError]
    cause: DlrBufferError | asyncio.CancelledError


@dataclass(slots=True)
class ActionInterrupted(Exception):
    """An admin's action broke off in the middle: ``done`` is committed, ``cause`` is why it broke off."""

    done: ActionCount
    cause: BaseException


class ReceiptQueue:
    """The queue as apps and admins see it; raises the errors of `dlr_buffer.errors`."""

    def __init__(self, store: Store, clock: Clock, settings: QueueSettings) -> None:
        """Work on ``store``; ``settings`` can be replaced at a reload."""
        self._store = store
        self._clock = clock
        self.settings = settings

    def resolve_account(self, account: str | None) -> str:
        """Return the account that is meant (DESIGN §5): the named one, else the only one, else ``default``.

        Raises UnknownAccount. A name without configuration but with rows in the database is known.
        """
        configured = self.settings.accounts
        if account is not None:
            if account in configured or account in self._store.accounts():
                return account
        elif len(configured) == 1:
            return next(iter(configured))
        elif "default" in configured:
            return "default"
        raise UnknownAccount(account, tuple(sorted(configured)))

    async def register(
        self, items: Sequence[Registration | DlrBufferError]
    ) -> list[Registered | DlrBufferError]:
        """Register many, in order, each as if sent singly; an item that is an error already stays one.

        Raises Interrupted if the store fails, or the caller is cancelled, in the middle.
        """

        def store(chunk: Sequence[Registration]) -> Awaitable[Sequence[Registered | DlrBufferError]]:
            return self._store.register(
                chunk,
                default_validity_ms=self.settings.default_validity_ms,
                max_waiting=self.settings.max_waiting,
                now_ms=self._clock.now_ms(),
            )

        return await self._in_chunks(items, self._checked_registration, store)

    def register_one(self, item: Registration, then: Callable[[Registered | DlrBufferError], None]) -> None:
        """Register one message; ``then`` is called once with what became of it, unless this raises.

        Raises InvalidItem, UnknownAccount, or what the store raises.
        """
        self._store.register_one(
            self._checked_registration(item),
            then,
            default_validity_ms=self.settings.default_validity_ms,
            max_waiting=self.settings.max_waiting,
            now_ms=self._clock.now_ms(),
        )

    def report_one(self, item: Report, then: Callable[[Reported | DlrBufferError], None]) -> None:
        """Report one state; as `register_one`."""
        self._store.report_one(
            self._checked_report(item),
            then,
            default_validity_ms=self.settings.default_validity_ms,
            register_in=self._registered_by_reports(),
            max_waiting=self.settings.max_waiting,
            now_ms=self._clock.now_ms(),
        )

    async def report(self, items: Sequence[Report | DlrBufferError]) -> list[Reported | DlrBufferError]:
        """Report many states, in order, each as if sent singly.

        Raises Interrupted if the store fails, or the caller is cancelled, in the middle.
        """

        def store(chunk: Sequence[Report]) -> Awaitable[Sequence[Reported | DlrBufferError]]:
            return self._store.report(
                chunk,
                default_validity_ms=self.settings.default_validity_ms,
                register_in=self._registered_by_reports(),
                max_waiting=self.settings.max_waiting,
                now_ms=self._clock.now_ms(),
            )

        return await self._in_chunks(items, self._checked_report, store)

    async def message(self, message_id: str, account: str | None) -> MessageView:
        """One message with its receipts; raises NotFound, UnknownAccount or InvalidItem."""
        check_message_id(message_id)
        name = MessageName(self.resolve_account(account), message_id)
        if (view := await self._store.message(name)) is None:
            raise NotFound(f"no message {message_id!r} is in the queue for account {name.account!r}")
        return view

    async def receipt(self, request_id: int) -> ReceiptView:
        """One receipt with its history; raises NotFound."""
        if (view := await self._store.receipt(request_id)) is None:
            raise NotFound(f"no receipt with request_id {request_id} is in the queue")
        return view

    async def list_messages(self, narrow: MessageFilter, *, after: int, limit: int) -> Page[Message]:
        """One page of messages."""
        return await self._store.list_messages(narrow, after=after, limit=limit)

    async def list_receipts(self, narrow: ReceiptFilter, *, after: int, limit: int) -> Page[Receipt]:
        """One page of receipts."""
        return await self._store.list_receipts(narrow, after=after, limit=limit)

    async def steer_receipts(
        self,
        action: ReceiptAction,
        selected: Sequence[int] | ReceiptFilter,
        *,
        by: str,
        dry_run: bool,
    ) -> ActionCount:
        """Apply ``action`` to the receipts named or filtered, in chunks; ``dry_run`` only counts.

        ``by`` is who asks for it, for the history. Raises ActionInterrupted if it breaks off.
        """

        async def apply(request_ids: Sequence[int]) -> ActionCount:
            return await self._store.steer_receipts(
                action, request_ids, by=by, now_ms=self._clock.now_ms(), dry_run=dry_run
            )

        if not isinstance(selected, ReceiptFilter):
            return await _steer_named(list(dict.fromkeys(selected)), apply)
        narrow = selected
        return await _steer_filtered(
            lambda after: self._store.select_receipts(narrow, after=after, limit=CHUNK),
            apply,
        )

    async def steer_messages(
        self,
        action: MessageAction,
        selected: Sequence[MessageName] | MessageFilter,
        *,
        by: str,
        dry_run: bool,
    ) -> ActionCount:
        """Apply ``action`` to the messages named or filtered, in chunks; as `steer_receipts`."""

        async def apply(names: Sequence[MessageName]) -> ActionCount:
            return await self._store.steer_messages(
                action, names, by=by, now_ms=self._clock.now_ms(), dry_run=dry_run
            )

        if not isinstance(selected, MessageFilter):
            return await _steer_named(list(dict.fromkeys(selected)), apply)
        narrow = selected
        return await _steer_filtered(
            lambda after: self._store.select_messages(narrow, after=after, limit=CHUNK),
            apply,
        )

    def counts(self) -> QueueCounts:
        """Counts by account, state and status as of the last commit."""
        return self._store.counts()

    async def oldest(self) -> QueueOldest:
        """Oldest unsettled rows by account."""
        return await self._store.oldest()

    def _registered_by_reports(self) -> frozenset[str]:
        """Accounts in which a report registers a message that nobody has registered."""
        return self.settings.accounts if self.settings.register_unknown else frozenset()

    def _checked_registration(self, item: Registration) -> Registration:
        check_message_id(item.message_id)
        check_validity_period(item.validity_period)
        if item.account in self.settings.accounts:
            return item
        account = self.resolve_account(item.account)
        if account not in self.settings.accounts:
            raise UnknownAccount(account, tuple(sorted(self.settings.accounts)))
        return msgspec.structs.replace(item, account=account)

    def _checked_report(self, item: Report) -> Report:
        check_message_id(item.message_id)
        if item.account in self.settings.accounts:
            return item
        return msgspec.structs.replace(item, account=self.resolve_account(item.account))

    async def _in_chunks(
        self,
        items: Sequence[_Item | DlrBufferError],
        check: Callable[[_Item], _Item],
        store: Callable[[Sequence[_Item]], Awaitable[Sequence[_Result | DlrBufferError]]],
    ) -> list[_Result | DlrBufferError]:
        results: list[_Result | DlrBufferError] = []
        for start in range(0, len(items), CHUNK):
            chunk: list[_Result | DlrBufferError | None] = []
            good: list[_Item] = []
            for item in items[start : start + CHUNK]:
                if isinstance(item, DlrBufferError):
                    chunk.append(item)
                    continue
                try:
                    good.append(check(item))
                except (InvalidItem, UnknownAccount) as error:
                    chunk.append(error)
                else:
                    chunk.append(None)
            if good:
                try:
                    stored = iter(await store(good))
                except (DlrBufferError, asyncio.CancelledError) as cause:
                    raise Interrupted(results, cause) from None  # type: ignore[arg-type]
                results.extend(next(stored) if result is None else result for result in chunk)
            else:
                results.extend(result for result in chunk if result is not None)
        return results


_Name = TypeVar("_Name", int, MessageName)


async def _steer_named(
    names: Sequence[_Name], apply: Callable[[Sequence[_Name]], Awaitable[ActionCount]]
) -> ActionCount:
    total = ActionCount()
    try:
        for start in range(0, len(names), CHUNK):
            total += await apply(names[start : start + CHUNK])
    except BaseException as cause:
        raise ActionInterrupted(total, cause) from cause
    return total


async def _steer_filtered(
    select: Callable[[int], Awaitable[tuple[list[_Name], int | None]]],
    apply: Callable[[Sequence[_Name]], Awaitable[ActionCount]],
) -> ActionCount:
    total = ActionCount()
    after: int | None = 0
    try:
        while after is not None:
            names, after = await select(after)
            if names:
                total += await apply(names)
    except BaseException as cause:
        raise ActionInterrupted(total, cause) from cause
    return total
