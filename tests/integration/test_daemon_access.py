"""The daemon as one object: who may come in, a full account, and a log that no misbehaviour floods."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dlr_buffer.config import ApiSettings, BatchSettings, LogSettings
from dlr_buffer.daemon.provision import allow_lists
from dlr_buffer.logs import AUDIT, Event, Log
from dlr_buffer.simulator import FaultKind, Simulator, SimulatorSettings
from tests.integration.test_daemon import Site, folder, log_level, migrated, path, site
from tests.loops import on_loop

__all__ = ["folder", "log_level", "migrated", "path", "site"]

ME = os.getuid()


async def metric(site: Site, name: str) -> float:
    """One figure of /metrics."""
    text = (await site.call("GET", "/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, flags=re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.mark.skipif(ME != 0, reason="only root is always admitted on the admin socket")
@on_loop
async def test_lists_of_users_hold_from_the_start_and_after_a_reload(site: Site) -> None:
    """Root gets in where admins do, and only there; what is refused and who called shows in the metrics."""
    site_lists = site.configuration()
    closed = replace(site_lists, api=replace(site_lists.api, client_allow=(), admin_allow=()))
    async with site.running(closed) as daemon:
        assert (await site.call("GET", "/healthz", admin=False)).status_code == 403
        assert (await site.call("GET", "/healthz")).status_code == 200
        assert await metric(site, "dlr_buffer_client_connections_forbidden") == 1
        await daemon.reload(site_lists)
        for _ in range(3):
            assert (await site.call("GET", "/healthz", admin=False)).status_code == 200
        assert await metric(site, f'dlr_buffer_api_requests_total{{socket="client",uid="{ME}"}}') == 3
        await daemon.reload(closed)
        assert (await site.call("GET", "/healthz", admin=False)).status_code == 403


def test_the_daemon_may_always_ask_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user that it runs as is admitted where admins are, for `systemctl reload` asks as that one."""
    monkeypatch.setattr(os, "geteuid", lambda: 970)
    api = ApiSettings(client_allow=(5,), admin_allow=(1234,))
    clients, admins = allow_lists(site.configuration(api=api))
    assert admins.uids == frozenset({0, 970, 1234})
    assert clients.uids == frozenset({5})


@on_loop
async def test_a_full_account_is_seen_everywhere(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """By apps as 503, by admins as an alarm, a line of the log a minute, and figures; a reload raises the limit."""
    limited = site.configuration(site.account(max_waiting=2))
    async with site.running(limited) as daemon:
        daemon._scheduler.pause()
        codes = [
            (await site.call("POST", "/v1/messages", {"message_id": name}, admin=False)).status_code
            for name in "abcd"
        ]
        assert codes == [201, 201, 503, 503]
        (alarm,) = (await site.call("GET", "/v1/status")).json()["alarms"]
        assert alarm.startswith(
            "account default: 2 messages wait for their final state, as many as its max_waiting"
        )
        assert await metric(site, "dlr_buffer_refused_waiting_total") == 2
        assert await metric(site, 'dlr_buffer_account_max_waiting{account="default"}') == 2
        for _ in range(5):
            await daemon._housekeeping()
        lines = [record for record in caplog.records if getattr(record, "event", None) is Event.ACCOUNT_FULL]
        assert len(lines) == 1
        await daemon.reload(site.configuration(site.account(max_waiting=3)))
        assert (await site.call("POST", "/v1/messages", {"message_id": "c"}, admin=False)).status_code == 201
        assert (await site.call("POST", "/v1/messages", {"message_id": "d"}, admin=False)).status_code == 503


@on_loop
async def test_an_admin_is_in_the_history(site: Site) -> None:
    """Through all layers, into the database and out again."""
    async with site.running():
        await site.call("POST", "/v1/accounts/default/pause")  # what is on the wire can't be held
        await site.report("m")
        await site.call("POST", "/v1/receipts/hold", {"filter": {"all": True}})
        message = (await site.call("GET", "/v1/messages/m")).json()
        entry = next(each for each in message["receipts"][0]["history"] if each["event"] == "held")
        assert re.fullmatch(
            rf"by \S+ \(uid {ME}, process {os.getpid()}, .+\); it was pending", entry["detail"]
        )


@on_loop
async def test_no_misbehaviour_floods_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A server that fails in every way and a client that sends rubbish leave a line a cause, not a line a try."""
    caplog.set_level(logging.INFO, "dlr_buffer")
    faults: dict[FaultKind, float] = {kind: 0.07 for kind in FaultKind if kind is not FaultKind.TIMEOUT}
    async with Simulator(SimulatorSettings(faults=faults)) as simulator:
        site.url = simulator.url
        account = site.account(batch=BatchSettings(max_receipts=3, linger_ms=0))
        async with site.running(site.configuration(account)) as daemon:
            await site.report(*(f"m{number}" for number in range(200)))
            # Less than a minute in all: whatever is said once a minute is said once.
            for _ in range(100):
                await daemon.flusher.resume("default")
                site.clock.advance(500)
                for _ in range(30):
                    await asyncio.sleep(0)
            assert simulator.record.requests > 10
            for _ in range(100):
                reader, writer = await asyncio.open_unix_connection(str(site.folder / "client.sock"))
                writer.write(b"\x00\x1b[2Jrubbish\r\n\r\n")
                await reader.read()
                writer.close()
                await writer.wait_closed()
            for body in ([], {"message_id": 7}, [{"message_id": "\n"}] * 50):
                for _ in range(20):
                    await site.call("POST", "/v1/receipts", body, admin=False)
    ordinary = [record for record in caplog.records if record.name != AUDIT]
    causes = Counter(
        (record.__dict__.get("facts", {}).get("cause"), record.pathname, record.lineno) for record in ordinary
    )
    assert causes
    assert max(causes.values()) <= 2, causes.most_common(3)
    assert len(ordinary) < 50


@on_loop
async def test_a_log_that_cannot_be_written_is_an_alarm(site: Site) -> None:
    """The daemon goes on, says so where admins look, and counts."""
    kept = logging.getLogger().handlers[:]
    with Path("/dev/full").open("wb", buffering=0) as full:  # noqa: ASYNC230 - a device that never blocks
        log = Log({}, fd=full.fileno())
        try:
            log.apply("info", "json")
            daemon = site.daemon(site.configuration(log=LogSettings("info", "json")))
            daemon.vitals.log = log
            await daemon.start()
            try:
                await site.report("m")
                (alarm,) = [each for each in daemon.vitals.facts().alarms if "the log" in each]
                assert "No space left on device" in alarm
                assert await metric(site, "dlr_buffer_log_lines_lost") >= 1
            finally:
                await daemon.stop()
        finally:
            logging.captureWarnings(capture=False)
            logging.getLogger().handlers[:] = kept
