"""Disk space: what is free, against ``min_free`` and against what the queue will grow to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dlr_buffer.config import Configuration
from dlr_buffer.doctor.findings import Finding, error, ok, warning
from dlr_buffer.doctor.running import Status

BYTES_A_MESSAGE: Final = 250
"""A message with a long id and one receipt, with room for pages that are not full (docs/operations.md, "Sizing")."""
_TELLING_MESSAGES: Final = 10_000
"""From so many on, the file's own bytes a message tell more than the figure above."""
_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Growth:
    """What the queue will come to if messages go on coming as they do now. Sizes in bytes."""

    rate: float
    """Registrations a second, over the last minute."""
    kept_ms: int
    """How long a message is kept at most: its validity period, and then retention."""
    size_now: int
    messages_now: int

    @property
    def size(self) -> int:
        """How large the file will be, at most."""
        own = self.size_now / self.messages_now if self.messages_now >= _TELLING_MESSAGES else BYTES_A_MESSAGE
        return max(self.size_now, math.ceil(self.rate * self.kept_ms / 1000 * max(own, 1)))

    @property
    def more(self) -> int:
        """How much it will still grow."""
        return self.size - self.size_now


def growth_of(status: Status, configuration: Configuration) -> Growth:
    """Return what the daemon's ``status`` lets expect."""
    return Growth(
        rate=float(status["rates"].get("registered", 0.0)),
        kept_ms=configuration.messages.validity_period_ms + configuration.retention.acknowledged_ms,
        size_now=int(status["database"]["size_bytes"]),
        messages_now=sum(sum(account["messages"].values()) for account in status["accounts"]),
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free for ordinary users on the file system of ``folder``. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def space_findings(folder: Path, free: int, min_free: int, growth: Growth | None) -> Iterator[Finding]:
    """Judge what is ``free`` beside the queue in ``folder``; ``growth`` is None if no daemon tells it."""
    if free < min_free:
        yield error(
            "space",
            f"{_size(free)} are free in {folder}, less than min_free ({_size(min_free)}): registration answers 507",
            'free some space, or move the queue to a larger disk: docs/operations.md, "Sizing"',
        )
        return
    if free < 2 * min_free:
        yield warning(
            "space",
            f"{_size(free)} are free in {folder}, less than twice min_free ({_size(min_free)})",
            "free some space before registration stops",
        )
    else:
        yield ok("space", f"{_size(free)} are free in {folder}")
    if growth is None or growth.rate <= 0:
        return
    words = (
        f"at {growth.rate:,.0f} messages a second, kept for up to {growth.kept_ms / 86_400_000:.3g} days, the queue"
        f" comes to {_size(growth.size)}"
    )
    if growth.more > free - min_free:
        yield warning(
            "space-growth",
            f"{words}: {_size(growth.more)} more, with {_size(max(0, free - min_free))} to spare",
            'a larger disk, or a shorter [retention] acknowledged: docs/operations.md, "Sizing"',
        )
    else:
        yield ok("space-growth", f"{words}, for which there is room")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 1024**2:.0f} MiB"
