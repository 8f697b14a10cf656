"""Which messages or receipts a list or an admin's action means.

Plain filters over the queue's fields, shared by lists, actions and their dry runs. How a filter becomes SQL
is storage's; how it is written in a query string is the local API's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptStatus

T = TypeVar("T")


class MessageFilter(msgspec.Struct, frozen=True):
    """Narrows messages; a field left None does not narrow.

    Bounds are wall times of ``registered_at`` (exclusive).

    ``waiting`` True means: no final state yet.
    """

    account: str | None = None
    message_id: str | None = None
    state: MessageState | None = None
    waiting: bool | None = None
    before_ms: int | None = None
    after_ms: int | None = None


class ReceiptFilter(msgspec.Struct, frozen=True):
    """Narrows receipts; a field left None does not narrow.

    Bounds are wall times of ``created_at`` (exclusive).

    ``waiting`` True means: still to be settled, that is pending or held.
    """

    account: str | None = None
    message_id: str | None = None
    state: MessageState | None = None
    status: ReceiptStatus | None = None
    waiting: bool | None = None
    before_ms: int | None = None
    after_ms: int | None = None
    error_code: str | None = None


class MessageName(msgspec.Struct, frozen=True):
    """The full name of one message."""

    account: str
    message_id: str


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list in ascending order of an internal number.

    ``next_after`` continues it, None at the end.
    """

    items: tuple[T, ...]
    next_after: int | None


class ActionCount(msgspec.Struct, frozen=True):
    """What an action did (or would do).

    Rows changed, rows skipped for their status, rows left as in flight.
    """

    changed: int = 0
    skipped: int = 0
    in_flight: int = 0

    def __add__(self, other: ActionCount) -> ActionCount:
        """Add up the parts of a chunked action."""
        return ActionCount(
            self.changed + other.changed,
            self.skipped + other.skipped,
            self.in_flight + other.in_flight,
        )


class MessageAction(StrEnum):
    """What an admin can do with messages (DESIGN §5)."""

    EXPIRE = "expire"
    DELETE = "delete"
