"""Backoff: growth, cap, jitter and floor."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.backoff import backoff_ms


def draws(failures: int, count: int = 2000) -> list[int]:
    """Return many waits of one kind, the same on every run."""
    rng = random.Random(7)
    return [backoff_ms(failures, initial_ms=1_000, max_ms=600_000, rng=rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("failures", "cap_ms"), [(0, 1_000), (1, 1_000), (2, 2_000), (5, 16_000), (10, 512_000), (11, 600_000)]
)
def test_the_cap_doubles_until_the_maximum(failures: int, cap_ms: int) -> None:
    """Waits fill the range from a tenth of the doubled initial wait up to it, and no more."""
    waits = draws(failures)
    assert min(waits) >= cap_ms // 10
    assert max(waits) <= cap_ms
    assert min(waits) < cap_ms * 0.15
    assert max(waits) > cap_ms * 0.95


def test_the_jitter_is_even() -> None:
    """Each quarter of the range is drawn about equally often: callers spread out instead of meeting again."""
    waits = draws(1, 8000)
    for quarter in range(4):
        low = 100 + quarter * 225
        assert 1800 < sum(low <= wait < low + 225 for wait in waits) < 2200


def test_a_million_failures_are_no_trouble() -> None:
    """The exponent is bounded, so a long outage neither overflows nor exceeds the maximum."""
    assert 60_000 <= backoff_ms(10**6, initial_ms=1_000, max_ms=600_000, rng=random.Random(1)) <= 600_000


@settings(deadline=None)
@given(
    failures=st.integers(-5, 10**7),
    initial_ms=st.integers(0, 10**7),
    max_ms=st.integers(0, 10**9),
    seed=st.integers(),
)
def test_never_none_never_too_long(failures: int, initial_ms: int, max_ms: int, seed: int) -> None:
    """Whatever is configured, the wait is at least 1 ms and at most the maximum."""
    wait = backoff_ms(failures, initial_ms=initial_ms, max_ms=max_ms, rng=random.Random(seed))
    assert 1 <= wait <= max(1, max_ms)


def test_the_randomness_is_the_callers() -> None:
    """The same seed gives the same waits, so a test can replay them."""
    assert draws(5) == draws(5)
