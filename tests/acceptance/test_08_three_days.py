"""Seventy-two hours by the injected clock: what nobody reported expires, once, and then is final."""

from __future__ import annotations

import asyncio

from dlr_buffer.client import ApiError, Client
from tests.acceptance.harness import Site
from tests.acceptance.rehearsal import HOUR_MS, SECOND_MS, Rehearsal, rehearsing

EXPIRING = [f"silent-{number:04}" for number in range(1500)]
ENROUTE = [f"enroute-{number:03}" for number in range(100)]
DELIVERED = [f"delivered-{number:03}" for number in range(100)]
BRIEF = [f"brief-{number:03}" for number in range(100)]


def late(client: Client, message_id: str, state: str) -> tuple[int, str, str]:
    """Report too late; returns the problem's status and code, and the state that came first."""
    try:
        client.report(message_id, state)
    except ApiError as error:
        return error.status, error.code, error.problem["state"]
    raise AssertionError(message_id)


async def three_days(site: Site) -> None:
    """Go through them, and check."""
    async with rehearsing(site) as rehearsal:
        record = rehearsal.simulator.record
        await rehearsal.sweep()
        began = rehearsal.clock.now_ms()
        await rehearsal.ask(lambda app: app.register_many(EXPIRING + ENROUTE + DELIVERED))
        await rehearsal.ask(
            lambda app: app.register_many([{"message_id": each, "validity_period": 3600} for each in BRIEF])
        )
        await rehearsal.ask(lambda app: app.report_many([(each, "enroute") for each in ENROUTE]))
        await rehearsal.ask(lambda app: app.report_many([(each, "delivered") for each in DELIVERED]))
        await rehearsal.drive(lambda: not rehearsal.receipts["pending"], at_most_ms=HOUR_MS // 2)

        await wait_until(rehearsal, began + HOUR_MS - 1)
        assert rehearsal.messages["expired"] == 0
        await wait_until(rehearsal, began + HOUR_MS)
        assert rehearsal.messages["expired"] == len(BRIEF)
        await wait_until(rehearsal, began + 72 * HOUR_MS - 1)
        assert rehearsal.messages["expired"] == len(BRIEF)
        await wait_until(rehearsal, began + 72 * HOUR_MS)
        assert rehearsal.messages["expired"] == len(BRIEF) + len(EXPIRING) + len(ENROUTE)
        assert rehearsal.messages["waiting"] == rehearsal.messages["enroute"] == 0

        expected = {each: ["expired"] for each in EXPIRING + ENROUTE + BRIEF}
        expected |= {each: ["delivered"] for each in DELIVERED}
        upstream = {
            message_id: [state for state, _ in states] for message_id, states in record.final_states().items()
        }
        assert upstream == expected
        assert all(len(record.sightings(each)) == 1 for each in EXPIRING + BRIEF)

        for message_id, first in (
            (EXPIRING[0], "expired"),
            (ENROUTE[0], "expired"),
            (DELIVERED[0], "delivered"),
        ):
            for state in ("undeliverable", "enroute"):
                answer = await rehearsal.ask(lambda app, m=message_id, s=state: late(app, m, s))  # type: ignore[misc]
                assert answer == (409, "message-final", first)
        # What is final already can be said again, and is not told again.
        await rehearsal.ask(lambda app: app.report(EXPIRING[0], "expired"))
        receipts = record.receipts
        await wait_until(rehearsal, began + 73 * HOUR_MS)
        assert record.receipts == receipts
        assert rehearsal.receipts["pending"] == 0
        assert record.after_final == 0


async def wait_until(rehearsal: Rehearsal, moment_ms: int) -> None:
    """Let time pass until that moment, let expiry look, and let all that came of it be sent (in batches)."""
    rehearsal.clock.advance(moment_ms - rehearsal.clock.now_ms())
    await rehearsal.sweep()
    await rehearsal.drive(
        lambda: not rehearsal.receipts["pending"], at_most_ms=10 * SECOND_MS, step_ms=SECOND_MS // 4
    )


def test_three_days(site: Site) -> None:
    """Messages expire at their deadline, not before; each is told once; late reports are refused with 409."""
    asyncio.run(three_days(site))
