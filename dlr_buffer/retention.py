"""Retention: settled receipts are kept for a while to be looked at, then removed.

And messages with their last one.

When and how long; what removing does to rows is storage's, who calls `Retention.sweep` every few minutes is
the daemon's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dlr_buffer.logs import Event, about

_log = logging.getLogger(__name__)


class PurgedRows(Protocol):
    """What one chunk removed."""

    @property
    def acknowledged(self) -> int: ...  # noqa: D102 - acknowledged and superseded receipts
    @property
    def dead(self) -> int: ...  # noqa: D102 - dead letters
    @property
    def messages(self) -> int: ...  # noqa: D102 - messages


class RetentionStore(Protocol):
    """What retention needs of the database."""

    async def purge_candidates(
        self, *, after: int, settled_before_ms: int, dead_before_ms: int
    ) -> tuple[list[int], int | None]:
        """Some receipts whose retention is over, with ids above ``after``.

        And where to go on, None at the end.
        """
        ...

    async def purge(
        self, request_ids: Sequence[int], *, settled_before_ms: int, dead_before_ms: int
    ) -> PurgedRows:
        """Remove these."""
        ...

    async def purge_bereft(self, *, before_ms: int) -> PurgedRows:
        """Remove final messages whose last receipt an admin deleted before this time."""
        ...


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long what is settled is kept, in milliseconds."""

    acknowledged_ms: int
    dead_ms: int


class Retention:
    """Walks the settled receipts when it is told to."""

    def __init__(
        self,
        store: RetentionStore,
        believed_now: Callable[[], Awaitable[int | None]],
        settings: RetentionSettings,
    ) -> None:
        """Remove nothing yet.

        ``believed_now`` gives wall time in milliseconds, or None while the clock can't be believed: then
        nothing is removed. ``settings`` can be replaced at a reload.
        """
        self._store = store
        self._believed_now = believed_now
        self.settings = settings
        self._sweeping = False

    async def sweep(self) -> int:
        """Remove everything whose time is over, in chunks.

        Returns how many receipts. Does nothing if it runs already.
        """
        if self._sweeping:
            return 0
        self._sweeping = True
        try:
            return await self._walk()
        finally:
            self._sweeping = False

    async def _walk(self) -> int:
        now = await self._believed_now()
        if now is None:
            return 0
        settled_before_ms = now - self.settings.acknowledged_ms
        dead_before_ms = now - self.settings.dead_ms
        receipts = dead = messages = 0
        after: int | None = 0
        while after is not None:
            found, after = await self._store.purge_candidates(
                after=after, settled_before_ms=settled_before_ms, dead_before_ms=dead_before_ms
            )
            if found:
                purged = await self._store.purge(
                    found, settled_before_ms=settled_before_ms, dead_before_ms=dead_before_ms
                )
                receipts += purged.acknowledged
                dead += purged.dead
                messages += purged.messages
        while (bereft := await self._store.purge_bereft(before_ms=settled_before_ms)).messages:
            messages += bereft.messages
        if dead:
            _log.warning(
                "retention removed %d dead letters, older than [retention] dead: Smartswitch never took them",
                dead,
                extra=about(Event.DEAD_LETTERS_PURGED, count=dead),
            )
        if receipts or messages:
            _log.info(
                "retention removed %d receipts and %d messages",
                receipts + dead,
                messages,
                extra=about(count=receipts + dead),
            )
        return receipts + dead
