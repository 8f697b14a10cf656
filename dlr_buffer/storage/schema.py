"""The tables of the queue, their constraints and indexes, and how states are written in them.

The schema that Alembic's migrations build must equal what stands here (a test compares them). Statements live
in the modules beside this one, migrations in `migrations/`.

What was measured for the indexes is told in docs/decisions/0003-schema.md. In short: a report touches one
page of ``messages`` and the tail of ``receipts`` and nothing else, so ``messages`` has no index on a column
that a report changes, a message points at its newest receipt (``receipt_id``) and each receipt at the one
before (``previous_id``) instead of an index on ``receipts(message)``, and a row does not grow when it is
reported on.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.sql.elements import ColumnElement

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptStatus

HEAD: Final = "0001"
"""The newest migration; a database with another one is migrated, or refused if it is unknown."""

WAITING: Final = 2
"""How a message without any reported state is written. (SQLite writes 0, 1 and NULL without a byte.

Starting at 2, a row keeps its length when its state changes, and its page need not be split.)
"""

STATE_CODES: Final[dict[MessageState, int]] = {
    MessageState.ENROUTE: 3,
    MessageState.ACCEPTED: 4,
    MessageState.UNKNOWN: 5,
    MessageState.DELIVERED: 6,
    MessageState.EXPIRED: 7,
    MessageState.UNDELIVERABLE: 8,
    MessageState.REJECTED: 9,
}
FIRST_FINAL: Final = 6
STATES: Final[dict[int, MessageState]] = {code: state for state, code in STATE_CODES.items()}
STATE_NAMES: Final[dict[int, str]] = {
    WAITING: "waiting",
    **{code: state.value for code, state in STATES.items()},
}

PENDING: Final = 2
HELD: Final = 3
ACKNOWLEDGED: Final = 4
SUPERSEDED: Final = 5
DEAD: Final = 6
STATUS_CODES: Final[dict[ReceiptStatus, int]] = {
    ReceiptStatus.PENDING: PENDING,
    ReceiptStatus.HELD: HELD,
    ReceiptStatus.ACKNOWLEDGED: ACKNOWLEDGED,
    ReceiptStatus.SUPERSEDED: SUPERSEDED,
    ReceiptStatus.DEAD: DEAD,
}
STATUSES: Final[dict[int, ReceiptStatus]] = {code: status for status, code in STATUS_CODES.items()}

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("paused", Integer, nullable=False),
    UniqueConstraint("name", name="accounts_name"),
    CheckConstraint("paused IN (0, 1)", name="accounts_paused"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("account_id", SmallInteger, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    # 1 while only a report has registered it, and an app may still bring a validity period of its own
    Column("implicit", SmallInteger, nullable=False),
    Column("registered_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
    # since when it is in its state; while waiting that is registered_at
    Column("changed_at", Integer, nullable=False),
    # its newest receipt; not positive if there is none (a negative number of the same length reserves the
    # bytes)
    Column("receipt_id", Integer, nullable=False),
    CheckConstraint(f"state BETWEEN {WAITING} AND 9", name="messages_state"),
    CheckConstraint("implicit IN (0, 1)", name="messages_implicit"),
    CheckConstraint("expires_at > registered_at", name="messages_validity"),
    CheckConstraint(
        "typeof(message_id) = 'text' AND length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255",
        name="messages_message_id",
    ),
    CheckConstraint(f"receipt_id <= 0 OR state > {WAITING}", name="messages_receipt"),
)
Index("messages_name", messages.c.account_id, messages.c.message_id, unique=True)
# Plain on purpose: a partial index on what waits would be rewritten by every report (half the rate,
# measured).
Index("messages_expiry", messages.c.expires_at)

receipts = Table(
    "receipts",
    metadata,
    Column("request_id", Integer, primary_key=True),
    Column("message", Integer, nullable=False),
    Column("account_id", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    # since when its lifetime counts: its first refusal, or the last retry or release (before that: creation)
    Column("counted_since", Integer, nullable=False),
    Column("next_attempt_at", Integer, nullable=True),
    # when it was acknowledged, superseded or given up
    Column("settled_at", Integer, nullable=True),
    Column("response_id", Text, nullable=True),
    Column("error_code", Text, nullable=True),
    Column("error_title", Text, nullable=True),
    Column("error_detail", Text, nullable=True),
    # the receipt of the same message before this one, if it was not purged
    Column("previous_id", Integer, nullable=True),
    CheckConstraint("state BETWEEN 3 AND 9", name="receipts_state"),
    CheckConstraint(f"status BETWEEN {PENDING} AND {DEAD}", name="receipts_status"),
    CheckConstraint("attempts >= 0 AND refusals >= 0", name="receipts_counts"),
    CheckConstraint(
        f"(status IN ({PENDING}, {HELD})) = (settled_at IS NULL)",
        name="receipts_settled",
    ),
    CheckConstraint(f"next_attempt_at IS NULL OR status = {PENDING}", name="receipts_next_attempt"),
    CheckConstraint(f"response_id IS NULL OR status = {ACKNOWLEDGED}", name="receipts_response"),
    CheckConstraint("(error_code IS NULL) = (error_title IS NULL)", name="receipts_error_title"),
    CheckConstraint("(error_code IS NULL) = (error_detail IS NULL)", name="receipts_error_detail"),
    CheckConstraint(f"status <> {DEAD} OR error_code IS NOT NULL", name="receipts_dead_says_why"),
    CheckConstraint("previous_id IS NULL OR previous_id < request_id", name="receipts_previous"),
    # final states are never made pointless by a newer one
    CheckConstraint(f"status <> {SUPERSEDED} OR state < {FIRST_FINAL}", name="receipts_superseded"),
)


def has_status(code: int) -> ColumnElement[bool]:
    """A condition on the status with the code written out.

    SQLite does not match a bound one to a partial index.
    """
    return receipts.c.status == literal_column(str(code))


def not_final() -> ColumnElement[bool]:
    """Messages that still wait for their final state."""
    return messages.c.state < literal_column(str(FIRST_FINAL))


# In each of these the row's own number (request_id) follows by itself, so that they are read in order of it.
Index(
    "receipts_fresh",
    receipts.c.account_id,
    sqlite_where=has_status(PENDING) & receipts.c.next_attempt_at.is_(None),
)
Index(
    "receipts_due",
    receipts.c.account_id,
    receipts.c.next_attempt_at,
    sqlite_where=receipts.c.next_attempt_at.is_not(None),
)
Index(
    "receipts_backing_off",
    receipts.c.account_id,
    sqlite_where=receipts.c.next_attempt_at.is_not(None),
)
Index("receipts_held", receipts.c.account_id, sqlite_where=has_status(HELD))
Index("receipts_dead", receipts.c.account_id, sqlite_where=has_status(DEAD))

history = Table(
    "history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("request_id", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    Column("event", Text, nullable=False),
    Column("detail", Text, nullable=False),
)
Index("history_receipt", history.c.request_id)

message_counts = Table(
    "message_counts",
    metadata,
    Column("account_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("state", SmallInteger, primary_key=True, autoincrement=False),
    Column("rows", Integer, nullable=False),
    CheckConstraint('"rows" >= 0', name="message_counts_rows"),
)

receipt_counts = Table(
    "receipt_counts",
    metadata,
    Column("account_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("status", SmallInteger, primary_key=True, autoincrement=False),
    Column("rows", Integer, nullable=False),
    CheckConstraint('"rows" >= 0', name="receipt_counts_rows"),
)

bereft = Table(
    "bereft",
    metadata,
    # a final message whose last receipt an admin deleted; it stays, so that a late report can't revive it
    Column("message", Integer, primary_key=True),
    Column("since", Integer, nullable=False),
)
Index("bereft_since", bereft.c.since)

queue_state = Table(
    "queue_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("next_request_id", Integer, nullable=False),
    Column("next_message", Integer, nullable=False),
    # every message due before this time (and at it, up to this id) has been looked at by expiry
    Column("swept_to", Integer, nullable=False),
    Column("swept_message", Integer, nullable=False),
    # the clock as the last sweep saw it, and whether expiry is stopped for its leaping
    Column("boot_id", Text, nullable=True),
    Column("clock_offset", Integer, nullable=True),
    Column("last_now", Integer, nullable=True),
    Column("stopped_since", Integer, nullable=True),
    Column("stop_reason", Text, nullable=True),
    CheckConstraint("id = 1", name="queue_state_single"),
    CheckConstraint("next_request_id > 0 AND next_message > 0", name="queue_state_ids"),
    CheckConstraint("(stopped_since IS NULL) = (stop_reason IS NULL)", name="queue_state_stop"),
)
