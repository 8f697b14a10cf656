"""The first schema: messages, receipts, their history, counters, and the queue's own state.

Written out in full and never changed again: what a released database looks like must not depend on today's `schema.py`.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE accounts (
        id INTEGER NOT NULL,
        name TEXT NOT NULL,
        paused INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT accounts_name UNIQUE (name),
        CONSTRAINT accounts_paused CHECK (paused IN (0, 1))
    )
    """,
    """
    CREATE TABLE bereft (
        message INTEGER NOT NULL,
        since INTEGER NOT NULL,
        PRIMARY KEY (message)
    )
    """,
    """
    CREATE TABLE history (
        id INTEGER NOT NULL,
        request_id INTEGER NOT NULL,
        at INTEGER NOT NULL,
        event TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE message_counts (
        account_id SMALLINT NOT NULL,
        state SMALLINT NOT NULL,
        rows INTEGER NOT NULL,
        PRIMARY KEY (account_id, state),
        CONSTRAINT message_counts_rows CHECK ("rows" >= 0)
    )
    """,
    """
    CREATE TABLE messages (
        id INTEGER NOT NULL,
        account_id SMALLINT NOT NULL,
        message_id TEXT NOT NULL,
        state SMALLINT NOT NULL,
        implicit SMALLINT NOT NULL,
        registered_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        receipt_id INTEGER NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT messages_state CHECK (state BETWEEN 2 AND 9),
        CONSTRAINT messages_implicit CHECK (implicit IN (0, 1)),
        CONSTRAINT messages_validity CHECK (expires_at > registered_at),
        CONSTRAINT messages_message_id CHECK (
            typeof(message_id) = 'text' AND length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255
        ),
        CONSTRAINT messages_receipt CHECK (receipt_id <= 0 OR state > 2)
    )
    """,
    """
    CREATE TABLE queue_state (
        id INTEGER NOT NULL,
        next_request_id INTEGER NOT NULL,
        next_message INTEGER NOT NULL,
        swept_to INTEGER NOT NULL,
        swept_message INTEGER NOT NULL,
        boot_id TEXT,
        clock_offset INTEGER,
        last_now INTEGER,
        stopped_since INTEGER,
        stop_reason TEXT,
        PRIMARY KEY (id),
        CONSTRAINT queue_state_single CHECK (id = 1),
        CONSTRAINT queue_state_ids CHECK (next_request_id > 0 AND next_message > 0),
        CONSTRAINT queue_state_stop CHECK ((stopped_since IS NULL) = (stop_reason IS NULL))
    )
    """,
    """
    CREATE TABLE receipt_counts (
        account_id SMALLINT NOT NULL,
        status SMALLINT NOT NULL,
        rows INTEGER NOT NULL,
        PRIMARY KEY (account_id, status),
        CONSTRAINT receipt_counts_rows CHECK ("rows" >= 0)
    )
    """,
    """
    CREATE TABLE receipts (
        request_id INTEGER NOT NULL,
        message INTEGER NOT NULL,
        account_id SMALLINT NOT NULL,
        state SMALLINT NOT NULL,
        status SMALLINT NOT NULL,
        attempts INTEGER NOT NULL,
        refusals INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        counted_since INTEGER NOT NULL,
        next_attempt_at INTEGER,
        settled_at INTEGER,
        response_id TEXT,
        error_code TEXT,
        error_title TEXT,
        error_detail TEXT,
        previous_id INTEGER,
        PRIMARY KEY (request_id),
        CONSTRAINT receipts_state CHECK (state BETWEEN 3 AND 9),
        CONSTRAINT receipts_status CHECK (status BETWEEN 2 AND 6),
        CONSTRAINT receipts_counts CHECK (attempts >= 0 AND refusals >= 0),
        CONSTRAINT receipts_settled CHECK ((status IN (2, 3)) = (settled_at IS NULL)),
        CONSTRAINT receipts_next_attempt CHECK (next_attempt_at IS NULL OR status = 2),
        CONSTRAINT receipts_response CHECK (response_id IS NULL OR status = 4),
        CONSTRAINT receipts_error_title CHECK ((error_code IS NULL) = (error_title IS NULL)),
        CONSTRAINT receipts_error_detail CHECK ((error_code IS NULL) = (error_detail IS NULL)),
        CONSTRAINT receipts_dead_says_why CHECK (status <> 6 OR error_code IS NOT NULL),
        CONSTRAINT receipts_previous CHECK (previous_id IS NULL OR previous_id < request_id),
        CONSTRAINT receipts_superseded CHECK (status <> 5 OR state < 6)
    )
    """,
    "CREATE INDEX bereft_since ON bereft (since)",
    "CREATE INDEX history_receipt ON history (request_id)",
    "CREATE INDEX messages_expiry ON messages (expires_at)",
    "CREATE UNIQUE INDEX messages_name ON messages (account_id, message_id)",
    "CREATE INDEX receipts_backing_off ON receipts (account_id) WHERE next_attempt_at IS NOT NULL",
    "CREATE INDEX receipts_dead ON receipts (account_id) WHERE status = 6",
    "CREATE INDEX receipts_due ON receipts (account_id, next_attempt_at) WHERE next_attempt_at IS NOT NULL",
    "CREATE INDEX receipts_fresh ON receipts (account_id) WHERE status = 2 AND next_attempt_at IS NULL",
    "CREATE INDEX receipts_held ON receipts (account_id) WHERE status = 3",
)


def upgrade() -> None:
    """Create everything."""
    for statement in _STATEMENTS:
        op.execute(statement)
