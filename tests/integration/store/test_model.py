"""The model itself, where a mistake in it would let a mistake of a database pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dlr_buffer.errors import Conflict, MessageFinal, NotFound
from dlr_buffer.messages import Message, MessageState
from dlr_buffer.receipts import Receipt, ReceiptAction, ReceiptError, ReceiptStatus
from dlr_buffer.selection import ActionCount, MessageAction
from tests.integration.store.commands import Ground, SteerReceipts
from tests.integration.store.ledger import Doing, Ledger
from tests.integration.store.machine import explained
from tests.integration.store.model import KeptReceipt, Model

M = ("default", "m")
WRONG = ReceiptError("wrong", "Wrong", "")
ENROUTE, ACCEPTED, DELIVERED = MessageState.ENROUTE, MessageState.ACCEPTED, MessageState.DELIVERED
DAY = 86_400_000
T = 1_800_000_000_000


def report(model: Model, state: MessageState, now: int = 0) -> KeptReceipt:
    """Report a new state; returns its receipt."""
    model.report(M, state, default_validity_ms=3 * DAY, may_register=True, now=now)
    return model.of(M)[-1]


def refuse(model: Model, receipt: KeptReceipt, now: int) -> ReceiptStatus:
    """Send a receipt and have it refused: three refusals or a day."""
    receipt.in_flight = True
    return model.refuse(
        receipt.request_id, WRONG, max_refusals=3, lifetime_ms=DAY, backoff_ms=lambda n: n * 1_000, now=now
    )


def test_states_of_a_message() -> None:
    """A, B, A are three receipts, the same again is none, and after a final state nothing is news."""
    model = Model()
    for state in (ENROUTE, ACCEPTED, ENROUTE, ENROUTE, DELIVERED, DELIVERED):
        report(model, state)
    assert [each.state for each in model.of(M)] == [ENROUTE, ACCEPTED, ENROUTE, DELIVERED]
    assert [each.status.value for each in model.of(M)] == ["superseded"] * 3 + ["pending"]
    late = model.report(M, MessageState.REJECTED, default_validity_ms=1, may_register=True, now=1)
    assert isinstance(late, MessageFinal)
    unknown = model.report(("default", "x"), ENROUTE, default_validity_ms=1, may_register=False, now=1)
    assert isinstance(unknown, NotFound)


def test_validity_periods() -> None:
    """The first registration after a report adopts its own, from the first contact; then another one conflicts."""
    model = Model()
    report(model, ENROUTE, now=100)
    model.register(M, validity_ms=5_000, default_validity_ms=1, now=200)
    assert model.messages[M].expires_at == 5_100
    assert isinstance(model.register(M, validity_ms=6_000, default_validity_ms=1, now=300), Conflict)
    assert not isinstance(model.register(M, validity_ms=None, default_validity_ms=1, now=300), Conflict)
    report(model, DELIVERED)
    assert not isinstance(model.register(M, validity_ms=6_000, default_validity_ms=1, now=300), Conflict)


def test_the_life_of_a_refused_receipt() -> None:
    """It lives from its first refusal, not at all while held, and anew after a release or a retry."""
    model = Model()
    receipt = report(model, DELIVERED)
    assert refuse(model, receipt, now=5 * DAY) is ReceiptStatus.PENDING
    assert receipt.next_attempt_at == 5 * DAY + 1_000
    model.steer_receipts(ReceiptAction.HOLD, [1], 5 * DAY)
    model.steer_receipts(ReceiptAction.RELEASE, [1], 9 * DAY)
    assert refuse(model, receipt, now=10 * DAY - 1) is ReceiptStatus.PENDING
    assert refuse(model, receipt, now=10 * DAY - 1) is ReceiptStatus.DEAD
    model.steer_receipts(ReceiptAction.RETRY, [1], 11 * DAY)
    assert (receipt.refusals, receipt.status) == (0, ReceiptStatus.PENDING)
    assert refuse(model, receipt, now=20 * DAY) is ReceiptStatus.PENDING
    assert refuse(model, receipt, now=21 * DAY) is ReceiptStatus.DEAD


@pytest.mark.parametrize("deleted", [False, True])
def test_a_restart_after_being_overtaken(deleted: bool) -> None:  # noqa: FBT001
    """What was overtaken on the wire lapses with a kill, unless nothing newer is left to say so."""
    model = Model()
    old = report(model, ENROUTE)
    old.in_flight = True
    new = report(model, ACCEPTED)
    assert [each.request_id for each in model.sendable("default")] == []
    if deleted:
        model.steer_receipts(ReceiptAction.DELETE, [new.request_id], 1)
    model.restart()
    assert old.lapsed is not deleted
    assert [each.request_id for each in model.sendable("default")] == ([1] if deleted else [2])


def test_retention_keeps_what_waits_and_what_was_deleted() -> None:
    """Oldest first; never what waits; a message whose final receipt was deleted until its own time is over."""
    model = Model()
    old = report(model, ENROUTE)
    old.in_flight = True
    model.acknowledge(1, None, T + 1)
    final = report(model, DELIVERED, now=T + 50)
    assert model.purge([1, 2], settled_before=T + 1, dead_before=T + 1, now=T + 99) == (0, 0, 0)
    model.steer_receipts(ReceiptAction.DELETE, [final.request_id], T + 60)
    assert model.purge([1, 2], settled_before=T + 10, dead_before=T + 10, now=T + 99) == (1, 0, 0)
    assert model.purge_bereft(T + 50) == 0
    assert model.purge_bereft(T + 51) == 1
    assert not model.messages


def test_retention_after_a_clock_that_was_wrong() -> None:
    """What was settled in 1970 is kept from the first look on."""
    model = Model()
    old = report(model, DELIVERED, now=50)
    old.in_flight = True
    model.acknowledge(1, None, 60)
    assert model.purge([1], settled_before=T, dead_before=T, now=T + 7) == (0, 0, 0)
    assert model.purge([1], settled_before=T + 7, dead_before=T + 7, now=T + 14) == (0, 0, 0)
    assert model.purge([1], settled_before=T + 8, dead_before=T + 8, now=T + 15) == (1, 0, 1)


def test_counts_of_actions() -> None:
    """Each row is changed, skipped or in flight; a dry run changes none."""
    model = Model()
    receipt = report(model, DELIVERED)
    assert model.steer_receipts(ReceiptAction.HOLD, [1, 9], 1, dry_run=True) == ActionCount(1, 1, 0)
    assert receipt.status is ReceiptStatus.PENDING
    receipt.in_flight = True
    assert model.steer_receipts(ReceiptAction.HOLD, [1], 1) == ActionCount(0, 0, 1)
    assert model.steer_messages(MessageAction.DELETE, [M], 1) == ActionCount(0, 0, 1)
    assert model.steer_messages(MessageAction.EXPIRE, [M], 1) == ActionCount(0, 1, 0)


def test_orders_are_searched() -> None:
    """Of two commands only the order that explains both answers is found; an answer that none explains is refused."""
    model = Model()
    report(model, DELIVERED)
    ground = cast(Ground, SimpleNamespace(now=1))
    hold, release = SteerReceipts(ReceiptAction.HOLD, (1,)), SteerReceipts(ReceiptAction.RELEASE, (1,))
    yes, no = ActionCount(1, 0, 0), ActionCount(0, 1, 0)
    (after,) = explained(model, ground, [(release, yes), (hold, yes)])
    assert after.receipts[1].status is ReceiptStatus.PENDING
    (after,) = explained(model, ground, [(release, no), (hold, yes)])
    assert after.receipts[1].status is ReceiptStatus.HELD
    assert not list(explained(model, ground, [(release, no), (hold, no)]))
    assert model.receipts[1].status is ReceiptStatus.PENDING


def seen(**changes: Any) -> tuple[list[Message], list[Receipt]]:  # noqa: ANN401 - fields of Receipt
    """A queue with one final message and its receipt."""
    fields: dict[str, Any] = {
        "request_id": 1, "account": "default", "message_id": "m", "message_state": DELIVERED,
        "status": ReceiptStatus.PENDING, "attempts": 1, "refusals": 0, "created_at_ms": 5,
    }  # fmt: skip
    return [Message("default", "m", DELIVERED, 5, 9, 5)], [Receipt(**(fields | changes))]


@pytest.mark.parametrize(
    ("after", "doing"),
    [
        (([], []), Doing.NOTHING_SPECIAL),
        (([], []), Doing.PURGING),
        ((seen()[0], []), Doing.PURGING),
        (([Message("default", "m", MessageState.REJECTED, 5, 9, 6)], seen()[1]), Doing.NOTHING_SPECIAL),
        (seen(created_at_ms=6), Doing.NOTHING_SPECIAL),
        (seen(attempts=0), Doing.NOTHING_SPECIAL),
        (seen(status=ReceiptStatus.SUPERSEDED), Doing.NOTHING_SPECIAL),
        (seen(status=ReceiptStatus.DEAD), Doing.NOTHING_SPECIAL),
        (([], seen()[1]), Doing.DELETING_MESSAGES),
    ],
)
def test_the_ledger_notices(after: tuple[list[Message], list[Receipt]], doing: Doing) -> None:
    """Lost, purged while it waits, another final state, a changed id, forgotten attempts, a pointless final one."""
    ledger = Ledger()
    ledger.observe(*seen(), Doing.NOTHING_SPECIAL)
    ledger.observe(*seen(), Doing.NOTHING_SPECIAL)
    with pytest.raises(AssertionError):
        ledger.observe(*after, doing)


def test_the_ledger_knows_what_was_sent() -> None:
    """Nothing is handed out twice, nor after a confirmed final state; an id is never used again."""
    ledger = Ledger()
    ledger.observe(*seen(in_flight=True), Doing.NOTHING_SPECIAL)
    with pytest.raises(AssertionError, match="twice"):
        ledger.claimed([1])
    ledger.observe(*seen(status=ReceiptStatus.ACKNOWLEDGED), Doing.NOTHING_SPECIAL)
    messages, receipts = seen(status=ReceiptStatus.ACKNOWLEDGED)
    ledger.observe(messages, [*receipts, *seen(request_id=2)[1]], Doing.NOTHING_SPECIAL)
    with pytest.raises(AssertionError, match="final"):
        ledger.claimed([2])
    ledger.observe([], [], Doing.DELETING_MESSAGES)
    with pytest.raises(AssertionError, match="again"):
        ledger.observe(*seen(), Doing.NOTHING_SPECIAL)
