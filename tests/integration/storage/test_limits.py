"""A full disk and an overload are honest, and nothing of a refused request is stored."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dlr_buffer.errors import NotFound, Overloaded, StorageFull
from dlr_buffer.messages import Registration, Report
from dlr_buffer.receipts import Registered, Reported
from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import MAX_WAITING_ROWS, Lane
from tests.integration.storage.harness import DELIVERED, ENROUTE, VALIDITY, opened, rows
from tests.loops import on_loop


@on_loop
async def test_below_min_free_singles_are_refused_and_counted_too(path: Path) -> None:
    """A registration alone raises, a report that would be one is told; both count, one of a known message does not."""
    async with opened(path) as queue:
        await queue.register("known")
    async with opened(path, queue.clock, min_free_bytes=2**62) as queue:
        now_ms = queue.clock.now_ms()
        told: list[object] = []
        with pytest.raises(StorageFull, match="min_free"):
            queue.store.register_one(
                Registration("new", "default"), told.append, default_validity_ms=VALIDITY, now_ms=now_ms
            )
        for message_id in ("new", "known"):
            queue.store.report_one(
                Report(message_id, DELIVERED, "default"),
                told.append,
                default_validity_ms=VALIDITY,
                register_in=frozenset({"default"}),
                now_ms=now_ms,
            )
        await queue.report(("known", DELIVERED))  # which is answered last
        refused, reported = told
        assert isinstance(refused, StorageFull)
        assert isinstance(reported, Reported)
        assert queue.heard.events["refused_full"] == 2


@on_loop
async def test_one_who_fails_at_being_told_keeps_nothing_from_others(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two singles in one commit the first's callback raises: that is logged, and the second is told all the same."""
    async with opened(path) as queue:
        told: list[object] = []

        def fail(_outcome: object) -> None:
            raise RuntimeError("what nobody foresaw")

        async with queue.hold_writer():
            for then, message_id in ((fail, "one"), (told.append, "two")):
                queue.store.register_one(
                    Registration(message_id, "default"),
                    then,
                    default_validity_ms=VALIDITY,
                    now_ms=queue.clock.now_ms(),
                )
        await queue.register("three")
        (outcome,) = told
        assert isinstance(outcome, Registered)
        for message_id in ("one", "two"):
            assert not await queue.gone(message_id)
        assert "could not be answered" in caplog.text


@on_loop
async def test_below_min_free_only_registration_stops(path: Path) -> None:
    """Registration, by a first report too, is refused with what to do; reports, deliveries and expiry go on."""
    async with opened(path) as queue:
        await queue.register("m", "late", "twice")
    async with opened(path, queue.clock, min_free_bytes=2**62) as queue:
        with pytest.raises(StorageFull, match=r"min_free.*free some space") as caught:
            await queue.register("new")
        assert caught.value.retry_after_s > 0
        new, known, again, intermediate, final = await queue.report(
            ("new", DELIVERED), ("m", DELIVERED), ("new", ENROUTE), ("twice", ENROUTE), ("twice", DELIVERED)
        )
        assert isinstance(new, StorageFull)
        assert "min_free" in str(new)
        assert isinstance(again, StorageFull)
        for outcome in (known, intermediate, final):
            assert isinstance(outcome, Reported)
        (unknown,) = await queue.report(("new", DELIVERED), may_register=False)
        assert isinstance(unknown, NotFound), "where it would not be registered anyway, space is not to blame"
        assert await queue.gone("new")
        assert queue.store.trouble is None
        assert await queue.acknowledge_all() == 2
        queue.clock.advance(VALIDITY)
        assert await queue.expire() == 1
    async with opened(path, queue.clock) as queue:
        await queue.report_one("new", DELIVERED)


@on_loop
async def test_too_much_waiting_is_refused(path: Path) -> None:
    """Behind more rows than are allowed to wait, apps get Overloaded at once; settling and admins do not."""
    async with opened(path) as queue:
        await queue.report_one("m", DELIVERED)
        await queue.claim()
        writer = queue.store._writer
        async with queue.hold_writer():
            writer._waiting_rows += MAX_WAITING_ROWS
            with pytest.raises(Overloaded, match="wait to be written"):
                await queue.register("a")
            with pytest.raises(Overloaded):
                await queue.report(("a", DELIVERED), ("b", DELIVERED))
        writer._waiting_rows -= 1
        await queue.settle(acknowledged=[1])
        await writer.submit(Lane.ADMIN, run=lambda _tx: None)
        writer._waiting_rows -= MAX_WAITING_ROWS - 1
        await queue.register("a")
        assert writer.waiting_rows == 0


@on_loop
async def test_a_full_database_stores_nothing_and_recovers(path: Path) -> None:
    """When SQLite finds no room, every command of the group gets StorageFull, and all goes on once there is some."""
    async with opened(path) as queue:
        connection = queue.store._writer._connection
        assert connection is not None
        async with queue.hold_writer():
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageFull, match="free some space"):
            await queue.register(*(f"m{n}" for n in range(5000)))
        assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
        assert queue.store.failure is None
        async with queue.hold_writer():
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert len(await queue.register(*(f"m{n}" for n in range(5000)))) == 5000


@on_loop
async def test_trouble_is_known_until_the_next_commit(path: Path) -> None:
    """While no commit succeeds `trouble` says why, even to those who submit nothing; one that does ends it."""
    async with opened(path) as queue:

        def trouble() -> str:
            return queue.store.trouble or "none"

        assert trouble() == "none"
        connection = queue.store._writer._connection
        assert connection is not None
        async with queue.hold_writer():
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                with pytest.raises(Overloaded, match="locked by another program"):
                    await queue.register("m")
                assert "locked by another program" in trouble()
            assert queue.store.failure is None
            other.execute("ROLLBACK")
        await queue.register("m")
        assert trouble() == "none"
        with pytest.raises(NotFound):
            await queue.store._writer.submit(Lane.ADMIN, run=refuse)
        assert trouble() == "none", "one command's own error is no trouble of the database's"


def refuse(_tx: Transaction) -> None:
    """Fail as a command may."""
    raise NotFound("nothing of that name")


@on_loop
async def test_facts_are_facts(path: Path) -> None:
    """What `status` says of the database is what the file system and the writer say."""
    async with opened(path) as queue:
        await queue.register("m")
        facts = queue.store.facts()
        assert facts.path == path
        sizes = [each.stat().st_size for each in (path, path.with_name("queue.db-wal"))]
        assert [facts.size_bytes, facts.wal_bytes] == sizes
        assert facts.wal_bytes > 0
        assert facts.free_bytes > 0
        assert (facts.commits, facts.waiting_rows, facts.waiting_commands) == (1, 0, 0)
        assert queue.store.deliveries == 1
