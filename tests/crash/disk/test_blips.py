"""A database that another program locks, or that has a moment of weakness: it is said, and ends by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import Lane
from tests.acceptance.harness import StandIn, eventually
from tests.crash.disk.small_disk import DiskSite, refusal
from tests.integration.flusher.bench import SECOND, flushing
from tests.integration.storage.harness import opened
from tests.loops import on_loop


@contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    """Another program that is about to write, for as long as this is entered."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield
        other.execute("ROLLBACK")


def test_a_lock_of_another_program_is_a_blip(site_anywhere: DiskSite) -> None:
    """503 with Retry-After, an alarm, a log line and a metric while it lasts; reading goes on, then all does."""
    site = site_anywhere
    with StandIn() as stand_in:
        site.configure(stand_in.url)
        daemon = site.start()
        with site.client() as app:
            app.register_many(["m1", "m2"])
            with locked(site.database, "EXCLUSIVE"):
                problem = refusal(app, "POST", "/v1/messages", {"message_id": "m3"})
                assert (problem.status, problem.code) == (503, "overloaded")
                assert problem.retry_after_s
                assert "locked by another program" in problem.detail
                problem = refusal(app, "GET", "/healthz", None)
                assert (problem.status, problem.retry_after_s) == (503, 5)
                assert "locked by another program" in site.alarms()
                assert site.metric("dlr_buffer_unhealthy") == 1
                assert site.metric("dlr_buffer_commit_failures_total") >= 1
                assert app.request("GET", "/v1/messages/m1")["state"] is None
            # Nobody writes now: the daemon finds out by itself.
            eventually(site.alarms, lambda alarms: not alarms)
            assert app.request("GET", "/healthz") == {"status": "ok"}
            app.report("m1", "delivered")
        site.wait_until_sent()
        assert site.lines("a commit failed, nothing of it is acknowledged") == 1
        assert site.lines("commits succeed again") == 1
        assert daemon.terminate() == 0


def test_a_start_against_a_lock_is_refused_clearly(site_anywhere: DiskSite) -> None:
    """While another program holds the database a start waits for it a little, then says who is to be stopped."""
    site = site_anywhere
    site.configure()
    site.start().terminate()
    with locked(site.database):
        done = site.command("run")
    assert done.returncode == 1
    assert "is locked by another program" in done.stderr
    assert "Traceback" not in done.stderr
    site.start()


def break_down(_tx: Transaction) -> None:
    """A command with a fault of its own."""
    raise RuntimeError("a fault in this command")


@on_loop
async def test_a_fault_that_lasts_is_logged_once_a_minute(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same fault of a command again and again is one traceback, until the minute is over."""
    async with opened(path) as queue:
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="nothing of it was stored"):
                await queue.store._writer.submit(Lane.SETTLE, run=break_down)
        assert caplog.text.count("a command failed and was rolled back") == 1
        assert caplog.text.count("Traceback") == 1
        queue.store.look_after(say_again=True)
        await queue.claim()
        with pytest.raises(StoreUnavailable):
            await queue.store._writer.submit(Lane.SETTLE, run=break_down)
        assert caplog.text.count("a command failed and was rolled back") == 2


@on_loop
async def test_after_a_failure_nothing_is_read_or_checkpointed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the writer gave up, what was submitted before is refused too, and SQLite is not called any more."""
    monkeypatch.setattr("dlr_buffer.storage.writer.CHECKPOINT_BYTES", 0)
    async with opened(path) as queue:
        await queue.register("m1", "m2")
        writer = queue.store._writer
        done: list[str] = []
        assert writer._connection is not None
        raw: Any = writer._connection.connection.dbapi_connection
        async with queue.hold_writer():
            writer.afterwards(lambda _connection: raw.set_trace_callback(done.append))
            writer.broken(StoreUnavailable("a sync failed", fatal=True))
            claim = asyncio.create_task(writer.submit(Lane.CLAIM, read=lambda _connection: "read"))
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="a sync failed"):
            await claim
        with pytest.raises(StoreUnavailable, match="a sync failed"):
            await queue.register("m3")
        assert [failure.fatal for failure in queue.heard.failures] == [True]
    assert done == []


@on_loop
async def test_answers_that_cannot_be_written_are_a_problem_of_the_account(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While settling fails again and again the account says so, for healthz and status; not longer."""
    async with flushing(path) as bench:
        real, weak = bench.queue.store.settle, True

        async def settle(account: str, **settlement: Any) -> Any:  # noqa: ANN401 - as the real one
            if weak:
                raise StoreUnavailable("a fault that lasts")
            return await real(account, **settlement)

        monkeypatch.setattr(bench.queue.store, "settle", settle)
        await bench.fill(10)
        await bench.pass_time(20 * SECOND)
        told = bench.flusher.unwritten
        assert told is not None
        assert "1 answers of Smartswitch can't be written" in told
        assert "a fault that lasts" in told
        weak = False
        await bench.drained(within_ms=2 * SECOND)
        assert bench.flusher.unwritten is None
        assert bench.upstream.sizes == [10]


@on_loop
async def test_a_database_that_is_broken_for_good_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fatal failure an exchange ends without trying again: the daemon is on its way out."""
    async with flushing(path) as bench:
        tried: list[str] = []

        async def settle(account: str, **_settlement: object) -> None:
            tried.append(account)
            raise StoreUnavailable("a sync failed", fatal=True)

        monkeypatch.setattr(bench.queue.store, "settle", settle)
        await bench.fill(10)
        await bench.pass_time(20 * SECOND)
        assert len(tried) == 1
