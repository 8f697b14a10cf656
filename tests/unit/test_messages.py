"""The pure rules of a message: states, what a report and a registration mean, and which ids are allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.errors import InvalidItem
from dlr_buffer.messages import (
    FINAL_STATES,
    MessageState,
    Verdict,
    check_message_id,
    check_validity_period,
    judge_registration,
    judge_report,
)

INTERMEDIATE = ["enroute", "accepted", "unknown"]
FINAL = ["delivered", "expired", "undeliverable", "rejected"]


def test_the_states_are_the_seeds() -> None:
    """There are the seed's seven states, of which four are final and the three others are not."""
    assert {state.value for state in MessageState} == {*INTERMEDIATE, *FINAL}
    assert {state.value for state in FINAL_STATES} == set(FINAL)
    assert {state.value for state in MessageState if state.final} == set(FINAL)


@pytest.mark.parametrize("current", [None, *MessageState])
@pytest.mark.parametrize("reported", list(MessageState))
def test_every_pair_of_states_is_judged(current: MessageState | None, reported: MessageState) -> None:
    """The same state is repeated, after a final one all others conflict, everything else is news."""
    if current is reported:
        expected = Verdict.REPEATED
    elif current is not None and current.value in FINAL:
        expected = Verdict.CONFLICTING
    else:
        expected = Verdict.NEW
    assert judge_report(current, reported) is expected


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("asked", [None, 5_000, 6_000])
def test_every_second_registration_is_judged(*, final: bool, implicit: bool, asked: int | None) -> None:
    """Adopting, repeating and conflicting follow the table of DESIGN §2, for each combination."""
    verdict = judge_registration(
        final=final, implicit=implicit, current_validity_ms=5_000, asked_validity_ms=asked
    )
    if final:
        assert verdict is Verdict.REPEATED, "it no longer matters"
    elif implicit:
        assert verdict is Verdict.NEW, "the first explicit registration"
    elif asked in (None, 5_000):
        assert verdict is Verdict.REPEATED
    else:
        assert verdict is Verdict.CONFLICTING


@pytest.mark.parametrize(
    "message_id",
    [
        "7",
        "007",
        "0xAb",
        "a b",
        " ",
        "é",
        "e\u0301",
        "日本",
        "x" * 255,
        "é" * 127,
        "😀" * 63,
        "\u2028",
        "%00",
    ],
)
def test_allowed_ids(message_id: str) -> None:
    """Any 1 to 255 bytes of UTF-8 without control characters are an id."""
    check_message_id(message_id)


@pytest.mark.parametrize(
    ("message_id", "reason"),
    [
        ("", "empty"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a\nb", r"U\+000A"),
        ("\x00", r"U\+0000"),
        ("a\x7f", r"U\+007F"),
        ("\x85", r"U\+0085"),
        ("\ud800", "surrogate"),
        ("x" * 300 + "\udfff", "surrogate"),
    ],
)
def test_forbidden_ids(message_id: str, reason: str) -> None:
    """Anything else is refused, and the reason says what is wrong with it."""
    with pytest.raises(InvalidItem, match=reason):
        check_message_id(message_id)


@given(st.text(max_size=300))
def test_ids_are_judged_by_their_bytes(message_id: str) -> None:
    """Whatever the text, it is allowed exactly if its UTF-8 has 1 to 255 bytes and no control character."""
    encoded = message_id.encode("utf-8", "surrogatepass")
    control = any(ord(each) < 32 or 127 <= ord(each) < 160 for each in message_id)
    surrogate = any(0xD800 <= ord(each) < 0xE000 for each in message_id)
    allowed = 1 <= len(encoded) <= 255 and not control and not surrogate
    try:
        check_message_id(message_id)
    except InvalidItem:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(("seconds", "ms"), [(None, None), (1, 1000), (2_592_000, 2_592_000_000)])
def test_allowed_validity_periods(seconds: int | None, ms: int | None) -> None:
    """One second to thirty days, or none, are allowed and come back in milliseconds."""
    assert check_validity_period(seconds) == ms


@pytest.mark.parametrize("seconds", [0, -1, 2_592_001, 10**30])
def test_forbidden_validity_periods(seconds: int) -> None:
    """Anything shorter or longer is refused, with the bounds in the text."""
    with pytest.raises(InvalidItem, match="1 to 2592000"):
        check_validity_period(seconds)
