"""The daemon as one object in this process: real sockets, a real queue, a real stand-in, and a clock by hand."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from dlr_buffer import daemon as daemon_module
from dlr_buffer.config import (
    AccountSettings,
    ApiSettings,
    BatchSettings,
    Configuration,
    ConfigurationError,
    DatabaseSettings,
    LogSettings,
    MessageSettings,
    Problem,
    RetentionSettings,
    RetrySettings,
    Secret,
)
from dlr_buffer.daemon import Daemon
from dlr_buffer.errors import DlrBufferError, StoreUnavailable
from dlr_buffer.health import HealthState
from dlr_buffer.logs import Event
from dlr_buffer.simulator import Hang, Request, Simulator, SimulatorSettings
from dlr_buffer.storage.writer import Lane
from dlr_buffer.watchdog import Watchdog
from tests.clocks import FakeClock
from tests.integration.storage.conftest import migrated, path
from tests.loops import on_loop

__all__ = ["migrated", "path"]

HOUR = 3_600_000
PASSWORD = "PASSWORD"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="dlr") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A reload sets the program's log level: put it back."""
    logger = logging.getLogger("dlr_buffer")
    kept = logger.level
    yield
    logger.setLevel(kept)


@dataclass
class Site:
    """A place with a queue, in which daemons are started one after the other, or two at once."""

    folder: Path
    database: Path
    url: str
    clock: FakeClock = field(default_factory=FakeClock)
    environ: dict[str, str] = field(default_factory=dict)

    def account(self, name: str = "default", **changes: Any) -> AccountSettings:  # noqa: ANN401 - fields of the record
        """An account that sends at once and tries again after a second."""
        settings = AccountSettings(
            name,
            self.url,
            Secret("LOGIN"),
            Secret(PASSWORD),
            concurrency=2,
            batch=BatchSettings(linger_ms=0),
            retry=RetrySettings(initial_ms=1000, max_ms=60_000),
        )
        return replace(settings, **changes)

    def configuration(self, *accounts: AccountSettings, **changes: Any) -> Configuration:  # noqa: ANN401 - as above
        """A configuration with these accounts (left out: one)."""
        configuration = Configuration(
            ApiSettings(self.folder / "client.sock", self.folder / "admin.sock"),
            DatabaseSettings(f"sqlite:///{self.database}", min_free_bytes=0),
            MessageSettings(),
            RetentionSettings(),
            LogSettings(),
            {each.name: each for each in accounts or (self.account(),)},
        )
        return replace(configuration, **changes)

    def daemon(self, configuration: Configuration | None = None) -> Daemon:
        """A daemon that is not started."""
        return Daemon(configuration or self.configuration(), clock=self.clock, environ=self.environ)

    @asynccontextmanager
    async def running(self, configuration: Configuration | None = None) -> AsyncIterator[Daemon]:
        """A daemon that serves, and is stopped at the end."""
        daemon = self.daemon(configuration)
        await daemon.start()
        try:
            yield daemon
        finally:
            await daemon.stop()

    async def call(
        self, method: str, target: str, body: object = None, *, admin: bool = True
    ) -> httpx.Response:
        """Ask the local API."""
        name = "admin.sock" if admin else "client.sock"
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / name))
        async with httpx.AsyncClient(transport=transport, base_url="http://dlr", timeout=20) as client:
            return await client.request(method, target, json=body)

    async def report(self, *message_ids: str, account: str = "default") -> None:
        """Report messages as delivered."""
        body = [
            {"message_id": each, "message_state": "delivered", "account": account} for each in message_ids
        ]
        answer = await self.call("POST", "/v1/receipts", body, admin=False)
        assert answer.json()["queued"] == len(message_ids), answer.text


async def changed(look: Callable[[], object], before: object) -> None:
    """Let the loop turn until something is another than before."""
    await eventually(lambda: look() != before)


async def eventually(reached: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - whatever changes, nobody tells
            await asyncio.sleep(0)


def pending(daemon: Daemon, account: str = "default") -> int:
    """Receipts that wait."""
    return daemon.store.counts().receipts[account]["pending"]


def health(daemon: Daemon, account: str = "default") -> HealthState:
    """What `status` shows of an account."""
    return next(view.health for view in daemon.flusher.views() if view.name == account)


@pytest.fixture
def site(folder: Path, path: Path) -> Site:
    """A queue with nothing behind it: a test with a stand-in gives its url."""
    return Site(folder, path, "http://127.0.0.1:9/api/dlr")


@on_loop
async def test_from_socket_to_smartswitch(site: Site) -> None:
    """What an app reports over the client socket reaches Smartswitch, and is acknowledged; all is shown."""
    async with Simulator() as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            await site.report("007", "7", "0xAb")
            await eventually(lambda: not pending(daemon))
            assert sorted(simulator.record.final_states()) == ["007", "0xAb", "7"]
            status = (await site.call("GET", "/v1/status")).json()
            assert status["accounts"][0]["health"] == "open"
            assert (await site.call("GET", "/healthz")).status_code == 200
            assert "dlr_buffer_acknowledged_total 3.0" in (await site.call("GET", "/metrics")).text
            assert daemon.vitals.facts().alarms == ()
            daemon.metrics.sample(site.clock.monotonic_ms())
            assert daemon.vitals.facts().totals["acknowledged"] == 3


@on_loop
async def test_start_and_stop_in_order(site: Site) -> None:
    """READY comes when both sockets answer; STOPPING comes first at the end; afterwards sockets and lock are free."""
    notify = site.folder / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(notify))
        systemd.setblocking(False)  # noqa: FBT003 - the standard library's signature
        site.environ["NOTIFY_SOCKET"] = str(notify)
        async with site.running() as daemon:
            told = received(systemd)
            assert told[0] == f"STATUS=Opening the queue {site.database}"
            assert told[-2:] == ["STATUS=0 messages waiting, 0 receipts pending, 0 dead", "READY=1"]
            assert set(told[1:-2]) == {"EXTEND_TIMEOUT_USEC=20000000"}
            assert (await site.call("GET", "/healthz", admin=False)).status_code == 200
            await daemon._housekeeping()
            await daemon.reload(site.configuration())
            assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert systemd.recv(100) == b"READY=1"
        stopping, extended, *rest = received(systemd)
        assert (stopping, extended) == ("STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000")
        assert rest[-1].startswith(("STATUS=Stopping: closing", "EXTEND_TIMEOUT_USEC="))
    assert sorted(each.name for each in site.folder.iterdir()) == ["notify"]
    del site.environ["NOTIFY_SOCKET"]
    async with site.running():
        pass


@on_loop
async def test_a_second_daemon_is_refused_and_leaves_nothing(site: Site) -> None:
    """A queue that is in use is refused with the owner's process id, and the first daemon goes on."""
    async with site.running() as first:
        other = replace(
            site.configuration(), api=ApiSettings(site.folder / "c2.sock", site.folder / "a2.sock")
        )
        with pytest.raises(StoreUnavailable, match=r"another dlr-buffer \(process \d+\) holds the queue"):
            await site.daemon(other).start()
        assert sorted(each.name for each in site.folder.iterdir()) == ["admin.sock", "client.sock"]
        assert first.vitals.problems() == ()
        assert (await site.call("GET", "/healthz")).status_code == 200


@pytest.mark.parametrize("taken", ["client.sock", "admin.sock"])
@on_loop
async def test_a_start_that_fails_closes_everything(site: Site, taken: str) -> None:
    """If a socket belongs to a living server the daemon says so, removes what it made and lets go of the queue."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as living:
        living.bind(str(site.folder / taken))
        living.listen()
        daemon = site.daemon()
        tasks = asyncio.all_tasks()
        with pytest.raises(DlrBufferError, match=f"another daemon answers at the socket .*{taken}"):
            await daemon.start()
        assert [each.name for each in site.folder.iterdir()] == [taken]
        assert asyncio.all_tasks() == tasks
    (site.folder / taken).unlink()
    async with site.running():
        pass


@on_loop
async def test_a_folder_that_is_missing_is_named(site: Site) -> None:
    """A socket in a folder that does not exist, and a directory for a database, are named with what to do."""
    missing = replace(site.configuration(), api=ApiSettings(site.folder / "no" / "c", site.folder / "a"))
    with pytest.raises(DlrBufferError, match="does not exist; create it"):
        await site.daemon(missing).start()
    folder = replace(site.configuration(), database=DatabaseSettings(f"sqlite:///{site.folder}"))
    with pytest.raises(StoreUnavailable, match="is a directory"):
        await site.daemon(folder).start()
    async with site.running():
        pass


@on_loop
async def test_reload_adds_and_removes_accounts(site: Site) -> None:
    """A reload starts new accounts; one that is gone keeps its rows and is shown as unconfigured, with an alarm."""
    async with Simulator() as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            await daemon.reload(site.configuration(site.account(), site.account("second")))
            await site.report("m1", account="second")
            await eventually(lambda: not pending(daemon, "second"))
            await daemon.flusher.pause("second")
            await site.report("m2", account="second")
            await daemon.reload(site.configuration())
            assert health(daemon, "second") is HealthState.UNCONFIGURED
            assert pending(daemon, "second") == 1
            assert any("second is unconfigured" in alarm for alarm in daemon.vitals.facts().alarms)
            answer = await site.call(
                "POST", "/v1/messages", {"message_id": "m3", "account": "second"}, admin=False
            )
            assert answer.status_code == 422
            await daemon.reload(site.configuration(site.account(), site.account("second")))
            assert health(daemon, "second") is HealthState.PAUSED
            await daemon.flusher.resume("second")
            await eventually(lambda: not pending(daemon, "second"))
            assert sorted(simulator.record.final_states()) == ["m1", "m2"]


@on_loop
async def test_an_account_that_left_and_owes_nothing_is_no_alarm(site: Site) -> None:
    """While messages wait it is one, or receipts, held ones too; what is settled only waits to be purged."""
    async with Simulator() as simulator:
        site.url = simulator.url
        async with site.running() as daemon:

            def alarms() -> bool:
                said = any("second is unconfigured" in alarm for alarm in daemon.vitals.facts().alarms)
                assert said == ("second unconfigured" in daemon.vitals.status_line())
                return said

            await daemon.reload(site.configuration(site.account(), site.account("second")))
            await site.report("m1", account="second")
            await eventually(lambda: not pending(daemon, "second"))
            await site.call("POST", "/v1/messages", {"message_id": "m2", "account": "second"}, admin=False)
            await daemon.reload(site.configuration())
            assert health(daemon, "second") is HealthState.UNCONFIGURED
            assert alarms()
            await site.call("POST", "/v1/messages/expire", {"filter": {"account": "second"}})
            assert alarms()
            everything = {"filter": {"account": "second", "status": "pending"}}
            await site.call("POST", "/v1/receipts/hold", everything)
            assert alarms()
            everything["filter"]["status"] = "held"
            await site.call("POST", "/v1/receipts/delete", everything)
            assert not alarms()
            assert health(daemon, "second") is HealthState.UNCONFIGURED


@on_loop
async def test_corrected_credentials_are_probed_at_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password suspends the account, with an alarm and without a word of the password.

    A reload with the right one sends everything without a wait.
    """
    async with Simulator() as simulator:
        site.url = simulator.url
        wrong = site.configuration(site.account(password=Secret("canary-password")))
        async with site.running(wrong) as daemon:
            await site.report("m1", "m2", "m3")
            await eventually(lambda: health(daemon) is HealthState.SUSPENDED)
            (alarm,) = daemon.vitals.facts().alarms
            assert "default is suspended: authentication" in alarm
            await daemon._housekeeping()
            before = simulator.record.requests
            await daemon.reload(wrong)
            await daemon.reload(site.configuration())
            await eventually(lambda: not pending(daemon))
            assert health(daemon) is HealthState.OPEN
            assert simulator.record.requests > before
            shown = (
                str((await site.call("GET", "/v1/status")).json()) + (await site.call("GET", "/metrics")).text
            )
            assert "canary" not in shown + caplog.text + repr(daemon.configuration) + alarm


@on_loop
async def test_a_pause_outlives_a_restart(site: Site) -> None:
    """An account that an admin paused is still paused after a restart, until it is resumed."""
    async with Simulator() as simulator:
        site.url = simulator.url
        async with site.running():
            assert (await site.call("POST", "/v1/accounts/default/pause")).json()["health"] == "paused"
            await site.report("m1")
        async with site.running() as daemon:
            assert health(daemon) is HealthState.PAUSED
            assert daemon.vitals.facts().alarms == ()
            await daemon.reload(site.configuration())
            assert health(daemon) is HealthState.PAUSED
            assert simulator.record.requests == 0
            assert (await site.call("POST", "/v1/accounts/default/resume")).json()["health"] == "open"
            await eventually(lambda: not pending(daemon))
        async with site.running() as daemon:
            assert health(daemon) is HealthState.OPEN


@on_loop
async def test_stopping_gives_back_and_a_restart_resends_under_the_same_id(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that hangs is given up after the grace, and sent again with the same request_ids after a restart."""
    monkeypatch.setattr(daemon_module, "FLUSH_GRACE_MS", 50)
    hanging = True

    def script(_request: Request) -> Hang | None:
        return Hang() if hanging else None

    async with Simulator(script=script) as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            await site.report("m1", "m2")
            await simulator.wait_for(lambda record: record.concurrent_requests > 0)
            assert pending(daemon) == 2
        sent = {name: simulator.record.sightings(name)[0].request_id for name in ("m1", "m2")}
        hanging = False
        async with site.running() as daemon:
            await eventually(lambda: not pending(daemon))
        for name, request_id in sent.items():
            sightings = simulator.record.sightings(name)
            assert [each.request_id for each in sightings] == [request_id, request_id]
            assert [each.accepted for each in sightings] == [False, True]


@on_loop
async def test_a_request_that_is_answered_within_the_grace_is_acknowledged(site: Site) -> None:
    """Stopping waits for the answer that is under way, so it is not sent again."""
    async with Simulator(SimulatorSettings(latency=0.2)) as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            await site.report("m1")
            await simulator.wait_for(lambda record: record.concurrent_requests > 0)
            assert pending(daemon) == 1
        async with site.running() as daemon:
            assert pending(daemon) == 0
        assert simulator.record.resends == 0


@on_loop
async def test_outage_and_recovery_by_the_clock(site: Site) -> None:
    """While nobody listens the account backs off, shows it, and comes back by itself when its time has come."""
    async with Simulator(SimulatorSettings(always_status=503)) as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            await site.report("m1")
            await eventually(lambda: health(daemon) is HealthState.BACKING_OFF)
            assert any("backing-off: http-503" in alarm for alarm in daemon.vitals.facts().alarms)
            assert daemon.vitals.problems() == ()
            simulator.settings = SimulatorSettings()
            site.clock.advance(60_000)
            await eventually(lambda: not pending(daemon))
            assert daemon.vitals.facts().alarms == ()


@on_loop
async def test_alarms_say_what_is_wrong(site: Site) -> None:
    """A disk below `min_free` and a stopped expiry are alarms; they are no reason for /healthz to fail."""
    full = replace(
        site.configuration(), database=DatabaseSettings(f"sqlite:///{site.database}", min_free_bytes=2**62)
    )
    async with site.running(full) as daemon:
        await daemon.expiry.sweep()
        site.clock.leap(2 * HOUR)
        await daemon.expiry.sweep()
        disk, clock = daemon.vitals.facts().alarms
        assert "507" in disk
        assert "expiry is stopped: the wall clock leapt forward" in clock
        assert (await site.call("GET", "/healthz")).status_code == 200
        assert "dlr_buffer_expiry_stopped 1.0" in (await site.call("GET", "/metrics")).text
        answer = await site.call("POST", "/v1/messages", {"message_id": "m"}, admin=False)
        assert answer.status_code == 507
        assert (await site.call("POST", "/v1/expiry/resume")).status_code == 200
        assert len(daemon.vitals.facts().alarms) == 1


@pytest.mark.parametrize("hangs", [True, False])
@on_loop
async def test_expiry_of_which_nothing_comes_is_an_alarm(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    """After a minute in which it fails or hangs, until it gets on; /healthz does not fail for it."""
    async with site.running() as daemon:
        tried, real = asyncio.Event(), daemon.store.expire_chunk

        async def expire_chunk(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
            tried.set()
            if hangs:
                await well.wait()
                return await real(*args, **kwargs)
            raise StoreUnavailable("the disk has a moment of weakness")

        def alarms() -> list[str]:
            return [each for each in daemon.vitals.facts().alarms if "nothing has come of expiry" in each]

        well = asyncio.Event()
        with monkeypatch.context() as weak:
            weak.setattr(daemon.store, "expire_chunk", expire_chunk)
            await asyncio.wait_for(tried.wait(), 20)
            site.clock.advance(60_000)
            assert not alarms()
            site.clock.advance(1_000)
            assert "for 61 s" in alarms()[0]
            assert "expiry late" in daemon.vitals.status_line()
            assert "dlr_buffer_expiry_silent_seconds 61.0" in (await site.call("GET", "/metrics")).text
            assert (await site.call("GET", "/healthz")).status_code == 200
        well.set()
        await eventually(lambda: not alarms())


@on_loop
async def test_a_flusher_that_ended_makes_the_daemon_unhealthy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an account's loop dies of a fault, /healthz answers 503, `status` has the alarm, and stopping still works."""
    async with site.running() as daemon:

        async def claim(*_args: object, **_kwargs: object) -> None:
            raise LookupError("unforeseen")

        monkeypatch.setattr(daemon.store, "claim", claim)
        await site.report("m")
        await eventually(daemon.vitals.problems)
        answer = await site.call("GET", "/healthz")
        assert answer.status_code == 503
        assert "default" in answer.text
        assert "dlr_buffer_unhealthy 1.0" in (await site.call("GET", "/metrics")).text
        assert any("LookupError" in alarm for alarm in daemon.vitals.facts().alarms)


@on_loop
async def test_a_database_that_failed_ends_the_daemon(site: Site) -> None:
    """A fatal failure of the database is noticed at once: /healthz answers 503, and the daemon wants to end."""
    async with site.running() as daemon:
        daemon.store._writer._give_up(StoreUnavailable("disk I/O error", fatal=True))
        await asyncio.wait_for(daemon.failed.wait(), 20)
        answer = await site.call("GET", "/healthz")
        assert answer.status_code == 503
        assert "disk I/O error" in answer.text
        body = {"message_id": "m", "message_state": "delivered"}
        assert (await site.call("POST", "/v1/receipts", body, admin=False)).status_code == 503


@on_loop
async def test_commits_that_fail_make_the_daemon_unhealthy(site: Site) -> None:
    """While another program keeps the write lock /healthz says so, and is well again after the next commit."""
    async with site.running() as daemon:
        daemon._scheduler.pause()
        await daemon.expiry.sweep()
        connection = daemon.store._writer._connection
        assert connection is not None
        await daemon.store._writer.submit(
            Lane.SETTLE, run=lambda _tx: connection.exec_driver_sql("PRAGMA busy_timeout = 1").close()
        )
        with closing(sqlite3.connect(site.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert daemon.vitals.problems() == ()
            refused = await site.call("POST", "/v1/messages", {"message_id": "m"}, admin=False)
            assert refused.status_code == 503
            (problem,) = daemon.vitals.problems()
            assert "the last commit failed" in problem
            assert "locked by another program" in problem
            assert daemon.vitals.facts().alarms == (problem,)
            answer = await site.call("GET", "/healthz", admin=False)
            assert answer.status_code == 503
            assert "locked by another program" in (await site.call("GET", "/healthz")).text
            other.execute("ROLLBACK")
        assert (await site.call("POST", "/v1/messages", {"message_id": "m"}, admin=False)).status_code == 201
        assert daemon.vitals.problems() == ()
        assert (await site.call("GET", "/healthz", admin=False)).status_code == 200
        assert not daemon.failed.is_set()


@on_loop
async def test_an_old_receipt_raises_an_alarm_and_stays(site: Site) -> None:
    """A receipt that waits longer than its account's `lifetime` is an alarm; it is neither killed nor an illness."""
    day = 24 * HOUR
    short = site.account("short", retry=RetrySettings(lifetime_ms=day))
    async with site.running(site.configuration(site.account(), short)) as daemon:
        daemon._scheduler.pause()
        for name in ("default", "short"):
            await daemon.flusher.pause(name)
            await site.report("m", account=name)
        site.clock.advance(day)
        await daemon.expiry.sweep()
        await daemon._housekeeping()
        assert daemon.vitals.facts().alarms == ()
        site.clock.advance(1)
        (alarm,) = daemon.vitals.facts().alarms
        assert (
            "account short: its oldest receipt has waited to be sent since 2027-01-15T08:00:00.000Z" in alarm
        )
        assert daemon.vitals.problems() == ()
        await daemon.reload(site.configuration())
        assert not any("oldest receipt" in each for each in daemon.vitals.facts().alarms), (
            "removed: the default lifetime"
        )
        site.clock.advance(6 * day)
        await daemon._housekeeping()
        old = [each for each in daemon.vitals.facts().alarms if "oldest receipt" in each]
        assert [each.split(":")[0] for each in old] == ["account default", "account short"]
        assert pending(daemon, "default") == pending(daemon, "short") == 1
        ids = [receipt["request_id"] for receipt in (await site.call("GET", "/v1/receipts")).json()["items"]]
        await site.call("POST", "/v1/receipts/delete", {"request_ids": ids})
        await daemon._housekeeping()
        assert not any("oldest receipt" in each for each in daemon.vitals.facts().alarms)


@on_loop
async def test_below_min_free_a_first_report_is_507(site: Site) -> None:
    """Without space an unknown message is not registered by its report, and the others of a bulk are queued."""
    async with site.running() as daemon:
        await daemon.flusher.pause("default")
        await site.call("POST", "/v1/messages", {"message_id": "known"}, admin=False)
    full = replace(
        site.configuration(), database=DatabaseSettings(f"sqlite:///{site.database}", min_free_bytes=2**62)
    )
    async with site.running(full):
        body = {"message_id": "unknown", "message_state": "delivered"}
        single = await site.call("POST", "/v1/receipts", body, admin=False)
        assert (single.status_code, single.json()["code"]) == (507, "storage-full")
        assert "Retry-After" in single.headers
        bulk = await site.call("POST", "/v1/receipts", [body, body | {"message_id": "known"}], admin=False)
        assert (bulk.status_code, bulk.json()["queued"]) == (200, 1)
        assert [(each["index"], each["code"]) for each in bulk.json()["errors"]] == [(0, "storage-full")]


@on_loop
async def test_a_stopped_clock_stops_retention(site: Site) -> None:
    """The daemon's retention goes by the clock that expiry believes: after a leap it removes nothing."""
    async with Simulator() as simulator:
        site.url = simulator.url
        async with site.running() as daemon:
            daemon._scheduler.pause()
            await daemon.expiry.sweep()
            await site.report("m")
            await eventually(lambda: not pending(daemon))
            site.clock.leap(9000 * HOUR)
            assert await daemon.retention.sweep() == 0
            assert any("expiry is stopped" in alarm for alarm in daemon.vitals.facts().alarms)
            assert (await site.call("GET", "/v1/messages/m")).status_code == 200
            await site.call("POST", "/v1/expiry/resume")
            assert await daemon.retention.sweep() == 1


@on_loop
async def test_a_database_that_hangs_is_noticed(site: Site) -> None:
    """If commands wait and none is finished between two looks, the daemon is unhealthy until one is."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_connection: Connection) -> None:
        hangs.set()
        assert goes_on.wait(60)

    async with site.running() as daemon:
        daemon._scheduler.pause()
        hanging = asyncio.create_task(daemon.store._writer.submit(Lane.CLAIM, read=hang))
        try:
            await asyncio.to_thread(hangs.wait, 60)
            await daemon._housekeeping()
            assert daemon.vitals.problems() == ()
            await daemon._housekeeping()
            assert any("has not finished anything" in problem for problem in daemon.vitals.problems())
        finally:
            goes_on.set()
        await hanging
        await daemon._housekeeping()
        assert daemon.vitals.problems() == ()


@on_loop
async def test_a_reload_says_what_needs_a_restart(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Message rules, retention and the log level change at once; what cannot is named in the log."""
    caplog.set_level(logging.INFO, "dlr_buffer.daemon")
    async with site.running() as daemon:
        changed = site.configuration(
            messages=MessageSettings(unknown_messages="reject"),
            database=DatabaseSettings(f"sqlite:///{site.database}", min_free_bytes=5),
            retention=RetentionSettings(dead_ms=5 * HOUR),
            log=LogSettings("debug"),
        )
        for _ in range(2):  # it still does when nothing is changed again
            caplog.clear()
            await daemon.reload(changed)
            assert "need a restart of the daemon: database.min_free" in caplog.text
        assert daemon.retention.settings.dead_ms == 5 * HOUR
        assert logging.getLogger("dlr_buffer").level == logging.DEBUG
        body = {"message_id": "m", "message_state": "delivered"}
        assert (await site.call("POST", "/v1/receipts", body, admin=False)).status_code == 404
        caplog.clear()
        await daemon.reload(site.configuration())
        assert "need a restart" not in caplog.text
        assert (await site.call("POST", "/v1/receipts", body, admin=False)).status_code == 202


@on_loop
async def test_alarms_go_by_what_holds(site: Site) -> None:
    """A min_free that a restart would bring stops nothing yet, and no alarm, metric or page says that it does."""
    async with site.running() as daemon:
        await daemon.reload(
            site.configuration(database=DatabaseSettings(f"sqlite:///{site.database}", min_free_bytes=2**60))
        )
        assert daemon.vitals.facts().alarms == ()
        assert "dlr_buffer_registration_stopped 0.0" in (await site.call("GET", "/metrics")).text
        body = {"message_id": "m"}
        assert (await site.call("POST", "/v1/messages", body, admin=False)).status_code == 201


@on_loop
@pytest.mark.parametrize("what", ["add_accounts", "paused"])
async def test_a_reload_that_is_refused_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """If the queue can't take the accounts, or their plans can't be made, the old configuration holds whole."""
    async with site.running() as daemon:
        before = daemon.configuration, daemon.queue.settings, daemon.retention.settings

        def refuse(*_: object) -> None:
            raise StoreUnavailable("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(daemon.store, what, refuse)
            changed = site.configuration(
                site.account(), site.account("another"), messages=MessageSettings(unknown_messages="reject")
            )
            await daemon.reload_from(lambda: changed)
        assert (daemon.configuration, daemon.queue.settings, daemon.retention.settings) == before
        assert [view.name for view in daemon.flusher.views() if view.configured] == ["default"]
        assert daemon.vitals.reload_error == "the disk is full"
        await daemon.reload_from(lambda: changed)
        assert daemon.vitals.facts().alarms == ()
        assert daemon.configuration is changed


@on_loop
async def test_one_reload_is_not_the_last(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody foresaw is told as a failed reload, without its text, and the next reload is taken."""
    async with site.running() as daemon:

        def unforeseen() -> Configuration:
            return site.configuration(site.account(int("secret" * 2)))  # type: ignore[arg-type]  # as a defect would

        await daemon.reload_from(unforeseen)
        (alarm,) = daemon.vitals.facts().alarms
        assert "an error that nobody foresaw (ValueError)" in alarm
        assert [getattr(record, "event", None) for record in caplog.records].count(Event.DEFECT) == 1
        assert "secretsecret" not in caplog.text
        await daemon.reload_from(site.configuration)
        assert daemon.vitals.facts().alarms == ()


@on_loop
async def test_a_reload_waits_for_nobody_else(site: Site) -> None:
    """While users and groups are looked up for a reload the daemon answers, and it ends without waiting for that."""
    looks, found = threading.Event(), threading.Event()

    def slow() -> Configuration:
        looks.set()
        assert found.wait(60)
        return site.configuration()

    async with site.running() as daemon:
        reloading = asyncio.create_task(daemon.reload_from(slow))
        await asyncio.to_thread(looks.wait, 60)
        assert (await site.call("GET", "/healthz")).status_code == 200
        assert not reloading.done()
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
    found.set()


@on_loop
async def test_the_status_line_names_troubled_accounts(site: Site) -> None:
    """`systemctl status` shows what waits and which accounts are not open."""
    async with site.running() as daemon:
        await daemon.flusher.pause("default")
        await site.report("m")
        await site.call("POST", "/v1/messages", {"message_id": "n"}, admin=False)
        assert daemon.vitals.status_line() == "1 message waiting, 1 receipt pending, 0 dead; default paused"
        await daemon._housekeeping()
        site.clock.advance(3 * 60_000)
        await eventually(lambda: not daemon.expiry.silent_ms)
        await daemon.reload_from(unreadable)
        assert daemon.vitals.status_line() == (
            "1 message waiting, 1 receipt pending (oldest 3 min), 0 dead; default paused, last reload failed"
        )


def unreadable() -> Configuration:
    """A configuration with two errors, as `load` raises it."""
    raise ConfigurationError((Problem("a.b", "is no key\nat all"), Problem("c", "is none either")))


@on_loop
async def test_a_reload_that_failed_is_an_alarm(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A configuration that can't be read changes nothing; log, alarm, status and metric say so until one is taken."""
    async with site.running() as daemon:
        before = daemon.configuration
        await daemon.reload_from(unreadable)
        assert daemon.configuration is before
        assert "not reloaded, the old configuration stays" in caplog.text
        (alarm,) = daemon.vitals.facts().alarms
        assert alarm.endswith("a.b: is no key; c: is none either")
        shown = (await site.call("GET", "/v1/status")).json()["configuration"]
        assert (shown["reloads"], shown["error"]) == (1, "a.b: is no key; c: is none either")
        assert "dlr_buffer_reload_failed 1.0" in (await site.call("GET", "/metrics")).text
        await daemon.reload_from(site.configuration)
        assert daemon.vitals.facts().alarms == ()
        shown = (await site.call("GET", "/v1/status")).json()["configuration"]
        assert (shown["reloads"], shown["error"]) == (2, None)
        assert "dlr_buffer_reload_failed 0.0" in (await site.call("GET", "/metrics")).text


@on_loop
async def test_sockets_that_are_handed_over(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon serves what systemd listens on, touches neither file nor mode, and says what has no effect then.

    One that was not handed over it makes itself; who connects while no daemon runs is answered by the next.
    """
    place = site.folder / "handed-over"
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(place))
        listening.listen(10)
        place.chmod(0o640)
        api = ApiSettings(site.folder / "client.sock", site.folder / "admin.sock", client_mode=0o600)
        configuration = replace(site.configuration(), api=api)
        for _ in range(2):
            waiting = socket.socket(socket.AF_UNIX)
            waiting.connect(str(place))
            waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            handed_over = listening.dup()
            handed_over.setblocking(False)  # noqa: FBT003 - as above
            daemon = Daemon(
                configuration, clock=site.clock, environ=site.environ, sockets={"client": handed_over}
            )
            await daemon.start()
            assert not (site.folder / "client.sock").exists()
            assert (site.folder / "admin.sock").exists()
            waiting.setblocking(False)  # noqa: FBT003 - as above
            answer = await asyncio.get_running_loop().sock_recv(waiting, 100)
            assert answer.startswith(b"HTTP/1.1 200 ")
            waiting.close()
            await daemon.stop()
            assert place.stat().st_mode & 0o777 == 0o640
    assert f"systemd listens on {place}, but api.client_socket is {api.client_socket}" in caplog.text
    assert "api.client_mode: without effect" in caplog.text
    assert "api.admin_mode" not in caplog.text


WATCHDOG_S = 3600
"""So long that its own thread never looks: the tests do."""


@asynccontextmanager
async def watched(site: Site) -> AsyncIterator[tuple[Daemon, Watchdog, socket.socket]]:
    """A daemon whose watchdog was told of every part, and the socket on which it pings."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(site.folder / "notify"))
        systemd.setblocking(False)  # noqa: FBT003 - the standard library's signature
        site.environ |= {
            "NOTIFY_SOCKET": str(site.folder / "notify"),
            "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000),
            "WATCHDOG_PID": str(os.getpid()),
        }
        async with site.running() as daemon:
            watchdog = daemon._watchdog
            assert watchdog is not None
            await eventually(watchdog._answered.is_set)
            assert watchdog.look() == frozenset()
            assert "WATCHDOG=1" in received(systemd)
            yield daemon, watchdog, systemd


async def look(site: Site, watchdog: Watchdog) -> frozenset[str]:
    """Look again as the watchdog's thread would, a quarter of its time later."""
    await eventually(watchdog._answered.is_set)
    site.clock.advance(WATCHDOG_S * 1000 // 4)
    return watchdog.look()


async def idle(daemon: Daemon) -> None:
    """Let the writer answer what it was asked, and each account's loop turn."""
    assert daemon._watchdog is not None
    await eventually(daemon._watchdog._answered.is_set)
    await eventually(lambda: not daemon.store.facts().waiting_commands)


@on_loop
async def test_the_watchdog_is_told_while_all_get_on(site: Site) -> None:
    """Nothing to do is no stall: an idle daemon pings at least twice in the watchdog's time."""
    async with watched(site) as (daemon, watchdog, systemd):
        for _ in range(8):
            await idle(daemon)
            assert await look(site, watchdog) == frozenset()
        assert received(systemd).count("WATCHDOG=1") == 4


async def stall_writer(daemon: Daemon, held: threading.Event) -> None:
    """Let the writer's thread wait."""
    hangs = threading.Event()

    def hang(_connection: Connection) -> None:
        hangs.set()
        assert held.wait(60)

    daemon.store._writer.afterwards(hang)
    await asyncio.to_thread(hangs.wait, 60)


async def stall_flusher(daemon: Daemon, held: threading.Event) -> None:
    """Let the account's loop wait."""
    waits = asyncio.Event()

    async def wait() -> None:
        waits.set()
        while not held.is_set():  # noqa: ASYNC110 - set from elsewhere
            await asyncio.sleep(0)

    account = daemon.flusher._running["default"]
    account._close_retired = wait  # type: ignore[method-assign]
    account.wake()
    await waits.wait()


@pytest.mark.parametrize(
    ("part", "stall"), [("the writer", stall_writer), ("flushing of account default", stall_flusher)]
)
@on_loop
async def test_a_part_that_stalls_is_named_and_stops_the_ping(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    part: str,
    stall: Callable[[Daemon, threading.Event], Awaitable[None]],
) -> None:
    """After half of the watchdog's time the log names the part, alone, and no ping is sent until it gets on."""
    held = threading.Event()
    async with watched(site) as (daemon, watchdog, systemd):
        try:
            await stall(daemon, held)
            for _ in range(6):
                if stall is not stall_writer:
                    await idle(daemon)
                seen = await look(site, watchdog)
            assert seen == {part}
            received(systemd)
            assert await look(site, watchdog) == {part}
            assert "WATCHDOG=1" not in received(systemd)
            (said,) = [each for each in caplog.records if each.levelno == logging.CRITICAL]
            assert said.getMessage().startswith(f"{part} has not got on for 1800 s")
            assert ("in hang" in caplog.text) == (part == "the writer")
        finally:
            held.set()
        await idle(daemon)
        await look(site, watchdog)
        await idle(daemon)
        assert await look(site, watchdog) == frozenset()
        assert "WATCHDOG=1" in received(systemd)
        assert f"{part} gets on again" in caplog.text


@on_loop
async def test_an_event_loop_that_hangs_is_named(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """While the loop does not turn, the watchdog's thread says so, with the place where it hangs."""
    async with watched(site) as (_daemon, watchdog, systemd):
        # Nothing is awaited here: the loop is in this function.
        for _ in range(3):
            site.clock.advance(WATCHDOG_S * 1000 // 4)
            seen = watchdog.look()
        assert seen == {"the event loop"}
        received(systemd)
        assert watchdog.look() == seen
        assert "WATCHDOG=1" not in received(systemd)
        assert "the event loop has not got on" in caplog.text
        assert "test_an_event_loop_that_hangs_is_named" in caplog.text


@pytest.mark.parametrize("working", ["checkpoint", "reading"])
@on_loop
async def test_something_long_and_honest_is_no_stall(site: Site, working: str) -> None:
    """A writer that syncs a large log, or reads and writes for long, gets on, and so does who waits for it."""
    held, hangs = threading.Event(), threading.Event()

    def work(_connection: Connection) -> None:
        with Path("/dev/zero").open("rb", buffering=0) as zeros:
            hangs.set()
            while not held.is_set():
                if working == "reading":
                    zeros.read(4096)

    async with watched(site) as (daemon, watchdog, systemd):
        daemon.store._writer.afterwards(work)
        await asyncio.to_thread(hangs.wait, 60)
        if working == "checkpoint":
            daemon.store._writer._bringing_in_since_s = time.monotonic()
        try:
            daemon.flusher.wake({"default": 1})
            for _ in range(8):
                before = daemon.store.working()
                await changed(daemon.store.working, before)
                assert await look(site, watchdog) == frozenset()
            assert "WATCHDOG=1" in received(systemd)
        finally:
            daemon.store._writer._bringing_in_since_s = None
            held.set()


def received(systemd: socket.socket) -> list[str]:
    """Every datagram that came."""
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return found
