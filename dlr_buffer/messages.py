"""Messages: their states, what an app may say of them, and what each saying means.

The state machine of a message (DESIGN §2) lives here as pure functions over records: no clock, no storage.
What becomes of the *receipts* that a state change causes is in `dlr_buffer.receipts`.
"""

from __future__ import annotations

import re
from enum import Enum, StrEnum

import msgspec

from dlr_buffer.errors import InvalidItem

MAX_MESSAGE_ID_BYTES = 255
MIN_VALIDITY_MS = 1_000
MAX_VALIDITY_MS = 30 * 86_400_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class MessageState(StrEnum):
    """The seven states of the seed's ``message_state`` (SMPP 3.4 §5.2.28 uses the same words)."""

    ENROUTE = "enroute"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    UNDELIVERABLE = "undeliverable"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    REJECTED = "rejected"

    @property
    def final(self) -> bool:
        """Whether nothing can follow this state (DESIGN §2: four of the seven)."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {MessageState.DELIVERED, MessageState.EXPIRED, MessageState.UNDELIVERABLE, MessageState.REJECTED}
)


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An app says that it accepted a message.

    ``validity_period`` is in whole seconds, None for the default.
    """

    message_id: str
    account: str | None = None
    validity_period: int | None = None


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An app says in which state a message is now."""

    message_id: str
    message_state: MessageState
    account: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as the queue knows it.

    ``state`` is None until one is reported, times are wall milliseconds.
    """

    account: str
    message_id: str
    state: MessageState | None
    registered_at_ms: int
    expires_at_ms: int
    finalized_at_ms: int | None


class Verdict(Enum):
    """What a report or a registration means for a message that is known already."""

    NEW = "new"
    """It changes the message."""
    REPEATED = "repeated"
    """It says what is known: a success without effect."""
    CONFLICTING = "conflicting"
    """It contradicts what is known: 409."""


def judge_report(current: MessageState | None, reported: MessageState) -> Verdict:
    """Say what ``reported`` means for a message in state ``current``.

    The current state again is a success without a receipt; after a final state nothing else is believed; any
    other intermediate state is news, even one reported earlier (A, B, A are three receipts).
    """
    if current is reported:
        return Verdict.REPEATED
    if current is not None and current.final:
        return Verdict.CONFLICTING
    return Verdict.NEW


def judge_registration(
    *, final: bool, implicit: bool, current_validity_ms: int, asked_validity_ms: int | None
) -> Verdict:
    """Say what registering a known message again means.

    ``implicit`` is True while only a report has registered it: then the first explicit registration brings
    its own validity period (NEW: adopt it, counted from the first contact). Otherwise a different period is a
    conflict, unless the message is final, when it no longer matters.
    """
    if final or asked_validity_ms is None:
        return Verdict.NEW if implicit and not final else Verdict.REPEATED
    if implicit:
        return Verdict.NEW
    return Verdict.REPEATED if asked_validity_ms == current_validity_ms else Verdict.CONFLICTING


def check_message_id(message_id: str) -> None:
    """Raise InvalidItem unless ``message_id`` is 1 to 255 bytes of UTF-8 without control characters (DESIGN §5)."""
    if message_id.isascii() and message_id.isprintable() and 0 < len(message_id) <= MAX_MESSAGE_ID_BYTES:
        return
    if not message_id:
        raise InvalidItem("message_id is empty; send the id that you answered Smartswitch with")
    try:
        length = len(message_id.encode())
    except UnicodeEncodeError:
        raise InvalidItem("message_id holds half of a surrogate pair, which UTF-8 cannot carry") from None
    if length > MAX_MESSAGE_ID_BYTES:
        raise InvalidItem(f"message_id is {length} bytes long; at most {MAX_MESSAGE_ID_BYTES} are allowed")
    if found := _CONTROL.search(message_id):
        raise InvalidItem(f"message_id holds the control character U+{ord(found[0]):04X}; none is allowed")


def check_validity_period(seconds: int | None) -> int | None:
    """Return ``seconds`` in milliseconds; raise InvalidItem unless it is None or 1 s to 30 d (DESIGN §2)."""
    if seconds is None:
        return None
    milliseconds = seconds * 1000
    if not MIN_VALIDITY_MS <= milliseconds <= MAX_VALIDITY_MS:
        raise InvalidItem(
            f"validity_period is {seconds} seconds; it must be from 1 to {MAX_VALIDITY_MS // 1000} (30 days)"
        )
    return milliseconds
