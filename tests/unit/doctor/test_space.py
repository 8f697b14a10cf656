"""Disk space, now and as the queue grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlr_buffer.doctor.space import BYTES_A_MESSAGE, Growth, free_bytes, space_findings
from tests.unit.doctor.findings_of import told

MIB = 1024**2
DAY = 86_400_000
FOLDER = Path("/var/lib/dlr-buffer")


@pytest.mark.parametrize(
    ("free", "expected"),
    [(255 * MIB, ("error", "space")), (300 * MIB, ("warning", "space")), (600 * MIB, ("ok", "space"))],
)
def test_what_is_free(free: int, expected: tuple[str, str]) -> None:
    """Below min_free registration has stopped; below twice of it that is near."""
    assert told(space_findings(FOLDER, free, 256 * MIB, None)) == [expected]


def test_a_queue_that_will_not_fit() -> None:
    """A hundred a second for ten days, 250 bytes each, are more than the 10 GiB that are left."""
    growth = Growth(rate=100, kept_ms=10 * DAY, size_now=4 * MIB, messages_now=100)
    assert growth.size == 100 * 864_000 * BYTES_A_MESSAGE
    assert told(space_findings(FOLDER, 10 * 1024 * MIB, 256 * MIB, growth)) == [
        ("ok", "space"),
        ("warning", "space-growth"),
    ]
    assert told(space_findings(FOLDER, 30 * 1024 * MIB, 256 * MIB, growth)) == [
        ("ok", "space"),
        ("ok", "space-growth"),
    ]


def test_a_full_queue_is_measured_by_its_own_messages() -> None:
    """With enough of them, the file tells how long its ids are; nothing shrinks in the forecast."""
    growth = Growth(rate=10, kept_ms=DAY, size_now=100 * MIB, messages_now=1_048_576)
    assert growth.size == max(100 * MIB, 10 * 86_400 * 100)
    assert growth.more == 0


def test_a_queue_at_rest_is_not_forecast() -> None:
    """Without registrations there is nothing to be said."""
    growth = Growth(rate=0, kept_ms=DAY, size_now=MIB, messages_now=10)
    assert told(space_findings(FOLDER, 600 * MIB, 256 * MIB, growth)) == [("ok", "space")]


def test_what_the_kernel_tells(tmp_path: Path) -> None:
    """The free space of a real folder is a number of bytes."""
    assert free_bytes(tmp_path) > 0
