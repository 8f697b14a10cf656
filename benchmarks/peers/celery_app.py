"""Celery with Redis: one task a receipt, acknowledged when it was sent; and the same with celery-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import urllib3
from celery import Celery, Task
from celery_batches import Batches, SimpleRequest

from benchmarks.peers import receipt
from benchmarks.peers.receipt import Put

WORKERS = 16
"""Threads of the worker: with Redis, more of them or greenlets only make it slower."""
BATCH = 100

app = Celery("receipts", broker=receipt.store())
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
)

_http = urllib3.PoolManager(maxsize=WORKERS, timeout=30, retries=False)


@app.task(  # type: ignore[untyped-decorator]
    autoretry_for=(receipt.NotAcknowledged, urllib3.exceptions.HTTPError),
    max_retries=None,
    retry_backoff=True,
    retry_jitter=True,
)
def send(message_id: str) -> None:
    """Send one receipt."""
    response = _http.request("POST", receipt.url([message_id]))
    receipt.check(response.status, response.data, [message_id])


@app.task(base=Batches, flush_every=BATCH, flush_interval=1)  # type: ignore[untyped-decorator]
def send_many(requests: list[SimpleRequest]) -> None:
    """Send up to a batch of receipts in one request."""
    message_ids = [each.args[0] for each in requests]
    try:
        response = _http.request("POST", receipt.url(message_ids))
        receipt.check(response.status, response.data, message_ids)
    except (receipt.NotAcknowledged, urllib3.exceptions.HTTPError):
        # A batch is acknowledged to the broker however it ended: what failed has to be put in anew.
        for each in message_ids:
            send_many.apply_async((each,), countdown=5)


@contextmanager
def putting(task: Task = send) -> Iterator[Put]:
    """Give what an app calls; Celery has no call for many."""

    def put(message_ids: Sequence[str]) -> None:
        for each in message_ids:
            task.delay(each)

    yield put


def putting_for_batches() -> AbstractContextManager[Put]:
    """Give what an app calls whose receipts are sent in batches."""
    return putting(send_many)
