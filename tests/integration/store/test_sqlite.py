"""The whole suite on SQLite, with real files.

The sizes of chunks and pages are made small, so that a short life meets their borders. `make test-long`
searches for minutes; without it the same lives are led every time, and a few that were never led before: if one of
those fails, Hypothesis prints what to repeat it with (``@reproduce_failure``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from dlr_buffer.receipts import ReceiptAction
from tests.extent import LONG
from tests.integration.storage.harness import ACCEPTED, ENROUTE, Queue, crash_copy, opened
from tests.integration.store.database import Database
from tests.integration.store.machine import QueueCrowd, QueueLife
from tests.loops import on_loop

COMMON: Final = settings(
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(7_200 if LONG else 600)  # minutes pass only when a failure is made small
def test_any_life_of_a_queue_is_what_the_contract_says(make: Callable[[], Database]) -> None:
    """After every step of any life the queue shows what the model says, and at its end nothing is left undone."""
    run_state_machine_as_test(
        lambda: QueueLife(make),  # type: ignore[arg-type]  # it only calls what it is given
        settings=settings(COMMON, max_examples=2_000 if LONG else 50, stateful_step_count=40),
    )


@pytest.mark.timeout(7_200 if LONG else 600)  # as above
def test_whatever_comes_at_once_is_as_if_in_some_order(make: Callable[[], Database]) -> None:
    """Several commands that share a group of the writer answer and leave what some order of them would."""
    run_state_machine_as_test(
        lambda: QueueCrowd(make),  # type: ignore[arg-type]  # it only calls what it is given
        settings=settings(COMMON, max_examples=2_000 if LONG else 40, stateful_step_count=40),
    )


async def overtaken_on_the_wire(queue: Queue) -> int:
    """A receipt that was given back once, and is on the wire again when a newer one comes."""
    old = await queue.report_one("m", ENROUTE)
    assert await queue.claim() == [old]
    await queue.settle(returned=[old])
    assert await queue.claim() == [old]
    await queue.report_one("m", ACCEPTED)
    return old


@on_loop
async def test_what_was_overtaken_is_counted_and_forgotten(migrated: Path, tmp_path: Path) -> None:
    """An admin who acts on it after a kill has it superseded and counted; after a lost claim memory forgets it."""
    path, killed = tmp_path / "queue.db", tmp_path / "killed.db"
    shutil.copyfile(migrated, path)
    async with opened(path) as queue:
        old = await overtaken_on_the_wire(queue)
        crash_copy(path, killed)
        queue.store._writer.claims.release(1, [old])
        assert await queue.act(ReceiptAction.RETRY, old) == (1, 0, 0)
        assert not queue.store._writer.claims.unwritten_attempts(old)
    async with opened(killed) as queue:
        assert await queue.act(ReceiptAction.HOLD, old) == (1, 0, 0)
        assert queue.heard.events["superseded"] == 1


@pytest.mark.skipif(not LONG, reason="a part of `make test-long`")
@pytest.mark.timeout(7_200)
def test_a_few_lives_that_nobody_has_led_before(make: Callable[[], Database]) -> None:
    """Each run of the tests tries other lives than the last one: what the same ones never meet is met some day."""
    run_state_machine_as_test(
        lambda: QueueCrowd(make),  # type: ignore[arg-type]  # it only calls what it is given
        settings=settings(COMMON, derandomize=False, max_examples=200, stateful_step_count=40),
    )
