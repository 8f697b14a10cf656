"""What an answer says twice, and how much it may say: found by comparing with a second reader of answers."""

from __future__ import annotations

import pytest

from dlr_buffer.smartswitch.answers import MAX_ANSWER_VALUES, Answered, HttpAnswer, Outage, TooLarge, classify

CLEAN = '{"attributes":{"status":"ok"},"id":"r","meta":{"request_id":"1"}}'


@pytest.mark.parametrize(
    "doubtful",
    [
        '{"meta":{},"meta":{"request_id":"1"}}',
        '{"meta":{"request_id":"1"},"meta":{"request_id":"9"}}',
        '{"meta":{"request_id":1,"request_id":9},"attributes":{"status":"ok"}}',
        '{"request_id":"9","request_id":"1","attributes":{"status":"failed"}}',
        '{"attributes":{"request_id":"1","status":"failed"},"attributes":{"status":"ok"}}',
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_contradictory_entry_spoils_what_it_names(doubtful: str, *, first: bool) -> None:
    """An entry that contradicts itself, and in any of its versions is about a receipt, is in doubt about it."""
    entries = [doubtful, CLEAN] if first else [CLEAN, doubtful]
    body = f'{{"data":[{",".join(entries)}]}}'.encode()
    answer = classify(HttpAnswer(200, "OK", None, body), [1], now_ms=0, redact=str)
    assert isinstance(answer, Answered)
    assert not answer.acknowledged
    assert [each.error.code for each in answer.faulted] == ["contradictory"]


def test_too_many_values_are_not_read() -> None:
    """A body of more values than any sound answer has is an outage; a status that decides still decides."""
    body = b'{"data":[' + CLEAN.encode() + b",[]" * MAX_ANSWER_VALUES + b"]}"
    outage = classify(HttpAnswer(200, "OK", None, body), [1], now_ms=0, redact=str)
    assert isinstance(outage, Outage)
    assert outage.cause == "too-long"
    assert classify(HttpAnswer(413, "", None, body), [1], now_ms=0, redact=str) == TooLarge(413)


def test_the_largest_batch_is_read() -> None:
    """Ten thousand entries, the most that a batch can be configured to hold, are within the limit."""
    asked = range(1, 10_001)
    entries = ",".join(CLEAN.replace('"1"', f'"{each}"') for each in asked)
    answer = classify(
        HttpAnswer(200, "OK", None, f'{{"data":[{entries}]}}'.encode()), asked, now_ms=0, redact=str
    )
    assert isinstance(answer, Answered)
    assert len(answer.acknowledged) == len(asked)
