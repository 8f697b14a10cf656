"""The writer: one thread, one writing connection, group commit.

Callers submit commands and await them. The thread takes all that wait, runs them as one ``BEGIN IMMEDIATE …
COMMIT``, and resolves each after the commit: many requests share one sync. A command that fails must not fail
its neighbours, so if a group fails it is rolled back whole and each command is run again in a transaction of
its own. (No savepoints: pysqlite's can escape a rollback.) It alone checkpoints, between groups, so the log
stays bounded and SQLite's WAL-reset bug can't strike.

Order within a group: registrations and reports one by one, then what the flusher settles, admins' actions, a
limited amount of bulk work, and at the most one chunk of a sweep; so bulk and sweeps hardly delay single
requests. Claims are read between transactions. What the commands do is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.connection import BUSY_TIMEOUT_MS, translate
from dlr_buffer.storage.transaction import QueueNumbers, Transaction

CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
MAX_WAITING_ROWS: Final = 200_000
BULK_ROWS_AT_ONCE: Final = 2_000

_log = logging.getLogger(__name__)


class Lane(IntEnum):
    """What a command waits behind."""

    SINGLE = 0
    SETTLE = 1
    ADMIN = 2
    BULK = 3
    SWEEP = 4
    CLAIM = 5


Many = Callable[[Transaction, list[Any]], list[Any]]


@dataclass(slots=True, eq=False)
class Command:
    """Something to do on the writer's thread; exactly one of ``run``, ``many`` and ``read`` is given.

    ``many`` takes the items of all commands of its kind in a group at once and returns as many outcomes.
    """

    lane: Lane
    future: asyncio.Future[Any]
    weight: int = 1
    run: Callable[[Transaction], Any] | None = None
    many: Many | None = None
    items: list[Any] = field(default_factory=list)
    read: Callable[[Connection], Any] | None = None


@dataclass(slots=True)
class Committed:
    """What one group brought about, told to the event loop after its commit."""

    fresh: Counter[int]
    events: Counter[str]


Outcome = tuple[Command, Any, DlrBufferError | None]


class Writer:
    """Owns the writing connection; `submit` from the event loop's thread only."""

    def __init__(
        self,
        engine: Engine,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        on_commit: Callable[[Committed], None],
        on_failure: Callable[[StoreUnavailable], None],
    ) -> None:
        """Prepare; nothing runs before `start`. The callbacks are called on ``loop``."""
        self._engine = engine
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._loop = loop
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lanes: dict[Lane, deque[Command]] = {lane: deque() for lane in Lane}
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._connection: Connection | None = None
        self._stopping = False
        self._closed = False
        self._failure: StoreUnavailable | None = None
        self._waiting_rows = 0
        self.claims = Claims()
        self.numbers = QueueNumbers(1, 1, 0, 0)
        self.message_counts: dict[tuple[int, int], int] = {}
        self.receipt_counts: dict[tuple[int, int], int] = {}
        self.trouble: str | None = None
        self.commits = 0
        self.deliveries = 0
        self.waiting_commands = 0
        self.checkpoints = 0
        self._checkpoint_trouble: str | None = None

    def start(self, connection: Connection) -> None:
        """Take over ``connection`` (already opened and checked) and begin to work."""
        self._connection = connection
        self._thread.start()

    @property
    def failure(self) -> StoreUnavailable | None:
        """Why the writer gave up, if it did."""
        return self._failure

    @property
    def waiting_rows(self) -> int:
        """Rows in commands that are not committed yet."""
        return self._waiting_rows

    def add_account(self, account_id: int) -> None:
        """Make room for an account's counters (before anything of it is written)."""
        for code in schema.STATE_NAMES:
            self.message_counts.setdefault((account_id, code), 0)
        for code in schema.STATUSES:
            self.receipt_counts.setdefault((account_id, code), 0)

    async def submit(  # noqa: PLR0913 - the parts of a command, by name
        self,
        lane: Lane,
        *,
        weight: int = 1,
        run: Callable[[Transaction], Any] | None = None,
        many: Many | None = None,
        items: Sequence[Any] = (),
        read: Callable[[Connection], Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the command returns
        """Have a command done and return what it returned, after its commit; raises what it raised.

        Raises Overloaded if an app's command would wait behind too much, StoreUnavailable once the writer
        gave up.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreUnavailable("the daemon is stopping; try again when it runs again")
        if lane in (Lane.SINGLE, Lane.BULK) and self._waiting_rows > MAX_WAITING_ROWS:
            raise Overloaded(f"{self._waiting_rows} rows wait to be written already; try again in a moment")
        # Whoever gives up waiting (a client that went away) does not undo what is under way.
        return await asyncio.shield(self._enqueue(lane, weight, run, many, items, read))

    def afterwards(self, read: Callable[[Connection], Any]) -> None:
        """Have something done to the claims, for nobody who waits; nothing once the writer has ended."""
        if self._failure is None and not self._closed:
            self._enqueue(Lane.CLAIM, 0, None, None, (), read)

    def _enqueue(  # noqa: PLR0913 - the parts of a command
        self,
        lane: Lane,
        weight: int,
        run: Callable[[Transaction], Any] | None,
        many: Many | None,
        items: Sequence[Any],
        read: Callable[[Connection], Any] | None,
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting_rows += weight
        self.waiting_commands += 1
        self._inbox.put(Command(lane, future, weight, run, many, list(items), read))
        return future

    async def stop(self) -> None:
        """Finish what was submitted, checkpoint, and close the connection."""
        self._closed = True
        if self._thread.is_alive():
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    # Everything below runs on the writer's thread.

    def _work(self) -> None:
        connection = self._connection
        if connection is None:
            raise AssertionError
        try:
            while self._take():
                group = self._compose()
                if group:
                    self._commit_group(connection, group)
                for command in self._drain(Lane.CLAIM):
                    self._read(connection, command)
                self._checkpoint(connection)
            if self._failure is None:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        except Exception as error:  # noqa: BLE001 - the thread must never end without saying so
            self._give_up(StoreUnavailable(f"the writer failed: {type(error).__name__}", fatal=True))
            _log.exception("the writer failed")
            self._refuse_all()
        finally:
            with contextlib.suppress(DBAPIError):
                connection.close()

    def _refuse_all(self) -> None:
        """Answer those who wait, and whoever still comes until `stop`, with the failure."""
        while self._take():
            self._resolve(
                [(command, None, self._failure) for lane in Lane for command in self._drain(lane)], None
            )

    def _take(self) -> bool:
        """Wait for work and sort it into lanes; False when all is done and the writer is to stop."""
        waits = any(self._lanes.values())
        while True:
            try:
                command = self._inbox.get(block=not waits and not self._stopping)
            except queue.Empty:
                return waits
            if command is None:
                self._stopping = True
            else:
                self._lanes[command.lane].append(command)
                waits = True

    def _drain(self, lane: Lane) -> list[Command]:
        commands = list(self._lanes[lane])
        self._lanes[lane].clear()
        return commands

    def _compose(self) -> list[Command]:
        group = [*self._drain(Lane.SINGLE), *self._drain(Lane.SETTLE)]
        if admin := self._lanes[Lane.ADMIN]:
            group.append(admin.popleft())
        rows = 0
        bulk = self._lanes[Lane.BULK]
        while bulk and rows < BULK_ROWS_AT_ONCE:
            rows += bulk[0].weight
            group.append(bulk.popleft())
        sweep = self._lanes[Lane.SWEEP]
        if sweep:
            group.append(sweep.popleft())
        return group

    def _commit_group(self, connection: Connection, group: list[Command]) -> None:
        if self._failure is not None:
            self._resolve([(command, None, self._failure) for command in group], None)
            return
        try:
            results, tx = self._transact(connection, group)
        except DlrBufferError as error:
            fatal = isinstance(error, StoreUnavailable) and error.fatal
            if isinstance(error, (StoreUnavailable, StorageFull, Overloaded)):
                self.trouble = str(error)
            if fatal:
                self._give_up(error)
            if len(group) > 1 and not fatal and not isinstance(error, (StorageFull, Overloaded)):
                self._commit_each(connection, group)
            else:
                self._resolve([(command, None, error) for command in group], None)
        except Exception as error:  # noqa: BLE001 - whatever one command does, its neighbours go on
            if len(group) > 1:
                self._commit_each(connection, group)
            else:
                _log.exception("a command failed and was rolled back")
                refused = StoreUnavailable(
                    f"this request failed and nothing of it was stored: {type(error).__name__}"
                )
                self._resolve([(group[0], None, refused)], None)
        else:
            outcomes: list[Outcome] = [
                (command, result, None) for command, result in zip(group, results, strict=True)
            ]
            self._resolve(outcomes, tx)

    def _commit_each(self, connection: Connection, group: list[Command]) -> None:
        """One of the group failed: give each a transaction of its own, so that only the bad one does."""
        for command in group:
            self._commit_group(connection, [command])

    def _transact(self, connection: Connection, group: list[Command]) -> tuple[list[Any], Transaction]:
        numbers = self.numbers
        tx = Transaction(
            connection,
            self.claims,
            QueueNumbers(
                numbers.next_request_id,
                numbers.next_message,
                numbers.swept_to,
                numbers.swept_message,
            ),
        )
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            results = _run_all(tx, group)
            tx.finish()
            connection.exec_driver_sql("COMMIT")
        except BaseException as error:
            self._roll_back(connection)
            if isinstance(error, DBAPIError) and not _constraint(error):
                raise translate(error, self._path) from error
            raise
        self._follow(tx)
        return results, tx

    def _follow(self, tx: Transaction) -> None:
        """Bring memory up to what was committed."""
        try:
            self.trouble = None
            self.numbers = tx.numbers
            self.commits += 1
            for counts, deltas in (
                (self.message_counts, tx.message_deltas),
                (self.receipt_counts, tx.receipt_deltas),
            ):
                for key, delta in deltas.items():
                    counts[key] += delta
            for effect in tx.effects:
                effect()
        except Exception as error:
            # Run again, the group would be stored twice; gone on with, memory would be wrong.
            _log.exception("memory could not follow a commit")
            raise StoreUnavailable(f"the daemon lost track of the queue: {error!r}", fatal=True) from error

    def _roll_back(self, connection: Connection) -> None:
        # SQLite may have rolled back by itself (a full disk); then there is nothing to undo.
        raw = connection.connection.dbapi_connection
        if getattr(raw, "in_transaction", False):
            try:
                connection.exec_driver_sql("ROLLBACK")
            except DBAPIError as error:
                raise StoreUnavailable(
                    f"{self._path}: a rollback failed: {error.orig}", fatal=True
                ) from error

    def _read(self, connection: Connection, command: Command) -> None:
        read = command.read
        if read is None:
            raise AssertionError
        try:
            result = read(connection)
        except DBAPIError as error:
            translated = translate(error, self._path)
            if isinstance(translated, StoreUnavailable) and translated.fatal:
                self._give_up(translated)
            self._resolve([(command, None, translated)], None)
        except Exception as error:  # noqa: BLE001 - as in `_commit_group`
            _log.exception("a command failed")
            refused = StoreUnavailable(f"this request failed: {type(error).__name__}")
            self._resolve([(command, None, refused)], None)
        else:
            self._resolve([(command, result, None)], None)

    def _checkpoint(self, connection: Connection) -> None:
        """Bring the log into the database once it is large, and start it over; never waits for a reader."""
        try:
            if self._wal.stat().st_size < CHECKPOINT_BYTES:
                return
        except FileNotFoundError:
            return
        try:
            _busy, logged, done = connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()
            if logged == done:
                # Without this the file stays large. A reader that still looks into the log is not waited for:
                # the
                # next group tries again.
                connection.exec_driver_sql("PRAGMA busy_timeout = 0")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            self.checkpoints += 1
            self._checkpoint_trouble = None
        except DBAPIError as error:
            translated = translate(error, self._path)
            if isinstance(translated, StoreUnavailable) and translated.fatal:
                self._give_up(translated)
            elif self._checkpoint_trouble != str(translated):
                # Said once until it changes: this is tried after every group.
                self._checkpoint_trouble = str(translated)
                _log.warning("checkpoint put off: %s", translated)
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def _give_up(self, error: DlrBufferError) -> None:
        if self._failure is None and isinstance(error, StoreUnavailable):
            self._failure = error
            self._call(self._on_failure, error)

    def _resolve(self, outcomes: list[Outcome], tx: Transaction | None) -> None:
        committed = Committed(tx.fresh, tx.events) if tx is not None else None
        self._call(self._deliver, outcomes, committed)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        # The loop may be gone already when the process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, outcomes: list[Outcome], committed: Committed | None) -> None:
        """Runs on the event loop: answer those who wait, then tell of what came."""
        for command, result, error in outcomes:
            self._waiting_rows -= command.weight
            self.waiting_commands -= 1
            self.deliveries += 1
            if command.future.done():
                continue
            if error is None:
                command.future.set_result(result)
            else:
                command.future.set_exception(error)
                # Nobody may be waiting any more; that is no reason for a complaint at exit.
                command.future.exception()
        if committed is not None:
            self._on_commit(committed)


def _constraint(error: DBAPIError) -> bool:
    """Whether a CHECK or a UNIQUE refused it: one command's own trouble, not the database's."""
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_CONSTRAINT")


def _run_all(tx: Transaction, group: list[Command]) -> list[Any]:
    """Run a group in order; neighbours of one kind are run as one."""
    results: list[Any] = [None] * len(group)
    kinds: dict[Many, list[int]] = {}
    for index, command in enumerate(group):
        if command.many is not None:
            kinds.setdefault(command.many, []).append(index)
    for many, indexes in kinds.items():
        outcomes = iter(many(tx, [item for index in indexes for item in group[index].items]))
        for index in indexes:
            results[index] = [next(outcomes) for _ in group[index].items]
    for index, command in enumerate(group):
        if command.run is not None:
            results[index] = command.run(tx)
    return results
