"""One bad receipt in a batch of a hundred: the others go through, and it is found in few requests."""

from __future__ import annotations

import pytest

from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import Site, StandIn

IDS = [f"m{number:03}" for number in range(100)]


@pytest.mark.parametrize("position", [0, 37, 99])
@pytest.mark.parametrize("status", [200, 400])
def test_one_bad_in_a_hundred(site: Site, position: int, status: int) -> None:
    """99 are acknowledged and one is dead with Smartswitch's words, in at most 20 requests."""
    bad = IDS[position]
    settings = SimulatorSettings(refuse_message_ids=frozenset({bad}), unknown_message_status=status)
    with StandIn(settings) as stand_in:
        site.configure(stand_in.url)
        site.start()
        site.ask("POST", "/v1/accounts/default/pause")
        with site.client() as app:
            app.register_many(IDS)
            app.report_many([(message_id, "delivered") for message_id in IDS])
        site.ask("POST", "/v1/accounts/default/resume")
        account = site.wait_until_sent()
        record = stand_in.look(lambda record: record.summary())
    assert record["max_batch"] == 100
    assert (account["receipts"]["acknowledged"], account["receipts"]["dead"]) == (99, 1)
    assert record["accepted"] == 99
    assert record["requests"] <= 20
    (dead,) = [receipt for receipt in site.pages("/v1/receipts") if receipt["status"] == "dead"]
    assert dead["message_id"] == bad
    assert dead["error"] == {
        "code": "unknown-message",
        "title": "Unknown message",
        "detail": f"There is no message {bad}",
    }
    assert dead["refusals"] == 5
    shown = site.command("show", bad)
    assert shown.returncode == 0
    assert "unknown-message" in shown.stdout
