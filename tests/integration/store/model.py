"""The rules of DESIGN §2 in plain Python: what a queue must hold after whatever was asked of it.

Dictionaries and lists, nothing else: no storage, no clock of its own, and none of the rules of
`dlr_buffer.messages` and `dlr_buffer.receipts` (only their records), so that one mistake can't hide in both.
Where the contract leaves the moment open (a receipt that was on the wire when the daemon was killed, and was
overtaken already), the model says that it is `lapsed` and takes either. What an answer of a store must be is in
`commands`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from dlr_buffer.clock import EARLIEST_MS
from dlr_buffer.errors import Conflict, DlrBufferError, MessageFinal, NotFound
from dlr_buffer.messages import Message, MessageState
from dlr_buffer.receipts import (
    Receipt,
    ReceiptAction,
    ReceiptError,
    ReceiptStatus,
    Registered,
    Reported,
)
from dlr_buffer.selection import ActionCount, MessageAction, MessageFilter, ReceiptFilter

FINAL: Final = frozenset(
    {MessageState.DELIVERED, MessageState.EXPIRED, MessageState.UNDELIVERABLE, MessageState.REJECTED}
)
PENDING, HELD = ReceiptStatus.PENDING, ReceiptStatus.HELD
ACKNOWLEDGED, SUPERSEDED, DEAD = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.SUPERSEDED, ReceiptStatus.DEAD
TAKES: Final = {
    ReceiptAction.HOLD: frozenset({PENDING}),
    ReceiptAction.RELEASE: frozenset({HELD}),
    ReceiptAction.RETRY: frozenset({DEAD, PENDING}),
    ReceiptAction.DELETE: frozenset({PENDING, HELD, DEAD}),
}
PAST: Final = {
    ReceiptAction.HOLD: "held",
    ReceiptAction.RELEASE: "released",
    ReceiptAction.RETRY: "retried",
}

Name = tuple[str, str]
"""Account and message_id."""
Outcome = Registered | Reported | DlrBufferError


@dataclass(slots=True, kw_only=True)
class KeptReceipt:
    """A receipt; times in wall milliseconds."""

    request_id: int
    name: Name
    state: MessageState
    created_at: int
    counted_since: int
    status: ReceiptStatus = PENDING
    attempts: int = 0
    unwritten: int = 0
    """How many of the attempts a restart may forget: an outage rewrites no receipt (DESIGN §4)."""
    refusals: int = 0
    next_attempt_at: int | None = None
    settled_at: int | None = None
    response_id: str | None = None
    error: ReceiptError | None = None
    in_flight: bool = False
    overtaken: bool = False
    """A newer one came while it was in flight: on anything but an acknowledgement it is superseded."""
    lapsed: bool = False
    """It was overtaken in flight when the daemon ended: it is superseded, or will be before it could be sent."""
    notes: tuple[str, ...] = ()
    """What happened to it out of the ordinary, oldest first."""

    def shown(self) -> Receipt:
        """As a look-up or a list shows it."""
        return Receipt(
            self.request_id,
            *self.name,
            self.state,
            self.status,
            self.attempts,
            self.refusals,
            self.created_at,
            self.next_attempt_at,
            self.settled_at if self.status is ACKNOWLEDGED else None,
            self.response_id,
            self.error,
            self.in_flight,
        )

    def history(self) -> tuple[str, ...]:
        """The events that a look-up shows."""
        return ("created", *self.notes, *((self.status.value,) if self.settled_at is not None else ()))


@dataclass(slots=True, kw_only=True)
class KeptMessage:
    """A message; times in wall milliseconds."""

    name: Name
    number: int
    """In which order messages came."""
    registered_at: int
    expires_at: int
    implicit: bool
    """Only a report has registered it."""
    state: MessageState | None = None
    finalized_at: int | None = None
    bereft_since: int | None = None
    """Since when it is final without the receipt that told it, which an admin deleted."""

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self.state in FINAL

    def shown(self) -> Message:
        """As a look-up or a list shows it."""
        return Message(*self.name, self.state, self.registered_at, self.expires_at, self.finalized_at)


@dataclass(slots=True)
class Model:
    """A queue as it must be."""

    messages: dict[Name, KeptMessage] = field(default_factory=dict)
    receipts: dict[int, KeptReceipt] = field(default_factory=dict)
    """By request_id, ascending."""
    passed: set[int] = field(default_factory=set)
    """Fresh ones that a claim left out on demand, or that were returned apart.

    Another claim may pass them over until they are returned without that, or replayed.
    """
    next_request_id: int = 1
    next_number: int = 1

    def copy(self) -> Model:
        """Another one that can be changed without this one."""
        return Model(
            {name: replace(message) for name, message in self.messages.items()},
            {request_id: replace(receipt) for request_id, receipt in self.receipts.items()},
            set(self.passed),
            self.next_request_id,
            self.next_number,
        )

    # What apps say

    def register(
        self, name: Name, *, validity_ms: int | None, default_validity_ms: int, now: int
    ) -> Registered | DlrBufferError:
        """An app accepted a message."""
        message = self.messages.get(name)
        if message is None:
            message = self._new_message(name, validity_ms or default_validity_ms, now, implicit=False)
            return Registered(message.shown(), new=True)
        if message.final or (validity_ms is None and not message.implicit):
            return Registered(message.shown(), new=False)
        if message.implicit:
            message.implicit = False
            if validity_ms is not None:
                message.expires_at = message.registered_at + validity_ms
        elif message.expires_at - message.registered_at != validity_ms:
            return Conflict("another validity period")
        return Registered(message.shown(), new=False)

    def report(
        self,
        name: Name,
        state: MessageState,
        *,
        default_validity_ms: int,
        may_register: bool,
        now: int,
    ) -> Reported | DlrBufferError:
        """An app says in which state a message is."""
        message = self.messages.get(name)
        if message is None:
            if not may_register:
                return NotFound("never registered")
            message = self._new_message(name, default_validity_ms, now, implicit=True)
        if message.state is state:
            return Reported(message.shown(), None)
        if message.state is not None and message.final:
            return MessageFinal(message.state.value)
        receipt = self._change(message, state, now)
        return Reported(message.shown(), receipt.shown())

    # What the flusher does

    def of(self, name: Name) -> list[KeptReceipt]:
        """The receipts of a message, oldest first."""
        return [each for each in self.receipts.values() if each.name == name]

    def sendable(self, account: str) -> list[KeptReceipt]:
        """What may go on the wire as far as order is concerned, oldest first."""
        busy = {each.name for each in self.receipts.values() if each.in_flight}
        return [
            each
            for each in self.receipts.values()
            if each.name[0] == account
            and each.status is PENDING
            and not each.lapsed
            and each.name not in busy
        ]

    def in_flight(self, account: str) -> list[int]:
        """What is on the wire, by request_id."""
        return [id_ for id_, each in self.receipts.items() if each.in_flight and each.name[0] == account]

    def acknowledge(self, request_id: int, response_id: str | None, now: int) -> None:
        """Smartswitch answered ok."""
        receipt = self._landed(request_id)
        receipt.attempts, receipt.unwritten = receipt.attempts + 1, 0
        receipt.status, receipt.settled_at = ACKNOWLEDGED, now
        receipt.next_attempt_at, receipt.error, receipt.response_id = None, None, response_id

    def refuse(
        self,
        request_id: int,
        error: ReceiptError,
        *,
        max_refusals: int,
        lifetime_ms: int,
        backoff_ms: Callable[[int], int],
        now: int,
    ) -> ReceiptStatus:
        """The receipt itself is to blame."""
        receipt = self._landed(request_id)
        receipt.attempts, receipt.unwritten = receipt.attempts + 1, 0
        if receipt.refusals == 0:
            receipt.counted_since = now
        receipt.refusals += 1
        receipt.error = error
        receipt.notes += ("refused",)
        receipt.next_attempt_at = None
        if receipt.overtaken:
            self._supersede(receipt, now)
        elif receipt.refusals >= max_refusals or now - receipt.counted_since >= lifetime_ms:
            receipt.status, receipt.settled_at = DEAD, now
        else:
            receipt.next_attempt_at = now + backoff_ms(receipt.refusals)
        return receipt.status

    def give_back(self, request_id: int, *, sent: bool, apart: bool, now: int) -> ReceiptStatus:
        """Nobody is to blame, or it was never sent."""
        receipt = self._landed(request_id)
        receipt.attempts += sent
        receipt.unwritten += sent
        if receipt.overtaken:
            self._supersede(receipt, now)
        if apart:
            self.passed.add(request_id)
        else:
            self.passed.discard(request_id)
        return receipt.status

    def start_over(self, account: str) -> None:
        """Claims of this account pass nothing over any more."""
        self.passed = {
            each for each in self.passed & self.receipts.keys() if self.receipts[each].name[0] != account
        }

    def lose_claims(self, request_ids: Iterable[int]) -> None:
        """Claims are lost while the daemon runs; what becomes of them is asked of nobody any more."""
        for request_id in request_ids:
            receipt = self.receipts[request_id]
            self.passed.discard(request_id)
            receipt.lapsed = receipt.in_flight and receipt.overtaken and self._newer(receipt)
            receipt.in_flight = receipt.overtaken = False

    def is_in_flight(self, request_id: int) -> bool:
        """Whether a settlement of this receipt is awaited."""
        receipt = self.receipts.get(request_id)
        return receipt is not None and receipt.in_flight

    def restart(self) -> None:
        """The daemon ended, this way or that, and began again: nothing is on the wire any more."""
        self.passed.clear()
        for receipt in self.receipts.values():
            receipt.attempts, receipt.unwritten = receipt.attempts - receipt.unwritten, 0
            # One whose newer sibling an admin has deleted meanwhile has nothing durable that says so: it is
            # sent again.
            if receipt.in_flight and receipt.overtaken and self._newer(receipt):
                receipt.lapsed = True
            receipt.in_flight = receipt.overtaken = False

    def lapse(self, request_id: int, now: int) -> None:
        """A lapsed receipt was seen to be superseded."""
        self._supersede(self.receipts[request_id], now)

    # What time does

    def overdue(self, now: int) -> list[KeptMessage]:
        """Messages whose validity period is over, in the order in which they expire."""
        due = [each for each in self.messages.values() if not each.final and each.expires_at <= now]
        return sorted(due, key=lambda each: (each.expires_at, each.number))

    def expire(self, message: KeptMessage, now: int) -> KeptReceipt:
        """A message's time is over; returns the receipt that tells it."""
        return self._change(message, MessageState.EXPIRED, now)

    def in_question(self, *, at_least: int, at_most: int, passing_over_since: int) -> list[KeptMessage]:
        """The newest messages from the first of those that all bear a time between these two on."""
        first: int | None = None
        newest_first = sorted(self.messages.values(), key=lambda each: -each.number)
        for place, message in enumerate(newest_first):
            if at_least <= message.registered_at <= at_most:
                first = place
            elif first is not None or message.registered_at < passing_over_since:
                break
        return [] if first is None else newest_first[: first + 1]

    def redate(self, messages: Iterable[KeptMessage], *, right_since: int, now: int) -> None:
        """Those that wait were registered now, but those that bear a time which can be right."""
        for message in messages:
            if not message.final and not right_since <= message.registered_at <= now:
                message.expires_at += now - message.registered_at
                message.registered_at = now

    def purge(
        self, request_ids: Iterable[int], *, settled_before: int, dead_before: int, now: int
    ) -> tuple[int, int, int]:
        """Remove those whose retention is over, and messages with their last one.

        The retention of what was settled by a clock that was plainly wrong begins now. Returns how many settled
        ones, dead ones and messages are gone.
        """
        counted = [0, 0, 0]
        for request_id in sorted(request_ids):
            receipt = self.receipts.get(request_id)
            if receipt is None or not over(receipt, settled_before, dead_before):
                continue
            if (receipt.settled_at or 0) < EARLIEST_MS:
                receipt.settled_at = now
                continue
            if self.of(receipt.name)[0] is not receipt:
                continue  # what is left of a message stays in one piece
            del self.receipts[request_id]
            counted[receipt.status is DEAD] += 1
            message = self.messages[receipt.name]
            if self.of(receipt.name) or not message.final:
                continue
            if receipt.state is message.state:
                del self.messages[receipt.name]
                counted[2] += 1
            else:
                finalized_at = message.finalized_at or 0
                message.bereft_since = finalized_at if finalized_at >= EARLIEST_MS else now
        return counted[0], counted[1], counted[2]

    def purge_bereft(self, before: int) -> int:
        """Remove messages that are only kept because an admin deleted their last receipt."""
        gone = [
            name
            for name, each in self.messages.items()
            if each.bereft_since is not None and each.bereft_since < before
        ]
        for name in gone:
            del self.messages[name]
        return len(gone)

    # What admins do

    def steer_receipts(
        self, action: ReceiptAction, request_ids: Sequence[int], now: int, *, dry_run: bool = False
    ) -> ActionCount:
        """Retry, hold, release or delete."""
        changed = in_flight = 0
        taken = []
        for request_id in request_ids:
            receipt = self.receipts.get(request_id)
            if receipt is None:
                continue
            in_flight += receipt.in_flight
            if not receipt.in_flight and receipt.status in TAKES[action]:
                changed += 1
                taken.append(receipt)
        if not dry_run:
            for receipt in taken:
                self._steer(action, receipt, now)
        return ActionCount(changed, len(request_ids) - changed - in_flight, in_flight)

    def steer_messages(
        self, action: MessageAction, names: Sequence[Name], now: int, *, dry_run: bool = False
    ) -> ActionCount:
        """Expire or delete."""
        known = [self.messages[name] for name in names if name in self.messages]
        match action:
            case MessageAction.EXPIRE:
                taken = [message for message in known if not message.final]
                in_flight = 0
            case MessageAction.DELETE:
                taken = [
                    each for each in known if not any(receipt.in_flight for receipt in self.of(each.name))
                ]
                in_flight = len(known) - len(taken)
            case _:
                assert_never(action)
        if not dry_run:
            for message in taken:
                if action is MessageAction.EXPIRE:
                    self.expire(message, now).notes += ("expired",)
                else:
                    self._delete_message(message)
        return ActionCount(len(taken), len(names) - len(taken) - in_flight, in_flight)

    # What is shown

    def shown_messages(self, narrow: MessageFilter) -> list[Message]:
        """A list of messages."""
        return [
            each.shown()
            for each in self.messages.values()
            if narrow.account in (None, each.name[0])
            and narrow.message_id in (None, each.name[1])
            and narrow.state in (None, each.state)
            and narrow.waiting in (None, not each.final)
            and (narrow.before_ms is None or each.registered_at < narrow.before_ms)
            and (narrow.after_ms is None or each.registered_at > narrow.after_ms)
        ]

    def shown_receipts(self, narrow: ReceiptFilter) -> list[Receipt]:
        """A list of receipts."""
        return [
            each.shown()
            for each in self.receipts.values()
            if narrow.account in (None, each.name[0])
            and narrow.message_id in (None, each.name[1])
            and narrow.state in (None, each.state)
            and narrow.status in (None, each.status)
            and narrow.waiting in (None, each.status in (PENDING, HELD))
            and (narrow.before_ms is None or each.created_at < narrow.before_ms)
            and (narrow.after_ms is None or each.created_at > narrow.after_ms)
            and (
                narrow.error_code is None or (each.error is not None and each.error.code == narrow.error_code)
            )
        ]

    # Steps of the above

    def _new_message(self, name: Name, validity_ms: int, now: int, *, implicit: bool) -> KeptMessage:
        message = KeptMessage(
            name=name,
            number=self.next_number,
            registered_at=now,
            expires_at=now + validity_ms,
            implicit=implicit,
        )
        self.next_number += 1
        self.messages[name] = message
        return message

    def _change(self, message: KeptMessage, state: MessageState, now: int) -> KeptReceipt:
        """Take a new state on: the receipt that tells it comes, older intermediate ones become pointless."""
        for older in self.of(message.name):
            if older.state in FINAL or older.lapsed:
                continue
            if older.in_flight:
                older.overtaken = True
            elif older.status in (PENDING, HELD):
                self._supersede(older, now)
        receipt = KeptReceipt(
            request_id=self.next_request_id, name=message.name, state=state, created_at=now, counted_since=now
        )
        self.next_request_id += 1
        self.receipts[receipt.request_id] = receipt
        message.state = state
        if state in FINAL:
            message.finalized_at = now
        return receipt

    def _landed(self, request_id: int) -> KeptReceipt:
        receipt = self.receipts[request_id]
        assert receipt.in_flight
        receipt.in_flight = False
        return receipt

    def _supersede(self, receipt: KeptReceipt, now: int) -> None:
        receipt.status, receipt.settled_at, receipt.next_attempt_at = SUPERSEDED, now, None
        receipt.unwritten, receipt.overtaken, receipt.lapsed = 0, False, False

    def _newer(self, receipt: KeptReceipt) -> bool:
        return self.of(receipt.name)[-1] is not receipt

    def _steer(self, action: ReceiptAction, receipt: KeptReceipt, now: int) -> None:
        fresh = receipt.status is not DEAD and receipt.next_attempt_at is None
        match action:
            case ReceiptAction.DELETE:
                self._delete_receipt(receipt, now)
                return
            case _ if receipt.lapsed:
                receipt.notes += (PAST[action],)
                self._supersede(receipt, now)
                return
            case ReceiptAction.HOLD:
                receipt.status = HELD
            case ReceiptAction.RELEASE | ReceiptAction.RETRY:
                receipt.status, receipt.counted_since = PENDING, now
                if action is ReceiptAction.RETRY:
                    receipt.refusals = 0
                self.passed.discard(receipt.request_id)
            case _:
                assert_never(action)
        replayed = action is ReceiptAction.RETRY and not fresh
        receipt.next_attempt_at, receipt.settled_at = now if replayed else None, None
        receipt.notes += (PAST[action],)
        if receipt.state not in FINAL and self._newer(receipt):
            self._supersede(receipt, now)

    def _delete_receipt(self, receipt: KeptReceipt, now: int) -> None:
        siblings = self.of(receipt.name)
        del self.receipts[receipt.request_id]
        if siblings[-1] is receipt:
            for older in siblings:
                if older.lapsed:
                    self._supersede(older, now)
        message = self.messages[receipt.name]
        if message.final and not self.of(receipt.name):
            message.bereft_since = now

    def _delete_message(self, message: KeptMessage) -> None:
        for receipt in self.of(message.name):
            del self.receipts[receipt.request_id]
        del self.messages[message.name]


def over(receipt: KeptReceipt, settled_before: int, dead_before: int) -> bool:
    """Whether a receipt's retention is over; what waits has none."""
    if receipt.settled_at is None:
        return False
    return receipt.settled_at < (dead_before if receipt.status is DEAD else settled_before)
