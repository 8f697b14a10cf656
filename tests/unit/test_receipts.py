"""The pure rules of a receipt: what follows a refusal, and what each action takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.receipts import AfterRefusal, ReceiptAction, ReceiptStatus, after_refusal, takes

PENDING, DEAD = ReceiptStatus.PENDING, ReceiptStatus.DEAD
TAKES = {
    ReceiptAction.RETRY: {PENDING, DEAD},
    ReceiptAction.HOLD: {PENDING},
    ReceiptAction.RELEASE: {ReceiptStatus.HELD},
    ReceiptAction.DELETE: {PENDING, ReceiptStatus.HELD, DEAD},
}


@pytest.mark.parametrize("action", list(ReceiptAction))
@pytest.mark.parametrize("status", list(ReceiptStatus))
def test_what_each_action_takes(action: ReceiptAction, status: ReceiptStatus) -> None:
    """Each action takes the statuses that DESIGN §2 names and skips all others."""
    assert takes(action, status) is (status in TAKES[action])


@pytest.mark.parametrize(
    ("refusals", "age_ms", "expected"),
    [
        (1, 0, AfterRefusal(PENDING, 1_000_000 + 500)),
        (4, 99_999, AfterRefusal(PENDING, 1_000_000 + 500)),
        (5, 0, AfterRefusal(DEAD, None)),
        (6, 0, AfterRefusal(DEAD, None)),
        (1, 100_000, AfterRefusal(DEAD, None)),
        (1, -50_000, AfterRefusal(PENDING, 1_000_000 + 500)),
    ],
)
def test_after_a_refusal(refusals: int, age_ms: int, expected: AfterRefusal) -> None:
    """A receipt is given up at the last refusal allowed, or at a refusal after its lifetime; else it waits."""
    assert (
        after_refusal(
            refusals=refusals,
            max_refusals=5,
            counted_since_ms=1_000_000 - age_ms,
            lifetime_ms=100_000,
            now_ms=1_000_000,
            backoff_ms=500,
        )
        == expected
    )


@given(
    refusals=st.integers(1, 20),
    max_refusals=st.integers(1, 20),
    since=st.integers(0, 10**13),
    lifetime=st.integers(1, 10**10),
    now=st.integers(0, 10**13),
    backoff=st.integers(0, 10**6),
)
def test_a_next_attempt_belongs_to_pending_alone(
    refusals: int, max_refusals: int, since: int, lifetime: int, now: int, backoff: int
) -> None:
    """Whatever the facts, a receipt is pending with a next attempt ahead, or dead without one."""
    after = after_refusal(
        refusals=refusals,
        max_refusals=max_refusals,
        counted_since_ms=since,
        lifetime_ms=lifetime,
        now_ms=now,
        backoff_ms=backoff,
    )
    if after.status is PENDING:
        assert after.next_attempt_at_ms == now + backoff
        assert refusals < max_refusals
    else:
        assert after == AfterRefusal(DEAD, None)
