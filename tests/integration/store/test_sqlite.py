"""The whole suite on SQLite, with real files.

The sizes of chunks and pages are made small, so that a short life meets their borders. HYPOTHESIS_PROFILE=long
searches for minutes; without it the same lives are led every time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from dlr_buffer.storage.store import SqliteStore, StoreListeners
from tests.clocks import FakeClock
from tests.integration.storage.harness import Barrier, Heard, assert_counters, assert_linked, crash_copy
from tests.integration.store.database import Database, WholeStore
from tests.integration.store.machine import QueueCrowd, QueueLife

LONG: Final = os.environ.get("HYPOTHESIS_PROFILE") == "long"
COMMON: Final = settings(
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class SqliteDatabase:
    """A queue in files of its own; a crash leaves copies of them as they are on the disk."""

    def __init__(self, path: Path) -> None:
        """Begin with the empty queue at ``path``."""
        self._path = path
        self._store: SqliteStore | None = None
        self._heard = Heard()
        self._crashes = count(1)

    @property
    def _open_store(self) -> SqliteStore:
        assert self._store is not None
        return self._store

    @property
    def store(self) -> WholeStore:
        """The store that is open now."""
        return self._open_store

    async def open(self, clock: FakeClock, accounts: Sequence[str]) -> None:
        """Open the files as they are."""
        self._store = await SqliteStore.open(
            self._path,
            accounts=accounts,
            min_free_bytes=0,
            first_request_id=1,
            listeners=StoreListeners(
                self._heard.add_fresh, self._heard.add_events, self._heard.failures.append
            ),
            now_ms=clock.now_ms,
        )

    async def close(self) -> None:
        """Close the store."""
        store = self._open_store
        await store.close()
        assert not self._heard.failures

    async def crash(self) -> None:
        """Go on with a copy of the files as they are now."""
        copy = self._path.with_name(f"crash-{next(self._crashes)}-{self._path.name[-20:]}")
        crash_copy(self._path, copy)
        await self.close()
        self._path = copy

    def together(self) -> AbstractAsyncContextManager[None]:
        """The writer is kept busy meanwhile, so that what is submitted becomes one group."""
        return Barrier(self._open_store)

    def check(self) -> None:
        """Counters equal a recount, and every receipt is reached from its message."""
        assert_counters(self._path)
        assert_linked(self._path)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders everywhere."""
    for name, value in {
        "sweeping.EXPIRED_AT_ONCE": 2,
        "sweeping.EXAMINED_AT_ONCE": 3,
        "sweeping.PURGED_AT_ONCE": 2,
        "settling._LOOK_AHEAD": 1,
        "reading.WINDOW": 3,
        "reading.BRANCHES_AT_ONCE": 2,
    }.items():
        monkeypatch.setattr(f"dlr_buffer.storage.{name}", value)


@pytest.fixture
def make(migrated: Path, tmp_path: Path, small_chunks: None) -> Callable[[], Database]:
    """Makes empty queues."""
    numbers = count()

    def new() -> Database:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        # Only the newest is ever looked at again.
        shutil.rmtree(folder.with_name(str(int(folder.name) - 1)), ignore_errors=True)
        return SqliteDatabase(Path(shutil.copyfile(migrated, folder / "queue.db")))

    return new


@pytest.mark.timeout(7_200 if LONG else 600)  # minutes pass only when a failure is made small
def test_any_life_of_a_queue_is_what_the_contract_says(make: Callable[[], Database]) -> None:
    """After every step of any life the queue shows what the model says, and at its end nothing is left undone."""
    run_state_machine_as_test(
        lambda: QueueLife(make),  # type: ignore[arg-type]  # it only calls what it is given
        settings=settings(COMMON, max_examples=2_000 if LONG else 100, stateful_step_count=40),
    )


@pytest.mark.timeout(7_200 if LONG else 600)  # as above
def test_whatever_comes_at_once_is_as_if_in_some_order(make: Callable[[], Database]) -> None:
    """Several commands that share a group of the writer answer and leave what some order of them would."""
    run_state_machine_as_test(
        lambda: QueueCrowd(make),  # type: ignore[arg-type]  # it only calls what it is given
        settings=settings(COMMON, max_examples=2_000 if LONG else 80, stateful_step_count=40),
    )
