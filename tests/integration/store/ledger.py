"""The promises of DESIGN §3, watched from outside: only what the queue itself said, without the model.

Before and after every step the whole queue is read; a `Ledger` compares the two and remembers what was claimed
and acknowledged. It knows which kinds of step may do what, and nothing of how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Final

from dlr_buffer.messages import Message, MessageState
from dlr_buffer.receipts import Receipt, ReceiptStatus
from tests.integration.store.model import ACKNOWLEDGED, DEAD, FINAL, HELD, PENDING, SUPERSEDED, Name

MAY_BECOME: Final = {
    PENDING: frozenset(ReceiptStatus),
    HELD: frozenset({HELD, PENDING, SUPERSEDED}),
    DEAD: frozenset({DEAD, PENDING, SUPERSEDED}),
    ACKNOWLEDGED: frozenset({ACKNOWLEDGED}),
    SUPERSEDED: frozenset({SUPERSEDED}),
}


class Doing(Flag):
    """What a step may have done that is forbidden to all others."""

    NOTHING_SPECIAL = 0
    DELETING_RECEIPTS = auto()
    DELETING_MESSAGES = auto()
    PURGING = auto()
    REPLAYING = auto()
    """Retry or release."""
    RESTARTING = auto()
    REDATING = auto()
    SEVERAL = auto()
    """Several things at one moment, so that states between them were not seen."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The whole queue, as lists show it."""

    messages: dict[Name, Message] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Iterable[Message], receipts: Iterable[Receipt]) -> Seen:
        """By name and by request_id."""
        return cls(
            {(each.account, each.message_id): each for each in messages},
            {each.request_id: each for each in receipts},
        )


def _name(receipt: Receipt) -> Name:
    return receipt.account, receipt.message_id


@dataclass(slots=True)
class Ledger:
    """What the queue has said so far."""

    seen: Seen = field(default_factory=Seen)
    known: dict[int, tuple[Name, MessageState, int]] = field(default_factory=dict)
    """Every request_id that ever was: whose, what it tells, since when."""
    expired: Counter[Name] = field(default_factory=Counter)
    """Receipts that told of the expiry of a message that is there."""
    acknowledged: dict[Name, list[int]] = field(default_factory=dict)
    """What Smartswitch has confirmed of a message that is there, in order."""

    def claimed(self, request_ids: Iterable[int]) -> None:
        """The queue handed these out to be sent, at a moment when it was as it was seen last."""
        for request_id in request_ids:
            receipt = self.seen.receipts[request_id]
            assert receipt.status is PENDING
            assert not receipt.in_flight, "handed out twice"
            before = self.acknowledged.get(_name(receipt), [])
            assert all(each < request_id for each in before), "overtaken by a newer one"
            assert not any(self.known[each][1] in FINAL for each in before), "after the final state"

    def forget(self, name: Name) -> None:
        """A message was removed, and another one of its name came, before anyone could look."""
        self.expired.pop(name, None)
        self.acknowledged.pop(name, None)

    def observe(self, messages: Iterable[Message], receipts: Iterable[Receipt], doing: Doing) -> None:
        """The queue shows this now; hold it against what it showed before the step."""
        before, after = self.seen, Seen.of(messages, receipts)
        self._messages(before, after, doing)
        self._gone_receipts(before, after, doing)
        self._receipts(before, after, doing)
        in_flight = Counter(_name(each) for each in after.receipts.values() if each.in_flight)
        assert all(n == 1 for n in in_flight.values()), "two receipts of one message in flight"
        self.seen = after

    def _messages(self, before: Seen, after: Seen, doing: Doing) -> None:
        for name, old in before.messages.items():
            new = after.messages.get(name)
            redated = doing & Doing.REDATING and old.state not in FINAL
            if new is None or (new.registered_at_ms != old.registered_at_ms and not redated):
                assert doing & (Doing.DELETING_MESSAGES | Doing.PURGING), "a message is gone"
                if not doing & Doing.DELETING_MESSAGES:
                    assert old.state in FINAL, "retention removed a message that waits"
                self.forget(name)
                continue
            if old.state in FINAL and not doing & (Doing.DELETING_MESSAGES | Doing.PURGING):
                assert new == old, "the first final state wins"
            assert old.state is None or new.state is not None
        for new in after.messages.values():
            assert (new.state in FINAL) == (new.finalized_at_ms is not None)

    def _gone_receipts(self, before: Seen, after: Seen, doing: Doing) -> None:
        for request_id, old in before.receipts.items():
            if request_id in after.receipts:
                continue
            allowed: set[ReceiptStatus] = set()
            if doing & Doing.PURGING:
                allowed |= {ACKNOWLEDGED, SUPERSEDED, DEAD}
            if doing & Doing.DELETING_RECEIPTS:
                allowed |= {PENDING, HELD, DEAD}
            if doing & Doing.DELETING_MESSAGES and _name(old) not in after.messages:
                allowed |= set(ReceiptStatus)
            assert old.status in allowed, f"a receipt is gone: {old}"
            if old.status in (PENDING, HELD):
                assert doing & (Doing.DELETING_RECEIPTS | Doing.DELETING_MESSAGES), "lost"

    def _receipts(self, before: Seen, after: Seen, doing: Doing) -> None:
        highest = max(self.known, default=0)
        for request_id, new in after.receipts.items():
            identity = (_name(new), new.message_state, new.created_at_ms)
            assert _name(new) in after.messages, "a receipt without its message"
            if request_id not in before.receipts:
                assert request_id > highest, "a request_id was used again"
                self.known[request_id] = identity
                if new.message_state is MessageState.EXPIRED:
                    self.expired[_name(new)] += 1
                    assert self.expired[_name(new)] == 1, "expiry is told once"
                continue
            assert self.known[request_id] == identity, "a request_id means something else now"
            self._change(before.receipts[request_id], new, doing)

    def _change(self, old: Receipt, new: Receipt, doing: Doing) -> None:
        if not doing & Doing.SEVERAL or old.status in (ACKNOWLEDGED, SUPERSEDED):
            assert new.status in MAY_BECOME[old.status], f"{old.status} became {new.status}"
        if old.status in (HELD, DEAD) and new.status is PENDING:
            assert doing & Doing.REPLAYING
        if new.status is SUPERSEDED:
            assert new.message_state not in FINAL, "a final state is never pointless"
        if not doing & Doing.RESTARTING:
            assert new.attempts >= old.attempts, "attempts are never forgotten"
        if not doing & Doing.REPLAYING:
            assert new.refusals >= old.refusals
        if new.status is DEAD:
            assert new.error is not None, "a dead letter says why"
            assert new.refusals, "only refusals kill"
        if new.status is ACKNOWLEDGED and old.status is not ACKNOWLEDGED:
            self.acknowledged.setdefault(_name(new), []).append(new.request_id)
