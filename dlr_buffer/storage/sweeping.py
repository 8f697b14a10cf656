"""What time does to rows, in small chunks: messages expire, settled receipts and their messages are purged.

Expiry follows the plain index on ``expires_at`` with a mark that says how far it has looked, so that a
message is looked at once; the final ones among them are passed over. Retention walks the receipts in order of
their ids. When to sweep is decided by `dlr_buffer.expiry` and `dlr_buffer.retention`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from dlr_buffer.clock import EARLIEST_MS
from dlr_buffer.messages import MessageState
from dlr_buffer.storage import schema
from dlr_buffer.storage.reporting import add_receipts, change_states, new_receipt
from dlr_buffer.storage.transaction import MessageRow, Transaction, among, json_array

EXAMINED_AT_ONCE: Final = 2_000
EXPIRED_AT_ONCE: Final = 150
PURGE_EXAMINED_AT_ONCE: Final = 5_000
PURGED_AT_ONCE: Final = 500

_MESSAGE = schema.messages.c
_SAME_MOMENT = (
    select(schema.messages)
    .where(
        _MESSAGE.expires_at == bindparam("swept_to"),
        _MESSAGE.id > bindparam("swept_message"),
    )
    .order_by(_MESSAGE.id)
    .limit(bindparam("limit"))
)
LATER_MOMENTS = (
    select(schema.messages)
    .where(
        _MESSAGE.expires_at > bindparam("swept_to"),
        _MESSAGE.expires_at <= bindparam("now"),
    )
    .order_by(_MESSAGE.expires_at, _MESSAGE.id)
    .limit(bindparam("limit"))
)


class Swept(msgspec.Struct, frozen=True):
    """What one chunk of expiry did; ``more`` says that others are due already."""

    expired: int
    examined: int
    more: bool


class Purged(msgspec.Struct, frozen=True):
    """What one chunk of retention removed."""

    acknowledged: int
    dead: int
    messages: int


def anything_due(connection: Connection, swept_to: int, swept_message: int, now: int) -> bool:
    """Whether `expire` would find something to look at."""
    bounds = {
        "swept_to": swept_to,
        "swept_message": swept_message,
        "now": now,
        "limit": 1,
    }
    return (
        connection.execute(_SAME_MOMENT, bounds).first() is not None
        or connection.execute(LATER_MOMENTS, bounds).first() is not None
    )


def expire(tx: Transaction, now: int) -> Swept:
    """Expire the next messages whose validity period has ended, oldest deadline first."""
    numbers = tx.numbers
    if numbers.swept_to > now:
        return Swept(0, 0, more=False)
    bounds = {
        "swept_to": numbers.swept_to,
        "swept_message": numbers.swept_message,
        "now": now,
        "limit": EXAMINED_AT_ONCE,
    }
    due: list[MessageRow] = []
    examined = 0
    with closing(_overdue(tx.connection, bounds)) as rows:
        for row in rows:
            examined += 1
            numbers.swept_to, numbers.swept_message = row.expires_at, row.id
            if row.state < schema.FIRST_FINAL:
                due.append(MessageRow(**row._mapping))  # noqa: SLF001 - SQLAlchemy's documented name
                if len(due) == EXPIRED_AT_ONCE:
                    break
    expire_rows(tx, due, now)
    return Swept(
        len(due),
        examined,
        more=len(due) == EXPIRED_AT_ONCE or examined == EXAMINED_AT_ONCE,
    )


def _overdue(connection: Connection, bounds: dict[str, int]) -> Generator[Any]:
    """The next rows to look at, read one by one: a chunk of waiting ones ends long before its bound."""
    left = bounds["limit"]
    for statement in (_SAME_MOMENT, LATER_MOMENTS):
        with connection.execute(statement, {**bounds, "limit": left}) as rows:
            for row in rows:
                left -= 1
                yield row


def expire_rows(tx: Transaction, rows: Sequence[MessageRow], now: int, *, by: str | None = None) -> None:
    """Give each of these messages the state ``expired`` and the one receipt that tells it.

    If that was asked for ``by`` somebody, the receipt's history says so.
    """
    before = {row.id: row.state for row in rows}
    expired = schema.STATE_CODES[MessageState.EXPIRED]
    newer_of: dict[int, int] = {}
    receipts = []
    for row in rows:
        request_id = tx.take_request_id()
        receipts.append(new_receipt(row, request_id, expired, now))
        if by is not None:
            tx.note(request_id, now, "expired", f"by {by}, before its validity period had ended")
        if row.receipt_id > 0:
            newer_of[row.receipt_id] = request_id
        row.state, row.changed_at, row.receipt_id = expired, now, request_id
    change_states(tx, rows, before)
    tx.supersede(newer_of, now)
    add_receipts(tx, receipts)
    tx.events["expired"] += len(rows)


_RECEIPT = schema.receipts.c
_PURGE_WINDOW = (
    select(_RECEIPT.request_id, _RECEIPT.status, _RECEIPT.created_at, _RECEIPT.settled_at)
    .where(_RECEIPT.request_id > bindparam("after"))
    .order_by(_RECEIPT.request_id)
    .limit(PURGE_EXAMINED_AT_ONCE)
)


def purge_candidates(
    connection: Connection, *, after: int, settled_before: int, dead_before: int, now: int
) -> tuple[list[int], int | None]:
    """Look (on a reader) for receipts whose retention is over.

    Returns ids and where to go on, None at the end.

    A receipt can't have been settled before it was created, so the walk ends at the first that is too young
    (but not at one from the future, which a leap of the clock left behind).
    """
    rows = connection.execute(_PURGE_WINDOW, {"after": after}).all()
    youngest = max(settled_before, dead_before)
    found: list[int] = []
    for row in rows:
        if youngest <= row.created_at <= now:
            return found, None
        if _over(row, settled_before, dead_before):
            found.append(row.request_id)
            if len(found) == PURGED_AT_ONCE:
                return found, row.request_id
    return found, (rows[-1].request_id if len(rows) == PURGE_EXAMINED_AT_ONCE else None)


def _over(row: Any, settled_before: int, dead_before: int) -> bool:  # noqa: ANN401 - a row of SQLAlchemy's
    if row.status == schema.DEAD:
        return bool(row.settled_at < dead_before)
    return row.status in (schema.ACKNOWLEDGED, schema.SUPERSEDED) and bool(row.settled_at < settled_before)


_PURGE = (
    select(
        _RECEIPT.request_id,
        _RECEIPT.account_id,
        _RECEIPT.status,
        _RECEIPT.settled_at,
        _RECEIPT.message,
        _RECEIPT.previous_id,
        _RECEIPT.state.label("told"),
        _MESSAGE.receipt_id,
        _MESSAGE.state,
        _MESSAGE.changed_at,
    )
    .join_from(schema.receipts, schema.messages, _MESSAGE.id == _RECEIPT.message)
    .where(among(_RECEIPT.request_id, "request_ids"))
    .order_by(_RECEIPT.request_id)
)
_SETTLED_NOW = (
    update(schema.receipts)
    .where(_RECEIPT.request_id == bindparam("b_request_id"))
    .values(settled_at=bindparam("b_now"))
)
_STILL_THERE = select(_RECEIPT.request_id).where(among(_RECEIPT.request_id, "request_ids"))
_DROP_RECEIPTS = delete(schema.receipts).where(among(_RECEIPT.request_id, "request_ids"))
_DROP_HISTORY = delete(schema.history).where(among(schema.history.c.request_id, "request_ids"))
_DROP_MESSAGES = delete(schema.messages).where(among(_MESSAGE.id, "ids"))
_DROP_BEREFT = delete(schema.bereft).where(among(schema.bereft.c.message, "ids"))
_DETACH = (
    update(schema.messages)
    .where(_MESSAGE.id == bindparam("b_id"))
    .values(receipt_id=bindparam("b_receipt_id"))
)
BEREAVE = insert(schema.bereft)
_BEREFT_BEFORE = (
    select(_MESSAGE.id, _MESSAGE.account_id, _MESSAGE.state)
    .join_from(schema.bereft, schema.messages, _MESSAGE.id == schema.bereft.c.message)
    .where(schema.bereft.c.since < bindparam("since"))
    .limit(PURGED_AT_ONCE)
)


def purge(
    tx: Transaction,
    request_ids: Sequence[int],
    *,
    settled_before: int,
    dead_before: int,
    now: int,
) -> Purged:
    """Remove those of the named receipts whose retention is over, and messages with their last one.

    The older receipts of a message go first, so that what is left of it stays linked; a message that waits
    stays. So does one whose final receipt an admin deleted, until its own time is over: a late report must not
    revive it.
    """
    rows = tx.connection.execute(_PURGE, {"request_ids": json_array(request_ids)}).all()
    olders = [row.previous_id for row in rows if row.previous_id is not None]
    there = (
        set(tx.connection.execute(_STILL_THERE, {"request_ids": json_array(olders)}).scalars())
        if olders
        else set()
    )
    gone: set[int] = set()
    messages: list[int] = []
    acknowledged = dead = 0
    for row in rows:
        if not _over(row, settled_before, dead_before) or row.request_id in tx.claims:
            continue
        if row.settled_at < EARLIEST_MS:
            # By a clock that was wrong, and perhaps a minute ago: its retention begins now.
            tx.connection.execute(_SETTLED_NOW, {"b_request_id": row.request_id, "b_now": now})
            continue
        if row.previous_id in there and row.previous_id not in gone:
            continue
        gone.add(row.request_id)
        tx.move_receipts(row.account_id, row.status, None)
        if row.status == schema.DEAD:
            dead += 1
        else:
            acknowledged += 1
        if row.receipt_id == row.request_id and _bereave(tx, row, now):
            messages.append(row.message)
            tx.move_message(row.account_id, row.state, None)
    if gone:
        tx.connection.execute(_DROP_RECEIPTS, {"request_ids": json_array(gone)})
        tx.connection.execute(_DROP_HISTORY, {"request_ids": json_array(gone)})
        tx.effects.append(lambda: tx.claims.forget_attempts(gone))
    if messages:
        tx.connection.execute(_DROP_MESSAGES, {"ids": json_array(messages)})
    tx.events["purged"] += acknowledged
    tx.events["purged_dead"] += dead
    return Purged(acknowledged, dead, len(messages))


def _bereave(tx: Transaction, row: Any, now: int) -> bool:  # noqa: ANN401 - a row of SQLAlchemy's
    """Whether a message goes with its last receipt; if it stays, it is told that it has none."""
    final = row.state >= schema.FIRST_FINAL
    if final and row.told == row.state:
        return True
    tx.connection.execute(_DETACH, {"b_id": row.message, "b_receipt_id": -row.request_id})
    if final:
        since = row.changed_at if row.changed_at >= EARLIEST_MS else now
        tx.connection.execute(BEREAVE, {"message": row.message, "since": since})
    return False


def anything_bereft(connection: Connection, *, before: int) -> bool:
    """Whether `purge_bereft` would find something."""
    return connection.execute(_BEREFT_BEFORE, {"since": before}).first() is not None


def purge_bereft(tx: Transaction, *, before: int) -> Purged:
    """Remove final messages whose last receipt an admin deleted long ago."""
    rows = tx.connection.execute(_BEREFT_BEFORE, {"since": before}).all()
    ids = [row.id for row in rows]
    if ids:
        tx.connection.execute(_DROP_MESSAGES, {"ids": json_array(ids)})
        tx.connection.execute(_DROP_BEREFT, {"ids": json_array(ids)})
        for row in rows:
            tx.move_message(row.account_id, row.state, None)
    return Purged(0, 0, len(ids))
