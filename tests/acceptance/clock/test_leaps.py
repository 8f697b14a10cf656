"""The whole daemon under a wall clock that leaps: nothing expires by it, nothing is stuck by it, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from dlr_buffer.client import Client
from dlr_buffer.config import load
from dlr_buffer.daemon import Daemon
from dlr_buffer.simulator import Simulator, SimulatorSettings
from tests.acceptance.harness import Site
from tests.acceptance.rehearsal import HOUR_MS, SECOND_MS, Rehearsal, rehearsing
from tests.clocks import START_MS, FakeClock

DAYS_4 = 96 * HOUR_MS
MINUTE_MS = 60 * SECOND_MS


async def status(rehearsal: Rehearsal) -> dict[str, Any]:
    """What an admin sees."""
    found: dict[str, Any] = await rehearsal.ask(lambda admin: admin.request("GET", "/v1/status"), admin=True)
    return found


async def resume(rehearsal: Rehearsal) -> None:
    """An admin trusts the clock."""
    await rehearsal.ask(lambda admin: admin.request("POST", "/v1/expiry/resume", {}), admin=True)
    await rehearsal.sweep()


async def register(rehearsal: Rehearsal, *message_ids: str) -> None:
    """An app registers messages with the usual validity period of three days."""
    await rehearsal.ask(lambda app: app.register_many(list(message_ids)))


async def back(rehearsal: Rehearsal, leap_ms: int) -> None:
    """The clock is set right again."""
    rehearsal.clock.leap(-leap_ms)
    await rehearsal.sweep()


async def synchronised(rehearsal: Rehearsal, _leap_ms: int) -> None:
    """The kernel says for ten minutes that the clock is synchronised."""
    rehearsal.clock.set_synchronised(True)
    for _ in range(11):
        await rehearsal.sweep()
        rehearsal.clock.advance(MINUTE_MS)
    await rehearsal.sweep()


async def by_hand(rehearsal: Rehearsal, _leap_ms: int) -> None:
    """An admin trusts the clock as it stands."""
    await resume(rehearsal)


async def leaping(site: Site, leap_ms: int, go_on: Callable[[Rehearsal, int], Awaitable[None]]) -> None:
    """Leap with messages waiting, register more, go on, and see what expires when."""
    async with rehearsing(site) as rehearsal:
        await rehearsal.sweep()
        await register(rehearsal, "early")
        rehearsal.clock.advance(HOUR_MS)
        await rehearsal.sweep()
        rehearsal.clock.leap(leap_ms)
        for _ in range(3):
            await rehearsal.sweep()
            rehearsal.clock.advance(SECOND_MS)
        assert rehearsal.messages["expired"] == 0
        seen = await status(rehearsal)
        assert seen["expiry"]["stopped"] is True
        assert "the wall clock" in seen["expiry"]["reason"]
        assert any("expiry is stopped" in alarm for alarm in seen["alarms"])
        await register(rehearsal, "meanwhile")
        rehearsal.clock.advance(MINUTE_MS)
        await rehearsal.sweep()

        await go_on(rehearsal, leap_ms)
        assert (await status(rehearsal))["expiry"]["stopped"] is False
        # By the clock that is trusted "early" is overdue only if that clock says so and somebody vouched for it.
        overdue = go_on is not back and leap_ms > 0
        assert rehearsal.messages["expired"] == int(overdue), (
            "what was registered a minute ago must not expire"
        )
        rehearsal.clock.advance(71 * HOUR_MS - 30 * MINUTE_MS)
        await rehearsal.sweep()
        assert rehearsal.messages["expired"] == int(overdue)
        rehearsal.clock.advance(2 * HOUR_MS)
        await rehearsal.sweep()
        # In time, whatever it was dated: unless the clock that is trusted stands four days behind.
        late = go_on is not back and leap_ms < 0
        assert rehearsal.messages["expired"] == (1 if late else 2)
        rehearsal.clock.advance(DAYS_4)
        await rehearsal.sweep()
        await rehearsal.drive(lambda: not rehearsal.receipts["pending"], at_most_ms=MINUTE_MS)
        told = rehearsal.simulator.record.final_states()
        assert {name: [state for state, _ in states] for name, states in told.items()} == {
            "early": ["expired"],
            "meanwhile": ["expired"],
        }


@pytest.mark.parametrize("go_on", [back, synchronised, by_hand])
@pytest.mark.parametrize("leap_ms", [DAYS_4, -DAYS_4], ids=["forward", "backward"])
def test_a_leap_of_four_days(
    site: Site, leap_ms: int, go_on: Callable[[Rehearsal, int], Awaitable[None]]
) -> None:
    """Expiry stops and says so; what was registered meanwhile waits its three days once it goes on, each way."""
    asyncio.run(leaping(site, leap_ms, go_on))


def _deliver(message_id: str, app: Client) -> None:
    app.report(message_id, "delivered")


def _acknowledged(rehearsal: Rehearsal, receipts: int) -> bool:
    return rehearsal.receipts["acknowledged"] >= receipts


async def retries_after(site: Site, leap_ms: int) -> None:
    """Leap while receipts back off; then everything has to go out within the longest wait."""
    settings = SimulatorSettings(always_status=503)
    async with rehearsing(site, settings) as rehearsal:
        rehearsal.simulator.settings = SimulatorSettings(refuse_message_ids=frozenset({"odd"}))
        await rehearsal.ask(lambda app: app.report_many([("odd", "delivered"), ("a", "delivered")]))
        await rehearsal.drive(lambda: rehearsal.receipts["acknowledged"] == 1, at_most_ms=HOUR_MS)
        for turn in range(3):
            await rehearsal.ask(partial(_deliver, f"good{turn}"))
            await rehearsal.drive(partial(_acknowledged, rehearsal, 2 + turn), at_most_ms=HOUR_MS)
        assert rehearsal.receipts["pending"] == 1
        rehearsal.simulator.settings = settings
        await rehearsal.ask(lambda app: app.report("b", "delivered"))
        await rehearsal.drive(lambda: rehearsal.health == "backing-off", at_most_ms=HOUR_MS)
        rehearsal.clock.leap(leap_ms)
        await rehearsal.ask(lambda app: app.report("c", "delivered"))
        rehearsal.simulator.settings = SimulatorSettings()
        began = rehearsal.clock.monotonic_ms()
        await rehearsal.drive(lambda: not rehearsal.receipts["pending"], at_most_ms=21 * MINUTE_MS)
        assert rehearsal.clock.monotonic_ms() - began <= 20 * MINUTE_MS


@pytest.mark.parametrize("leap_ms", [DAYS_4, -DAYS_4], ids=["forward", "backward"])
def test_no_receipt_is_stuck_by_a_leap(site: Site, leap_ms: int) -> None:
    """Whatever waited for a time before the leap goes out within `retry.max` after it, one wait each at the most."""
    asyncio.run(retries_after(site, leap_ms))


async def restarted(site: Site, clock: FakeClock, simulator: Simulator) -> Rehearsal:
    """Start a daemon on what is there."""
    daemon = Daemon(load(site.config, {}), clock=clock, environ={})
    await daemon.start()
    return Rehearsal(site, daemon, clock, simulator)


async def downtime(site: Site) -> None:
    """Four days without the daemon, honestly."""
    clock = FakeClock()
    async with Simulator(SimulatorSettings()) as simulator:
        site.configure(simulator.url, batch={"max_receipts": 7, "linger": "0ms"}, account={"concurrency": 1})
        before = await restarted(site, clock, simulator)
        await before.sweep()
        for number in range(60):
            await register(before, f"m{number}")
            clock.advance(MINUTE_MS)
        await before.sweep()
        await before.daemon.stop()

        clock.reboot("boot-2", after_ms=DAYS_4)
        after = await restarted(site, clock, simulator)
        await after.sweep()
        assert (await status(after))["expiry"]["stopped"] is False
        await after.drive(lambda: after.receipts["acknowledged"] == 60, at_most_ms=HOUR_MS)
        told = [int(name[1:]) for name in simulator.record.final_states()]
        assert told == sorted(told), "the oldest come first"
        assert after.messages["expired"] == 60
        await after.daemon.stop()


def test_four_days_of_honest_downtime_are_caught_up_with(site: Site) -> None:
    """A machine that was off for four days expires what is overdue at its start, oldest first, without an alarm."""
    asyncio.run(downtime(site))


async def leap_in_downtime(site: Site, leap_ms: int, *, rebooted: bool) -> None:
    """Stop, leap, start: nothing expires, until the clock is back."""
    clock = FakeClock()
    async with Simulator(SimulatorSettings()) as simulator:
        site.configure(simulator.url, batch={"linger": "0ms"})
        before = await restarted(site, clock, simulator)
        await register(before, "early")
        await before.sweep()
        await before.daemon.stop()

        clock.advance(HOUR_MS)
        clock.leap(leap_ms)
        if rebooted:
            clock.reboot("boot-2")
        after = await restarted(site, clock, simulator)
        await register(after, "meanwhile")
        for _ in range(3):
            await after.sweep()
            clock.advance(MINUTE_MS)
        seen = await status(after)
        assert seen["expiry"]["stopped"] is True
        assert "the wall clock" in seen["expiry"]["reason"]
        assert any("expiry is stopped" in alarm for alarm in seen["alarms"])
        assert after.messages["expired"] == 0
        await after.daemon.stop()

        again = await restarted(site, clock, simulator)
        await again.sweep()
        assert (await status(again))["expiry"]["stopped"] is True, "another start is no reason to believe it"
        await back(again, leap_ms)
        assert (await status(again))["expiry"]["stopped"] is False
        assert again.messages["expired"] == 0
        clock.advance(72 * HOUR_MS + MINUTE_MS)
        await again.sweep()
        assert again.messages["expired"] == 2
        await again.daemon.stop()


@pytest.mark.parametrize(
    ("leap_ms", "rebooted"),
    [(DAYS_4, False), (-DAYS_4, False), (-DAYS_4, True)],
    ids=["forward", "backward", "backward and rebooted"],
)
def test_a_leap_while_the_daemon_is_stopped(site: Site, leap_ms: int, rebooted: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A clock that leapt in a downtime is found at the start: nothing expires, the alarm stays over a restart.

    (Four days forward with a reboot between look like four days of downtime, see docs/reliability.md.)
    """
    asyncio.run(leap_in_downtime(site, leap_ms, rebooted=rebooted))


async def no_battery(site: Site, *, new: bool) -> None:
    """Boot into 1970, take messages, restart once, get the time, and go on."""
    clock = FakeClock()
    async with Simulator(SimulatorSettings()) as simulator:
        site.configure(simulator.url, batch={"linger": "0ms"})
        if not new:
            before = await restarted(site, clock, simulator)
            await register(before, "before")
            await before.sweep()
            await before.daemon.stop()
        clock.leap(MINUTE_MS - clock.now_ms())
        clock.reboot("boot-2")
        dark = await restarted(site, clock, simulator)
        await dark.sweep()
        await register(dark, "dark", "delivered")
        await dark.ask(lambda app: app.report("delivered", "delivered"))
        await dark.drive(lambda: dark.receipts["acknowledged"] == 1, at_most_ms=HOUR_MS)
        clock.advance(MINUTE_MS)
        await dark.sweep()
        seen = await status(dark)
        assert "reads 1970-01-01" in seen["expiry"]["reason"]
        await dark.daemon.stop()

        later = await restarted(site, clock, simulator)
        await later.sweep()
        await register(later, "later")
        clock.leap(START_MS + HOUR_MS)
        await later.sweep()
        assert (await status(later))["expiry"]["stopped"] is False
        await later.daemon.retention.sweep()
        assert later.messages["expired"] == 0
        assert later.receipts["acknowledged"] == 1
        clock.advance(72 * HOUR_MS - SECOND_MS)
        await later.sweep()
        assert later.messages["expired"] == int(not new)
        clock.advance(SECOND_MS)
        await later.sweep()
        assert later.messages["expired"] == 2 + int(not new)
        await later.daemon.stop()


@pytest.mark.parametrize("new", [True, False], ids=["new queue", "queue with messages"])
def test_a_machine_without_a_clock_battery(site: Site, new: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Started in 1970, it delivers and registers, expires nothing, and counts three days from when it gets the time."""
    asyncio.run(no_battery(site, new=new))
