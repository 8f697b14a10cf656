"""`Database` on SQLite, with real files."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from sqlalchemy import Connection

from dlr_buffer.storage import settling
from dlr_buffer.storage.store import SqliteStore, StoreListeners
from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import Lane
from tests.clocks import FakeClock
from tests.integration.storage.harness import Barrier, Heard, assert_counters, assert_linked, crash_copy
from tests.integration.store.database import WholeStore

T = TypeVar("T")


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

    async def crash_amid(self, work: Awaitable[T], commits: int) -> T:
        """The files are copied on the writer's thread, between a commit and whatever follows from it."""
        copy = self._path.with_name(f"crash-{next(self._crashes)}-{self._path.name[-20:]}")
        writer = self._open_store._writer
        follow, left = writer._follow, commits

        def copy_and_follow(tx: Transaction) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                crash_copy(self._path, copy)
            follow(tx)

        if not commits:
            crash_copy(self._path, copy)
        with patch.object(writer, "_follow", copy_and_follow):
            came_to = await work
        if left > 0:
            crash_copy(self._path, copy)
        await self.close()
        self._path = copy
        return came_to

    async def lose_claims(self, account: str, request_ids: Sequence[int]) -> None:
        """As where whoever claimed them was cancelled: claims in memory are lost in no other way."""
        writer, account_id = self._open_store._writer, self._open_store._ids[account]

        def lose(_connection: Connection) -> None:
            settling.give_back(writer.claims, account_id, request_ids, sent=False)

        await writer.submit(Lane.CLAIM, read=lose)

    def together(self) -> AbstractAsyncContextManager[None]:
        """The writer is kept busy meanwhile, so that what is submitted becomes one group."""
        return Barrier(self._open_store)

    def check(self) -> None:
        """Counters equal a recount, and every receipt is reached from its message."""
        assert_counters(self._path)
        assert_linked(self._path)
