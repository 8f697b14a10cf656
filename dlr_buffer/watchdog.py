"""Whether every part of the daemon still gets on; systemd's watchdog is told so only as long as it does.

A thread of its own looks, four times in the time that systemd grants: it also sees an event loop that hangs. What a
part is and what shows that it gets on is the daemon's to say (`Part`), how systemd is told is `systemd`'s. A part that
stalls is named in the log before systemd ends the daemon for it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from dlr_buffer.logs import Event, about

EVENT_LOOP: Final = "the event loop"
_LOOKS: Final = 4
"""So often within the watchdog's time."""
_PATIENCE: Final = 1 / 2
"""A part that shows nothing for this share of the time stalls; pings come as often."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that has to get on: ``progress`` is any value that changes as long as it does.

    ``waits_for`` is another part that it can't get on without, ``thread`` the thread that it runs on, if it has one.
    """

    name: str
    progress: object
    waits_for: str | None = None
    thread: int | None = None


class Watchdog:
    """Looks after the parts of one daemon."""

    def __init__(
        self,
        interval_s: float,
        *,
        look_at: Callable[[], Iterable[Part]],
        ping: Callable[[], None],
        monotonic_ms: Callable[[], int],
    ) -> None:
        """Begin with `start`.

        ``look_at`` runs on the event loop: it returns the parts, and sees to it that each has something to show until
        the next time. ``ping`` runs on the watchdog's thread, at least twice in ``interval_s``.
        """
        self._interval_s = interval_s
        self._look_at = look_at
        self._ping = ping
        self._monotonic_ms = monotonic_ms
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._seen: tuple[Part, ...] = ()
        self._answered = threading.Event()
        self._moved_ms: dict[str, int] = {}
        self._progress: dict[str, object] = {}
        self._pinged_ms: int | None = None
        self._stalled: frozenset[str] = frozenset()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Look from now on; to be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._moved_ms[EVENT_LOOP] = self._monotonic_ms()
        self._ask()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def look(self) -> frozenset[str]:
        """Look once, as the thread does: ping, or say which parts stall. Returns the names of those."""
        now = self._monotonic_ms()
        stalled = self._judge(now)
        self._report(stalled)
        due = self._pinged_ms is None or now - self._pinged_ms >= self._interval_s * 1000 * 0.4
        if not stalled and (due or self._stalled):
            self._pinged_ms = now
            self._ping()
        self._stalled = stalled
        return stalled

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s / _LOOKS):
            self.look()

    def _judge(self, now: int) -> frozenset[str]:
        patience_ms = self._interval_s * 1000 * _PATIENCE
        if not self._answered.is_set():
            # What the others do can't be seen without it.
            return frozenset({EVENT_LOOP} if now - self._moved_ms[EVENT_LOOP] > patience_ms else ())
        parts, moved = self._seen, {EVENT_LOOP: now}
        stalled: set[str] = set()
        for part in parts:
            since = self._moved_ms.get(part.name)
            excused = part.waits_for in stalled
            if since is None or excused or self._progress.get(part.name) != part.progress:
                since = now
            moved[part.name] = since
            if now - since > patience_ms:
                stalled.add(part.name)
        self._moved_ms = moved
        self._progress = {part.name: part.progress for part in parts}
        self._ask()
        return frozenset(stalled)

    def _ask(self) -> None:
        self._answered.clear()
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # closed: the process ends
                self._ended.set()

    def _answer(self) -> None:
        self._seen = tuple(self._look_at())
        self._answered.set()

    def _report(self, stalled: frozenset[str]) -> None:
        threads = {part.name: part.thread for part in self._seen} | {EVENT_LOOP: self._loop_thread}
        for name in sorted(stalled - self._stalled):
            _log.critical(
                "%s has not got on for %g s: unless it does, systemd ends the daemon and starts it anew%s",
                name,
                self._interval_s * _PATIENCE,
                _place(threads.get(name)),
                extra=about(Event.STALLED),
            )
        for name in sorted(self._stalled - stalled):
            _log.warning("%s gets on again", name)


def _place(thread: int | None) -> str:
    """Where a thread is, for the log: lines of code, no values."""
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - there is no other way
    return "" if frame is None else "\n" + "".join(traceback.format_stack(frame)).rstrip()
