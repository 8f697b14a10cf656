"""How the command line words durations, times, sizes and foreign text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.cli import text
from dlr_buffer.clock import parse_rfc3339, rfc3339

NOW_MS = parse_rfc3339("2026-11-23T18:41:00.000Z")


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (-5, "0s"),
        (0, "0s"),
        (250, "250ms"),
        (1999, "1s"),
        (192_000, "3m12s"),
        (180_000, "3m"),
        (3_600_001, "1h"),
        (187_200_000, "2d4h"),
        (2_592_000_000, "30d"),
    ],
)
def test_durations_are_written_in_their_two_largest_units(milliseconds: int, words: str) -> None:
    """Nobody has to divide by sixty, and zeros are left out."""
    assert text.span(milliseconds) == words


def test_times_are_told_from_now() -> None:
    """A past time is an age, a coming one is ahead, one that has passed is due now, and none is a dash."""
    assert text.age("2026-11-23T18:37:48.000Z", NOW_MS) == "3m12s"
    assert text.ahead("2026-11-23T18:41:30.000Z", NOW_MS) == "in 30s"
    assert text.ahead("2026-11-23T18:40:00.000Z", NOW_MS) == "now"
    assert text.moment("2026-11-23T18:41:00.250Z") == "2026-11-23 18:41:00"
    assert (text.age(None, NOW_MS), text.ahead(None, NOW_MS), text.moment(None)) == ("-", "-", "-")


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_moments_are_read_exactly_as_the_daemon_writes_them(at_ms: int) -> None:
    """The quick reader here agrees with the clock module to the millisecond."""
    assert text.moment_ms(rfc3339(at_ms)) == at_ms


def test_sizes_and_counts() -> None:
    """Bytes get a fitting unit, numbers thousands separators, and one of a thing no plural."""
    sizes = [text.size(number) for number in (0, 1023, 1536, 5 * 1024**2, 3 * 1024**3, 2 * 1024**4)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]
    assert (text.counted(1, "receipt"), text.counted(2000, "receipt")) == ("1 receipt", "2,000 receipts")


@given(st.text())
def test_nothing_foreign_reaches_the_terminal_as_a_control_sequence(foreign: str) -> None:
    """Whatever an app or Smartswitch sends, what is printed holds no control character and can be encoded."""
    shown = text.printable(foreign)
    assert not any(
        ord(char) < 32 or 127 <= ord(char) < 160 or 0x202A <= ord(char) <= 0x202E for char in shown
    )
    shown.encode()


def test_ordinary_text_is_printed_as_it_is() -> None:
    """Escaping leaves ids, brackets, accents and other scripts alone."""
    assert text.printable("[red]ü 漢字 7\\x") == "[red]ü 漢字 7\\x"
    assert text.printable("a\x1b[31m") == "a\\x1b[31m"
