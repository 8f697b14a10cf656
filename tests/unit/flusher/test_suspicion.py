"""Evidence, suspects and receipts set aside: the memory behind blame by evidence (pure)."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.flusher.suspicion import MAX_ASIDES, MAX_MARKS, Asides, Evidence, Halving, Suspects
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Claimed, Receipt, ReceiptStatus

HORIZON = 600_000


def claimed(request_id: int, counted_since_ms: int = 0) -> Claimed:
    """A receipt on its way out."""
    receipt = Receipt(request_id, "a", "m", MessageState.DELIVERED, ReceiptStatus.PENDING, 0, 0, 0)
    return Claimed(receipt, counted_since_ms)


def put(asides: Asides, request_id: int, *, strike: bool = True, refused: bool = False, due: int = 0) -> int:
    """Set one aside; returns its strikes."""
    strikes = asides.put(request_id, strike=strike, refused=refused, due_ms=due, acknowledged=0)
    assert strikes is not None, "there was no room"
    return strikes


def looks(asides: Asides, now_ms: int) -> tuple[int | None, int | None, int | None]:
    """What asides offer while others go through: which is due, when the next one is, and a probe."""
    return asides.due(now_ms, HORIZON, 1), asides.next_due_ms(HORIZON, 1), asides.longest_untried()


def test_evidence_is_an_acknowledgement_after_the_first_attempt() -> None:
    """What was acknowledged before the first attempt proves nothing; after it, it does, also at later attempts."""
    evidence = Evidence()
    evidence.acknowledge([1])
    assert evidence.attempt([claimed(7)]) == [7]
    assert not evidence.against(7)
    evidence.acknowledge([2])
    assert evidence.against(7)
    assert evidence.attempt([claimed(7)]) == []
    assert evidence.against(7)


def test_no_evidence_against_what_was_never_tried_or_was_acknowledged() -> None:
    """A receipt without an attempt, or one that is done, is not blamed."""
    evidence = Evidence()
    evidence.acknowledge([1])
    assert not evidence.against(7)
    evidence.attempt([claimed(7)])
    evidence.acknowledge([7])
    assert not evidence.against(7)


def test_a_replay_is_a_first_attempt() -> None:
    """When an admin replays a receipt, its lifetime begins anew, and so does the evidence."""
    evidence = Evidence()
    evidence.attempt([claimed(7, counted_since_ms=1)])
    evidence.acknowledge([1])
    assert evidence.attempt([claimed(7, counted_since_ms=2)]) == [7]
    assert not evidence.against(7)


def test_marks_are_bounded() -> None:
    """Memory does not grow with the queue; what is forgotten counts as never tried."""
    evidence = Evidence()
    evidence.attempt([claimed(number) for number in range(MAX_MARKS + 1)])
    evidence.acknowledge([10**9])
    assert not evidence.against(0)
    assert evidence.against(1)
    assert len(evidence._marks) == MAX_MARKS


def find(bad: AbstractSet[int], size: int, limit: int = 1000) -> tuple[list[int], int]:
    """Bisect a refused group of ``size`` as the flusher does; returns who was refused alone, and the requests."""
    suspects, found, requests, pending = Suspects(), [], 1, list(range(size))
    while bad & set(pending):
        # As in the queue: what was cleared goes as a batch again, and is accused if that is refused.
        suspects.accuse(pending)
        while (halving := suspects.next(limit)) is not None:
            assert halving.left
            assert len(halving.left) <= limit
            requests += 1
            suspects.close(halving)
            refused = bool(bad & set(halving.left))
            if refused and len(halving.left) == 1:
                found.append(halving.left[0])
                pending.remove(halving.left[0])
            elif refused:
                suspects.accuse(halving.left)
            else:
                pending = [each for each in pending if each not in halving.left]
                if len(halving.right) > 1:
                    suspects.accuse(halving.right)
                elif halving.right:
                    suspects.resume(Halving(halving.right, ()))
        assert len(suspects) == 0
        requests += 1
    return sorted(found), requests


@given(size=st.integers(2, 200), data=st.data())
def test_halving_finds_one_bad_receipt(size: int, data: st.DataObject) -> None:
    """One bad receipt is found with as many requests as the group can be halved."""
    bad = data.draw(st.integers(0, size - 1))
    found, requests = find({bad}, size)
    assert found == [bad]
    assert requests <= 3 + size.bit_length()


@settings(max_examples=50, deadline=None)
@given(size=st.integers(2, 40), limit=st.integers(1, 40), data=st.data())
def test_halving_finds_all_bad_receipts_within_any_limit(size: int, limit: int, data: st.DataObject) -> None:
    """Any number of bad receipts is found, and no good one is taken for bad, also if requests must be smaller."""
    bad = set(data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)))
    found, _ = find(bad, size, limit)
    assert found == sorted(bad)


def test_a_group_under_way_is_still_suspect() -> None:
    """From being taken out until it is closed both halves are kept from going as fresh ones."""
    suspects = Suspects()
    suspects.accuse([1, 2, 3])
    halving = suspects.next(10)
    assert halving == Halving((1, 2), (3,))
    assert all(each in suspects for each in (1, 2, 3))
    assert len(suspects) == 3
    suspects.close(halving)
    assert len(suspects) == 0
    assert suspects.next(10) is None


def test_a_limit_cuts_a_group_without_losing_the_rest() -> None:
    """A smaller limit moves receipts to the right half; a group by itself is cut in two groups."""
    suspects = Suspects()
    suspects.accuse([1, 2, 3, 4, 5, 6])
    assert suspects.next(1) == Halving((1,), (2, 3, 4, 5, 6))
    suspects = Suspects()
    suspects.split([1, 2, 3, 4])
    assert suspects.next(1) == Halving((1,), ())
    assert suspects.next(1) == Halving((2,), ())
    assert suspects.next(9) == Halving((3, 4), ())


def test_strikes_add_up_and_probes_do_not() -> None:
    """Being a probe of an account that is down is no strike, but takes none back either."""
    asides = Asides()
    assert [put(asides, 7), put(asides, 7, strike=False), put(asides, 7)] == [1, 1, 2]


def test_an_aside_on_the_wire_is_not_offered_again() -> None:
    """Between departing and landing a receipt is neither due, nor next, nor a probe."""
    asides = Asides()
    put(asides, 7, due=100)
    assert looks(asides, 100) == (7, 100, 7)
    asides.depart(7)
    assert looks(asides, 100) == (None, None, None)
    assert 7 in asides
    asides.land([7])
    assert looks(asides, 100) == (7, 100, 7)


def test_an_aside_has_patience_while_nothing_goes_through() -> None:
    """One with a strike is tried again once another receipt was acknowledged since, or after the longest wait."""
    asides = Asides()
    put(asides, 7, due=100)
    put(asides, 8, strike=False, due=200)
    assert asides.due(100, HORIZON, 0) is None
    assert asides.next_due_ms(HORIZON, 0) == 200
    assert asides.due(100, HORIZON, 1) == 7
    asides.remove([8])
    assert asides.next_due_ms(HORIZON, 0) == 100 + HORIZON
    assert asides.due(100 + HORIZON, HORIZON, 0) == 7


def test_an_admin_releases_what_is_kept_apart_unless_it_is_on_the_wire() -> None:
    """Of the ids named, those that are there and at rest are let go."""
    asides = Asides()
    put(asides, 7)
    put(asides, 8)
    asides.depart(8)
    assert asides.release([6, 7, 8]) == [7]
    assert (7 in asides, 8 in asides) == (False, True)


def test_due_survives_a_clock_that_was_set_back() -> None:
    """An aside further ahead than any wait can be counts as due."""
    asides = Asides()
    put(asides, 7, due=10 * HORIZON)
    assert asides.due(0, HORIZON, 0) == 7
    assert asides.due(9 * HORIZON, HORIZON, 1) is None


def test_recovery_lets_only_the_innocent_go() -> None:
    """Once the account is well, mere probes go back to the others; struck and refused ones stay alone."""
    asides = Asides()
    put(asides, 1, strike=False)
    put(asides, 2)
    put(asides, 3, strike=False, refused=True)
    put(asides, 3, strike=False)
    assert asides.acquit() == [1]
    assert [each in asides for each in (1, 2, 3)] == [False, True, True]


def test_asides_are_bounded_and_take_turns() -> None:
    """The one tried longest ago comes next; there is no room for another one, but those that are there stay."""
    asides = Asides()
    for number in range(MAX_ASIDES):
        put(asides, number)
    put(asides, 0)
    assert asides.longest_untried() == 1
    assert asides.put(10**6, strike=True, refused=False, due_ms=0, acknowledged=0) is None
    assert len(asides) == MAX_ASIDES
    assert put(asides, 0) == 3
    room = [asides.has_room]
    asides.remove(range(MAX_ASIDES // 2))
    assert [*room, asides.has_room] == [False, True]
    assert put(asides, 10**6) == 1
