"""Singles of apps that were answered just now share the next commit; nobody is waited for in vain for long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import Lane
from tests.integration.storage.harness import Queue, opened
from tests.loops import on_loop

FOREVER_S = 1000.0


def patient(queue: Queue, seconds: float) -> None:
    """Let the writer wait so long for company; commits seem to take as long."""
    queue.store._writer.most_patience_s = seconds
    queue.store._writer._commit_s = seconds * 1000


async def first_group(queue: Queue, singles: int) -> None:
    """Commit so many singles together: the writer is held up until all are handed over."""
    goes_on = threading.Event()
    held = asyncio.create_task(queue.store._writer.submit(Lane.CLAIM, read=lambda _: goes_on.wait(60)))
    ends = [asyncio.create_task(queue.register(f"first{number}")) for number in range(singles)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = queue.store._writer.commits
    goes_on.set()
    await asyncio.gather(held, *ends)
    assert queue.store._writer.commits == before + 1


@on_loop
async def test_those_who_come_back_share_a_commit(path: Path) -> None:
    """After a group of six, the first single waits until five more are there, and all of them are one commit."""
    async with opened(path) as queue:
        await first_group(queue, 6)
        patient(queue, FOREVER_S)
        before = queue.store._writer.commits
        ends = [asyncio.create_task(queue.register("next"))]
        while not ends[0].done():
            ends.append(asyncio.create_task(queue.register(f"next{len(ends)}")))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert queue.store._writer.commits == before + 1
        assert sum(end.done() for end in ends) >= 6
        await queue.store.close()  # the rest would wait for company
        await asyncio.gather(*ends)


@on_loop
async def test_nobody_is_waited_for_who_is_there_already(path: Path) -> None:
    """After a group of six, six that come together are committed at once, however patient the writer is."""
    async with opened(path) as queue:
        await first_group(queue, 6)
        patient(queue, FOREVER_S)
        await asyncio.gather(*(queue.register(f"next{number}") for number in range(6)))


@on_loop
async def test_who_came_meanwhile_does_not_stand_for_those_who_were_answered(path: Path) -> None:
    """Of three that are committed and a fourth that comes meanwhile, all share the next commit."""
    async with opened(path) as queue:
        await first_group(queue, 2)
        patient(queue, FOREVER_S)
        writer = queue.store._writer
        writing, goes_on = threading.Event(), threading.Event()

        def hold(_tx: Transaction) -> None:
            writing.set()
            goes_on.wait(60)

        both = [asyncio.create_task(queue.register(f"again{number}")) for number in range(2)]
        held = asyncio.create_task(writer.submit(Lane.SINGLE, run=hold))
        await asyncio.to_thread(writing.wait, 60)
        fourth = asyncio.create_task(queue.register("fourth"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = writer.commits
        goes_on.set()
        await asyncio.gather(held, *both)
        assert writer._others == 1
        back = [asyncio.create_task(queue.register(f"back{number}")) for number in range(3)]
        await asyncio.gather(fourth, *back)
        assert writer.commits == before + 2


@on_loop
async def test_one_app_alone_waits_for_nobody(path: Path) -> None:
    """After a group of one, however patient the writer is, a single is committed at once."""
    async with opened(path) as queue:
        await first_group(queue, 1)
        patient(queue, FOREVER_S)
        for number in range(3):
            await queue.register(f"next{number}")


@on_loop
async def test_patience_ends(path: Path) -> None:
    """Apps that don't come back are not waited for, and after that not at all."""
    async with opened(path) as queue:
        await first_group(queue, 6)
        patient(queue, 0.001)
        await queue.register("next")
        patient(queue, FOREVER_S)
        await queue.register("another")


@on_loop
async def test_a_stop_is_not_kept_waiting(path: Path) -> None:
    """When the store is closed, a single that waits for company is committed and answered."""
    async with opened(path) as queue:
        await first_group(queue, 6)
        patient(queue, FOREVER_S)
        end = asyncio.create_task(queue.register("next"))
        await asyncio.sleep(0)
        await queue.store.close()
        assert len(await end) == 1
