"""Reading the queue: look-ups, lists in pages, and what `status` shows; on connections that cannot write.

Reads are cut into windows of ids, so that none holds a snapshot of the log for long and none needs memory
that grows with the queue. Who reads when is `store`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from dlr_buffer.messages import Message
from dlr_buffer.receipts import (
    HistoryEntry,
    MessageView,
    Receipt,
    ReceiptError,
    ReceiptStatus,
    ReceiptView,
)
from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.transaction import among, json_array

WINDOW: Final = 20_000
"""Ids looked at by one query of a list."""
WINDOWS_PER_PAGE: Final = 50
"""Queries after which a page ends even if it is not full."""
BRANCHES_AT_ONCE: Final = 100
"""Parts of one UNION: SQLite takes 500."""
MAX_CHAIN: Final = 10_000

_M, _R = schema.messages.c, schema.receipts.c
_MESSAGE_COLUMNS = (
    _M.id,
    _M.account_id,
    _M.message_id,
    _M.state,
    _M.registered_at,
    _M.expires_at,
    _M.changed_at,
    _M.receipt_id,
)
_BY_NAME = select(*_MESSAGE_COLUMNS).where(
    _M.account_id == bindparam("account_id"), _M.message_id == bindparam("message_id")
)
_RECEIPT_COLUMNS = (
    _R.request_id,
    _R.account_id,
    _R.state,
    _R.status,
    _R.attempts,
    _R.refusals,
    _R.created_at,
    _R.next_attempt_at,
    _R.settled_at,
    _R.response_id,
    _R.error_code,
    _R.error_title,
    _R.error_detail,
    _R.previous_id,
    _M.message_id,
)
_RECEIPT = select(*_RECEIPT_COLUMNS).join_from(schema.receipts, schema.messages, _M.id == _R.message)
_BY_ID = _RECEIPT.where(_R.request_id == bindparam("request_id"))
_HISTORY = (
    select(
        schema.history.c.request_id,
        schema.history.c.at,
        schema.history.c.event,
        schema.history.c.detail,
    )
    .where(among(schema.history.c.request_id, "request_ids"))
    .order_by(schema.history.c.id)
)
_OLDEST_FRESH = (
    select(_R.created_at)
    .where(
        schema.has_status(schema.PENDING),
        _R.next_attempt_at.is_(None),
        _R.account_id == bindparam("account_id"),
    )
    .order_by(_R.request_id)
    .limit(1)
)
_OLDEST_DUE = select(func.min(_R.request_id)).where(
    schema.has_status(schema.PENDING),
    _R.next_attempt_at.is_not(None),
    _R.account_id == bindparam("account_id"),
)
# Ids that were purged, or begin far from 1 (`first_request_id`), are leapt over.
_FIRST_MESSAGE = select(_M.id).where(_M.id > bindparam("after")).order_by(_M.id).limit(1)
_FIRST_RECEIPT = (
    select(_R.request_id).where(_R.request_id > bindparam("after")).order_by(_R.request_id).limit(1)
)


@contextmanager
def snapshot(connection: Connection) -> Iterator[Connection]:
    """Several reads that see the same state of the queue."""
    connection.exec_driver_sql("BEGIN")
    try:
        yield connection
    finally:
        connection.exec_driver_sql("ROLLBACK")


class Reader:
    """The queries of one store; ``names`` maps account ids to names and is kept current by the store."""

    def __init__(self, claims: Claims, names: dict[int, str]) -> None:
        """Read with what is in flight known from ``claims``."""
        self._claims = claims
        self._names = names

    def _message(self, row: Any) -> Message:  # noqa: ANN401 - a row of SQLAlchemy's
        return Message(
            self._names[row.account_id],
            row.message_id,
            schema.STATES.get(row.state),
            row.registered_at,
            row.expires_at,
            row.changed_at if row.state >= schema.FIRST_FINAL else None,
        )

    def _receipt(self, row: Any) -> Receipt:  # noqa: ANN401 - a row of SQLAlchemy's
        status = schema.STATUSES[row.status]
        unsettled = status in (ReceiptStatus.PENDING, ReceiptStatus.HELD)
        unwritten = self._claims.unwritten_attempts(row.request_id) if unsettled else 0
        return Receipt(
            row.request_id,
            self._names[row.account_id],
            row.message_id,
            schema.STATES[row.state],
            status,
            row.attempts + unwritten,
            row.refusals,
            row.created_at,
            row.next_attempt_at,
            row.settled_at if status is ReceiptStatus.ACKNOWLEDGED else None,
            row.response_id,
            ReceiptError(row.error_code, row.error_title, row.error_detail)
            if row.error_code is not None
            else None,
            row.request_id in self._claims,
        )

    def _views(self, connection: Connection, rows: list[Any]) -> tuple[ReceiptView, ...]:
        kept: dict[int, list[HistoryEntry]] = {row.request_id: [] for row in rows}
        if rows:
            for row in connection.execute(_HISTORY, {"request_ids": json_array(kept)}):
                kept[row.request_id].append(HistoryEntry(row.at, row.event, row.detail))
        views = []
        for row in rows:
            receipt = self._receipt(row)
            entries = [HistoryEntry(row.created_at, "created", f"state {receipt.message_state.value}")]
            entries += kept[row.request_id]
            if row.settled_at is not None:
                detail = f"as {row.response_id}" if row.response_id else ""
                entries.append(HistoryEntry(row.settled_at, receipt.status.value, detail))
            views.append(ReceiptView(receipt, tuple(entries)))
        return tuple(views)

    def message(self, connection: Connection, account_id: int, message_id: str) -> MessageView | None:
        """Look up one message with its receipts, oldest first."""
        with snapshot(connection):
            row = connection.execute(_BY_NAME, {"account_id": account_id, "message_id": message_id}).first()
            if row is None:
                return None
            receipts = self._chain(connection, row.receipt_id)
            return MessageView(self._message(row), self._views(connection, receipts))

    def _chain(self, connection: Connection, newest: int) -> list[Any]:
        rows: list[Any] = []
        at: int | None = newest
        while at is not None and at > 0 and len(rows) < MAX_CHAIN:
            row = connection.execute(_BY_ID, {"request_id": at}).first()
            if row is None:
                break
            rows.append(row)
            at = row.previous_id
        rows.reverse()
        return rows

    def receipt(self, connection: Connection, request_id: int) -> ReceiptView | None:
        """Look up one receipt."""
        with snapshot(connection):
            row = connection.execute(_BY_ID, {"request_id": request_id}).first()
            return self._views(connection, [row])[0] if row is not None else None

    def messages(
        self,
        connection: Connection,
        where: list[ColumnElement[bool]],
        *,
        after: int,
        limit: int,
    ) -> tuple[list[tuple[int, Message]], int | None]:
        """The next messages of a filter with their numbers, and where to go on."""
        found: list[tuple[int, Message]] = []
        last = connection.execute(select(func.max(_M.id))).scalar() or 0
        statement = (
            select(*_MESSAGE_COLUMNS)
            .where(_M.id > bindparam("after"), _M.id <= bindparam("until"), *where)
            .order_by(_M.id)
            .limit(bindparam("limit"))
        )
        for _ in range(WINDOWS_PER_PAGE):
            if (first := connection.execute(_FIRST_MESSAGE, {"after": after}).scalar()) is None:
                return found, None
            after = first - 1
            rows = connection.execute(
                statement,
                {"after": after, "until": after + WINDOW, "limit": limit - len(found)},
            ).all()
            found += [(row.id, self._message(row)) for row in rows]
            if len(found) == limit:
                return found, (found[-1][0] if found[-1][0] < last else None)
            after += WINDOW
            if after >= last:
                return found, None
        return found, after

    def named_message(
        self,
        connection: Connection,
        account_ids: list[int],
        message_id: str,
        where: list[ColumnElement[bool]],
    ) -> list[tuple[int, Message]]:
        """Messages of one id (at most one an account), by its index."""
        rows = connection.execute(
            select(*_MESSAGE_COLUMNS)
            .where(_M.account_id.in_(account_ids), _M.message_id == message_id, *where)
            .order_by(_M.id)
        ).all()
        return [(row.id, self._message(row)) for row in rows]

    def receipts(  # noqa: PLR0913 - one query's parts, by name
        self,
        connection: Connection,
        where: list[ColumnElement[bool]],
        *,
        account_ids: list[int],
        statuses: frozenset[ReceiptStatus],
        after: int,
        limit: int,
    ) -> tuple[list[Receipt], int | None]:
        """The next receipts of a filter.

        By the partial indexes where only unsettled or dead ones are asked for.
        """
        if statuses <= {ReceiptStatus.PENDING, ReceiptStatus.HELD, ReceiptStatus.DEAD}:
            return self._indexed(connection, where, account_ids, statuses, after=after, limit=limit)
        found: list[Receipt] = []
        last = connection.execute(select(func.max(_R.request_id))).scalar() or 0
        statement = (
            _RECEIPT.where(
                _R.request_id > bindparam("after"),
                _R.request_id <= bindparam("until"),
                *where,
            )
            .order_by(_R.request_id)
            .limit(bindparam("limit"))
        )
        for _ in range(WINDOWS_PER_PAGE):
            if (first := connection.execute(_FIRST_RECEIPT, {"after": after}).scalar()) is None:
                return found, None
            after = first - 1
            rows = connection.execute(
                statement,
                {"after": after, "until": after + WINDOW, "limit": limit - len(found)},
            ).all()
            found += [self._receipt(row) for row in rows]
            if len(found) == limit:
                return found, (found[-1].request_id if found[-1].request_id < last else None)
            after += WINDOW
            if after >= last:
                return found, None
        return found, after

    def _indexed(  # noqa: PLR0913 - one private step of `receipts`
        self,
        connection: Connection,
        where: list[ColumnElement[bool]],
        account_ids: list[int],
        statuses: frozenset[ReceiptStatus],
        *,
        after: int,
        limit: int,
    ) -> tuple[list[Receipt], int | None]:
        branches: list[Select[Any]] = []
        for account_id in account_ids:
            base = select(_R.request_id).where(_R.account_id == account_id, _R.request_id > after)
            for status in sorted(statuses):
                if status is ReceiptStatus.PENDING:
                    pending = base.where(schema.has_status(schema.PENDING))
                    branches.append(pending.where(_R.next_attempt_at.is_(None)))
                    branches.append(pending.where(_R.next_attempt_at.is_not(None)))
                else:
                    branches.append(base.where(schema.has_status(schema.STATUS_CODES[status])))
        if not branches:
            return [], None
        found: list[Receipt] = []
        # Each branch is read in order of request_id from its index, and only the lowest of them all are kept.
        window = min(WINDOW, max(limit, 1000))
        for _ in range(WINDOWS_PER_PAGE):
            parts = [
                select(part.where(_R.request_id > after).order_by(_R.request_id).limit(window).subquery())
                for part in branches
            ]
            ids = sorted(
                each
                for start in range(0, len(parts), BRANCHES_AT_ONCE)
                for each in connection.execute(
                    select(union_all(*parts[start : start + BRANCHES_AT_ONCE]).subquery())
                    .order_by("request_id")
                    .limit(window)
                ).scalars()
            )[:window]
            if not ids:
                return found, None
            rows = connection.execute(
                _RECEIPT.where(among(_R.request_id, "request_ids"), *where).order_by(_R.request_id),
                {"request_ids": json_array(ids)},
            ).all()
            for row in rows:
                found.append(self._receipt(row))
                if len(found) == limit:
                    return found, (row.request_id if row.request_id < ids[-1] or len(ids) == window else None)
            after = ids[-1]
            if len(ids) < window:
                return found, None
        return found, after

    def receipts_of_messages(
        self, connection: Connection, account_ids: list[int], message_id: str
    ) -> list[int]:
        """Ids of all receipts of the messages with this id, ascending."""
        rows = connection.execute(
            select(_M.receipt_id).where(_M.account_id.in_(account_ids), _M.message_id == message_id)
        ).scalars()
        return sorted(link.request_id for newest in rows.all() for link in self._chain(connection, newest))

    def receipts_among(
        self,
        connection: Connection,
        request_ids: list[int],
        where: list[ColumnElement[bool]],
    ) -> list[Receipt]:
        """Those of the named receipts that a filter takes."""
        rows = connection.execute(
            _RECEIPT.where(among(_R.request_id, "request_ids"), *where).order_by(_R.request_id),
            {"request_ids": json_array(request_ids)},
        ).all()
        return [self._receipt(row) for row in rows]

    def oldest_pending(self, connection: Connection, account_id: int) -> int | None:
        """When the oldest pending receipt of an account was created."""
        fresh = connection.execute(_OLDEST_FRESH, {"account_id": account_id}).scalar()
        due = connection.execute(_OLDEST_DUE, {"account_id": account_id}).scalar()
        if due is not None:
            due = connection.execute(select(_R.created_at).where(_R.request_id == due)).scalar()
        return min((each for each in (fresh, due) if each is not None), default=None)
