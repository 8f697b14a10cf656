"""Group commit: commands share a transaction, and one bad command never fails its neighbours."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, OperationalError

from dlr_buffer.errors import Conflict, NotFound, StoreUnavailable
from dlr_buffer.receipts import Cut, Registered, Reported
from dlr_buffer.storage.connection import make_engine
from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import Lane
from tests.integration.storage.harness import DELIVERED, ENROUTE, Queue, assert_counters, opened, rows
from tests.loops import on_loop


def violate_check(tx: Transaction) -> None:
    """Do something good, then something that a CHECK refuses."""
    tx.take_request_id()
    tx.take_message()
    tx.move_message(1, None, 2)
    tx.events["bad"] += 1
    tx.effects.append(lambda: tx.claims.take(1, 1))
    tx.connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('ghost', 0)"))
    tx.connection.execute(text("UPDATE queue_state SET next_request_id = -1"))


def violate_counter(tx: Transaction) -> None:
    """Bring a counter below zero, which its CHECK refuses when the transaction finishes."""
    tx.connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('ghost', 0)"))
    tx.move_receipts(1, 6, None)


def break_down(tx: Transaction) -> None:
    """Fail in Python after having written."""
    tx.take_request_id()
    tx.connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('ghost', 0)"))
    raise RuntimeError("a fault of ours")


def refuse(tx: Transaction) -> None:
    """Raise an error of the contract after having written."""
    tx.connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('ghost', 0)"))
    raise NotFound("nothing of that name")


@pytest.mark.parametrize(
    ("bad", "raised"),
    [
        (violate_check, StoreUnavailable),
        (violate_counter, StoreUnavailable),
        (break_down, StoreUnavailable),
        (refuse, NotFound),
    ],
)
@on_loop
async def test_a_bad_command_fails_alone(
    path: Path, bad: Callable[[Transaction], None], raised: type[Exception]
) -> None:
    """In a group with good ones, the bad command fails alone, leaves nothing, and memory is right afterwards."""
    async with opened(path) as queue:
        writer = queue.store._writer
        before = writer.commits
        async with queue.hold_writer():
            tasks = [
                asyncio.create_task(queue.register("one")),
                asyncio.create_task(queue.report(("two", ENROUTE))),
                asyncio.create_task(writer.submit(Lane.SETTLE, run=bad)),
                asyncio.create_task(queue.report(("three", DELIVERED))),
                asyncio.create_task(queue.register("four", "five")),
                asyncio.create_task(queue.expire()),
            ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[2], raised)
        assert isinstance(results[0][0], Registered)  # type: ignore[index]
        assert isinstance(results[1][0], Reported)  # type: ignore[index]
        assert isinstance(results[3][0], Reported)  # type: ignore[index]
        assert len(results[4]) == 2  # type: ignore[arg-type]
        assert writer.commits == before + 1 + 4, (
            "the barrier, and each good command in a transaction of its own"
        )
        assert not rows(path, "SELECT 1 FROM accounts WHERE name = 'ghost'")
        assert queue.heard.events["bad"] == 0
        assert 1 not in writer.claims
        numbers = rows(path, "SELECT next_request_id, next_message FROM queue_state")
        assert numbers == [(3, 6)] == [(writer.numbers.next_request_id, writer.numbers.next_message)]
        assert queue.heard.events["registered"] == 5
        assert queue.heard.fresh == {"default": 2}
        assert await queue.claim() == [1, 2]
        assert writer.waiting_rows == writer.waiting_commands == 0


@on_loop
async def test_a_bad_command_alone_leaves_nothing(path: Path) -> None:
    """A bad command without neighbours is rolled back too, and the next command finds a sound writer."""
    async with opened(path) as queue:
        for bad in (violate_check, break_down):
            with pytest.raises(StoreUnavailable, match="nothing of it was stored"):
                await queue.store._writer.submit(Lane.ADMIN, run=bad)
        await queue.register("one")
        assert rows(path, "SELECT name FROM accounts") == [("default",)]
        assert rows(path, "SELECT next_message FROM queue_state") == [(2,)]


@on_loop
async def test_many_callers_share_one_commit(path: Path) -> None:
    """What waits while the writer is busy is committed as one group, whoever sent it."""
    async with opened(path) as queue:
        async with queue.hold_writer():
            tasks = [asyncio.create_task(queue.register(f"m{n}")) for n in range(50)]
            tasks += [asyncio.create_task(queue.register(f"m{n}")) for n in range(50)]
            before = queue.store._writer.commits
        outcomes = [each for (each,) in await asyncio.gather(*tasks)]
        assert queue.store._writer.commits == before + 2, "the barrier's own and one for all of them"
        assert sum(isinstance(each, Registered) and each.new for each in outcomes) == 50


@on_loop
async def test_an_item_of_a_group_is_judged_as_if_alone(path: Path) -> None:
    """A conflict in one request is that request's answer only; its neighbours in the group go on."""
    async with opened(path) as queue:
        async with queue.hold_writer():
            first = asyncio.create_task(queue.register("one", validity=60))
            second = asyncio.create_task(queue.register("one", validity=61))
            third = asyncio.create_task(queue.register("two"))
        assert isinstance((await first)[0], Registered)
        assert isinstance((await second)[0], Conflict)
        assert isinstance((await third)[0], Registered)


@on_loop
async def test_bulk_and_sweeps_let_singles_pass(path: Path) -> None:
    """A single request that waits beside many bulk chunks is in the first group, most bulk in later ones."""
    order: list[str] = []
    async with opened(path) as queue:

        async def done(name: str, *message_ids: str) -> None:
            await queue.register(*message_ids)
            order.append(name)

        async with queue.hold_writer():
            chunks = [[f"b{chunk}-{n}" for n in range(1000)] for chunk in range(5)]
            tasks = [asyncio.create_task(done(f"bulk{n}", *ids)) for n, ids in enumerate(chunks)]
            tasks.append(asyncio.create_task(done("single", "s")))
        await asyncio.gather(*tasks)
        assert order[0] == "single"
        assert order[1:] == [f"bulk{n}" for n in range(5)]


@on_loop
async def test_a_read_that_fails_does_not_end_the_writer(path: Path) -> None:
    """A claim whose cutting raises fails alone: the writer lives and nothing stays in flight."""

    def cut(_waiting: object) -> Cut:
        raise ValueError("a fault of the flusher's")

    async with opened(path) as queue:
        await queue.report_one("one", DELIVERED)
        with pytest.raises(StoreUnavailable):
            await queue.store.claim("default", limit=10, excluding=(), cut=cut)
        assert queue.store.failure is None
        assert await queue.claim() == [1]


@on_loop
async def test_whoever_waits_hears_of_the_end_of_the_writer(path: Path) -> None:
    """If the writer's thread breaks down, those who wait get StoreUnavailable instead of waiting for ever."""
    queue: Queue
    async with opened(path) as queue:
        writer = queue.store._writer
        async with queue.hold_writer():
            # The fault: telling the outcome of a group breaks.
            writer._checkpoint = None  # type: ignore[assignment,method-assign]
            first = asyncio.create_task(queue.register("one"))
            bulk = [asyncio.create_task(queue.register(*(f"{n}-{m}" for m in range(1500)))) for n in range(3)]
        await asyncio.gather(first, *bulk, return_exceptions=True)
        with pytest.raises(StoreUnavailable) as caught:
            await queue.register("two")
        assert caught.value.fatal
        assert queue.heard.failures == [caught.value]
        assert queue.store.failure is caught.value


def test_transactions_really_begin_and_roll_back(path: Path) -> None:
    """BEGIN IMMEDIATE takes the write lock at once, and ROLLBACK undoes rows written before and after a savepoint."""
    engine = make_engine(path, cache_kib=1024, read_only=False)
    with engine.connect() as connection, closing(sqlite3.connect(path, timeout=0)) as other:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('before', 0)"))
        connection.exec_driver_sql("SAVEPOINT inner")
        connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('inside', 0)"))
        connection.exec_driver_sql("RELEASE inner")
        connection.exec_driver_sql("ROLLBACK")
        assert other.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


def test_nothing_begins_by_itself(path: Path) -> None:
    """The driver is set to manual transactions: a write outside BEGIN is committed at once, none is left open."""
    with make_engine(path, cache_kib=1024, read_only=False).connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('x', 0)"))
        assert not getattr(raw, "in_transaction")  # noqa: B009 - sqlite3's, which SQLAlchemy's protocol lacks
        assert rows(path, "SELECT name FROM accounts") == [("x",)]


def test_the_trap_is_real(path: Path) -> None:
    """With SQLAlchemy's default a released savepoint outlives the rollback; with our engine it does not."""
    for engine, survivors in (
        (create_engine(f"sqlite:///{path}"), 1),
        (make_engine(path, cache_kib=1024, read_only=False), 0),
    ):
        with engine.connect() as connection:
            if survivors == 0:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("SAVEPOINT one")
            connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('escaped', 0)"))
            connection.exec_driver_sql("RELEASE one")
            if survivors == 0:
                connection.exec_driver_sql("ROLLBACK")
            else:
                connection.rollback()
        engine.dispose()
        assert len(rows(path, "SELECT 1 FROM accounts")) == survivors
        with closing(sqlite3.connect(path)) as database:
            database.execute("DELETE FROM accounts")
            database.commit()


def test_readers_cannot_write(path: Path) -> None:
    """A reader's connection refuses to change anything."""
    with make_engine(path, cache_kib=1024, read_only=True).connect() as connection:
        with pytest.raises(OperationalError, match="readonly"):
            connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('x', 0)"))
        assert connection.execute(text("SELECT count(*) FROM accounts")).scalar() == 0


def test_a_check_is_a_constraint_error(path: Path) -> None:
    """What one command did wrong is told apart from a failing database by SQLite's own code."""
    with make_engine(path, cache_kib=1024, read_only=False).connect() as connection:
        with pytest.raises(IntegrityError) as caught:
            connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('x', 7)"))
        assert getattr(caught.value.orig, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_CHECK"
    assert_counters(path)


@on_loop
async def test_memory_that_fails_to_follow_a_commit_ends_the_store(path: Path) -> None:
    """If memory can't be brought up to a commit, nothing is run twice: the store gives up, for a fresh start."""

    def stumble() -> None:
        raise RuntimeError("a fault of ours")

    def good_then_stumble(tx: Transaction) -> None:
        tx.connection.execute(text("INSERT INTO accounts (name, paused) VALUES ('once', 0)"))
        tx.effects.append(stumble)

    async with opened(path) as queue:
        writer = queue.store._writer
        async with queue.hold_writer():
            stumbling = asyncio.create_task(writer.submit(Lane.SETTLE, run=good_then_stumble))
            neighbour = asyncio.create_task(queue.register("one"))
        outcomes = await asyncio.gather(stumbling, neighbour, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert rows(path, "SELECT count(*) FROM accounts WHERE name = 'once'") == [(1,)]
        assert queue.store.failure is not None
        with pytest.raises(StoreUnavailable):
            await queue.register("two")


@on_loop
async def test_closing_twice_is_harmless(path: Path) -> None:
    """A second close finds nothing to do."""
    async with opened(path) as queue:
        await queue.store.close()
        await queue.store.close()
