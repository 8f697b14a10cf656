"""An admin's `retry` over the socket reaches what the flusher keeps apart in memory, in the whole daemon."""

from __future__ import annotations

import asyncio
from functools import partial

from dlr_buffer.client import Client
from dlr_buffer.simulator.answers import Scripted
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import Site
from tests.acceptance.rehearsal import HOUR_MS, SECOND_MS, Rehearsal, rehearsing


def _deliver(message_id: str, app: Client) -> None:
    app.report(message_id, "delivered")


def _acknowledged(rehearsal: Rehearsal, receipts: int) -> bool:
    return rehearsal.receipts["acknowledged"] >= receipts


async def retried(site: Site) -> None:
    """Let one message draw errors while others go through, mend it, and retry."""
    ill = True

    def script(request: Request) -> Scripted | None:
        odd = any(each.message_id == "odd" for each in request.receipts)
        return Scripted(500) if ill and odd else None

    async with rehearsing(site, script=script) as rehearsal:
        for turn in range(8):
            await rehearsal.ask(partial(_deliver, f"good{turn}" if turn != 1 else "odd"))
            wanted = turn + (turn < 1)
            await rehearsal.drive(partial(_acknowledged, rehearsal, wanted), at_most_ms=HOUR_MS)
            rehearsal.clock.advance(40 * SECOND_MS)
            await rehearsal.settle()
        assert rehearsal.receipts["pending"] == 1
        assert rehearsal.daemon.flusher.views()[0].set_aside == 1
        ill = False
        counted = await rehearsal.ask(
            lambda admin: admin.request("POST", "/v1/receipts/retry", {"filter": {"all": True}}), admin=True
        )
        assert counted["changed"] == 1
        await rehearsal.drive(
            lambda: not rehearsal.receipts["pending"], at_most_ms=SECOND_MS, step_ms=SECOND_MS // 4
        )
        assert rehearsal.daemon.flusher.views()[0].set_aside == 0


def test_retry_hurries_what_is_set_aside(site: Site) -> None:
    """A receipt that waits minutes for its next try goes within a second of `retry`, as its batch closes."""
    asyncio.run(retried(site))
