"""A disk without a byte left: nothing is torn, nothing is acknowledged falsely, and all goes on when there is room."""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.client import ApiError, Client
from dlr_buffer.errors import StorageFull, StoreUnavailable
from dlr_buffer.simulator import SimulatorSettings
from dlr_buffer.storage.connection import translate
from tests.acceptance.harness import StandIn, eventually, threads
from tests.crash.disk.small_disk import DiskSite, SmallDisk, refusal
from tests.integration.storage.harness import DELIVERED, Queue, opened, rows
from tests.loops import on_loop

CLIENTS = 4
CYCLES = 6
PAGE = 4096


def load(
    site: DiskSite, done: threading.Event, told: dict[str, bool], refused: list[ApiError], name: str
) -> None:
    """Register and report until told to stop; what was refused is only noted, what was answered is kept."""
    with site.client() as app:
        for number in itertools.count():
            if done.is_set():
                return
            message_id = f"{name}-{number}-{'x' * 100}"
            try:
                app.register(message_id)
                told[message_id] = False
                app.report(message_id, "delivered")
                told[message_id] = True
            except ApiError as error:
                refused.append(error)


def test_filled_again_and_again_under_load(site: DiskSite, disk: SmallDisk) -> None:
    """Filled at random moments: refusals are 507 with Retry-After, every answer holds, and nothing is sent twice."""
    rng = random.Random(7)
    done, told, refused = threading.Event(), dict[str, bool](), list[ApiError]()
    with StandIn(SimulatorSettings(latency=0.002, max_targets=1)) as stand_in:
        site.configure(stand_in.url, batch={"max_receipts": 10})
        daemon = site.start()
        with threads(CLIENTS, lambda number: load(site, done, told, refused, str(number))):
            for _ in range(CYCLES):
                enough = len(told) + rng.randrange(20, 200)
                eventually(lambda: len(told), enough.__le__)
                enough = len(refused) + 20
                disk.fill(leave_bytes=rng.choice([0, 4096, 40_000, 900_000]))
                eventually(lambda: len(refused), enough.__le__)
                # What min_free leaves goes to reports and acknowledgements, until it is gone as well.
                disk.fill()
                disk.empty()
            done.set()
        assert {error.status for error in refused} == {507}
        assert {error.code for error in refused} == {"storage-full"}
        assert all(error.retry_after_s for error in refused)
        with site.client() as app:
            reported = [message_id for message_id in told if not told[message_id]]
            app.report_many([(message_id, "delivered") for message_id in reported])
        account = site.wait_until_sent()
        assert account["receipts"]["acknowledged"] == len(told)
        finals = stand_in.look(lambda record: record.final_states())
        assert stand_in.look(lambda record: (record.resends, record.after_final)) == (0, 0)
        assert set(finals) == set(told)
        assert daemon.terminate() == 0
    assert site.recount() == {
        "messages": {"delivered": len(told)},
        "receipts": {"acknowledged": len(told)},
    }
    assert rows(site.database, "PRAGMA integrity_check") == [("ok",)]
    assert site.lines("Traceback") == 0


def test_what_cannot_be_written_is_kept_and_recovers_by_itself(site: DiskSite, disk: SmallDisk) -> None:
    """Answers of Smartswitch that find no room are kept, not sent again; it shows everywhere, and ends by itself."""
    with StandIn(SimulatorSettings(latency=2)) as stand_in:
        site.configure(stand_in.url)
        daemon = site.start()
        with site.client() as app:
            app.register_many([f"m{number}" for number in range(500)])
            app.report_many([(f"m{number}", "delivered") for number in range(400)])
            stand_in.wait_for(lambda record: record.concurrent_requests == 4)
            # Not even a checkpoint makes room: what is in the log needs more of the database than there is.
            disk.fill()
            eventually(lambda: site.metric("dlr_buffer_store_failures_total"), lambda failures: failures >= 8)
            problem = refusal(app, "GET", "/healthz", None)
            assert (problem.status, problem.retry_after_s) == (503, 5)
            assert "is full" in problem.detail
            assert "4 answers of Smartswitch can't be written" in problem.detail
            assert "free some space" in site.alarms()
            assert site.metric("dlr_buffer_unhealthy") == 1
            assert site.metric("dlr_buffer_commit_failures_total") >= 2
            assert app.request("GET", "/v1/messages/m1")["state"] == "delivered"
            assert site.account()["receipts"]["acknowledged"] == 0
            disk.empty()
            site.wait_for_account(
                lambda account: (
                    account["receipts"]["acknowledged"] == 400 and not account["in_flight_receipts"]
                )
            )
            eventually(site.alarms, lambda alarms: not alarms)
            assert app.request("GET", "/healthz") == {"status": "ok"}
        assert stand_in.look(lambda record: (record.requests, record.resends)) == (4, 0)
        assert site.lines("a commit failed, nothing of it is acknowledged") == 1
        assert site.lines("commits succeed again") == 1
        assert site.lines("put off until the next tick") <= 2
        assert daemon.terminate() == 0
    assert site.recount()["receipts"] == {"acknowledged": 400}


def register_until_refused(app: Client, limit: int) -> int:
    """How many messages were answered, one a request, before the first that the full disk refused."""
    for number in range(limit):
        try:
            app.register(f"late{number}")
        except ApiError as problem:
            if problem.status != 507:
                raise
            return number
    pytest.fail(f"{limit} messages were answered on a full disk")


def test_started_and_stopped_on_a_full_disk(site: DiskSite, disk: SmallDisk) -> None:
    """A new queue needs room, and says so; an old one starts and stops without, and with room all of it is there."""
    site.configure()
    disk.fill()
    refused = site.command("run")
    assert refused.returncode == 1
    assert "is full" in refused.stderr
    assert "free some space" in refused.stderr
    assert "Traceback" not in refused.stderr
    disk.empty()
    daemon = site.start()
    with site.client() as app:
        app.register_many([f"m{number}" for number in range(3000)])
        disk.fill(leave_bytes=300_000)
        reports = [{"message_id": f"m{number}", "message_state": "enroute"} for number in range(3000)]
        broken = refusal(app, "POST", "/v1/receipts", reports)
    assert (broken.status, broken.retry_after_s) == (507, 30)
    assert "what is counted here was stored before that" in broken.detail
    queued = broken.problem["queued"]
    assert 0 < queued < 3000
    disk.fill()
    daemon.kill()
    daemon = site.start()
    with site.client() as app:
        # A log recovered at start-up is written from its start, so some fit in the room that the disk gave it before.
        answered = register_until_refused(app, limit=20_000)
        assert app.request("GET", "/v1/messages/m2999")["state"] is None
    assert daemon.terminate() == 0
    assert site.lines("CRITICAL") == 0
    assert site.lines("Traceback") == 0
    disk.empty()
    site.start()
    with site.client() as app:
        app.register("one")
    account = site.account()
    assert account["receipts"]["pending"] == account["messages"]["enroute"] == queued
    assert account["messages"]["waiting"] == 3001 + answered - queued


async def fill_up(queue: Queue, messages: int) -> None:
    """Register and report so many."""
    names = [f"m{number}" for number in range(messages)]
    await queue.register(*names)
    await queue.report(*((each, DELIVERED) for each in names))


@on_loop
async def test_a_log_that_cannot_grow_is_written_from_its_start(path: Path, disk: SmallDisk) -> None:
    """With no byte free, acknowledging and purging go on in the room that the log and the database have."""
    database = disk.take(path)
    async with opened(database) as queue:
        await fill_up(queue, 3000)
        await queue.settle(acknowledged=await queue.claim(limit=1000))
        await queue.store.purge(range(1, 1001), settled_before_ms=2**62, dead_before_ms=2**62)
    async with opened(database, queue.clock) as queue:
        await queue.settle(acknowledged=await queue.claim(limit=500))
        log = queue.store.facts().wal_bytes
        disk.fill()
        for _ in range(15):
            await queue.settle(acknowledged=await queue.claim(limit=100))
        assert await queue.claim() == []
        assert queue.store.facts().wal_bytes < log + PAGE
        assert disk.free_bytes == 0
        for start in range(1001, 3001, 10):
            await queue.store.purge(range(start, start + 10), settled_before_ms=2**62, dead_before_ms=2**62)
        assert queue.store.trouble is None
        assert queue.store.counts().messages["default"]["delivered"] == 0


@on_loop
async def test_no_room_for_a_checkpoint_either(
    path: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the database has to grow all of a group get StorageFull; a checkpoint is only tried as space changes."""
    database = disk.take(path)
    async with opened(database) as queue:
        await fill_up(queue, 2000)
        claimed = await queue.claim(limit=100)
        disk.fill()
        with pytest.raises(StorageFull, match="free some space"):
            await queue.register(*(f"n{number}" for number in range(1000)))
        tried: list[str] = []
        connection = queue.store._writer._connection
        assert connection is not None
        raw: Any = connection.connection.dbapi_connection
        raw.set_trace_callback(tried.append)
        for _ in range(5):
            with pytest.raises(StorageFull):
                await queue.settle(acknowledged=claimed)
        assert tried.count("BEGIN IMMEDIATE") == 5
        assert not [each for each in tried if "checkpoint" in each]
        assert "free some space" in str(queue.store.trouble)
        assert len((await queue.view("m1")).receipts) == 1
        assert caplog.text.count("nothing of it is acknowledged") == 1
        disk.empty()
        queue.store.look_after()
        await queue.settle(acknowledged=claimed)
        await queue.register("one")


async def trouble_after_a_look(queue: Queue) -> str:
    """What is wrong once the writer has tried."""
    queue.store.look_after()
    look = queue.store._writer._look
    assert look is not None
    with contextlib.suppress(StorageFull):
        await look
    return queue.store.trouble or "none"


@on_loop
async def test_commits_are_tried_again_while_nobody_writes(path: Path, disk: SmallDisk) -> None:
    """After a full disk an idle queue finds out by itself that there is room again."""
    database = disk.take(path)
    async with opened(database) as queue:
        await fill_up(queue, 2000)
        disk.fill()
        with pytest.raises(StorageFull):
            await queue.register(*(f"n{number}" for number in range(1000)))
        # The last page of the log may have had room for a commit or two as small as this.
        tries = [await trouble_after_a_look(queue) for _ in range(5)]
        assert "free some space" in tries[-1]
        disk.empty()
        assert await trouble_after_a_look(queue) == "none"


def test_a_wal_index_without_room_is_a_full_disk(disk: SmallDisk) -> None:
    """SQLite calls it an I/O error if the wal-index cannot grow: on a full disk that is no reason to end."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    path = disk.folder / "queue.db"
    with_room = translate(error, path)
    assert isinstance(with_room, StoreUnavailable)
    assert with_room.fatal
    disk.fill()
    assert isinstance(translate(error, path), StorageFull)
    with closing(sqlite3.connect(path)) as database, pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("PRAGMA journal_mode = WAL")
    assert isinstance(translate(caught.value, path), StorageFull)
