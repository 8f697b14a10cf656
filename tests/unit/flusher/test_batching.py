"""When a batch closes (pure)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.flusher.batching import cut_batch
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Cut, Receipt, ReceiptStatus
from dlr_buffer.smartswitch import wire

NOW = 1_800_000_000_000


def waiting(rows: int, *, since: int = NOW, message_id: str = "1561370632513") -> list[Receipt]:
    """So many receipts, the oldest one reported at ``since``."""
    return [
        Receipt(
            number + 1, "a", message_id, MessageState.DELIVERED, ReceiptStatus.PENDING, 0, 0, since + number
        )
        for number in range(rows)
    ]


def cut(
    receipts: list[Receipt], *, limit: int = 10, budget: int = 10**6, linger: int = 250, now: int = NOW
) -> Cut:
    """Decide."""
    return cut_batch(receipts, limit=limit, budget_bytes=budget, linger_ms=linger, now_ms=now)


def test_a_full_batch_goes_at_once() -> None:
    """Count closes a batch to the exact number."""
    assert cut(waiting(10)) == Cut(10)
    assert cut(waiting(11)) == Cut(10)
    assert cut(waiting(9)) == Cut(0, NOW + 250)


def test_linger_counts_from_the_oldest_receipt() -> None:
    """A batch that is not full goes exactly `linger` after its oldest receipt, not earlier."""
    assert cut(waiting(3), now=NOW + 249) == Cut(0, NOW + 250)
    assert cut(waiting(3), now=NOW + 250) == Cut(3)
    assert cut(waiting(3), linger=0) == Cut(3)


def test_a_receipt_from_the_future_does_not_linger() -> None:
    """After the clock was set back nothing waits for a time that is far away."""
    assert cut(waiting(1), now=NOW - 1) == Cut(1)


def test_bytes_close_a_batch_without_linger() -> None:
    """What no longer fits closes the batch at once; what fits to the last byte is in it."""
    receipts = waiting(3)
    two = sum(wire.encoded_length(each) for each in receipts[:2])
    assert cut(receipts, budget=two) == Cut(2)
    assert cut(receipts, budget=two - 1) == Cut(1)


def test_one_that_is_too_long_goes_alone() -> None:
    """A receipt longer than the whole budget is sent all the same, by itself."""
    assert cut(waiting(2, message_id="x" * 255), budget=10) == Cut(1)
    assert cut(waiting(1, message_id="x" * 255), budget=10, now=NOW + 250) == Cut(1)


@given(
    rows=st.integers(1, 150),
    limit=st.integers(1, 120),
    budget=st.integers(-10, 10_000),
    linger=st.integers(0, 10_000),
    age=st.integers(-(10**6), 10**6),
)
def test_every_decision_is_sound(rows: int, limit: int, budget: int, linger: int, age: int) -> None:
    """Whatever waits: a batch holds 1 to `limit` receipts within the budget, or waits at most `linger`."""
    receipts = waiting(rows, since=NOW - age)
    decision = cut(receipts, limit=limit, budget=budget, linger=linger)
    if decision.take:
        assert decision.take <= min(limit, rows)
        if decision.take > 1:
            assert sum(wire.encoded_length(each) for each in receipts[: decision.take]) <= budget
    else:
        assert decision.ready_at_ms is not None
        assert NOW < decision.ready_at_ms <= NOW + linger
