"""What must hold between the rows of a queue, as queries for those rows that break it.

A rule only names rows: looking is the business of `checking`, mending of `repairing`. What a row must be by itself is
said by the CHECK constraints of `schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dlr_buffer.storage import schema


@dataclass(frozen=True, slots=True)
class RowRule:
    """What no row may be: ``query`` finds the ids of those that are."""

    code: str
    words: str
    query: str
    mendable: bool = False
    slow: bool = False
    """Left out of a quick check: it sorts or visits another table for each row."""


_LINKED: Final = (
    "SELECT request_id, message, previous_id, lag(request_id) OVER (PARTITION BY message ORDER BY request_id) AS before"
    " FROM receipts"
)
BROKEN_LINKS: Final = (
    f"SELECT request_id AS id, before FROM ({_LINKED}) AS linked WHERE CASE WHEN before IS NULL THEN EXISTS"  # noqa: S608 - nothing of it comes from outside
    " (SELECT 1 FROM receipts AS other WHERE other.request_id = linked.previous_id)"
    " ELSE previous_id IS NOT before END"
)
"""Receipts that do not point to the one of their message before them; a pointer to a purged one is right."""
BROKEN_NEWEST: Final = (
    "SELECT messages.id, newest FROM messages"
    " LEFT JOIN (SELECT message, max(request_id) AS newest FROM receipts GROUP BY message) ON message = messages.id"
    " WHERE CASE WHEN newest IS NULL THEN receipt_id > 0 ELSE receipt_id <> newest END"
)
"""Messages that do not point to their newest receipt."""
NEVER_EXPIRE: Final = (
    "SELECT messages.id FROM messages, queue_state WHERE state < 6"
    " AND (expires_at < swept_to OR (expires_at = swept_to AND messages.id <= swept_message))"
)
NEVER_PURGED: Final = (
    "SELECT id FROM messages WHERE state >= 6 AND receipt_id <= 0 AND id NOT IN (SELECT message FROM bereft)"
)
WRONGLY_BEREFT: Final = (
    "SELECT message AS id FROM bereft WHERE NOT EXISTS"
    " (SELECT 1 FROM messages WHERE messages.id = bereft.message AND state >= 6 AND receipt_id <= 0)"
)
ORPHANED_HISTORY: Final = "SELECT id FROM history WHERE request_id NOT IN (SELECT request_id FROM receipts)"

ROW_RULES: Final = (
    RowRule(
        "receipts-without-message",
        "{rows} belong to no message (the first is {first}), so nobody knows any more what to send",
        "SELECT request_id AS id FROM receipts WHERE message NOT IN (SELECT id FROM messages)",
    ),
    RowRule(
        "receipts-in-two-accounts",
        "{rows} belong to another account than their message (the first is {first})",
        "SELECT request_id AS id FROM receipts JOIN messages ON messages.id = message"
        " WHERE messages.account_id <> receipts.account_id",
        slow=True,
    ),
    RowRule(
        "broken-links",
        "{rows} do not point to the receipt of their message before them (the first is {first})",
        BROKEN_LINKS,
        mendable=True,
        slow=True,
    ),
    RowRule(
        "broken-newest",
        "{rows} of messages do not point to the newest receipt (the first is number {first})",
        BROKEN_NEWEST,
        mendable=True,
        slow=True,
    ),
    RowRule(
        "two-final-states",
        "{rows} tell a final state that is not, or not alone, their message's (the first is {first})",
        "SELECT request_id AS id FROM receipts JOIN messages ON messages.id = message"
        " WHERE receipts.state >= 6 AND receipts.state <> messages.state"
        " UNION SELECT max(request_id) FROM receipts WHERE state >= 6 GROUP BY message HAVING count(*) > 1",
        slow=True,
    ),
    RowRule(
        "never-expire",
        "{rows} of waiting messages lie behind the mark of expiry, which would never come to them (the first is number"
        " {first})",
        NEVER_EXPIRE,
        mendable=True,
    ),
    RowRule(
        "never-purged",
        "{rows} of final messages without receipt would never be purged (the first is number {first})",
        NEVER_PURGED,
        mendable=True,
    ),
    RowRule(
        "wrongly-bereft",
        "{rows} of the table bereft mean no final message without receipt (the first is {first})",
        WRONGLY_BEREFT,
        mendable=True,
    ),
    RowRule(
        "orphaned-history",
        "{rows} of history belong to no receipt (the first is {first})",
        ORPHANED_HISTORY,
        mendable=True,
        slow=True,
    ),
    *(
        RowRule(
            f"{table}-without-account",
            f"{{rows}} of {table} belong to an account without a name (the first is number {{first}})",
            f"SELECT {key} AS id FROM {table} WHERE account_id NOT IN (SELECT id FROM accounts)",  # noqa: S608 - nothing of it comes from outside
        )
        for table, key in (
            ("messages", "id"),
            ("receipts", "request_id"),
            ("message_counts", "account_id"),
            ("receipt_counts", "account_id"),
        )
    ),
)

COUNTERS: Final = (
    ("message_counts", "messages", "state", tuple(schema.STATE_NAMES)),
    ("receipt_counts", "receipts", "status", tuple(schema.STATUSES)),
)
"""Each counter table, what it counts, by which column besides the account, and the values of that."""
USED_REQUEST_IDS: Final = (
    "SELECT max(n) FROM (SELECT max(request_id) AS n FROM receipts UNION ALL SELECT max(receipt_id) FROM messages"
    " UNION ALL SELECT max(request_id) FROM history)"
)
USED_MESSAGES: Final = (
    "SELECT max(n) FROM (SELECT max(id) AS n FROM messages UNION ALL SELECT max(message) FROM receipts)"
)
