"""The writer: one thread, one writing connection, group commit.

Callers submit commands and await them. The thread takes all that wait, runs them as one ``BEGIN IMMEDIATE …
COMMIT``, and resolves each after the commit: many requests share one sync. A command that fails must not fail
its neighbours, so if a group fails it is rolled back whole and each command is run again in a transaction of
its own. (No savepoints: pysqlite's can escape a rollback.) It alone checkpoints, between groups, so the log
stays bounded and SQLite's WAL-reset bug can't strike.

Order within a group: registrations and reports one by one, then what the flusher settles, admins' actions, a
limited amount of bulk work, and at the most one chunk of a sweep; so bulk and sweeps hardly delay single
requests. Claims are read between transactions. What the commands do is in the modules beside this one.

A full disk or a locked file is said, answered, and tried again with whatever comes next; when there is no room for
more log, the log is brought in and written from its start. What can't be trusted any more (an I/O error, a
file that was replaced or overwritten) ends the writer for good: nothing more is answered, written or checkpointed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import DBAPIError

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.logs import Event, about
from dlr_buffer.storage import schema
from dlr_buffer.storage.claims import Claims
from dlr_buffer.storage.connection import BUSY_TIMEOUT_MS, translate, translated, witness
from dlr_buffer.storage.files import FileOverwritten, FileReplaced, QueueFiles
from dlr_buffer.storage.prepared import driver
from dlr_buffer.storage.transaction import QueueNumbers, Transaction

CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
LONGEST_LOG_BYTES: Final = 4 * CHECKPOINT_BYTES
MAX_WAITING_ROWS: Final = 200_000
BULK_ROWS_AT_ONCE: Final = 2_000
_MOST_SAID: Final = 100
_LONGEST_CHECKPOINT_S: Final = 600.0
"""So long may the system take to sync a large log, of which nothing can be seen from here."""
_RETURNING: Final = 0.9
"""So many of those who were answered just now are waited for, for one of them may have no more to say."""
_MOST_PATIENCE_S: Final = 0.001
_COMMITS_REMEMBERED: Final = 8

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
End = Callable[[Any, DlrBufferError | None], None]
"""Is told what a command returned, or why it failed; on the event loop."""


@dataclass(slots=True, eq=False)
class Command:
    """Something to do on the writer's thread; exactly one of ``run``, ``many`` and ``read`` is given.

    ``many`` takes the items of all commands of its kind in a group at once and returns as many outcomes.
    """

    lane: Lane
    end: End
    weight: int = 1
    run: Callable[[Transaction], Any] | None = None
    many: Many | None = None
    items: list[Any] = field(default_factory=list)
    read: Callable[[Connection], Any] | None = None


@dataclass(slots=True)
class Committed:
    """What one group brought about, told to the event loop after its commit."""

    fresh: Mapping[int, int]
    events: Mapping[str, int]
    replayed: dict[int, list[int]] = field(default_factory=dict)


Outcome = tuple[Command, Any, DlrBufferError | None]


class Writer:
    """Owns the writing connection; `submit` from the event loop's thread only."""

    def __init__(  # noqa: PLR0913 - made in one place, all but the first by name
        self,
        engine: Engine,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        scarce: Callable[[], bool],
        on_commit: Callable[[Committed], None],
        on_failure: Callable[[StoreUnavailable], None],
    ) -> None:
        """Prepare; nothing runs before `start`. The callbacks are called on ``loop``.

        But ``scarce``, on the writer's thread: whether the disk is so full that the log keeps the room it has.
        """
        self._engine = engine
        self._path = path
        self._folder = str(path.parent)
        self._loop = loop
        self._scarce = scarce
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[list[Command] | None] = queue.SimpleQueue()
        self._outbox: list[Command] = []
        """What one turn of the event loop asks for; handed over in one go, so that it shares a commit."""
        self._lanes: dict[Lane, deque[Command]] = {lane: deque() for lane in Lane}
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._connection: Connection | None = None
        self._files: QueueFiles | None = None
        self._witness: sqlite3.Connection | None = None
        self._stopping = False
        self._closed = False
        self._failure: StoreUnavailable | None = None
        self._unsaved: StoreUnavailable | None = None
        self._waiting_rows = 0
        self.claims = Claims()
        self.numbers = QueueNumbers(1, 1, 0, 0)
        self.message_counts: dict[tuple[int, int], int] = {}
        self.receipt_counts: dict[tuple[int, int], int] = {}
        self.trouble: str | None = None
        self.commits = 0
        self.deliveries = 0
        self.waiting_commands = 0
        self.most_patience_s = _MOST_PATIENCE_S
        self._answered = 0
        """Singles that the last group had."""
        self._others = 0
        """Singles that came before those were answered, so from somebody else."""
        self._commit_s = 0.0
        """How long a commit takes, on the whole."""
        self.checkpoints = 0
        self._said: set[str] = set()
        self._others_wrote: object = None
        self._full_at: int | None = None
        """How many bytes were free when not even a checkpoint made room; it is not tried again before that changes."""
        self._look: asyncio.Future[Any] | None = None
        self._bringing_in_since_s: float | None = None
        self._unchecked = True
        """Whether something was committed since the whole log was brought in."""

    def start(self, connection: Connection) -> None:
        """Take over ``connection`` (already opened and checked) and begin to work.

        Raises StoreUnavailable if the database's files are gone already.
        """
        try:
            self._files = QueueFiles(self._path)
            self._witness = witness(self._path)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"{self._path} can't be opened once more: {error}", fatal=True) from error
        self._connection = connection
        self._thread.start()

    @property
    def failure(self) -> StoreUnavailable | None:
        """Why the writer gave up, if it did."""
        return self._failure

    @property
    def turn_begins(self) -> bool:
        """Whether nothing was submitted yet in this turn of the event loop."""
        return not self._outbox

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
        self._require_room(lane)
        # Whoever gives up waiting (a client that went away) does not undo what is under way.
        return await asyncio.shield(self._enqueue(lane, weight, run, many, items, read))

    def begin(self, lane: Lane, *, weight: int, many: Many, items: Sequence[Any]) -> asyncio.Future[Any]:
        """As `submit`, but returns at once what can be awaited; raises at once if nothing can be done."""
        self._require_room(lane)
        return self._enqueue(lane, weight, None, many, items, None)

    def begin_one(self, many: Many, item: object, then: Callable[[Any], None]) -> None:
        """Have one item done in the lane of singles, and ``then`` called with its outcome, or with a DlrBufferError.

        It is called in the turn of the event loop that learns of the commit: a future would tell in the next one only.
        Raises at once if nothing can be done.
        """
        self._require_room(Lane.SINGLE)
        self._put(Command(Lane.SINGLE, partial(_tell_one, then), 1, None, many, [item]))

    def _require_room(self, lane: Lane) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreUnavailable("the daemon is stopping; try again when it runs again")
        if lane in (Lane.SINGLE, Lane.BULK) and self._waiting_rows > MAX_WAITING_ROWS:
            raise Overloaded(f"{self._waiting_rows} rows wait to be written already; try again in a moment")

    def afterwards(self, read: Callable[[Connection], Any]) -> None:
        """Have something done to the claims, for nobody who waits; nothing once the writer has ended."""
        if self._failure is None and not self._closed:
            self._enqueue(Lane.CLAIM, 0, None, None, (), read)

    def look_after(self, *, say_again: bool) -> None:
        """Look whether the files are still ours, and, after a failure, whether commits succeed again.

        For times when nothing is written; waits for nothing. ``say_again`` has troubles that last logged once more.
        """
        if self._failure is not None or self._closed or (self._look is not None and not self._look.done()):
            return

        def look(connection: Connection) -> None:
            if say_again:
                self._said.clear()
            self._require_ours()
            self._notice_others(connection)

        self._look = self._enqueue(Lane.CLAIM, 0, None, None, (), look)
        if self.trouble is not None:
            self._look = self._enqueue(Lane.SWEEP, 0, _write_a_page, None, (), None)

    @property
    def thread_id(self) -> int | None:
        """The writer's thread, as `threading` knows it."""
        return self._thread.ident

    def progress(self) -> tuple[int, ...]:
        """Values that change while the writer gets on: asked when it is idle, it answers something that costs nothing.

        A command or a checkpoint may honestly take long: then it is seen from what its thread reads and writes, or,
        where the system syncs a large log and nothing can be seen, believed for ten minutes.
        """
        if not self.waiting_commands:
            self.afterwards(_nothing)
        return self.deliveries, *self.working()

    def working(self) -> tuple[int, int]:
        """The part of `progress` that changes in the middle of a command or a checkpoint as well."""
        since, now = self._bringing_in_since_s, time.monotonic()
        syncing = int(now * 1000) if since is not None and now < since + _LONGEST_CHECKPOINT_S else 0
        return syncing, _moved_bytes(self._thread.native_id)

    def broken(self, error: StoreUnavailable) -> None:
        """Give up: a reader found that the database can't be trusted any more."""

        def give_up(_connection: Connection) -> None:
            raise error

        self.afterwards(give_up)

    @property
    def files(self) -> QueueFiles:
        """The files that were opened; after `start` only."""
        if self._files is None:
            raise AssertionError
        return self._files

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
        self._put(Command(lane, partial(_tell_future, future), weight, run, many, list(items), read))
        return future

    def _put(self, command: Command) -> None:
        self._waiting_rows += command.weight
        self.waiting_commands += 1
        if not self._outbox:
            self._loop.call_soon(self._hand_over)
        self._outbox.append(command)

    def _hand_over(self) -> None:
        if self._outbox:
            commands, self._outbox = self._outbox, []
            self._inbox.put(commands)

    async def stop(self) -> None:
        """Finish what was submitted, checkpoint, and close the connection."""
        self._closed = True
        if self._thread.is_alive():
            self._hand_over()
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)

    # Everything below runs on the writer's thread.

    def _work(self) -> None:
        connection = self._connection
        if connection is None:
            raise AssertionError
        try:
            while self._take():
                # The next requests need not wait for what the last ones brought, only registrations come first.
                if not self._lanes[Lane.SINGLE]:
                    self._read_all(connection)
                group = self._compose()
                if group:
                    self._commit_group(connection, group)
                self._read_all(connection)
                if self._failure is None:
                    self._checkpoint(connection)
                else:
                    self._save_what_is_left(connection)
            if self._failure is None:
                self._checkpoint_at_end(connection)
        except Exception as error:  # noqa: BLE001 - the thread must never end without saying so
            self._give_up(StoreUnavailable(f"the writer failed: {type(error).__name__}", fatal=True))
            _log.exception(
                "the writer failed in a way that nobody foresaw, and the daemon ends; please report it",
                extra=about(Event.DEFECT),
            )
            self._refuse_all()
        finally:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        """Close; SQLite then checkpoints and removes the log, by its name, but not after a failure."""
        keep = self._witness
        if keep is not None and self._failure is None:
            keep.close()
        with contextlib.suppress(DBAPIError):
            connection.close()
        if keep is not None:
            keep.close()
        self.files.close()

    def _read_all(self, connection: Connection) -> None:
        for command in self._drain(Lane.CLAIM):
            self._read(connection, command)

    def _refuse_all(self) -> None:
        """Answer those who wait, and whoever still comes until `stop`, with the failure."""
        while self._take():
            self._resolve(
                [(command, None, self._failure) for lane in Lane for command in self._drain(lane)], None
            )

    def _take(self) -> bool:
        """Wait for work and sort it into lanes; False when all is done and the writer is to stop."""
        waits = any(self._lanes.values())
        while self._receive(None if not waits and not self._stopping else 0):
            waits = any(self._lanes.values())
        self._wait_for_company()
        return waits

    def _receive(self, timeout_s: float | None) -> bool:
        """Sort into lanes what comes within ``timeout_s`` (None: whenever it comes); False if nothing came."""
        try:
            commands = self._inbox.get(block=timeout_s != 0, timeout=timeout_s or None)
        except queue.Empty:
            return False
        if commands is None:
            self._stopping = True
        else:
            for command in commands:
                self._lanes[command.lane].append(command)
        return True

    def _wait_for_company(self) -> None:
        """Give apps that were answered just now a moment to come with their next single, which then shares the commit.

        Without it half of them would commit while the other half reads its answers, in groups half as large. Most come
        while a commit would take; those who don't are not waited for longer.
        """
        singles = self._lanes[Lane.SINGLE]
        answered, self._answered = self._answered, 0
        if answered <= 1 or not singles:
            return
        enough = self._others + answered * _RETURNING
        ends = time.perf_counter() + min(self._commit_s, self.most_patience_s)
        while not self._stopping and len(singles) < enough and (left := ends - time.perf_counter()) > 0:
            self._receive(left)

    def _drain(self, lane: Lane) -> list[Command]:
        commands = list(self._lanes[lane])
        self._lanes[lane].clear()
        return commands

    def _compose(self) -> list[Command]:
        singles = self._drain(Lane.SINGLE)
        self._answered = len(singles)
        group = [*singles, *self._drain(Lane.SETTLE)]
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
            if fatal:
                self._give_up(error)
            if len(group) > 1 and not fatal and not isinstance(error, (StorageFull, Overloaded)):
                self._commit_each(connection, group)
                return
            if isinstance(error, (StoreUnavailable, StorageFull, Overloaded)):
                self._note_trouble(error)
            self._resolve([(command, None, error) for command in group], None)
        except Exception as error:  # noqa: BLE001 - whatever one command does, its neighbours go on
            if len(group) > 1:
                self._commit_each(connection, group)
            else:
                self._say(
                    f"{error!r}",
                    "a command failed and was rolled back, and nothing of it is acknowledged; please report it",
                    fault=error,
                    event=Event.DEFECT,
                )
                refused = StoreUnavailable(
                    f"this request failed and nothing of it was stored: {type(error).__name__}"
                )
                self._resolve([(group[0], None, refused)], None)
        else:
            outcomes: list[Outcome] = [
                (command, result, None) for command, result in zip(group, results, strict=True)
            ]
            while not self._inbox.empty():
                self._receive(0)
            self._others = len(self._lanes[Lane.SINGLE])
            self._resolve(outcomes, tx)

    def _commit_each(self, connection: Connection, group: list[Command]) -> None:
        """One of the group failed: give each a transaction of its own, so that only the bad one does."""
        for command in group:
            self._commit_group(connection, [command])

    def _note_trouble(self, error: DlrBufferError) -> None:
        self.trouble = str(error)
        # After some errors SQLite reads anew, which looks like another's commit.
        self._others_wrote = None
        if self._failure is None:
            self._say(
                self.trouble,
                f"a commit failed, nothing of it is acknowledged: {error}",
                event=Event.COMMIT_FAILED,
            )
        self._call(self._on_commit, Committed({}, {"commit_failures": 1}))

    def _say(
        self, key: str, text: str, *, fault: BaseException | None = None, event: Event | None = None
    ) -> None:
        """Log a line, with the traceback of a ``fault``; the same ``key`` again only when `look_after` allows it."""
        if key not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(key)
            level = logging.WARNING if fault is None else logging.ERROR
            _log.log(level, "%s", text, exc_info=fault, extra=about(event))

    def _transact(self, connection: Connection, group: list[Command]) -> tuple[list[Any], Transaction]:
        """Run a group as one transaction; if there is no room for it, once more after making some."""
        try:
            done = self._transaction(connection, group)
        except StorageFull:
            if not self._make_room(connection):
                raise
            try:
                done = self._transaction(connection, group)
            except StorageFull:
                self._full_at = self._free_bytes()
                raise
        self._full_at = None
        return done

    def _transaction(self, connection: Connection, group: list[Command]) -> tuple[list[Any], Transaction]:
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
            self.message_counts,
        )
        try:
            # Before, for a commit covers up that a log was cut; and after, for what happened meanwhile.
            self._require_ours()
            driver(connection).execute("BEGIN IMMEDIATE")
            results = _run_all(tx, group)
            tx.finish()
            began = time.perf_counter()
            driver(connection).execute("COMMIT")
            self._commit_s += (time.perf_counter() - began - self._commit_s) / _COMMITS_REMEMBERED
            self._require_ours()
        except BaseException as error:
            self._roll_back(connection)
            if isinstance(error, (DBAPIError, sqlite3.Error)) and not _constraint(error):
                raise translate(error, self._path) from error
            raise
        self._follow(tx)
        return results, tx

    def _follow(self, tx: Transaction) -> None:
        """Bring memory up to what was committed."""
        try:
            if self.trouble is not None:
                self.trouble = None
                self._say("well", "commits succeed again", event=Event.COMMITS_SUCCEED)
            self.numbers = tx.numbers
            self.commits += 1
            self._unchecked = True
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
            _log.exception(
                "memory could not follow a commit, and the daemon ends; please report it",
                extra=about(Event.DEFECT),
            )
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
        if self._failure is not None:
            self._resolve([(command, None, self._failure)], None)
            return
        try:
            with translated(self._path):
                result = read(connection)
        except DlrBufferError as error:
            if isinstance(error, StoreUnavailable) and error.fatal:
                self._give_up(error)
            self._resolve([(command, None, error)], None)
        except Exception as error:  # noqa: BLE001 - as in `_commit_group`
            self._say(
                f"{error!r}",
                "a look into the queue failed in a way that nobody foresaw; please report it",
                fault=error,
                event=Event.DEFECT,
            )
            refused = StoreUnavailable(f"this request failed: {type(error).__name__}")
            self._resolve([(command, None, refused)], None)
        else:
            self._resolve([(command, result, None)], None)

    def _require_ours(self) -> None:
        try:
            self.files.require_ours()
        except OSError as error:
            raise StoreUnavailable(f"{self._path} can't be looked at: {error}", fatal=True) from error

    def _notice_others(self, connection: Connection) -> None:
        """Log if another program committed: SQLite allows it, but what is counted here knows nothing of it."""
        wrote = connection.exec_driver_sql("PRAGMA data_version").scalar()
        if self._others_wrote not in (None, wrote):
            _log.warning(
                "another program wrote to the queue %s, whose counters may be wrong now: stop it, and let"
                " 'dlr-buffer check-db' look at the queue",
                self._path,
                extra=about(Event.QUEUE_TOUCHED, path=str(self._path)),
            )
        self._others_wrote = wrote

    def _checkpoint(self, connection: Connection) -> None:
        """Bring the log into the database once it is large, and start it over; never waits for a reader.

        Its file keeps its length and is written again from its start: to sync what lies in blocks that a file has
        already takes half as long as to sync what makes it longer.
        """
        if not self._unchecked or not self._log_is_long():
            return
        if self._full_at is not None and self._full_at == self._free_bytes():
            return
        # A reader that looks into the log for long makes it longer than it has to be. But on a disk that is nearly
        # full it keeps the room it has, so that acknowledgements have some when others take the rest.
        whole = self._bring_in(connection)
        self._unchecked = not whole
        if whole and self.files.log_bytes > LONGEST_LOG_BYTES and not self._scarce():
            self._bring_in(connection, "TRUNCATE")

    def _log_is_long(self) -> bool:
        try:
            return self.files.log_reaches(CHECKPOINT_BYTES)
        except OSError as error:
            self._give_up(StoreUnavailable(f"{self._path} can't be looked at: {error}", fatal=True))
            return False

    def _make_room(self, connection: Connection) -> bool:
        """Whether the log, which can't grow, can be written from its start instead, all of it being in the database."""
        if self._full_at is not None and self._full_at == self._free_bytes():
            return False
        return self._bring_in(connection)

    def _bring_in(self, connection: Connection, mode: str = "PASSIVE") -> bool:
        """Checkpoint; returns whether all of the log is in the database now."""
        # A reader that still looks into the log is not waited for: the next group tries again.
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        self._bringing_in_since_s = time.monotonic()
        whole = False
        try:
            busy, logged, done = connection.exec_driver_sql(f"PRAGMA wal_checkpoint({mode})").one()
            whole = not busy and logged == done
            self.checkpoints += mode == "PASSIVE"
        except DBAPIError as error:
            known = translate(error, self._path)
            if isinstance(known, StoreUnavailable) and known.fatal:
                self._give_up(known)
            else:
                if isinstance(known, StorageFull):
                    self._full_at = self._free_bytes()
                self._say(f"checkpoint: {known}", f"checkpoint put off: {known}")
        finally:
            self._bringing_in_since_s = None
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            self._note_checkpoint()
        return whole

    def _note_checkpoint(self) -> None:
        try:
            self.files.checkpointed()
        except OSError as error:
            self._give_up(StoreUnavailable(f"{self._path} can't be looked at: {error}", fatal=True))

    def _free_bytes(self) -> int | None:
        try:
            return free_bytes(self._folder)
        except OSError:
            return None

    def _checkpoint_at_end(self, connection: Connection) -> None:
        """Leave an empty log, if the files are still ours and there is room; else the next start brings it in."""
        try:
            self._require_ours()
        except StoreUnavailable as error:
            self._give_up(error)
            self._save_what_is_left(connection)
            return
        self._bring_in(connection, "TRUNCATE")

    def _save_what_is_left(self, connection: Connection) -> None:
        """After the files were replaced or overwritten: keep what is ours from being lost or mixed with what is not."""
        failure, self._unsaved = self._unsaved, None
        try:
            match failure:
                case FileReplaced():
                    # By descriptor, whatever the names lead to: the file that was open is whole then, and a log that
                    # still has its name has nothing in it that SQLite would apply to another database.
                    if self._bring_in(connection, "TRUNCATE"):
                        _log.critical(
                            "what was in the log is in the file that was open when it was replaced",
                            extra=about(Event.DATABASE_SAVED),
                        )
                    if (copy := self.files.rescue()) is not None:
                        _log.critical(
                            "the database that was removed is saved as %s",
                            copy,
                            extra=about(Event.DATABASE_SAVED, path=str(copy)),
                        )
                case FileOverwritten(database=True):
                    aside = self.files.set_log_aside()
                    _log.critical(
                        "the log of the database that was overwritten is kept as %s, apart from what is there now",
                        aside,
                        extra=about(Event.DATABASE_SAVED, path=str(aside)),
                    )
                case _:
                    pass
        except (OSError, DBAPIError) as error:
            _log.critical(
                "nothing could be saved of the database: %s", error, extra=about(Event.DATABASE_SAVED)
            )

    def _give_up(self, error: DlrBufferError) -> None:
        if self._failure is None and isinstance(error, StoreUnavailable):
            self._failure = self._unsaved = error
            self._call(self._on_failure, error)

    def _resolve(self, outcomes: list[Outcome], tx: Transaction | None) -> None:
        committed = Committed(tx.fresh, tx.events, tx.replayed) if tx is not None else None
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
            try:
                command.end(result, error)
            except Exception:  # noqa: BLE001 - whoever is told, the others are told too
                _log.exception(
                    "what was committed could not be answered, in a way that nobody foresaw; please report it",
                    extra=about(Event.DEFECT),
                )
        if committed is not None:
            self._on_commit(committed)


def _tell_future(future: asyncio.Future[Any], result: object, error: DlrBufferError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        # Nobody may be waiting any more; that is no reason for a complaint at exit.
        future.exception()


def _tell_one(then: Callable[[Any], None], results: Sequence[Any], error: DlrBufferError | None) -> None:
    then(results[0] if error is None else error)


def _write_a_page(tx: Transaction) -> None:
    """Change nothing, yet have something to commit: SQLite leaves out pages whose bytes stay the same."""
    state = schema.queue_state
    tx.connection.execute(update(state).values(next_message=state.c.next_message + 1))
    # The transaction's last statement puts the number back.


def _nothing(_connection: Connection) -> None:
    """Only show that the writer turns."""


def _moved_bytes(thread: int | None) -> int:
    """What a thread of this process has read and written so far; 0 where the kernel does not tell."""
    try:
        with open(f"/proc/self/task/{thread}/io", encoding="ascii") as file:  # noqa: PTH123 - nothing to be joined
            facts = dict(line.split(": ") for line in file)
        return int(facts["rchar"]) + int(facts["wchar"])
    except (OSError, KeyError, ValueError):
        return 0


def free_bytes(path: str) -> int:
    """Return the bytes that are free where a file or folder lies, for whoever is not root. Raises OSError."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _constraint(error: DBAPIError | sqlite3.Error) -> bool:
    """Whether a CHECK or a UNIQUE refused it: one command's own trouble, not the database's."""
    return getattr(getattr(error, "orig", error), "sqlite_errorname", "").startswith("SQLITE_CONSTRAINT")


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
