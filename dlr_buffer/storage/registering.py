"""Registering messages: many at once, each as if alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, bindparam, insert, update

from dlr_buffer.errors import Conflict, DlrBufferError, Overloaded
from dlr_buffer.messages import Message, Verdict, judge_registration
from dlr_buffer.receipts import Registered
from dlr_buffer.storage import schema
from dlr_buffer.storage.prepared import Prepared
from dlr_buffer.storage.transaction import (
    MessageRow,
    Transaction,
    known_messages,
    require_rows,
    tally,
)

_INSERT = Prepared(
    insert(schema.messages).values({name: bindparam(name) for name in MessageRow.__struct_fields__})
)
_ADOPT = Prepared(
    update(schema.messages)
    .where(
        schema.messages.c.id == bindparam("b_id"),
        schema.messages.c.state < schema.FIRST_FINAL,
    )
    .values(implicit=0, expires_at=bindparam("b_expires_at"))
)


WAITING_RETRY_AFTER_S: Final = 10
"""What an account that is full asks for: places come free as states are reported, not within a second."""


class RegisterItem(msgspec.Struct, frozen=True, gc=False):
    """One registration with everything resolved; times and periods in milliseconds."""

    account: str
    account_id: int
    message_id: str
    validity_ms: int | None
    default_validity_ms: int
    now: int
    max_waiting: int = 0
    """Most messages of the account without a final state; 0 is no limit."""


def public_message(account: str, row: MessageRow) -> Message:
    """Show a row as the rest of the program knows it."""
    return Message(
        account,
        row.message_id,
        schema.STATES.get(row.state),
        row.registered_at,
        row.expires_at,
        row.changed_at if row.state >= schema.FIRST_FINAL else None,
    )


def insert_messages(tx: Transaction, rows: Sequence[MessageRow]) -> None:
    """Insert messages, and count them."""
    _INSERT.run_rows(tx.connection, [msgspec.structs.astuple(row) for row in rows])
    for row in rows:
        tx.move_message(row.account_id, None, row.state)
    tx.events["registered"] += len(rows)


def known_by_account(
    connection: Connection, names: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], MessageRow]:
    """Look up messages of several accounts."""
    asked: dict[int, list[str]] = {}
    for account_id, message_id in names:
        asked.setdefault(account_id, []).append(message_id)
    return {
        (account_id, message_id): row
        for account_id, message_ids in asked.items()
        for message_id, row in known_messages(connection, account_id, message_ids).items()
    }


class WaitingLimits:
    """Holds accounts to their ``max_waiting`` within one transaction, counting what it does as it goes.

    Exact: all registrations come through the one writer, and each sees those before it. It is only asked for accounts
    that have a limit, so it costs the others nothing.
    """

    def __init__(self, tx: Transaction) -> None:
        """Count nothing yet."""
        self._tx = tx
        self._more: defaultdict[int, int] = tally()
        """Messages that wait, beyond what the transaction has counted already."""

    def take(self, account: str, account_id: int, limit: int) -> Overloaded | None:
        """Let one more message of an account wait; the error if there is no room for it."""
        waiting = self._tx.waiting(account_id) + self._more[account_id]
        if waiting >= limit:
            self._tx.events["refused_waiting"] += 1
            return Overloaded(
                f"{waiting} messages of the account {account!r} wait for their final state, and its max_waiting is"
                f" {limit}: no more are registered for it before states of others are reported",
                WAITING_RETRY_AFTER_S,
            )
        self._more[account_id] += 1
        return None

    def leave(self, account_id: int) -> None:
        """Note that one message of an account waits no more."""
        self._more[account_id] -= 1


def register(tx: Transaction, items: Sequence[RegisterItem]) -> list[Registered | DlrBufferError]:
    """Register in order; the outcome of each item depends only on the queue and on the items before it."""
    known = known_by_account(tx.connection, [(item.account_id, item.message_id) for item in items])
    new: list[MessageRow] = []
    adopted: dict[int, MessageRow] = {}
    outcomes: list[Registered | DlrBufferError] = []
    limits = WaitingLimits(tx)
    for item in items:
        row = known.get((item.account_id, item.message_id))
        if row is None:
            if item.max_waiting and (full := limits.take(item.account, item.account_id, item.max_waiting)):
                outcomes.append(full)
                continue
            validity = item.validity_ms if item.validity_ms is not None else item.default_validity_ms
            row = MessageRow(
                id=tx.take_message(),
                account_id=item.account_id,
                message_id=item.message_id,
                state=schema.WAITING,
                implicit=0,
                registered_at=item.now,
                expires_at=item.now + validity,
                changed_at=item.now,
                receipt_id=tx.no_receipt(),
            )
            tx.expect_expiry_at(row.expires_at)
            known[item.account_id, item.message_id] = row
            new.append(row)
            outcomes.append(Registered(public_message(item.account, row), new=True))
            continue
        current_ms = row.expires_at - row.registered_at
        match judge_registration(
            final=row.state >= schema.FIRST_FINAL,
            implicit=bool(row.implicit),
            current_validity_ms=current_ms,
            asked_validity_ms=item.validity_ms,
        ):
            case Verdict.CONFLICTING:
                outcomes.append(
                    Conflict(
                        f"the message is registered with a validity_period of {current_ms // 1000} seconds; register it"
                        " again with the same one, or leave it out"
                    )
                )
            case Verdict.NEW:
                row.implicit = 0
                if item.validity_ms is not None:
                    row.expires_at = row.registered_at + item.validity_ms
                    tx.expect_expiry_at(row.expires_at)
                adopted[row.id] = row
                outcomes.append(Registered(public_message(item.account, row), new=False))
            case Verdict.REPEATED:
                outcomes.append(Registered(public_message(item.account, row), new=False))
    if new:
        insert_messages(tx, new)
    if adopted:
        done = _ADOPT.run_many(
            tx.connection,
            [{"b_id": row.id, "b_expires_at": row.expires_at} for row in adopted.values()],
        )
        require_rows(done, len(adopted), "adopting a validity period")
    return outcomes
