"""How retention walks; what removing does to rows is tested on real files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from dlr_buffer.retention import Retention, RetentionSettings
from tests.clocks import FakeClock
from tests.loops import on_loop

DAY = 86_400_000


@dataclass(slots=True)
class Judged:
    """What expiry says of the clock."""

    clock: FakeClock
    believed: bool = True

    async def now(self) -> int | None:
        """The time, if the script believes it."""
        return self.clock.now_ms() if self.believed else None


@dataclass(frozen=True, slots=True)
class Purged:
    """What one chunk removed."""

    acknowledged: int = 0
    dead: int = 0
    messages: int = 0


@dataclass(slots=True)
class ScriptedStore:
    """Finds and removes what the script says, and remembers what it was asked."""

    windows: list[tuple[list[int], int | None]]
    bereft: list[int] = field(default_factory=list)
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    purged: list[list[int]] = field(default_factory=list)
    bereft_before: list[int] = field(default_factory=list)

    async def purge_candidates(
        self, *, after: int, settled_before_ms: int, dead_before_ms: int
    ) -> tuple[list[int], int | None]:
        """The next window."""
        self.asked.append((after, settled_before_ms, dead_before_ms))
        return self.windows.pop(0)

    async def purge(
        self, request_ids: Sequence[int], *, settled_before_ms: int, dead_before_ms: int
    ) -> Purged:
        """Remove all but each third, which is a dead letter."""
        self.purged.append(list(request_ids))
        dead = sum(each % 3 == 0 for each in request_ids)
        return Purged(len(request_ids) - dead, dead, 1)

    async def purge_bereft(self, *, before_ms: int) -> Purged:
        """Remove so many messages."""
        self.bereft_before.append(before_ms)
        return Purged(messages=self.bereft.pop(0) if self.bereft else 0)


@on_loop
async def test_the_walk_covers_every_window(caplog: pytest.LogCaptureFixture) -> None:
    """Windows follow each other to the end, empty ones are not purged, and lost dead letters are logged."""
    clock = FakeClock()
    store = ScriptedStore([([1, 2, 3], 3), ([], 9), ([10], None)], bereft=[500, 2])
    retention = Retention(
        store, Judged(clock).now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY)
    )
    with caplog.at_level(logging.INFO):
        assert await retention.sweep() == 4
    now = clock.now_ms()
    assert store.asked == [(after, now - 7 * DAY, now - 30 * DAY) for after in (0, 3, 9)]
    assert store.purged == [[1, 2, 3], [10]]
    assert store.bereft_before == [now - 7 * DAY] * 3
    assert "1 dead letters" in caplog.text
    assert "4 receipts and 504 messages" in caplog.text


@on_loop
async def test_settings_are_replaced_at_a_reload(caplog: pytest.LogCaptureFixture) -> None:
    """The next sweep goes by the settings given meanwhile, and a sweep that removes nothing says nothing."""
    clock = FakeClock()
    store = ScriptedStore([([], None), ([], None)])
    retention = Retention(
        store, Judged(clock).now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY)
    )
    with caplog.at_level(logging.INFO):
        assert await retention.sweep() == 0
        retention.settings = RetentionSettings(acknowledged_ms=DAY, dead_ms=2 * DAY)
        assert await retention.sweep() == 0
    assert store.asked[1] == (0, clock.now_ms() - DAY, clock.now_ms() - 2 * DAY)
    assert not caplog.text


@on_loop
async def test_nothing_is_removed_by_a_clock_that_cannot_be_believed() -> None:
    """While the clock is not believed the database is not even asked; afterwards retention goes on."""
    judged = Judged(FakeClock(), believed=False)
    store = ScriptedStore([([1], None)])
    retention = Retention(store, judged.now, RetentionSettings(acknowledged_ms=7 * DAY, dead_ms=30 * DAY))
    assert await retention.sweep() == 0
    assert (store.asked, store.purged, store.bereft_before) == ([], [], [])
    judged.believed = True
    assert await retention.sweep() == 1
