"""Reporting states: many at once, each as if alone, and what that does to the receipts before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import bindparam, insert, update

from dlr_buffer.errors import DlrBufferError, MessageFinal, NotFound, StorageFull
from dlr_buffer.messages import MessageState, Verdict, judge_report
from dlr_buffer.receipts import Receipt, ReceiptStatus, Reported
from dlr_buffer.storage import schema
from dlr_buffer.storage.prepared import Prepared
from dlr_buffer.storage.registering import (
    WaitingLimits,
    insert_messages,
    known_by_account,
    public_message,
)
from dlr_buffer.storage.transaction import MessageRow, Row, Transaction, require_rows

_FRESH_COLUMNS = (
    "request_id",
    "message",
    "account_id",
    "state",
    "status",
    "attempts",
    "refusals",
    "created_at",
    "counted_since",
    "settled_at",
    "previous_id",
)
INSERT_RECEIPTS = Prepared(insert(schema.receipts).values({name: bindparam(name) for name in _FRESH_COLUMNS}))
# The first final state wins: a row that has one is out of reach.
CHANGE_STATE = Prepared(
    update(schema.messages)
    .where(
        schema.messages.c.id == bindparam("b_id"),
        schema.messages.c.state < schema.FIRST_FINAL,
    )
    .values(
        state=bindparam("b_state"),
        changed_at=bindparam("b_now"),
        receipt_id=bindparam("b_receipt_id"),
    )
)


class ReportItem(msgspec.Struct, frozen=True, gc=False):
    """One report with everything resolved; times and periods in milliseconds."""

    account: str
    account_id: int
    message_id: str
    state: MessageState
    may_register: bool
    no_room: StorageFull | None
    """Why nothing may be registered now, though it otherwise might."""
    default_validity_ms: int
    now: int
    max_waiting: int = 0
    """As a registration's."""


def new_receipt(row: MessageRow, request_id: int, state: int, now: int) -> Row:
    """Columns of a fresh receipt that follows the newest one of its message."""
    return {
        "request_id": request_id,
        "message": row.id,
        "account_id": row.account_id,
        "state": state,
        "status": schema.PENDING,
        "attempts": 0,
        "refusals": 0,
        "created_at": now,
        "counted_since": now,
        "settled_at": None,
        "previous_id": row.receipt_id if row.receipt_id > 0 else None,
    }


@dataclass(slots=True)
class _Gathered:
    """What a run of reports comes to, before it is written."""

    tx: Transaction
    known: dict[tuple[int, str], MessageRow]
    limits: WaitingLimits
    registered: dict[int, MessageRow] = field(default_factory=dict)
    changed: dict[int, MessageRow] = field(default_factory=dict)
    before: dict[int, int] = field(default_factory=dict)
    receipts: dict[int, Row] = field(default_factory=dict)
    newer_of: dict[int, int] = field(default_factory=dict)

    def message(self, item: ReportItem) -> MessageRow | DlrBufferError:
        """The message that is reported on; an unknown one is registered if it may be, else this is the reason."""
        row = self.known.get((item.account_id, item.message_id))
        if row is None:
            if not item.may_register:
                return NotFound(
                    f"message {item.message_id!r} was never registered for account {item.account!r};"
                    " register it first"
                )
            if item.no_room is not None:
                return item.no_room
            if item.max_waiting and (
                full := self.limits.take(item.account, item.account_id, item.max_waiting)
            ):
                return full
            row = MessageRow(
                id=self.tx.take_message(),
                account_id=item.account_id,
                message_id=item.message_id,
                state=schema.WAITING,
                implicit=1,
                registered_at=item.now,
                expires_at=item.now + item.default_validity_ms,
                changed_at=item.now,
                receipt_id=0,
            )
            self.tx.expect_expiry_at(row.expires_at)
            self.known[item.account_id, item.message_id] = self.registered[row.id] = row
        return row

    def accept(self, item: ReportItem, row: MessageRow) -> Receipt:
        """Take a new state on, with the receipt that tells it."""
        request_id = self.tx.take_request_id()
        code = schema.STATE_CODES[item.state]
        self.receipts[request_id] = new_receipt(row, request_id, code, item.now)
        if row.receipt_id in self.receipts:
            # superseded by a neighbour in the same transaction: it never waits
            self.receipts[row.receipt_id].update(status=schema.SUPERSEDED, settled_at=item.now)
            self.tx.events["superseded"] += 1
        elif row.receipt_id > 0:
            self.newer_of[row.receipt_id] = request_id
        if row.id not in self.registered:
            self.before.setdefault(row.id, row.state)
            self.changed[row.id] = row
        if item.max_waiting and code >= schema.FIRST_FINAL:
            self.limits.leave(item.account_id)
        row.state, row.changed_at, row.receipt_id = code, item.now, request_id
        return Receipt(
            request_id, item.account, item.message_id, item.state, ReceiptStatus.PENDING, 0, 0, item.now
        )

    def write(self, now: int) -> None:
        """Write all of it."""
        tx = self.tx
        if self.registered:
            insert_messages(tx, list(self.registered.values()))
        change_states(tx, list(self.changed.values()), self.before)
        tx.supersede(self.newer_of, now)
        add_receipts(tx, list(self.receipts.values()))
        tx.events["reported"] += len(self.receipts)


def report(tx: Transaction, items: Sequence[ReportItem]) -> list[Reported | DlrBufferError]:
    """Report in order; the outcome of each item depends only on the queue and on the items before it."""
    gathered = _Gathered(
        tx,
        known_by_account(tx.connection, [(item.account_id, item.message_id) for item in items]),
        WaitingLimits(tx),
    )
    outcomes: list[Reported | DlrBufferError] = []
    for item in items:
        row = gathered.message(item)
        if isinstance(row, DlrBufferError):
            outcomes.append(row)
            continue
        current = schema.STATES.get(row.state)
        match judge_report(current, item.state):
            case Verdict.REPEATED:
                outcomes.append(Reported(public_message(item.account, row), None))
            case Verdict.CONFLICTING:
                tx.events["late_reports"] += 1
                outcomes.append(MessageFinal(str(current)))
            case Verdict.NEW:
                receipt = gathered.accept(item, row)
                outcomes.append(Reported(public_message(item.account, row), receipt))
    gathered.write(items[-1].now if items else 0)
    return outcomes


def change_states(tx: Transaction, rows: Sequence[MessageRow], before: dict[int, int]) -> None:
    """Write the new state of messages that had none that is final; ``before`` has the old codes."""
    if not rows:
        return
    done = CHANGE_STATE.run_many(
        tx.connection,
        [
            {
                "b_id": row.id,
                "b_state": row.state,
                "b_now": row.changed_at,
                "b_receipt_id": row.receipt_id,
            }
            for row in rows
        ],
    )
    require_rows(done, len(rows), "changing states")
    for row in rows:
        tx.move_message(row.account_id, before[row.id], row.state)


def add_receipts(tx: Transaction, rows: Sequence[Row]) -> None:
    """Insert receipts and count them."""
    if not rows:
        return
    INSERT_RECEIPTS.run_many(tx.connection, rows)
    for row in rows:
        tx.move_receipts(row["account_id"], None, row["status"])
        if row["status"] == schema.PENDING:
            tx.fresh[row["account_id"]] += 1
