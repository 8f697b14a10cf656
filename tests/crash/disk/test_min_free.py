"""A disk that is nearly full: registration stops at ``min_free``, and everything that ends debts goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlr_buffer.storage import writer
from tests.acceptance.harness import StandIn, eventually
from tests.crash.disk.small_disk import MIB, DiskSite, SmallDisk, refusal
from tests.integration.storage.harness import DELIVERED, opened
from tests.loops import on_loop

MESSAGE = "/v1/messages"
RECEIPT = "/v1/receipts"
LOG_BYTES = 100_000


def test_below_min_free_only_registration_stops(site: DiskSite, disk: SmallDisk) -> None:
    """507 with Retry-After for what would register; reports, sending, expiry, deleting go on; it ends by itself."""
    with StandIn() as stand_in:
        site.configure(stand_in.url, tables={"database": {"min_free": "4MiB"}})
        daemon = site.start()
        with site.client() as app, site.admin() as admin:
            app.register_many([f"m{number}" for number in range(300)])
            app.request("POST", MESSAGE, {"message_id": "late", "validity_period": 3})
            disk.fill(leave_bytes=3 * MIB)

            for body in ({"message_id": "new"}, [{"message_id": "new"}, {"message_id": "newer"}]):
                problem = refusal(app, "POST", MESSAGE, body)
                assert (problem.status, problem.code) == (507, "storage-full")
                assert problem.retry_after_s
                assert "min_free" in problem.detail
            assert (problem.problem["registered"], problem.problem["duplicates"]) == (0, 0)
            problem = refusal(app, "POST", RECEIPT, {"message_id": "new", "message_state": "delivered"})
            assert (problem.status, problem.retry_after_s) == (507, 30)
            reports = [{"message_id": each, "message_state": "delivered"} for each in ("m0", "new", "m1")]
            summary = app.request("POST", RECEIPT, reports)
            assert summary["queued"] == 2
            assert [(each["index"], each["code"]) for each in summary["errors"]] == [(1, "storage-full")]

            app.report_many([(f"m{number}", "delivered") for number in range(2, 200)])
            deleted = admin.request("POST", "/v1/messages/delete", {"filter": {"message_id": "m299"}})
            assert deleted["changed"] == 1
            stand_in.wait_for(lambda record: record.accepted >= 201)
            eventually(
                lambda: app.request("GET", f"{MESSAGE}/late")["state"], lambda state: state == "expired"
            )
            assert site.wait_until_sent()["receipts"]["acknowledged"] == 201

            assert "registration answers 507" in site.alarms()
            assert site.metric("dlr_buffer_registration_stopped") == 1
            assert site.metric("dlr_buffer_refused_full_total") == 5
            assert site.ask("GET", "/healthz") == {"status": "ok"}
            assert site.lines("registration stops: only") == 1

            disk.empty()
            app.register("new")
            assert "507" not in site.alarms()
            assert site.metric("dlr_buffer_registration_stopped") == 0
            assert site.lines("registration goes on") == 1
        assert daemon.terminate() == 0
    assert site.recount() == {
        "messages": {"waiting": 100, "delivered": 200, "expired": 1},
        "receipts": {"acknowledged": 201},
    }


@on_loop
async def test_min_free_is_said_without_requests(
    path: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells that registration stops, and that it goes on, though no app asks for anything."""
    target = disk.take(path)
    async with opened(target, min_free_bytes=4 * MIB) as queue:
        queue.store.look_after()
        assert "registration" not in caplog.text
        disk.fill(leave_bytes=MIB)
        queue.store.look_after()
        queue.store.look_after()
        assert caplog.text.count("registration stops") == 1
        disk.empty()
        queue.store.look_after()
        assert caplog.text.count("registration goes on") == 1


@on_loop
async def test_the_log_keeps_its_room_on_a_disk_that_is_nearly_full(
    path: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below min_free a checkpoint leaves the log its space; when others take the rest, acknowledgements have that."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", LOG_BYTES)
    database = disk.take(path)
    async with opened(database) as queue:
        await queue.register(*(f"m{number}" for number in range(2000)))
        await queue.report(*((f"m{number}", DELIVERED) for number in range(2000)))
        await queue.settle(acknowledged=await queue.claim(limit=500))
        await queue.store.purge(range(1, 501), settled_before_ms=2**62, dead_before_ms=2**62)
    async with opened(database, queue.clock, min_free_bytes=4 * MIB) as queue:
        disk.fill(leave_bytes=3 * MIB)
        for _ in range(4):
            await queue.settle(acknowledged=await queue.claim(limit=200))
        kept = queue.store.facts().wal_bytes
        assert kept >= LOG_BYTES
        disk.fill()
        for _ in range(10):
            await queue.settle(acknowledged=await queue.claim(limit=50))
        assert queue.store.facts().wal_bytes >= kept
        assert queue.store.trouble is None
        assert disk.free_bytes == 0
