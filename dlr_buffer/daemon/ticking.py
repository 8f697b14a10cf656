"""The jobs that run again and again: one for each kind of work, never one for each message (DESIGN §8)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from dlr_buffer.clock import Clock
from dlr_buffer.errors import DlrBufferError

SAY_EVERY_MS: Final = 60_000

_log = logging.getLogger(__name__)


class Tick:
    """A job that runs again and again; a database that has a moment of weakness neither ends it nor floods the log."""

    def __init__(self, what: str, job: Callable[[], object], clock: Clock) -> None:
        """Run ``job``, which the log calls ``what``."""
        self._what = what
        self._job = job
        self._clock = clock
        self._said: tuple[str, int] | None = None

    async def run(self) -> None:
        """Run it once; raises nothing that a database may raise."""
        try:
            result = self._job()
            if asyncio.iscoroutine(result):
                await result
        except DlrBufferError as error:
            now = self._clock.monotonic_ms()
            if self._said is None or self._said[0] != str(error) or now - self._said[1] >= SAY_EVERY_MS:
                self._said = (str(error), now)
                _log.warning("%s: put off until the next tick: %s", self._what, error)
        except asyncio.CancelledError:
            pass  # the daemon stops; APScheduler, which alone cancels it, would log a traceback
        else:
            self._said = None
