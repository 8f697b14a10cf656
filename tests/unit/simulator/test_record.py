"""What the record counts, proves and forgets."""

from __future__ import annotations

from dlr_buffer.simulator.protocol import Receipt
from dlr_buffer.simulator.record import Record, Sighting


def _take(record: Record, *receipts: Receipt, accepted: bool = True) -> None:
    for message, sighting in record.begin("/api/dlr?_password=topsecret", b"topsecret", receipts):
        if accepted:
            record.accept(message, sighting)
    record.end()


def test_a_resend_is_seen_and_counted_once() -> None:
    """The same receipt accepted twice is one final state, one accepted receipt and one resend."""
    record = Record()
    receipt = Receipt("a", "delivered", "1")
    _take(record, receipt, accepted=False)
    _take(record, receipt)
    _take(record, receipt)
    assert record.sightings("a") == (
        Sighting("delivered", "1", accepted=False),
        Sighting("delivered", "1", accepted=True),
        Sighting("delivered", "1", accepted=True),
    )
    assert record.final_states() == {"a": [("delivered", "1")]}
    assert (record.receipts, record.accepted, record.resends) == (3, 1, 2)
    assert record.reused_request_ids == record.after_final == 0


def test_two_final_states_are_told() -> None:
    """A second final state of one message is visible in the final states and in the counters."""
    record = Record()
    _take(record, Receipt("a", "enroute", "1"), Receipt("b", "enroute", "2"))
    _take(record, Receipt("a", "delivered", "3"))
    _take(record, Receipt("a", "expired", "4"))
    assert record.final_states() == {"a": [("delivered", "3"), ("expired", "4")], "b": []}
    assert record.after_final == 1
    assert record.summary()["final_states"] == {"delivered": 1, "expired": 1}


def test_what_was_not_accepted_is_no_final_state() -> None:
    """A refused final receipt neither counts as final nor makes later ones late."""
    record = Record()
    _take(record, Receipt("a", "delivered", "1"), accepted=False)
    _take(record, Receipt("a", "expired", "2"))
    assert record.final_states() == {"a": [("expired", "2")]}
    assert record.after_final == 0


def test_a_reused_request_id_is_told_from_a_resend() -> None:
    """One request_id for two messages, or for two states, is counted as the client's fault."""
    record = Record()
    _take(record, Receipt("a", "enroute", "1"))
    _take(record, Receipt("b", "enroute", "1"))
    _take(record, Receipt("a", "accepted", "1"))
    assert record.resends == 2
    assert record.reused_request_ids == 2


def test_receipts_without_request_id() -> None:
    """Without request_ids nothing can be called a resend, and equal receipts are one."""
    record = Record()
    _take(record, Receipt("a", "delivered", None))
    _take(record, Receipt("a", "delivered", None))
    assert (record.accepted, record.resends) == (1, 0)
    assert record.final_states() == {"a": [("delivered", None)]}


def test_concurrency_and_batch_maxima() -> None:
    """The largest batch and the most requests at a time are kept after they are over."""
    record = Record()
    record.begin("", b"", (Receipt("a", "enroute", "1"), Receipt("b", "enroute", "2")))
    record.begin("", b"", (Receipt("c", "enroute", "3"),))
    record.end()
    record.end()
    assert (record.max_batch, record.concurrent_requests, record.max_concurrent_requests) == (2, 0, 2)


def test_messages_are_bounded() -> None:
    """The oldest messages are forgotten beyond the bound, counted, and their request_ids with them."""
    record = Record(max_messages=3)
    for number in range(10):
        _take(record, Receipt(f"m{number}", "delivered", str(number)))
    assert list(record.final_states()) == ["m7", "m8", "m9"]
    assert record.forgotten_messages == 7
    assert "m0" not in record
    _take(record, Receipt("m0", "delivered", "0"))
    assert record.resends == 0
    assert record.accepted == 11


def test_sightings_of_one_message_are_bounded() -> None:
    """A message sent again without end keeps its accepted sighting and no more than a thousand in all."""
    record = Record()
    _take(record, Receipt("a", "delivered", "1"))
    for _ in range(1500):
        _take(record, Receipt("a", "delivered", "1"), accepted=False)
    assert len(record.sightings("a")) == 1000
    assert record.sightings("a")[0].accepted
    assert record.resends == 1500


def test_targets_are_bounded_and_never_shown() -> None:
    """Raw targets and bodies are kept to a bound for comparing, and leave the record only masked."""
    record = Record(max_targets=2)
    for number in range(3):
        _take(record, Receipt(str(number), "delivered", str(number)))
    assert len(record.targets) == len(record.bodies) == 2
    assert "topsecret" in record.targets[0]
    assert "topsecret" not in repr(record)
    shown = record.shown()
    assert "topsecret" not in repr(shown)
    assert shown["targets"] == ["/api/dlr?_password=***"] * 2
