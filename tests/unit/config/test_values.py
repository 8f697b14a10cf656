"""Durations and sizes: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.config.values import parse_duration, parse_size, write_duration, write_size


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0s", 0),
        ("250ms", 250),
        ("30s", 30_000),
        ("10m", 600_000),
        ("72h", 259_200_000),
        ("7d", 604_800_000),
        ("007s", 7_000),
    ],
)
def test_durations_are_read(text: str, ms: int) -> None:
    """Every unit of the contract means what it says."""
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "-5s", "1.5h", "1h30m", "5 s", " 5s", "5s\n", "5S", "5w", "٣s", "9" * 16 + "s", "1MiB"],
)
def test_other_durations_are_refused(text: str) -> None:
    """A duration is one whole ASCII number and one known unit, nothing else."""
    with pytest.raises(ValueError, match=rf"^{re.escape(text)}$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("512B", 512), ("8KiB", 8192), ("256MiB", 268_435_456), ("2GiB", 2_147_483_648)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Sizes count in powers of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "1MB", "1mib", "1k", "1.5GiB", "1s"])
def test_other_sizes_are_refused(text: str) -> None:
    """Decimal and ambiguous units are refused rather than guessed."""
    with pytest.raises(ValueError, match=rf"^{re.escape(text)}$"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=10**14))
def test_writing_and_reading_agree(amount: int) -> None:
    """What is shown to an admin can be pasted back and means the same."""
    assert parse_duration(write_duration(amount)) == amount
    assert parse_size(write_size(amount)) == amount


@pytest.mark.parametrize(("ms", "text"), [(0, "0s"), (250, "250ms"), (90_000, "90s"), (259_200_000, "3d")])
def test_durations_are_written_in_the_largest_exact_unit(ms: int, text: str) -> None:
    """No rest is lost and no needless zeros are shown."""
    assert write_duration(ms) == text
