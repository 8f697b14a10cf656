"""Who reads beside whom: look-ups never wait for lists, and nothing that is read holds up the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.receipts import ReceiptAction
from dlr_buffer.selection import MessageFilter
from dlr_buffer.storage.store import READERS
from tests.integration.storage.harness import DELIVERED, Queue, opened
from tests.loops import on_loop

LONG = """
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 100000000)
    SELECT count(*) FROM queue_state, number
"""
"""A query of many seconds that keeps a snapshot of the log."""


async def occupied(queue: Queue, read: Callable[[Connection], None]) -> list[asyncio.Task[None]]:
    """Have every thread that reads lists begin with this."""
    begun = threading.Barrier(READERS + 1)

    def run(connection: Connection) -> None:
        begun.wait(60)
        read(connection)

    reading = [asyncio.create_task(queue.store._read(run)) for _ in range(READERS)]
    await asyncio.to_thread(begun.wait, 60)
    return reading


@on_loop
async def test_look_ups_do_not_wait_for_lists(path: Path) -> None:
    """While every list reader is busy, look-ups, `status` and expiry answer, and another list waits its turn."""
    go_on = threading.Event()
    async with opened(path) as queue:
        await queue.register("m", "n")
        request_id = await queue.report_one("m", DELIVERED)
        reading = await occupied(queue, lambda _connection: assert_told(go_on))
        page = asyncio.create_task(queue.store.list_messages(MessageFilter(), after=0, limit=5))
        try:
            async with asyncio.timeout(30):
                assert (await queue.message("m")).state is DELIVERED
                assert (await queue.receipt(request_id)).message_id == "m"
                assert (await queue.store.oldest()).pending_ms == {"default": queue.clock.now_ms()}
                assert (await queue.store.clock_mark()).stopped_since_ms is None
                await queue.act(ReceiptAction.DELETE, request_id)
                assert (await queue.store.purge_bereft(before_ms=queue.clock.now_ms() + 1)).messages == 1
                queue.clock.advance(10**9)
                assert await queue.expire() == 1
            assert not page.done()
        finally:
            go_on.set()
        await asyncio.gather(*reading)
        assert len((await page).items) == 1


def assert_told(event: threading.Event) -> None:
    """Wait for a word of the test."""
    assert event.wait(60)


@on_loop
async def test_closing_breaks_off_what_is_read(path: Path) -> None:
    """Long lists and those that wait behind them are refused at the end, before the last checkpoint."""
    writes_still: list[bool] = []

    def long(connection: Connection) -> None:
        try:
            connection.exec_driver_sql(LONG).all()
        finally:
            writes_still.append(queue.store._writer._thread.is_alive())

    async with opened(path) as queue:
        await queue.register("m")
        reading = await occupied(queue, long)
        waits = asyncio.create_task(queue.store.list_messages(MessageFilter(), after=0, limit=5))
        await asyncio.sleep(0)
    for ended in await asyncio.gather(*reading, waits, return_exceptions=True):
        assert isinstance(ended, StoreUnavailable), ended
        assert not ended.fatal
    assert writes_still == [True] * READERS
    assert queue.heard.failures == []
    with pytest.raises(StoreUnavailable, match="stopping"):
        await queue.message("m")
    async with opened(path, queue.clock) as again:
        assert (await again.message("m")).state is None


@on_loop
async def test_a_list_between_two_queries_is_broken_off_too(path: Path) -> None:
    """A list that has no query under way when the end begins is broken off at its next one."""
    go_on = threading.Event()

    def pause(connection: Connection) -> None:
        assert_told(go_on)
        connection.exec_driver_sql(LONG).all()

    async with opened(path) as queue:
        reading = await occupied(queue, pause)
        closing = asyncio.create_task(queue.store.close())
        for _ in range(5):
            # As far as the first interrupt, which meets no query.
            await asyncio.sleep(0)
        go_on.set()
        for ended in await asyncio.gather(*reading, return_exceptions=True):
            assert isinstance(ended, StoreUnavailable), ended
        await closing
