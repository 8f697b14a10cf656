"""What the model needs of a database: all that the layers above ask of a store, and the ways to open and kill it.

A database that fulfils `Database` is put to the whole suite of this folder unchanged. What is special to one
(files, groups of commits, a check of its own tables) lives in its `test_*.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from dlr_buffer.expiry import ExpiryStore
from dlr_buffer.flusher.ports import Outbox
from dlr_buffer.receipt_queue.store import Store
from dlr_buffer.retention import RetentionStore
from tests.clocks import FakeClock

T = TypeVar("T")


class WholeStore(Store, Outbox, ExpiryStore, RetentionStore, Protocol):
    """Everything that is asked of a store by the layers above it."""

    def paused(self, account: str) -> bool:
        """Whether an admin paused this account."""
        ...

    async def add_accounts(self, names: Sequence[str]) -> None:
        """Make accounts known."""
        ...


class Database(Protocol):
    """One queue that can be opened, closed and killed, again and again."""

    @property
    def store(self) -> WholeStore:
        """The store that is open now."""
        ...

    async def open(self, clock: FakeClock, accounts: Sequence[str]) -> None:
        """Open the queue, which is empty the first time; all times of the store come from ``clock``."""
        ...

    async def close(self) -> None:
        """Stop as the daemon does when it is told to."""
        ...

    async def crash(self) -> None:
        """Stop as if killed at this moment: what is not durable now is lost, and so is every claim."""
        ...

    async def crash_amid(self, work: Awaitable[T], commits: int) -> T:
        """Do some work and stop as if killed right after so many of its commits, before anyone heard of the last one.

        Returns what the work would have come to, had nothing happened.
        """
        ...

    async def lose_claims(self, account: str, request_ids: Sequence[int]) -> None:
        """Let these claims be lost, as if their lease had run out; whoever has them does not hear of it."""
        ...

    def together(self) -> AbstractAsyncContextManager[None]:
        """What is submitted within meets at the database at one moment, when this is left."""
        ...

    def check(self) -> None:
        """Look for what no protocol shows (counters, links between rows) once `close` or `crash` has ended."""
        ...
