"""What admins do to rows: retry, hold, release and delete receipts; expire and delete messages.

Pause accounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, assert_never

from sqlalchemy import Connection, bindparam, delete, select, update

from dlr_buffer.receipts import ReceiptAction, takes
from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.registering import known_by_account
from dlr_buffer.storage.sweeping import BEREAVE, expire_rows
from dlr_buffer.storage.transaction import (
    MessageRow,
    Row,
    Transaction,
    among,
    json_array,
    require_rows,
)

_RECEIPTS = (
    select(
        schema.receipts.c.request_id,
        schema.receipts.c.message,
        schema.receipts.c.account_id,
        schema.receipts.c.state,
        schema.receipts.c.status,
        schema.receipts.c.next_attempt_at,
        schema.receipts.c.previous_id,
        schema.messages.c.receipt_id,
        schema.messages.c.state.label("message_state"),
    )
    .join_from(
        schema.receipts,
        schema.messages,
        schema.messages.c.id == schema.receipts.c.message,
    )
    .where(among(schema.receipts.c.request_id, "request_ids"))
    .order_by(schema.receipts.c.request_id)
)
_CHANGE = (
    update(schema.receipts)
    .where(
        schema.receipts.c.request_id == bindparam("b_request_id"),
        schema.receipts.c.status == bindparam("b_from"),
    )
    .values(
        status=bindparam("b_status"),
        settled_at=bindparam("b_settled_at"),
        next_attempt_at=None,
    )
)
_RESTART = _CHANGE.values(counted_since=bindparam("b_now"))
# Replays are due at once like retries, not fresh: older than all that came since, they would go before it.
_RETRY = _RESTART.values(refusals=0, next_attempt_at=bindparam("b_next_attempt_at"))
_DELETE_RECEIPT = delete(schema.receipts).where(schema.receipts.c.request_id == bindparam("b_request_id"))
_DELETE_HISTORY = delete(schema.history).where(among(schema.history.c.request_id, "request_ids"))
_DELETE_MESSAGE = delete(schema.messages).where(schema.messages.c.id == bindparam("b_id"))
_DELETE_BEREFT = delete(schema.bereft).where(schema.bereft.c.message == bindparam("b_id"))
_POINT_MESSAGE = (
    update(schema.messages)
    .where(schema.messages.c.id == bindparam("b_id"))
    .values(receipt_id=bindparam("b_receipt_id"))
)
_POINT_RECEIPT = (
    update(schema.receipts)
    .where(schema.receipts.c.request_id == bindparam("b_request_id"))
    .values(previous_id=bindparam("b_previous_id"))
)
_LINK = select(
    schema.receipts.c.request_id,
    schema.receipts.c.previous_id,
    schema.receipts.c.status,
    schema.receipts.c.account_id,
).where(schema.receipts.c.request_id == bindparam("request_id"))
SET_PAUSED = (
    update(schema.accounts)
    .where(schema.accounts.c.id == bindparam("b_id"))
    .values(paused=bindparam("b_paused"))
)

Counted = tuple[int, int, int]
"""Rows changed, skipped, left as in flight."""


def chain(tx: Transaction, newest: int) -> list[Any]:
    """The receipts of a message from the newest back, as (request_id, previous_id, status.

    Account_id) rows.
    """
    rows: list[Any] = []
    at: int | None = newest
    while at is not None and at > 0:
        row = tx.connection.execute(_LINK, {"request_id": at}).first()
        if row is None:
            break
        rows.append(row)
        at = row.previous_id
    return rows


def choose_receipts(
    connection: Connection, claims: Claims, action: ReceiptAction, request_ids: Sequence[int]
) -> tuple[list[Any], Counted]:
    """Which rows an action takes: those it does not apply to are skipped, those in flight left alone."""
    rows = connection.execute(_RECEIPTS, {"request_ids": json_array(request_ids)}).all()
    in_flight = sum(row.request_id in claims for row in rows)
    taken = [
        row for row in rows if row.request_id not in claims and takes(action, schema.STATUSES[row.status])
    ]
    return taken, (len(taken), len(request_ids) - len(taken) - in_flight, in_flight)


def steer_receipts(
    tx: Transaction, action: ReceiptAction, request_ids: Sequence[int], *, by: str, now: int
) -> Counted:
    """Apply an action to the receipts that it takes; their history says ``by`` whom."""
    taken, counted = choose_receipts(tx.connection, tx.claims, action, request_ids)
    if not taken:
        return counted
    match action:
        case ReceiptAction.RETRY:
            _move(tx, taken, _RETRY, schema.PENDING, now, ("retried", by))
        case ReceiptAction.HOLD:
            _move(tx, taken, _CHANGE, schema.HELD, now, ("held", by))
        case ReceiptAction.RELEASE:
            _move(tx, taken, _RESTART, schema.PENDING, now, ("released", by))
        case ReceiptAction.DELETE:
            _delete_receipts(tx, taken, now)
        case _:
            assert_never(action)
    tx.events[f"admin_{action.value}"] += len(taken)
    return counted


def _overtaken(row: Any) -> bool:  # noqa: ANN401 - a row of SQLAlchemy's
    """Whether a newer receipt of the message makes this one pointless."""
    return bool(row.receipt_id != row.request_id and row.state < schema.FIRST_FINAL)


def _move(  # noqa: PLR0913 - one private step of three actions
    tx: Transaction,
    rows: Sequence[Any],
    statement: Any,  # noqa: ANN401 - an UPDATE of SQLAlchemy's
    target: int,
    now: int,
    happened: tuple[str, str],
) -> None:
    """Bring these into status ``target``; one that is overtaken becomes superseded instead.

    ``happened`` is what their history says of it: the event, and by whom.
    """
    event, by = happened
    # Pending still: it was on the wire when it was overtaken, and the daemon was killed before it came back.
    left_behind = {row.request_id for row in rows if _overtaken(row) and row.status != schema.DEAD}
    tx.mark_superseded(
        [(row.request_id, row.account_id, row.status) for row in rows if row.request_id in left_behind], now
    )
    changes: list[Row] = []
    for row in rows:
        was = schema.STATUSES[row.status].value
        tx.note(row.request_id, now, event, f"by {by}; it was {was}")
        if row.request_id in left_behind:
            continue
        status = schema.SUPERSEDED if _overtaken(row) else target
        settled = status not in (schema.PENDING, schema.HELD)
        fresh = row.status == schema.PENDING and row.next_attempt_at is None
        changes.append(
            {
                "b_request_id": row.request_id,
                "b_from": row.status,
                "b_status": status,
                "b_settled_at": now if settled else None,
                "b_now": now,
                "b_next_attempt_at": None if settled or fresh else now,
            }
        )
        tx.move_receipts(row.account_id, row.status, status)
        tx.events["superseded"] += status == schema.SUPERSEDED
        if status == schema.PENDING:
            tx.fresh[row.account_id] += 1
            tx.replayed.setdefault(row.account_id, []).append(row.request_id)
            _reconsider_later(tx, row.account_id, row.request_id)
            tx.effects.append(partial(tx.claims.delayed, row.account_id))
    if changes:
        done = tx.connection.execute(statement, changes)
        require_rows(done.rowcount, len(changes), event)


def _reconsider_later(tx: Transaction, account_id: int, request_id: int) -> None:
    tx.effects.append(lambda: tx.claims.reconsider(account_id, request_id))


def _delete_receipts(tx: Transaction, rows: Iterable[Any], now: int) -> None:
    by_message: dict[int, list[Any]] = {}
    for row in rows:
        by_message.setdefault(row.message, []).append(row)
    for message, doomed in by_message.items():
        gone = {row.request_id for row in doomed}
        first = doomed[0]
        links = chain(tx, first.receipt_id)
        kept = [link for link in links if link.request_id not in gone]
        _remove_receipts(tx, [(row.request_id, row.account_id, row.status) for row in doomed])
        # What a kill left behind overtaken would be taken for the newest, and sent.
        left_behind = [
            (link.request_id, link.account_id, link.status)
            for link in kept
            if link.request_id != first.receipt_id
            and link.status in (schema.PENDING, schema.HELD)
            and link.request_id not in tx.claims
        ]
        tx.mark_superseded(left_behind, now)
        newest = kept[0].request_id if kept else tx.no_receipt()
        if newest != first.receipt_id:
            tx.connection.execute(_POINT_MESSAGE, {"b_id": message, "b_receipt_id": newest})
        for link, older in zip_longest(kept, kept[1:]):
            previous = older.request_id if older is not None else None
            if link.previous_id != previous and link.previous_id in gone:
                tx.connection.execute(
                    _POINT_RECEIPT,
                    {"b_request_id": link.request_id, "b_previous_id": previous},
                )
        if not kept and first.message_state >= schema.FIRST_FINAL:
            tx.connection.execute(BEREAVE, {"message": message, "since": now})


def _remove_receipts(tx: Transaction, rows: Sequence[tuple[int, int, int]]) -> None:
    if not rows:
        return
    request_ids = [row[0] for row in rows]
    tx.connection.execute(_DELETE_RECEIPT, [{"b_request_id": each} for each in request_ids])
    tx.connection.execute(_DELETE_HISTORY, {"request_ids": json_array(request_ids)})
    for _, account_id, status in rows:
        tx.move_receipts(account_id, status, None)
    tx.effects.append(lambda: tx.claims.forget_attempts(request_ids))


def choose_messages(
    connection: Connection, claims: Claims, names: Sequence[tuple[int, str]], *, delete_them: bool
) -> tuple[list[MessageRow], Counted]:
    """Which messages can be deleted (none with a receipt in flight).

    Or else expired (those without final state).
    """
    rows = list(known_by_account(connection, names).values())
    if not delete_them:
        taken = [row for row in rows if row.state < schema.FIRST_FINAL]
        return taken, (len(taken), len(names) - len(taken), 0)
    taken = [row for row in rows if not claims.busy(row.id)]
    return taken, (len(taken), len(names) - len(rows), len(rows) - len(taken))


def steer_messages(
    tx: Transaction, names: Sequence[tuple[int, str]], *, delete_them: bool, by: str, now: int
) -> Counted:
    """Expire or delete the messages that can be; the history of an expiry says ``by`` whom."""
    taken, counted = choose_messages(tx.connection, tx.claims, names, delete_them=delete_them)
    if not delete_them:
        expire_rows(tx, taken, now, by=by)
        return counted
    for row in taken:
        links = chain(tx, row.receipt_id)
        delete_message(tx, row, [(link.request_id, link.account_id, link.status) for link in links])
    tx.events["admin_delete_messages"] += len(taken)
    return counted


def delete_message(tx: Transaction, row: MessageRow, receipts: Sequence[tuple[int, int, int]]) -> None:
    """Remove a message with these receipts (all that it has)."""
    _remove_receipts(tx, receipts)
    tx.connection.execute(_DELETE_MESSAGE, {"b_id": row.id})
    tx.connection.execute(_DELETE_BEREFT, {"b_id": row.id})
    tx.move_message(row.account_id, row.state, None)
