"""The daemon object in this process, with a clock that is moved by hand, and real sockets and a real stand-in.

For what takes an hour or three days. The daemon, the stand-in and the test share one event loop; apps ask from
threads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from dlr_buffer.client import Client
from dlr_buffer.config import load
from dlr_buffer.daemon import Daemon
from dlr_buffer.simulator import Simulator, SimulatorSettings
from dlr_buffer.simulator.server import Script
from tests.acceptance.harness import Site
from tests.clocks import FakeClock

T = TypeVar("T")

_QUIET_TURNS = 5
SECOND_MS = 1_000
HOUR_MS = 3_600_000


class Rehearsal:
    """A running daemon and its clock."""

    def __init__(self, site: Site, daemon: Daemon, clock: FakeClock, simulator: Simulator) -> None:
        """Nothing moves by itself but what is real: sockets, threads, the disk."""
        self.site = site
        self.daemon = daemon
        self.clock = clock
        self.simulator = simulator

    async def ask(self, work: Callable[[Client], T], *, admin: bool = False) -> T:
        """Let an app (or an admin) ask over the socket."""

        def asking() -> T:
            with self.site.admin() if admin else self.site.client() as client:
                return work(client)

        return await asyncio.to_thread(asking)

    @property
    def receipts(self) -> dict[str, int]:
        """The receipts of the account by status."""
        return dict(self.daemon.store.counts().receipts["default"])

    @property
    def messages(self) -> dict[str, int]:
        """The messages of the account by state."""
        return dict(self.daemon.store.counts().messages["default"])

    @property
    def health(self) -> str:
        """The account's health."""
        return self.daemon.flusher.views()[0].health.value

    async def settle(self) -> None:
        """Return when nothing is on the wire and nothing waits for the disk, at this time of the clock."""
        quiet = 0
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            busy = (
                self.daemon.flusher.views()[0].in_flight_requests
                or self.daemon.store.facts().waiting_commands
            )
            quiet = 0 if busy else quiet + 1

    async def drive(self, until: Callable[[], bool], *, at_most_ms: int, step_ms: int = SECOND_MS) -> None:
        """Let time pass, to the next probe or a step at a time, until the condition holds."""
        end = self.clock.now_ms() + at_most_ms
        await self.settle()
        while not until():
            now = self.clock.now_ms()
            assert now < end, f"not within {at_most_ms} ms: {self.receipts}, {self.daemon.flusher.views()[0]}"
            probe = self.daemon.flusher.views()[0].next_probe_at_ms
            wait = step_ms if probe is None else max(1, probe - now)
            self.clock.advance(min(wait, end - now))
            await self.settle()

    async def sweep(self) -> None:
        """Let expiry look, as it does every second."""
        # The daemon's own tick may be at it this very moment: then its work is awaited.
        while await self.daemon.expiry.sweep():
            pass
        await self.settle()


@asynccontextmanager
async def rehearsing(
    site: Site, settings: SimulatorSettings | None = None, *, script: Script | None = None
) -> AsyncIterator[Rehearsal]:
    """Start a stand-in and a daemon with the issue's default times for retries."""
    clock = FakeClock()
    async with Simulator(settings, script=script) as simulator:
        site.configure(simulator.url, retry={"initial": "1s", "max": "10m"}, batch={"linger": "250ms"})
        daemon = Daemon(load(site.config, {}), clock=clock, rng=random.Random(1), environ={})
        await daemon.start()
        try:
            yield Rehearsal(site, daemon, clock, simulator)
        finally:
            await daemon.stop()
