"""A server that refuses everything kills nothing, and one receipt that is poison kills only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dlr_buffer.simulator import FaultKind, SimulatorSettings
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import Site
from tests.acceptance.rehearsal import HOUR_MS, Rehearsal, rehearsing

IDS = [f"m{number:03}" for number in range(300)]
REFUSALS = {
    "404": SimulatorSettings(always_status=404, always_body=b"<h1>Not Found</h1>"),
    "internal": SimulatorSettings(faults={FaultKind.ERRORS_INTERNAL: 1.0}),
}


async def report_all(rehearsal: Rehearsal, ids: list[str]) -> None:
    """Register and report them as delivered."""
    await rehearsal.ask(lambda app: app.register_many(ids))
    await rehearsal.ask(lambda app: app.report_many([(message_id, "delivered") for message_id in ids]))


def carried(requests: list[tuple[str, ...]]) -> Callable[[Request], None]:
    """A script that notes which messages each request carried."""
    return lambda request: requests.append(tuple(receipt.message_id for receipt in request.receipts))


async def an_hour_of_refusals(site: Site, refusals: SimulatorSettings, healthy_first: int) -> None:
    """Go through it, and check."""
    requests: list[tuple[str, ...]] = []
    async with rehearsing(site, SimulatorSettings(), script=carried(requests)) as rehearsal:
        simulator, clock = rehearsal.simulator, rehearsal.clock
        await report_all(rehearsal, IDS[:healthy_first])
        await rehearsal.drive(lambda: not rehearsal.receipts["pending"], at_most_ms=HOUR_MS)

        simulator.settings = refusals
        await report_all(rehearsal, IDS[healthy_first:])
        await rehearsal.drive(lambda: rehearsal.health == "rejecting", at_most_ms=HOUR_MS)
        probes = len(requests)
        began = clock.now_ms()
        states = set()
        while clock.now_ms() < began + HOUR_MS:
            before = len(requests)
            await rehearsal.drive(
                lambda before=before: len(requests) > before or clock.now_ms() >= began + HOUR_MS,  # type: ignore[misc]
                at_most_ms=HOUR_MS,
            )
            states.add(rehearsal.health)
        assert states == {"rejecting"}
        assert len(requests) - probes >= 6  # ten minutes at most between two probes
        assert {len(ids) for ids in requests[probes:]} == {1}
        assert len(set(requests[probes:])) == len(requests[probes:])  # each time another one
        assert rehearsal.receipts["dead"] == 0
        assert rehearsal.receipts["pending"] == len(IDS) - healthy_first
        status = await rehearsal.ask(lambda admin: admin.request("GET", "/v1/status"), admin=True)
        assert status["accounts"][0]["health"] == "rejecting"
        assert any("rejecting" in alarm for alarm in status["alarms"])
        receipts = await rehearsal.ask(
            lambda admin: admin.request("GET", "/v1/receipts?waiting=true"), admin=True
        )
        assert {receipt["refusals"] for receipt in receipts["items"]} == {0}

        simulator.settings = SimulatorSettings()
        await rehearsal.drive(lambda: not rehearsal.receipts["pending"], at_most_ms=2 * HOUR_MS)
        assert rehearsal.receipts["acknowledged"] == len(IDS)
        assert rehearsal.receipts["dead"] == 0
        assert rehearsal.health == "open"
        assert all(len(finals) == 1 for finals in simulator.record.final_states().values())


@pytest.mark.parametrize("refusals", REFUSALS)
@pytest.mark.parametrize("healthy_first", [0, 150], ids=["from the start", "after successes"])
def test_an_hour_of_refusals_kills_nothing(site: Site, refusals: str, healthy_first: int) -> None:
    """For an hour all is refused: nothing dies, one receipt at a time probes, and mended all goes through."""
    asyncio.run(an_hour_of_refusals(site, REFUSALS[refusals], healthy_first))


async def poison_among_good(site: Site) -> None:
    """Report a poison receipt with a trickle of good ones, until it is dead, and some more."""
    settings = SimulatorSettings(fail_message_ids=frozenset({"poison"}))
    async with rehearsing(site, settings) as rehearsal:
        record = rehearsal.simulator.record
        await report_all(rehearsal, ["poison"])
        rounds = 0
        while rehearsal.receipts["dead"] == 0:
            rounds += 1
            assert rounds < 400
            rehearsal.clock.advance(30_000)
            good = [f"good-{rounds}-{number}" for number in range(3)]
            await report_all(rehearsal, good)
            await rehearsal.drive(
                lambda good=good: all(record.final_states().get(each) for each in good),  # type: ignore[misc]
                at_most_ms=60_000,
            )
        assert rehearsal.receipts == {
            **dict.fromkeys(rehearsal.receipts, 0),
            "acknowledged": 3 * rounds,
            "dead": 1,
        }
        listed = await rehearsal.ask(
            lambda admin: admin.request("GET", "/v1/receipts?status=dead"), admin=True
        )
        (dead,) = listed["items"]
        assert dead["message_id"] == "poison"
        assert dead["error"]["code"] == "upstream-error"
        assert "500" in dead["error"]["detail"]
        assert dead["refusals"] == 5
        assert dead["attempts"] >= 10 + 4
        assert rehearsal.health == "open"
        await report_all(rehearsal, ["afterwards"])
        await rehearsal.drive(lambda: "afterwards" in record, at_most_ms=60_000)


def test_poison_dies_alone(site: Site) -> None:
    """A receipt that alone draws 500s among good ones ends dead, and good ones never wait a minute for it."""
    asyncio.run(poison_among_good(site))
