"""huey with SQLite: one task a receipt, synced at each commit; its consumer deletes a task before it runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import urllib3
from huey import SqliteHuey

from benchmarks.peers import receipt
from benchmarks.peers.receipt import Put

WORKERS = 32
"""Threads of the consumer."""

# A busy queue makes a writer wait for seconds; a producer that gave up meanwhile would lose its receipt.
huey = SqliteHuey("receipts", filename=receipt.store(), fsync=True, timeout=60, results=False)

_http = urllib3.PoolManager(maxsize=WORKERS, timeout=30, retries=False)


@huey.task(retries=10, retry_delay=1, retry_backoff=2)  # type: ignore[untyped-decorator]
def send(message_id: str) -> None:
    """Send one receipt."""
    response = _http.request("POST", receipt.url([message_id]))
    receipt.check(response.status, response.data, [message_id])


@contextmanager
def putting() -> Iterator[Put]:
    """Give what an app calls; huey has no call for many."""

    def put(message_ids: Sequence[str]) -> None:
        for each in message_ids:
            send(each)

    yield put
