"""Messages that were registered while the wall clock could not be believed get a time that can be.

Which those are is found by their numbers, which only grow, and by the time that they bear; when to look is
`dlr_buffer.expiry`'s.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, case, func, or_, select, update

from dlr_buffer.storage import schema
from dlr_buffer.storage.transaction import Transaction

LOOKED_AT_ONCE: Final = 5_000
REDATED_AT_ONCE: Final = 500
"""Messages changed by one transaction, so that registration hardly notices."""

_ABOVE_ALL: Final = 2**63 - 1

_M = schema.messages.c
_NEWEST_FIRST = (
    select(_M.id, _M.registered_at)
    .where(_M.id < bindparam("below"))
    .order_by(_M.id.desc())
    .limit(LOOKED_AT_ONCE)
)
_LAST = select(func.max(_M.id))
_REDATE = (
    update(schema.messages)
    .where(
        _M.id.between(bindparam("b_first"), bindparam("b_last")),
        schema.not_final(),
        or_(_M.registered_at < bindparam("b_since"), _M.registered_at > bindparam("b_now")),
    )
    .values(
        registered_at=bindparam("b_now"),
        expires_at=bindparam("b_now") + _M.expires_at - _M.registered_at,
        changed_at=case((_M.state == schema.WAITING, bindparam("b_now")), else_=_M.changed_at),
    )
)


def first_of_the_newest(
    connection: Connection, *, at_least: int, at_most: int, passing_over_since: int
) -> int | None:
    """Number of the first of the newest messages that all bear a time between these two; None if there are none.

    Newer ones that bear a time from ``passing_over_since`` on are passed over.
    """
    below, first = _ABOVE_ALL, None
    while True:
        rows = connection.execute(_NEWEST_FIRST, {"below": below}).all()
        for row in rows:
            if at_least <= row.registered_at <= at_most:
                first = row.id
            elif first is not None or row.registered_at < passing_over_since:
                return first
        if len(rows) < LOOKED_AT_ONCE:
            return first
        below = rows[-1].id


def last_message(connection: Connection) -> int:
    """The number of the newest message; 0 if there is none."""
    return int(connection.execute(_LAST).scalar() or 0)


def redate(tx: Transaction, *, first: int, right_since: int, now: int) -> None:
    """Let some messages from number ``first`` on have been registered now, their validity period unchanged.

    Those without a final state, but not those that bear a time from ``right_since`` to now.
    """
    tx.connection.execute(
        _REDATE,
        {"b_first": first, "b_last": first + REDATED_AT_ONCE - 1, "b_since": right_since, "b_now": now},
    )
    # The mark may stand in a future that is none any more.
    tx.expect_expiry_at(now)
