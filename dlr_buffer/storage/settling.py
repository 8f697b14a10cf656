"""Claiming receipts for the wire, and settling what came of it.

Claims are memory only (see `claims`); settling a batch is part of one transaction. An outage changes no row:
its receipts are only given back. An answer that comes a second time, or after its claim was lost, changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, case, select, update

from dlr_buffer.receipts import (
    Acknowledged,
    Claim,
    Claimed,
    Cut,
    DueClaim,
    Receipt,
    ReceiptStatus,
    RefusalPolicy,
    Refused,
    Settled,
    after_refusal,
)
from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.prepared import Prepared
from dlr_buffer.storage.transaction import (
    Row,
    Transaction,
    among,
    json_array,
    require_rows,
)

_log = logging.getLogger(__name__)

_CLAIMABLE = (
    select(
        schema.receipts.c.request_id,
        schema.receipts.c.message,
        schema.receipts.c.state,
        schema.receipts.c.attempts,
        schema.receipts.c.refusals,
        schema.receipts.c.created_at,
        schema.receipts.c.counted_since,
        schema.receipts.c.next_attempt_at,
        schema.messages.c.message_id,
        schema.messages.c.receipt_id,
    )
    .join_from(
        schema.receipts,
        schema.messages,
        schema.messages.c.id == schema.receipts.c.message,
    )
    .where(schema.has_status(schema.PENDING))
)
FRESH = Prepared(
    _CLAIMABLE.where(
        schema.receipts.c.next_attempt_at.is_(None),
        schema.receipts.c.account_id == bindparam("account_id"),
        schema.receipts.c.request_id >= bindparam("start"),
    )
    .order_by(schema.receipts.c.request_id)
    .limit(bindparam("limit"))
)
NEWEST = Prepared(
    _CLAIMABLE.where(
        schema.receipts.c.next_attempt_at.is_(None),
        schema.receipts.c.account_id == bindparam("account_id"),
        schema.receipts.c.request_id < bindparam("below"),
    )
    .order_by(schema.receipts.c.request_id.desc())
    .limit(bindparam("limit"))
)
DUE = Prepared(
    _CLAIMABLE.where(
        schema.receipts.c.next_attempt_at.is_not(None),
        schema.receipts.c.account_id == bindparam("account_id"),
        schema.receipts.c.next_attempt_at <= bindparam("until"),
    )
    .order_by(schema.receipts.c.next_attempt_at)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
FAR = Prepared(
    _CLAIMABLE.where(
        schema.receipts.c.next_attempt_at.is_not(None),
        schema.receipts.c.account_id == bindparam("account_id"),
        schema.receipts.c.next_attempt_at > bindparam("horizon"),
    )
    .order_by(schema.receipts.c.next_attempt_at.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
NEXT_DUE = Prepared(
    select(schema.receipts.c.next_attempt_at)
    .where(
        schema.receipts.c.next_attempt_at.is_not(None),
        schema.receipts.c.account_id == bindparam("account_id"),
        schema.receipts.c.next_attempt_at > bindparam("until"),
    )
    .order_by(schema.receipts.c.next_attempt_at)
    .limit(1)
)
_THESE = Prepared(
    _CLAIMABLE.where(
        schema.receipts.c.account_id == bindparam("account_id"),
        among(schema.receipts.c.request_id, "request_ids"),
    ).order_by(schema.receipts.c.request_id)
)

_ACKNOWLEDGE = Prepared(
    update(schema.receipts)
    .where(
        schema.receipts.c.request_id == bindparam("b_request_id"),
        schema.receipts.c.status == schema.PENDING,
    )
    .values(
        status=schema.ACKNOWLEDGED,
        settled_at=bindparam("b_now"),
        next_attempt_at=None,
        response_id=bindparam("b_response_id"),
        attempts=schema.receipts.c.attempts + bindparam("b_attempts"),
        error_code=None,
        error_title=None,
        error_detail=None,
    )
)
_REFUSE = Prepared(
    update(schema.receipts)
    .where(
        schema.receipts.c.request_id == bindparam("b_request_id"),
        schema.receipts.c.status == schema.PENDING,
    )
    .values(
        status=bindparam("b_status"),
        settled_at=bindparam("b_settled_at"),
        next_attempt_at=bindparam("b_next_attempt_at"),
        refusals=schema.receipts.c.refusals + 1,
        counted_since=case(
            (schema.receipts.c.refusals == 0, bindparam("b_now")), else_=schema.receipts.c.counted_since
        ),
        attempts=schema.receipts.c.attempts + bindparam("b_attempts"),
        error_code=bindparam("b_code"),
        error_title=bindparam("b_title"),
        error_detail=bindparam("b_detail"),
    )
)
_REFUSED = Prepared(
    select(
        schema.receipts.c.request_id,
        schema.receipts.c.refusals,
        schema.receipts.c.counted_since,
        schema.receipts.c.state,
        schema.messages.c.receipt_id,
    )
    .join_from(
        schema.receipts,
        schema.messages,
        schema.messages.c.id == schema.receipts.c.message,
    )
    .where(
        among(schema.receipts.c.request_id, "request_ids"),
        schema.receipts.c.status == schema.PENDING,
    )
)


_UNWAIT = Prepared(
    update(schema.receipts)
    .where(
        schema.receipts.c.request_id == bindparam("b_request_id"),
        schema.receipts.c.status == schema.PENDING,
    )
    .values(next_attempt_at=None)
)


class _PendingRow(NamedTuple):
    """What `_CLAIMABLE` selects."""

    request_id: int
    message: int
    state: int
    attempts: int
    refusals: int
    created_at: int
    counted_since: int
    next_attempt_at: int | None
    message_id: str
    receipt_id: int


class _RefusedRow(NamedTuple):
    """What `_REFUSED` selects."""

    request_id: int
    refusals: int
    counted_since: int
    state: int
    receipt_id: int


_ABOVE_ALL = 2**63 - 1
_LOOK_AHEAD = 64
"""Rows read beyond what is asked, for those that turn out to be in flight or kept apart."""


class Settlement(msgspec.Struct, frozen=True):
    """What came of one request (or of claims given back).

    Ids of one account, each in at most one of the three.
    """

    account: str
    account_id: int
    acknowledged: Sequence[Acknowledged]
    refused: Sequence[Refused]
    returned: Sequence[int]
    """Not to blame, or never sent: they wait again, unless a newer one overtook them."""
    apart: Container[int]
    """Those of the returned ones that the flusher keeps apart: they are not offered as fresh ones."""
    unwaited: Sequence[int]
    """Those of the returned ones that wait for no time of their own any more."""
    sent: bool
    """Whether the returned ones were on the wire."""
    policy: RefusalPolicy
    now: int


def settle(tx: Transaction, settlement: Settlement) -> Settled:
    """Write what came of a request and end its claims; what is in flight no more stays as it is."""
    settlement = _still_awaited(tx, settlement)
    claims, now, account_id = tx.claims, settlement.now, settlement.account_id
    acknowledged = _acknowledge(tx, settlement)
    dead, superseded = _refuse(tx, settlement)
    settled = [each.request_id for each in settlement.acknowledged]
    settled += [each.request_id for each in settlement.refused]
    overtaken = [each for each in settlement.returned if tx.in_flight(each) and tx.overtaken(each)]
    gone = set(overtaken)
    unwaited = [each for each in settlement.unwaited if tx.in_flight(each) and each not in gone]
    tx.ended.update(dict.fromkeys(settled, 0))
    tx.ended.update((each, int(settlement.sent)) for each in settlement.returned if tx.in_flight(each))
    tx.mark_superseded([(each, account_id, schema.PENDING) for each in overtaken], now)
    if unwaited:
        _UNWAIT.run_many(tx.connection, [{"b_request_id": each} for each in unwaited])
    kept = [each for each in settlement.returned if each not in gone]

    def after() -> None:
        claims.forget_attempts(settled)
        claims.release(account_id, (*settled, *overtaken))
        give_back(claims, account_id, kept, sent=settlement.sent, apart=settlement.apart)

    tx.effects.append(after)
    tx.events["acknowledged"] += acknowledged
    tx.events["refused"] += len(settlement.refused)
    tx.events["dead"] += dead
    tx.events["superseded"] += superseded
    again = len(settlement.refused) - dead - superseded
    return Settled(acknowledged, again, dead, superseded + len(overtaken))


def _still_awaited(tx: Transaction, settlement: Settlement) -> Settlement:
    """The settlement without what was settled already or whose claim was lost.

    What has become of such a receipt since then (held, replayed, claimed by another) is newer than the answer.
    """
    acknowledged = [each for each in settlement.acknowledged if tx.in_flight(each.request_id)]
    refused = [each for each in settlement.refused if tx.in_flight(each.request_id)]
    late = len(settlement.acknowledged) + len(settlement.refused) - len(acknowledged) - len(refused)
    if not late:
        return settlement
    _log.warning(
        "account %s: %d answers of Smartswitch came for receipts that are not in flight any more; they change nothing",
        settlement.account,
        late,
    )
    return msgspec.structs.replace(settlement, acknowledged=acknowledged, refused=refused)


def give_back(
    claims: Claims, account_id: int, request_ids: Sequence[int], *, sent: bool, apart: Container[int] = ()
) -> None:
    """End the claims of unsettled receipts, which can be claimed again; writes nothing."""
    for request_id in request_ids:
        # Without a claim it was settled in the meantime, and counted.
        if sent and request_id in claims:
            claims.count_attempt(request_id)
    claims.release(account_id, request_ids)
    for request_id in request_ids:
        if request_id not in apart:
            # One that is kept apart would be passed over, with all between it and the next fresh one, at every
            # claim.
            claims.reconsider(account_id, request_id)


def _acknowledge(tx: Transaction, settlement: Settlement) -> int:
    if not settlement.acknowledged:
        return 0
    done = _ACKNOWLEDGE.run_many(
        tx.connection,
        [
            {
                "b_request_id": each.request_id,
                "b_now": settlement.now,
                "b_response_id": each.response_id,
                "b_attempts": 1 + tx.claims.unwritten_attempts(each.request_id),
            }
            for each in settlement.acknowledged
        ],
    )
    require_rows(done, len(settlement.acknowledged), "acknowledging")
    tx.move_receipts(settlement.account_id, schema.PENDING, schema.ACKNOWLEDGED, done)
    return done


def _refuse(tx: Transaction, settlement: Settlement) -> tuple[int, int]:
    """Count refusals; returns how many receipts died of them and how many were superseded meanwhile."""
    if not settlement.refused:
        return 0, 0
    account_id, now, policy = settlement.account_id, settlement.now, settlement.policy
    errors = {each.request_id: each.error for each in settlement.refused}
    rows = _refused(tx.connection, errors)
    require_rows(len(rows), len(errors), "finding refused receipts")
    changes: list[Row] = []
    dead = superseded = 0
    for row in rows:
        error = errors[row.request_id]
        refusals = row.refusals + 1
        # Overtaken it stays, though the newer one be deleted meanwhile.
        newer = row.receipt_id != row.request_id or tx.overtaken(row.request_id)
        if newer and row.state < schema.FIRST_FINAL:
            status, next_attempt_at = schema.SUPERSEDED, None
            superseded += 1
        else:
            fate = after_refusal(
                refusals=refusals,
                max_refusals=policy.max_refusals,
                # It lives from its first refusal on: what came before was not its own.
                counted_since_ms=row.counted_since if row.refusals else now,
                lifetime_ms=policy.lifetime_ms,
                now_ms=now,
                backoff_ms=policy.backoff_ms(refusals),
            )
            status, next_attempt_at = (
                schema.STATUS_CODES[fate.status],
                fate.next_attempt_at_ms,
            )
            dead += status == schema.DEAD
        changes.append(
            {
                "b_request_id": row.request_id,
                "b_status": status,
                "b_now": now,
                "b_settled_at": None if status == schema.PENDING else now,
                "b_next_attempt_at": next_attempt_at,
                "b_attempts": 1 + tx.claims.unwritten_attempts(row.request_id),
                "b_code": error.code,
                "b_title": error.title,
                "b_detail": error.detail,
            }
        )
        tx.move_receipts(account_id, schema.PENDING, status)
        tx.note(
            row.request_id,
            now,
            "refused",
            f"{error.code}: {error.title}: {error.detail}",
        )
    done = _REFUSE.run_many(tx.connection, changes)
    require_rows(done, len(changes), "refusing")
    if any(change["b_next_attempt_at"] is not None for change in changes):
        tx.effects.append(partial(tx.claims.delayed, account_id))
    return dead, superseded


class Claimer:
    """Reads what can be sent; runs on the writer's thread between transactions.

    So that it sees every commit.
    """

    def __init__(self, claims: Claims) -> None:
        """Claim in ``claims``."""
        self._claims = claims

    def _claimable(self, row: _PendingRow, excluding: Container[int], stale: list[int]) -> bool:
        """Whether a pending receipt may be claimed now; one that a newer one overtook is noted as stale."""
        if row.request_id in self._claims or row.request_id in excluding:
            return False
        if row.receipt_id != row.request_id and row.state < schema.FIRST_FINAL:
            stale.append(row.request_id)
            return False
        return not self._claims.busy(row.message)

    def fresh(  # noqa: PLR0913 - called in one place, by name
        self,
        connection: Connection,
        *,
        account: str,
        account_id: int,
        limit: int,
        excluding: Container[int],
        cut: Callable[[Sequence[Receipt]], Cut],
    ) -> tuple[Claim, list[int]]:
        """Claim the oldest fresh receipts, as many as ``cut`` takes of them.

        Returns the claim and the ids of stale receipts that a crash left behind: a newer one exists, so they
        are to be superseded.
        """
        claims = self._claims
        start = first = claims.next_fresh(account_id)
        candidates: list[_PendingRow] = []
        stale: list[int] = []
        ask = limit
        while len(candidates) < limit:
            rows = _pending(connection, FRESH, {"account_id": account_id, "start": start, "limit": ask})
            for row in rows:
                start = row.request_id + 1
                if not self._claimable(row, excluding, stale):
                    continue
                candidates.append(row)
                if len(candidates) == limit:
                    break
            if len(rows) < ask:
                break
            # Some can't be claimed: there may be many of them side by side.
            ask = limit - len(candidates) + _LOOK_AHEAD
        if not candidates:
            claims.advance(account_id, max(start, first))
            return Claim((), None), stale
        receipts = [_claimed(account, row, claims) for row in candidates]
        decision = cut([each.receipt for each in receipts])
        taken = receipts[: decision.take]
        for row in candidates[: decision.take]:
            claims.take(row.request_id, row.message)
        if decision.take < len(candidates):
            start = candidates[decision.take].request_id
        claims.advance(account_id, start)
        return Claim(tuple(taken), decision.ready_at_ms), stale

    def newest(
        self, connection: Connection, *, account: str, account_id: int, excluding: Container[int]
    ) -> tuple[Claim, list[int]]:
        """Claim the newest fresh receipt."""
        below = _ABOVE_ALL
        stale: list[int] = []
        while True:
            rows = _pending(
                connection, NEWEST, {"account_id": account_id, "below": below, "limit": _LOOK_AHEAD}
            )
            for row in rows:
                below = row.request_id
                if self._claimable(row, excluding, stale):
                    self._claims.take(row.request_id, row.message)
                    return Claim((_claimed(account, row, self._claims),), None), stale
            if len(rows) < _LOOK_AHEAD:
                return Claim((), None), stale

    def behind(
        self,
        connection: Connection,
        *,
        account: str,
        account_id: int,
        after: int,
        excluding: Container[int],
    ) -> tuple[Claim, list[int]]:
        """Claim the first fresh receipt above ``after`` that `fresh` has passed and would not come back to."""
        claims = self._claims
        end = claims.next_fresh(account_id)
        stale: list[int] = []
        while after < end:
            rows = _pending(
                connection, FRESH, {"account_id": account_id, "start": after + 1, "limit": _LOOK_AHEAD}
            )
            for row in rows:
                after = row.request_id
                if after >= end:
                    break
                if self._claimable(row, excluding, stale):
                    claims.take(row.request_id, row.message)
                    return Claim((_claimed(account, row, claims),), None), stale
            if len(rows) < _LOOK_AHEAD:
                break
        return Claim((), None), stale

    def due(  # noqa: PLR0913 - called in one place, by name
        self,
        connection: Connection,
        *,
        account: str,
        account_id: int,
        now: int,
        horizon_ms: int,
        excluding: Container[int],
        limit: int,
        cut: Callable[[Sequence[Receipt]], Cut],
    ) -> tuple[DueClaim, list[int]]:
        """Claim the receipt whose own backoff is over for longest.

        If that is a replay, the replays that are due next are claimed with it, as many as ``cut`` takes. One
        further than ``horizon_ms`` ahead counts as due too. (After a leap of the clock backward a deadline could
        lie days ahead.)
        """
        stale: list[int] = []
        seen = 0
        for statement, bounds in ((DUE, {"until": now}), (FAR, {"horizon": now + horizon_ms})):
            offset = 0
            ask = _LOOK_AHEAD + limit - 1
            while True:
                rows = _pending(
                    connection,
                    statement,
                    {"account_id": account_id, "limit": ask, "offset": offset, **bounds},
                )
                seen += len(rows)
                going: list[_PendingRow] = []
                for row in rows:
                    if not self._claimable(row, excluding, stale):
                        continue
                    if going and row.refusals:
                        break
                    going.append(row)
                    if row.refusals or len(going) == limit:
                        break
                if going:
                    return self._take_due(account, going, cut), stale
                if len(rows) < ask:
                    break
                # All of these are in flight or kept apart; there are never many of them.
                offset += ask
        next_due = NEXT_DUE.rows(connection, {"account_id": account_id, "until": now})
        if not seen and not next_due:
            self._claims.none_delayed(account_id)
        return DueClaim(None, next_due[0][0] if next_due else None), stale

    def _take_due(
        self, account: str, going: Sequence[_PendingRow], cut: Callable[[Sequence[Receipt]], Cut]
    ) -> DueClaim:
        """Put these in flight, the first at least, the others as far as ``cut`` lets them."""
        found = [_claimed(account, row, self._claims) for row in going]
        take = cut([each.receipt for each in found]).take if len(found) > 1 else 1
        for row in going[:take]:
            self._claims.take(row.request_id, row.message)
        first, *others = found[:take]
        return DueClaim(first, None, tuple(others))

    def these(
        self,
        connection: Connection,
        *,
        account: str,
        account_id: int,
        request_ids: Sequence[int],
    ) -> tuple[Claim, list[int]]:
        """Claim those of the named receipts that still can be."""
        claims = self._claims
        taken: list[Claimed] = []
        stale: list[int] = []
        rows = _pending(
            connection, _THESE, {"account_id": account_id, "request_ids": json_array(request_ids)}
        )
        for row in rows:
            if not self._claimable(row, (), stale):
                continue
            claims.take(row.request_id, row.message)
            taken.append(_claimed(account, row, claims))
        return Claim(tuple(taken), None), stale


def _claimed(account: str, row: _PendingRow, claims: Claims) -> Claimed:
    return Claimed(
        Receipt(
            row.request_id,
            account,
            row.message_id,
            schema.STATES[row.state],
            ReceiptStatus.PENDING,
            row.attempts + claims.unwritten_attempts(row.request_id),
            row.refusals,
            row.created_at,
            row.next_attempt_at,
        ),
        row.counted_since,
    )


def _pending(connection: Connection, statement: Prepared, values: Mapping[str, Any]) -> list[_PendingRow]:
    return [_PendingRow._make(row) for row in statement.rows(connection, values)]


def _refused(connection: Connection, request_ids: Iterable[int]) -> list[_RefusedRow]:
    rows = _REFUSED.rows(connection, {"request_ids": json_array(request_ids)})
    return [_RefusedRow._make(row) for row in rows]


def supersede_stale(tx: Transaction, account_id: int, request_ids: Sequence[int], now: int) -> None:
    """Supersede what a crash left behind, if it is still pending."""
    rows = _refused(tx.connection, request_ids)
    stale = [
        row.request_id for row in rows if row.request_id not in tx.claims and row.receipt_id != row.request_id
    ]
    tx.mark_superseded([(each, account_id, schema.PENDING) for each in stale], now)
