"""The daemon as a process whose wall clock is set by the test: daylight saving, and a leap while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.clock import parse_rfc3339, rfc3339
from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import Site, StandIn, eventually

MINUTE_MS = 60_000
MODULE = "tests.acceptance.clock.starter"


@dataclass(frozen=True, slots=True)
class Wall:
    """The wall clock of a daemon's process."""

    file: Path

    def set_to(self, moment: str) -> None:
        """Let it read this moment now."""
        self._write(parse_rfc3339(moment) - time.time_ns() // 1_000_000)

    def turn(self, by_ms: int) -> None:
        """Turn it."""
        self._write(int(self.file.read_text(encoding="ascii")) + by_ms)

    def _write(self, offset_ms: int) -> None:
        # In one step: the daemon reads it all the time.
        new = self.file.with_suffix(".new")
        new.write_text(str(offset_ms), encoding="ascii")
        new.replace(self.file)


def expiry(site: Site) -> dict[str, Any]:
    """What `status` says of expiry."""
    found: dict[str, Any] = site.ask("GET", "/v1/status")["expiry"]
    return found


def swept_since(site: Site, moment: str) -> None:
    """Wait until expiry has looked after that moment of the daemon's clock."""
    eventually(lambda: expiry(site)["last_sweep_at"], lambda at: at is not None and at > moment)


@pytest.mark.parametrize(
    "change", ["2027-03-28T01:00:00.000Z", "2027-10-31T01:00:00.000Z"], ids=["spring", "autumn"]
)
def test_daylight_saving_changes_nothing(site: Site, change: str) -> None:
    """Under TZ=Europe/Berlin, over the change of local time, a message of 40 minutes expires after 40 minutes."""
    wall = Wall(site.folder / "clock")
    changes_ms = parse_rfc3339(change)
    wall.set_to(rfc3339(changes_ms - 10 * MINUTE_MS))
    with StandIn(SimulatorSettings()) as upstream:
        site.configure(upstream.url)
        site.start(module=MODULE, TZ="Europe/Berlin", DLR_BUFFER_TEST_CLOCK=str(wall.file))
        with site.client() as app:
            message = app.register("m", validity_period=40 * 60)
        began_ms = parse_rfc3339(message["registered_at"])
        assert abs(began_ms - (changes_ms - 10 * MINUTE_MS)) < MINUTE_MS
        assert message["expires_at"] == rfc3339(began_ms + 40 * MINUTE_MS)
        wall.turn(25 * MINUTE_MS)
        swept_since(site, rfc3339(changes_ms + 14 * MINUTE_MS))
        assert expiry(site)["stopped"] is False
        assert site.ask("GET", "/v1/messages/m")["state"] is None
        wall.turn(16 * MINUTE_MS)
        upstream.wait_for(lambda record: "m" in record.final_states())
        assert expiry(site)["stopped"] is False
        assert site.ask("GET", "/v1/messages/m")["state"] == "expired"


def test_a_leap_is_seen_by_a_real_process_and_its_commands(site: Site) -> None:
    """Four days forward: `status` says that expiry is stopped and why, and `expiry resume` lets it go on."""
    wall = Wall(site.folder / "clock")
    wall.set_to("2027-01-15T08:00:00.000Z")
    with StandIn(SimulatorSettings()) as upstream:
        site.configure(upstream.url)
        site.start(module=MODULE, DLR_BUFFER_TEST_CLOCK=str(wall.file))
        with site.client() as app:
            app.register("m")
            swept_since(site, "2027-01-15T08:00:00.000Z")
            wall.turn(4 * 24 * 60 * MINUTE_MS)
            eventually(lambda: expiry(site)["stopped"], bool)
            app.report("other", "delivered")
        upstream.wait_for(lambda record: "other" in record.final_states())
        shown = site.command("status").stdout
        assert "expiry is stopped: the wall clock leapt forward by 96 hours" in " ".join(shown.split())
        assert site.ask("GET", "/v1/messages/m")["state"] is None
        assert site.command("expiry", "resume").returncode == 0
        upstream.wait_for(lambda record: "m" in record.final_states())
