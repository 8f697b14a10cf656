"""Receipts: what Smartswitch has to be told, and the life of one such telling.

Records, statuses and the pure rules of a receipt (DESIGN §2: superseding, refusals, dead letters, admin
actions). Where receipts are kept is storage's; when they are sent is the flusher's.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import assert_never

import msgspec

from dlr_buffer.messages import Message, MessageState


class ReceiptStatus(StrEnum):
    """What has become of a receipt (DESIGN §2)."""

    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    SUPERSEDED = "superseded"
    HELD = "held"
    DEAD = "dead"


class ReceiptError(msgspec.Struct, frozen=True, gc=False):
    """Why Smartswitch (or we) refused a receipt: its code, title and detail, as received."""

    code: str
    title: str
    detail: str


class HistoryEntry(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened to a receipt out of the ordinary, at wall time ``at_ms``."""

    at_ms: int
    event: str
    detail: str


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """One state of one message that Smartswitch has to be told; times are wall milliseconds.

    ``request_id`` is the id sent upstream, the same over every retry. ``next_attempt_at_ms`` is None unless
    the receipt waits out a refusal of its own, or an admin replays it (then it is the time of that).
    """

    request_id: int
    account: str
    message_id: str
    message_state: MessageState
    status: ReceiptStatus
    attempts: int
    refusals: int
    created_at_ms: int
    next_attempt_at_ms: int | None = None
    acknowledged_at_ms: int | None = None
    response_id: str | None = None
    error: ReceiptError | None = None
    in_flight: bool = False


class Acknowledged(msgspec.Struct, frozen=True, gc=False):
    """Smartswitch answered ok for ``request_id``; ``response_id`` is its own id of the answer."""

    request_id: int
    response_id: str | None


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The blame for a failure lies with the receipt itself, by evidence (DESIGN §4), and counts."""

    request_id: int
    error: ReceiptError


class AfterRefusal(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a refused receipt: its new status, and when it may be tried again if it is pending."""

    status: ReceiptStatus
    next_attempt_at_ms: int | None


def after_refusal(  # noqa: PLR0913 - the facts of one decision, all by name
    *,
    refusals: int,
    max_refusals: int,
    counted_since_ms: int,
    lifetime_ms: int,
    now_ms: int,
    backoff_ms: int,
) -> AfterRefusal:
    """Decide between another try and a dead letter.

    ``refusals`` includes the one just counted; ``counted_since_ms`` is when the lifetime began (its first
    refusal, or the last retry or release). Age alone never kills: this is only asked after a refusal.
    """
    if refusals >= max_refusals or now_ms - counted_since_ms >= lifetime_ms:
        return AfterRefusal(ReceiptStatus.DEAD, None)
    return AfterRefusal(ReceiptStatus.PENDING, now_ms + backoff_ms)


class ReceiptAction(StrEnum):
    """What an admin can do with receipts (DESIGN §2)."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    DELETE = "delete"


def takes(action: ReceiptAction, status: ReceiptStatus) -> bool:
    """Whether ``action`` applies to a receipt in ``status``; any other row is skipped and counted as such."""
    match action:
        case ReceiptAction.RETRY:
            return status in (ReceiptStatus.DEAD, ReceiptStatus.PENDING)
        case ReceiptAction.HOLD:
            return status is ReceiptStatus.PENDING
        case ReceiptAction.RELEASE:
            return status is ReceiptStatus.HELD
        case ReceiptAction.DELETE:
            return status in (
                ReceiptStatus.PENDING,
                ReceiptStatus.HELD,
                ReceiptStatus.DEAD,
            )
        case _:
            assert_never(action)


class ReceiptView(msgspec.Struct, frozen=True):
    """A receipt with what happened to it, oldest first."""

    receipt: Receipt
    history: tuple[HistoryEntry, ...]


class MessageView(msgspec.Struct, frozen=True):
    """A message with its receipts, oldest first."""

    message: Message
    receipts: tuple[ReceiptView, ...]


class Registered(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a registration; ``new`` is False if the message was registered already."""

    message: Message
    new: bool


class Reported(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a report: the message as it is now, and the new receipt (None.

    The state was known already).
    """

    message: Message
    receipt: Receipt | None


class QueueCounts(msgspec.Struct, frozen=True):
    """Rows by account: messages by state (``waiting`` where none is reported), receipts by status."""

    messages: dict[str, dict[str, int]]
    receipts: dict[str, dict[str, int]]


class QueueOldest(msgspec.Struct, frozen=True):
    """By account, when its oldest pending receipt was created and its oldest waiting message registered.

    ``waiting_ms`` may lag by a minute: it is looked for in small steps.
    """

    pending_ms: dict[str, int]
    waiting_ms: dict[str, int]


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A receipt taken for the wire; ``counted_since_ms`` changes when an admin replays it."""

    receipt: Receipt
    counted_since_ms: int


class Cut(msgspec.Struct, frozen=True):
    """How many of some waiting receipts, in order, make a batch now.

    With ``take`` 0 the batch stays open, and closes at wall time ``ready_at_ms`` at the latest.
    """

    take: int
    ready_at_ms: int | None = None


class Claim(msgspec.Struct, frozen=True):
    """What was claimed; if nothing, the wall time when a batch that still lingers will be ready."""

    claimed: tuple[Claimed, ...]
    ready_at_ms: int | None


class DueClaim(msgspec.Struct, frozen=True):
    """The receipt that was due; if none, the wall time when the next one will be."""

    claimed: Claimed | None
    next_due_at_ms: int | None
    company: tuple[Claimed, ...] = ()
    """Others that may go with it in one request: an admin replays them all, and nothing is held against any."""


class Settled(msgspec.Struct, frozen=True):
    """What settling changed: receipts acknowledged, to be tried again after a refusal, dead, superseded."""

    acknowledged: int
    refused: int
    dead: int
    superseded: int


class RefusalPolicy(msgspec.Struct, frozen=True):
    """When a refused receipt is tried again and when it is given up; durations in milliseconds."""

    max_refusals: int
    lifetime_ms: int
    backoff_ms: Callable[[int], int]
    """From the number of refusals to the wait before the next try."""
