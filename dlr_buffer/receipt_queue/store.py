"""What the receipt queue needs of a database: the Store protocol and the records that cross it.

Declared here, beside its consumer; `dlr_buffer.storage` fulfils it without importing this package's use
cases. Claiming and settling, which only the flusher needs, are declared beside the flusher.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from dlr_buffer.errors import DlrBufferError
from dlr_buffer.messages import Message, Registration, Report
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


class Store(Protocol):
    """A durable queue. Every method that changes something returns after commit and sync, or raises.

    All raise StoreUnavailable if the database fails, StorageFull if the disk is full, and Overloaded if too
    many changes wait already; after any of these nothing of the call is stored.
    """

    def register(
        self,
        items: Sequence[Registration],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> Awaitable[list[Registered | DlrBufferError]]:
        """Register in order, each item as if alone; the account of every item is filled in and known.

        A new message is Overloaded where ``max_waiting`` (by account) wait already. It is under way when this returns,
        awaited or not; may raise at once.
        """
        ...

    def report(
        self,
        items: Sequence[Report],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> Awaitable[list[Reported | DlrBufferError]]:
        """Report states in order; an unknown message is registered if its account is in ``register_in``.

        Else NotFound. ``max_waiting`` as in `register`. It is under way when this returns, awaited or not; may raise at
        once.
        """
        ...

    def register_one(
        self,
        item: Registration,
        then: Callable[[Registered | DlrBufferError], None],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> None:
        """As `register`, of one: ``then`` is called after commit and sync with what became of it, or with an error.

        It is called once, and later, unless this raises.
        """
        ...

    def report_one(  # noqa: PLR0913 - as `report`
        self,
        item: Report,
        then: Callable[[Reported | DlrBufferError], None],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
    ) -> None:
        """As `report`, of one; ``then`` as in `register_one`."""
        ...

    async def message(self, name: MessageName) -> MessageView | None:
        """Look up one message with its receipts, oldest first, and their history."""
        ...

    async def receipt(self, request_id: int) -> ReceiptView | None:
        """Look up one receipt with its history."""
        ...

    async def list_messages(self, narrow: MessageFilter, *, after: int, limit: int) -> Page[Message]:
        """One page of messages, ascending in an internal number greater than ``after``."""
        ...

    async def list_receipts(self, narrow: ReceiptFilter, *, after: int, limit: int) -> Page[Receipt]:
        """One page of receipts, ascending in request_id greater than ``after``."""
        ...

    async def select_messages(
        self, narrow: MessageFilter, *, after: int, limit: int
    ) -> tuple[list[MessageName], int | None]:
        """Names of the next messages of a filter, and where to go on (None at the end)."""
        ...

    async def select_receipts(
        self, narrow: ReceiptFilter, *, after: int, limit: int
    ) -> tuple[list[int], int | None]:
        """Ids of the next receipts of a filter, and where to go on (None at the end)."""
        ...

    async def steer_receipts(
        self,
        action: ReceiptAction,
        request_ids: Sequence[int],
        *,
        by: str,
        now_ms: int,
        dry_run: bool,
    ) -> ActionCount:
        """Apply an admin's action to these receipts in one transaction; unknown ids count as skipped.

        Each receipt's history tells ``by`` whom.
        """
        ...

    async def steer_messages(
        self,
        action: MessageAction,
        names: Sequence[MessageName],
        *,
        by: str,
        now_ms: int,
        dry_run: bool,
    ) -> ActionCount:
        """Expire or delete these messages in one transaction; unknown ones count as skipped.

        The history of each receipt that tells of an expiry tells ``by`` whom.
        """
        ...

    async def set_paused(self, account: str, *, paused: bool) -> None:
        """Remember durably whether an admin paused this account."""
        ...

    def accounts(self) -> tuple[str, ...]:
        """Every account that the database knows, configured or not."""
        ...

    def counts(self) -> QueueCounts:
        """Counts as of the last commit; costs no query."""
        ...

    async def oldest(self) -> QueueOldest:
        """When the oldest unsettled rows of each account came; a few index look-ups."""
        ...
