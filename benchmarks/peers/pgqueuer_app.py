"""PgQueuer with PostgreSQL: one job a receipt, sent with aiohttp, deleted when it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import aiohttp
import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, DatabaseRetryEntrypointExecutor, Job, PgQueuer, Queries, run

from benchmarks.peers import receipt
from benchmarks.peers.receipt import Put

AT_ONCE = 100
"""Requests on their way; jobs wait for one in the worker's memory, twice as many at most."""


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """Make what `pgq run` runs."""
    limits = aiohttp.TCPConnector(limit=AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=30)
    connection = await asyncpg.connect(receipt.store())
    async with aiohttp.ClientSession(connector=limits, timeout=timeout) as http:
        queue = PgQueuer(AsyncpgDriver(connection))

        @queue.entrypoint(
            "send",
            executor_factory=lambda parameters: DatabaseRetryEntrypointExecutor(
                parameters, max_attempts=1_000_000, max_delay=timedelta(minutes=5)
            ),
        )
        async def send(job: Job) -> None:
            assert job.payload is not None
            message_id = job.payload.decode()
            async with http.post(receipt.url([message_id])) as response:
                receipt.check(response.status, await response.read(), [message_id])

        try:
            yield queue
        finally:
            await connection.close()


@contextmanager
def putting() -> Iterator[Put]:
    """Open a connection to the database."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(receipt.store()))
        queries = Queries(AsyncpgDriver(connection))
        loop = runner.get_loop()

        def put(message_ids: Sequence[str]) -> None:
            count = len(message_ids)
            payloads: list[bytes | None] = [each.encode() for each in message_ids]
            loop.run_until_complete(queries.enqueue(["send"] * count, payloads, [0] * count))

        yield put
        runner.run(connection.close())


if __name__ == "__main__":
    # What `pgq run` does, whose own reading of the command line fails with the Typer of today.
    uvloop.run(run(worker, batch_size=AT_ONCE, max_concurrent_tasks=2 * AT_ONCE))
