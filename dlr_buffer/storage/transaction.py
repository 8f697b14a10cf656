"""One transaction of the writer: the connection, the numbers it hands out, the counters it must keep.

Everything that a rollback has to undo lives in this object and is merged into the writer's memory only after
COMMIT. Which rows are changed is the business of the modules that are given one (`registering`, `reporting`,
`settling`, `steering`, `sweeping`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.prepared import Prepared

Row = dict[str, Any]


def tally() -> defaultdict[Any, int]:
    """Make what counts from zero; a `Counter` takes twenty times as long to make, and each commit makes five."""
    return defaultdict(int)


_encode = msgspec.json.Encoder().encode


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """``column IN`` the values of one JSON array bound as ``name``.

    One statement text whatever their number.
    """
    values = func.json_each(bindparam(name)).table_valued("value")
    return column.in_(select(values.c.value))


def known_messages(
    connection: Connection, account_id: int, message_ids: Collection[str]
) -> dict[str, MessageRow]:
    """Look up messages of an account by name."""
    if len(message_ids) == 1:
        (only,) = message_ids
        rows = _KNOWN_ONE.rows(connection, {"account_id": account_id, "message_id": only})
    else:
        rows = _KNOWN.rows(connection, {"account_id": account_id, "message_ids": json_array(message_ids)})
    return {row[_MESSAGE_ID]: MessageRow(*row) for row in rows}


def json_array(values: Iterable[int | str]) -> str:
    """Write the values for `among`."""
    return _encode(list(values)).decode()


@dataclass(slots=True)
class QueueNumbers:
    """The single row of ``queue_state``, as far as writing needs it."""

    next_request_id: int
    next_message: int
    swept_to: int
    swept_message: int


class MessageRow(msgspec.Struct, gc=False):
    """A row of ``messages`` while a transaction works on it; fields in the order of the columns."""

    id: int
    account_id: int
    message_id: str
    state: int
    implicit: int
    registered_at: int
    expires_at: int
    changed_at: int
    receipt_id: int


_MESSAGE_ID = MessageRow.__struct_fields__.index("message_id")
_OF_ACCOUNT = select(*(schema.messages.c[name] for name in MessageRow.__struct_fields__)).where(
    schema.messages.c.account_id == bindparam("account_id")
)
_KNOWN = Prepared(_OF_ACCOUNT.where(among(schema.messages.c.message_id, "message_ids")))
_KNOWN_ONE = Prepared(_OF_ACCOUNT.where(schema.messages.c.message_id == bindparam("message_id")))
"""The commonest by far: a report alone in its commit, at a third of the cost."""

_STATUS_OF = Prepared(
    select(schema.receipts.c.request_id, schema.receipts.c.account_id, schema.receipts.c.status).where(
        among(schema.receipts.c.request_id, "request_ids")
    )
)

_SUPERSEDE = Prepared(
    update(schema.receipts)
    .where(
        schema.receipts.c.request_id == bindparam("b_request_id"),
        # not IN: SQLAlchemy cannot run an expanding parameter for many rows at once
        schema.receipts.c.status.between(schema.PENDING, schema.HELD),
        schema.receipts.c.state < schema.FIRST_FINAL,
    )
    .values(
        status=schema.SUPERSEDED,
        next_attempt_at=None,
        settled_at=bindparam("b_now"),
        attempts=schema.receipts.c.attempts + bindparam("b_attempts"),
    )
)

_COUNT_MESSAGES = Prepared(
    update(schema.message_counts)
    .where(
        schema.message_counts.c.account_id == bindparam("b_account_id"),
        schema.message_counts.c.state == bindparam("b_code"),
    )
    .values(rows=schema.message_counts.c.rows + bindparam("b_delta"))
)
_COUNT_RECEIPTS = Prepared(
    update(schema.receipt_counts)
    .where(
        schema.receipt_counts.c.account_id == bindparam("b_account_id"),
        schema.receipt_counts.c.status == bindparam("b_code"),
    )
    .values(rows=schema.receipt_counts.c.rows + bindparam("b_delta"))
)
_KEEP_NUMBERS = Prepared(
    update(schema.queue_state).values(
        next_request_id=bindparam("b_next_request_id"),
        next_message=bindparam("b_next_message"),
        swept_to=bindparam("b_swept_to"),
        swept_message=bindparam("b_swept_message"),
    )
)
_NOTE = Prepared(
    insert(schema.history).values({name: bindparam(name) for name in ("request_id", "at", "event", "detail")})
)


@dataclass(slots=True)
class Transaction:
    """A transaction under way."""

    connection: Connection
    claims: Claims
    numbers: QueueNumbers
    message_counts: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Messages by account and state, as of the last commit."""
    message_deltas: defaultdict[tuple[int, int], int] = field(default_factory=tally)
    receipt_deltas: defaultdict[tuple[int, int], int] = field(default_factory=tally)
    fresh: defaultdict[int, int] = field(default_factory=tally)
    """How many receipts became claimable, by account."""
    replayed: dict[int, list[int]] = field(default_factory=dict)
    """Receipts that an admin made pending, due now, by account."""
    effects: list[Callable[[], None]] = field(default_factory=list)
    """What to do to the writer's memory once this is committed."""
    notes: list[Row] = field(default_factory=list)
    events: defaultdict[str, int] = field(default_factory=tally)
    """What to count in the metrics once this is committed."""
    ended: dict[int, int] = field(default_factory=dict)
    """Claims that end with this commit, and how often each was on the wire without its row knowing."""
    overtaking: dict[int, int] = field(default_factory=dict)
    """Receipts in flight, and the newer ones of this transaction that wait for them."""

    def in_flight(self, request_id: int) -> bool:
        """Whether a receipt is in flight and will still be after this commit."""
        return request_id in self.claims and request_id not in self.ended

    def overtaken(self, request_id: int) -> bool:
        """Whether a newer receipt waits for this one, which is in flight."""
        return request_id in self.overtaking or self.claims.overtaken(request_id)

    def take_request_id(self) -> int:
        """Hand out the next request_id; a rollback takes it back."""
        taken = self.numbers.next_request_id
        self.numbers.next_request_id = taken + 1
        return taken

    def take_message(self) -> int:
        """Hand out the next internal number of a message."""
        taken = self.numbers.next_message
        self.numbers.next_message = taken + 1
        return taken

    def no_receipt(self) -> int:
        """What a message without receipt holds in ``receipt_id``: as many bytes as the id that will come."""
        return -self.numbers.next_request_id

    def expect_expiry_at(self, expires_at: int) -> None:
        """Make sure that expiry will look at this time again.

        In case it is already past it (a clock set back).
        """
        if expires_at <= self.numbers.swept_to:
            self.numbers.swept_to = expires_at - 1
            self.numbers.swept_message = 0

    def waiting(self, account_id: int) -> int:
        """How many messages of an account have no final state, with all that was counted in this transaction."""
        return sum(
            self.message_counts.get((account_id, code), 0) + self.message_deltas[account_id, code]
            for code in range(schema.WAITING, schema.FIRST_FINAL)
        )

    def move_message(self, account_id: int, old: int | None, new: int | None, rows: int = 1) -> None:
        """Count messages that went from state ``old`` to ``new`` (None: were or are not there)."""
        if old is not None:
            self.message_deltas[account_id, old] -= rows
        if new is not None:
            self.message_deltas[account_id, new] += rows

    def move_receipts(self, account_id: int, old: int | None, new: int | None, rows: int = 1) -> None:
        """Count receipts that went from status ``old`` to ``new`` (None: were or are not there)."""
        if old is not None:
            self.receipt_deltas[account_id, old] -= rows
        if new is not None:
            self.receipt_deltas[account_id, new] += rows

    def note(self, request_id: int, at: int, event: str, detail: str) -> None:
        """Write a line into a receipt's history."""
        self.notes.append({"request_id": request_id, "at": at, "event": event, "detail": detail})

    def supersede(self, newer_of: dict[int, int], now: int) -> None:
        """Make older receipts pointless.

        ``newer_of`` maps each older request_id to the newer one of its message.

        Those that wait (pending, held, backing off) are superseded at once; one in flight is marked, and
        becomes so unless it comes back acknowledged; settled ones stay as they are.
        """
        waiting: list[int] = []
        for older, newer in newer_of.items():
            if self.in_flight(older):
                self.overtaking[older] = newer
                self.effects.append(partial(self.claims.overtake, older, newer))
            else:
                waiting.append(older)
        if not waiting:
            return
        rows = _STATUS_OF.rows(self.connection, {"request_ids": json_array(waiting)})
        self.mark_superseded([row for row in rows if row[2] in (schema.PENDING, schema.HELD)], now)

    def mark_superseded(self, rows: Sequence[tuple[int, int, int]], now: int) -> None:
        """Supersede these (request_id, account_id, present status).

        Each must be pending or held, and intermediate.
        """
        if not rows:
            return
        request_ids = [row[0] for row in rows]
        done = _SUPERSEDE.run_many(
            self.connection,
            [
                {
                    "b_request_id": each,
                    "b_now": now,
                    "b_attempts": self.claims.unwritten_attempts(each) + self.ended.get(each, 0),
                }
                for each in request_ids
            ],
        )
        require_rows(done, len(rows), "superseding receipts")
        for _, account_id, status in rows:
            self.move_receipts(account_id, status, schema.SUPERSEDED)
        self.events["superseded"] += len(rows)
        self.effects.append(lambda: self.claims.forget_attempts(request_ids))

    def finish(self) -> None:
        """Write what was gathered: counters, history, and the numbers handed out. The writer commits next."""
        if self.notes:
            _NOTE.run_many(self.connection, self.notes)
        for statement, deltas in (
            (_COUNT_MESSAGES, self.message_deltas),
            (_COUNT_RECEIPTS, self.receipt_deltas),
        ):
            changes = [
                {"b_account_id": account_id, "b_code": code, "b_delta": delta}
                for (account_id, code), delta in deltas.items()
                if delta
            ]
            if len(changes) == 1:
                require_rows(statement.run(self.connection, changes[0]), 1, "counting")
            elif changes:
                done = statement.run_many(self.connection, changes)
                require_rows(done, len(changes), "counting")
        _KEEP_NUMBERS.run(
            self.connection,
            {
                "b_next_request_id": self.numbers.next_request_id,
                "b_next_message": self.numbers.next_message,
                "b_swept_to": self.numbers.swept_to,
                "b_swept_message": self.numbers.swept_message,
            },
        )


def require_rows(found: int, expected: int, doing: str) -> None:
    """Fail the transaction if a guarded statement did not change every row that it was meant to."""
    if found != expected:
        raise AssertionError(f"{doing}: {found} rows changed where {expected} were meant to")
