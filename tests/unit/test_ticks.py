"""The ticks of the daemon: what becomes of one that is under way when the daemon stops."""

from __future__ import annotations

import asyncio

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from dlr_buffer.daemon.ticking import Tick
from tests.clocks import FakeClock
from tests.loops import on_loop


def test_a_tick_under_way_at_the_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A stop in the middle of a tick ends it without an error and a traceback in the log."""

    @on_loop
    async def stop_in_the_middle() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        scheduler = AsyncIOScheduler(timezone="UTC")
        scheduler.add_job(Tick("work", work, FakeClock()).run)
        scheduler.start()
        await begun.wait()
        scheduler.shutdown(wait=False)
        await ended.wait()
        await asyncio.sleep(0)

    stop_in_the_middle()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
