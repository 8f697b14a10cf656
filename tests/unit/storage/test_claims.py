"""Claims in memory: what is in flight, who waits for whom, and where to look for fresh receipts."""

from __future__ import annotations

from dlr_buffer.storage.claims import Claims


def test_a_claim_holds_its_message() -> None:
    """While a receipt is in flight its message is busy; both end with its release, another one's do not."""
    claims = Claims()
    claims.take(1, message=10)
    claims.take(2, message=20)
    assert 1 in claims
    assert claims.busy(10)
    claims.release(1, [1, 99])
    assert 1 not in claims
    assert not claims.busy(10)
    assert 2 in claims
    assert claims.busy(20)


def test_a_release_lets_the_newer_be_found() -> None:
    """The search for fresh receipts goes back to a newer receipt that had to wait, and forgets that it waited."""
    claims = Claims()
    claims.take(1, message=10)
    claims.overtake(1, 5)
    claims.advance(7, 9)
    assert claims.overtaken(1)
    claims.release(7, [1])
    assert claims.next_fresh(7) == 5
    assert not claims.overtaken(1)


def test_the_search_only_goes_back_for_what_is_behind_it() -> None:
    """A receipt ahead of where the search stands does not move it, and accounts have places of their own."""
    claims = Claims()
    claims.advance(7, 9)
    claims.reconsider(7, 12)
    claims.reconsider(8, 3)
    assert claims.next_fresh(7) == 9
    assert claims.next_fresh(8) == 0
    claims.reconsider(7, 4)
    assert claims.next_fresh(7) == 4


def test_attempts_are_remembered_until_written() -> None:
    """Times on the wire add up for each receipt until its row knows of them."""
    claims = Claims()
    claims.count_attempt(1)
    claims.count_attempt(1)
    claims.count_attempt(2)
    assert (claims.unwritten_attempts(1), claims.unwritten_attempts(2), claims.unwritten_attempts(3)) == (
        2,
        1,
        0,
    )
    claims.forget_attempts([1, 3])
    assert (claims.unwritten_attempts(1), claims.unwritten_attempts(2)) == (0, 1)
