"""The durable queue on SQLite: composes writer, claims and readers behind the protocols of the layers above.

`SqliteStore` fulfils the receipt queue's Store, the flusher's Outbox, and what expiry and retention need. It
only turns calls into commands; what they do is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, assert_never

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from dlr_buffer.errors import DlrBufferError, NotFound, StorageFull, StoreUnavailable
from dlr_buffer.logs import Event, about
from dlr_buffer.messages import Message, Registration, Report, check_validity_period
from dlr_buffer.receipts import (
    Acknowledged,
    Claim,
    Cut,
    DueClaim,
    MessageView,
    QueueCounts,
    QueueOldest,
    Receipt,
    ReceiptAction,
    ReceiptStatus,
    ReceiptView,
    RefusalPolicy,
    Refused,
    Registered,
    Reported,
    Settled,
)
from dlr_buffer.selection import (
    ActionCount,
    MessageAction,
    MessageFilter,
    MessageName,
    Page,
    ReceiptFilter,
)
from dlr_buffer.storage import redating, schema, settling, steering, sweeping
from dlr_buffer.storage.connection import (
    READER_CACHE_KIB,
    WRITER_CACHE_KIB,
    cannot_open,
    make_engine,
    require_durable,
    translated,
    wal_reset_bug,
)
from dlr_buffer.storage.lock import LastRun, QueueLock
from dlr_buffer.storage.migrate import ensure_schema
from dlr_buffer.storage.oldest import OldestWaiting
from dlr_buffer.storage.reading import Reader
from dlr_buffer.storage.recovery import make_names_durable
from dlr_buffer.storage.registering import RegisterItem, register
from dlr_buffer.storage.reporting import ReportItem, report
from dlr_buffer.storage.settling import Claimer, Settlement
from dlr_buffer.storage.sweeping import Purged, Swept
from dlr_buffer.storage.transaction import QueueNumbers, Transaction
from dlr_buffer.storage.whole import require_whole
from dlr_buffer.storage.writer import Committed, Lane, Writer, free_bytes

READERS: Final = 2
NO_LIMITS: Final[Mapping[str, int]] = {}
SOMEBODY: Final = "an admin"
"""Who acts, where the caller does not say."""
INTERRUPT_EVERY_S: Final = 0.05
RESTORED_GAP: Final = 1_000_000_000
"""At least so many request ids are left out when a queue turns out to be older than the last run's."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_ClaimT = TypeVar("_ClaimT", Claim, DueClaim)


@dataclass(frozen=True, slots=True)
class ClockMark:
    """The clock as the last sweep saw it (DESIGN §8), and whether expiry is stopped.

    Wall times in milliseconds.
    """

    boot_id: str | None = None
    offset_ms: int | None = None
    now_ms: int | None = None
    stopped_since_ms: int | None = None
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What `status` says of the database; sizes in bytes."""

    path: Path
    size_bytes: int
    wal_bytes: int
    free_bytes: int
    sqlite_version: str
    commits: int
    checkpoints: int
    waiting_rows: int
    waiting_commands: int


@dataclass(frozen=True, slots=True)
class StoreListeners:
    """Who is told, on the event loop, of what the writer did."""

    fresh: Callable[[Mapping[str, int]], None]
    """Receipts became claimable: how many, by account."""
    events: Callable[[Mapping[str, int]], None]
    """What to count in metrics, after each commit."""
    failed: Callable[[StoreUnavailable], None]
    """The database failed for good; the daemon has to end."""
    replayed: Callable[[Mapping[str, Sequence[int]]], None] = lambda _replayed: None
    """An admin made these receipts pending, due now, by account."""


class SqliteStore:
    """A queue in one SQLite file, held by this process alone.

    Methods that change something return after commit and sync. They raise StoreUnavailable, StorageFull or
    Overloaded, and then nothing of the call is stored.
    """

    def __init__(  # noqa: PLR0913 - facts of one opened database, all by name, made in `open`
        self,
        *,
        path: Path,
        lock: QueueLock,
        min_free_bytes: int,
        listeners: StoreListeners,
        loop: asyncio.AbstractEventLoop,
        names: dict[int, str],
        paused: set[str],
        now_ms: Callable[[], int],
    ) -> None:
        """Use `open` instead."""
        self.path = path
        self._folder = str(path.parent)
        self._now_ms = now_ms
        self._lock = lock
        self._min_free_bytes = min_free_bytes
        self._listeners = listeners
        self._names = names
        self._ids = {name: account_id for account_id, name in names.items()}
        self._paused = paused
        self._writer = Writer(
            make_engine(path, cache_kib=WRITER_CACHE_KIB, read_only=False),
            path,
            loop,
            scarce=lambda: self._no_room() is not None,
            on_commit=self._committed,
            on_failure=listeners.failed,
        )
        self._claimer = Claimer(self._writer.claims)
        self._reader = Reader(self._writer.claims, self._names)
        self._lists = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="look-up")
        self._reader_engine = make_engine(path, cache_kib=READER_CACHE_KIB, read_only=True)
        self._closing = False
        self._reader_local = threading.local()
        self._reader_connections: list[Connection] = []
        self._oldest_waiting = OldestWaiting()
        self._stopped = False
        self._no_room_this_turn: StorageFull | None = None

    # Opening and closing

    @classmethod
    async def open(  # noqa: PLR0913 - facts of one database, all by name
        cls,
        path: Path,
        *,
        accounts: Sequence[str],
        min_free_bytes: int,
        first_request_id: int,
        listeners: StoreListeners,
        now_ms: Callable[[], int],
        given_up: Callable[[], bool] = bool,
    ) -> SqliteStore:
        """Lock, migrate and open the queue at ``path``; raises StoreUnavailable with what to do.

        It is raised too if a migration is under way once ``given_up`` says so; nothing of that is kept then.
        """
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(
            cls._open,
            path,
            accounts,
            min_free_bytes,
            first_request_id,
            listeners,
            now_ms,
            loop,
            given_up,
        )

    @classmethod
    def _open(  # noqa: PLR0913 - the body of `open`
        cls,
        path: Path,
        accounts: Sequence[str],
        min_free_bytes: int,
        first_request_id: int,
        listeners: StoreListeners,
        now_ms: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        given_up: Callable[[], bool],
    ) -> SqliteStore:
        # SQLite keeps its log beside the file itself, not beside a symbolic link to it; so do we look there.
        path = Path(os.path.realpath(path))
        if path.is_dir():
            raise StoreUnavailable(f"{path} is a directory; [database] url must name a file", fatal=True)
        if not path.parent.is_dir():
            raise StoreUnavailable(
                f"the folder {path.parent} does not exist; create it and let the daemon's user write there",
                fatal=True,
            )
        lock = QueueLock(path)
        connection: Connection | None = None
        try:
            ensure_schema(path, lock.last, given_up)
            if wal_reset_bug():
                _log.warning(
                    "SQLite %s has the WAL-reset bug (mended in 3.51.3, 3.50.7 and 3.44.6); it can't strike here, where"
                    " one connection writes and alone checkpoints: let no other program write to %s",
                    sqlite3.sqlite_version,
                    path,
                )
            engine = make_engine(path, cache_kib=WRITER_CACHE_KIB, read_only=False)
            with translated(path):
                connection = engine.connect()
                require_durable(connection)
                require_whole(connection, path)
                first_request_id = _beyond_restore(connection, path, lock.last, first_request_id, now_ms)
                names, paused = _prepare(connection, accounts, first_request_id)
                store = cls(
                    path=path,
                    lock=lock,
                    min_free_bytes=min_free_bytes,
                    listeners=listeners,
                    loop=loop,
                    names=names,
                    paused=paused,
                    now_ms=now_ms,
                )
                store._load(connection)
            make_names_durable(path)
            lock.opened(store._writer.numbers.next_request_id)
            store._writer.start(connection)
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise
        return store

    def _load(self, connection: Connection) -> None:
        writer = self._writer
        for account_id in self._names:
            writer.add_account(account_id)
        for counts, table, code in (
            (
                writer.message_counts,
                schema.message_counts,
                schema.message_counts.c.state,
            ),
            (
                writer.receipt_counts,
                schema.receipt_counts,
                schema.receipt_counts.c.status,
            ),
        ):
            for account_id, key, rows in connection.execute(select(table.c.account_id, code, table.c.rows)):
                counts[account_id, key] = rows
        row = connection.execute(select(schema.queue_state)).one()
        writer.numbers = QueueNumbers(row.next_request_id, row.next_message, row.swept_to, row.swept_message)

    async def close(self) -> None:
        """Finish every submitted command, checkpoint, close, and let another process have the queue."""
        self._closing = True
        await self._stop_reading()
        await self._writer.stop()
        if self._writer.failure is None:
            self._lock.closed(self._writer.numbers.next_request_id)
        self._lock.release()

    async def _stop_reading(self) -> None:
        """Break off what is being read: a list that takes long must hold up neither the end nor the checkpoint."""
        ends = [
            asyncio.create_task(asyncio.to_thread(threads.shutdown)) for threads in (self._lists, self._looks)
        ]
        reading: set[asyncio.Task[None]] = set(ends)
        while reading:
            # Again and again: between two queries of one list it has no effect.
            for connection in list(self._reader_connections):
                interrupt = getattr(connection.connection.dbapi_connection, "interrupt", None)
                if interrupt is not None:
                    interrupt()
            _, reading = await asyncio.wait(ends, timeout=INTERRUPT_EVERY_S)
        for connection in self._reader_connections:
            connection.close()
        self._reader_connections.clear()

    @property
    def trouble(self) -> str | None:
        """Why the last commit that was tried did not succeed; None while commits succeed."""
        return self._writer.trouble

    @property
    def failure(self) -> StoreUnavailable | None:
        """Why the database can't be used any more, if so."""
        return self._writer.failure

    # The receipt queue's Store

    def register(
        self,
        items: Sequence[Registration],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int] = NO_LIMITS,
        now_ms: int,
    ) -> asyncio.Future[list[Registered | DlrBufferError]]:
        """Register in order, each item as if alone; refused with StorageFull below ``min_free``."""
        if (no_room := self._stopped_this_turn()) is not None:
            self._listeners.events({"refused_full": len(items)})
            raise no_room
        commands = [self._register_item(item, default_validity_ms, max_waiting, now_ms) for item in items]
        return self._writer.begin(_lane(len(commands)), weight=len(commands), many=register, items=commands)

    def register_one(
        self,
        item: Registration,
        then: Callable[[Registered | DlrBufferError], None],
        *,
        default_validity_ms: int,
        max_waiting: Mapping[str, int] = NO_LIMITS,
        now_ms: int,
    ) -> None:
        """As `register`; ``then`` is told what became of it."""
        if (no_room := self._stopped_this_turn()) is not None:
            self._listeners.events({"refused_full": 1})
            raise no_room
        self._writer.begin_one(
            register, self._register_item(item, default_validity_ms, max_waiting, now_ms), then
        )

    def _register_item(
        self, item: Registration, default_validity_ms: int, max_waiting: Mapping[str, int], now_ms: int
    ) -> RegisterItem:
        account = item.account or ""
        return RegisterItem(
            account,
            self._ids[account],
            item.message_id,
            check_validity_period(item.validity_period),
            default_validity_ms,
            now_ms,
            max_waiting.get(account, 0),
        )

    def report(
        self,
        items: Sequence[Report],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int] = NO_LIMITS,
        now_ms: int,
    ) -> asyncio.Future[list[Reported | DlrBufferError]]:
        """Report states in order, each item as if alone.

        Below ``min_free`` an item that would register a message is StorageFull, the others go through.
        """
        no_room = self._stopped_this_turn()
        commands = [
            self._report_item(item, default_validity_ms, register_in, max_waiting, now_ms, no_room)
            for item in items
        ]
        reported: asyncio.Future[list[Reported | DlrBufferError]] = self._writer.begin(
            _lane(len(commands)), weight=len(commands), many=report, items=commands
        )
        if no_room is not None:
            reported.add_done_callback(partial(self._count_refused, no_room))
        return reported

    def report_one(  # noqa: PLR0913 - as `report`
        self,
        item: Report,
        then: Callable[[Reported | DlrBufferError], None],
        *,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int] = NO_LIMITS,
        now_ms: int,
    ) -> None:
        """As `report`; ``then`` is told what became of it."""
        no_room = self._stopped_this_turn()
        command = self._report_item(item, default_validity_ms, register_in, max_waiting, now_ms, no_room)
        if no_room is not None:
            then = partial(self._tell_counted, no_room, then)
        self._writer.begin_one(report, command, then)

    def _tell_counted(
        self,
        no_room: StorageFull,
        then: Callable[[Reported | DlrBufferError], None],
        result: Reported | DlrBufferError,
    ) -> None:
        if result is no_room:
            self._listeners.events({"refused_full": 1})
        then(result)

    def _report_item(  # noqa: PLR0913 - all that is known of one
        self,
        item: Report,
        default_validity_ms: int,
        register_in: frozenset[str],
        max_waiting: Mapping[str, int],
        now_ms: int,
        no_room: StorageFull | None,
    ) -> ReportItem:
        account = item.account or ""
        return ReportItem(
            account,
            self._ids[account],
            item.message_id,
            item.message_state,
            account in register_in,
            no_room,
            default_validity_ms,
            now_ms,
            max_waiting.get(account, 0),
        )

    def _count_refused(
        self, no_room: StorageFull, reported: asyncio.Future[list[Reported | DlrBufferError]]
    ) -> None:
        if reported.cancelled() or reported.exception() is not None:
            return
        if refused := sum(each is no_room for each in reported.result()):
            self._listeners.events({"refused_full": refused})

    async def message(self, name: MessageName) -> MessageView | None:
        """One message with its receipts."""
        account_id = self._ids.get(name.account)
        if account_id is None:
            return None
        return await self._look(
            lambda connection: self._reader.message(connection, account_id, name.message_id)
        )

    async def receipt(self, request_id: int) -> ReceiptView | None:
        """One receipt with its history."""
        if not 0 < request_id < 2**63:
            return None
        return await self._look(lambda connection: self._reader.receipt(connection, request_id))

    async def list_messages(self, narrow: MessageFilter, *, after: int, limit: int) -> Page[Message]:
        """One page of messages, ascending in their internal number."""
        found, more = await self._read(
            lambda connection: self._find_messages(connection, narrow, after, limit)
        )
        return Page(tuple(message for _, message in found), more)

    async def list_receipts(self, narrow: ReceiptFilter, *, after: int, limit: int) -> Page[Receipt]:
        """One page of receipts, ascending in request_id."""
        found, more = await self._read(
            lambda connection: self._find_receipts(connection, narrow, after, limit)
        )
        return Page(tuple(found), more)

    async def select_messages(
        self, narrow: MessageFilter, *, after: int, limit: int
    ) -> tuple[list[MessageName], int | None]:
        """Names of the next messages of a filter."""
        found, more = await self._read(
            lambda connection: self._find_messages(connection, narrow, after, limit)
        )
        return [MessageName(message.account, message.message_id) for _, message in found], more

    async def select_receipts(
        self, narrow: ReceiptFilter, *, after: int, limit: int
    ) -> tuple[list[int], int | None]:
        """Ids of the next receipts of a filter."""
        found, more = await self._read(
            lambda connection: self._find_receipts(connection, narrow, after, limit)
        )
        return [receipt.request_id for receipt in found], more

    async def steer_receipts(
        self,
        action: ReceiptAction,
        request_ids: Sequence[int],
        *,
        by: str = SOMEBODY,
        now_ms: int,
        dry_run: bool,
    ) -> ActionCount:
        """Apply an admin's action to these receipts in one transaction; a dry run only reads."""
        if dry_run:
            chosen = await self._read(
                lambda connection: steering.choose_receipts(
                    connection, self._writer.claims, action, request_ids
                )
            )
            return ActionCount(*chosen[1])
        counted = await self._writer.submit(
            Lane.ADMIN,
            weight=len(request_ids),
            run=lambda tx: steering.steer_receipts(tx, action, request_ids, by=by, now=now_ms),
        )
        return ActionCount(*counted)

    async def steer_messages(
        self,
        action: MessageAction,
        names: Sequence[MessageName],
        *,
        by: str = SOMEBODY,
        now_ms: int,
        dry_run: bool,
    ) -> ActionCount:
        """Expire or delete these messages in one transaction; a dry run only reads."""
        known = [(self._ids[name.account], name.message_id) for name in names if name.account in self._ids]
        unknown = ActionCount(0, len(names) - len(known), 0)
        delete_them = action is MessageAction.DELETE
        if dry_run:
            chosen = await self._read(
                lambda connection: steering.choose_messages(
                    connection, self._writer.claims, known, delete_them=delete_them
                )
            )
            return ActionCount(*chosen[1]) + unknown
        counted = await self._writer.submit(
            Lane.ADMIN,
            weight=len(names),
            run=lambda tx: steering.steer_messages(tx, known, delete_them=delete_them, by=by, now=now_ms),
        )
        return ActionCount(*counted) + unknown

    async def set_paused(self, account: str, *, paused: bool) -> None:
        """Remember durably whether an admin paused this account; raises NotFound."""
        account_id = self._account_id(account)
        await self._writer.submit(
            Lane.ADMIN,
            run=lambda tx: (
                tx.connection.execute(
                    steering.SET_PAUSED, {"b_id": account_id, "b_paused": int(paused)}
                ).rowcount
            ),
        )
        (self._paused.add if paused else self._paused.discard)(account)

    def paused(self, account: str) -> bool:
        """Whether an admin paused this account."""
        return account in self._paused

    def accounts(self) -> tuple[str, ...]:
        """Every account that the database knows."""
        return tuple(self._ids)

    def accounts_with_rows(self) -> tuple[str, ...]:
        """Those that have messages or receipts, as of the last commit."""
        counts = self.counts()
        return tuple(
            name
            for name in self._ids
            if any(counts.messages[name].values()) or any(counts.receipts[name].values())
        )

    async def add_accounts(self, names: Sequence[str]) -> None:
        """Make accounts known that were configured by a reload."""
        new = [name for name in names if name not in self._ids]
        if not new:
            return

        def add(tx: Transaction) -> dict[int, str]:
            added = _add_accounts(tx.connection, new)
            for account_id in added:
                tx.effects.append(partial(self._writer.add_account, account_id))
            return added

        for account_id, name in (await self._writer.submit(Lane.ADMIN, run=add)).items():
            self._names[account_id] = name
            self._ids[name] = account_id

    def counts(self) -> QueueCounts:
        """Counts as of the last commit, from memory."""
        messages: dict[str, dict[str, int]] = {name: {} for name in self._ids}
        receipts: dict[str, dict[str, int]] = {name: {} for name in self._ids}
        for name, account_id in self._ids.items():
            for code, state in schema.STATE_NAMES.items():
                messages[name][state] = self._writer.message_counts.get((account_id, code), 0)
            for code, status in schema.STATUSES.items():
                receipts[name][status.value] = self._writer.receipt_counts.get((account_id, code), 0)
        return QueueCounts(messages, receipts)

    async def oldest(self) -> QueueOldest:
        """When the oldest unsettled rows of each account came."""
        ids = dict(self._ids)

        def read(connection: Connection) -> dict[str, int]:
            found = {
                name: self._reader.oldest_pending(connection, account_id) for name, account_id in ids.items()
            }
            return {name: at for name, at in found.items() if at is not None}

        pending = await self._look(read)
        # In one go: a reader's thread may be looking on meanwhile.
        found = list(self._oldest_waiting.found.items())
        waiting = {self._names[account_id]: at for account_id, at in found}
        return QueueOldest(pending, waiting)

    async def look_for_oldest(self) -> None:
        """Go a step further in the search for each account's oldest waiting message (`oldest` shows it)."""
        waiting = {
            account_id
            for (account_id, code), rows in list(self._writer.message_counts.items())
            if code < schema.FIRST_FINAL and rows
        }
        await self._read(lambda connection: self._oldest_waiting.step(connection, waiting))

    # The flusher's Outbox

    async def start_over(self, account: str) -> None:
        """Look for fresh receipts of this account from the oldest on, whatever was passed over before."""
        account_id = self._account_id(account)
        await self._writer.submit(
            Lane.CLAIM, read=lambda _connection: self._writer.claims.reconsider(account_id, 0)
        )

    async def claim(
        self,
        account: str,
        *,
        limit: int,
        excluding: Container[int],
        cut: Callable[[Sequence[Receipt]], Cut],
    ) -> Claim:
        """Put the oldest fresh receipts of an account in flight, as many as ``cut`` takes."""
        account_id = self._account_id(account)
        return await self._claim(
            account_id,
            lambda connection: self._claimer.fresh(
                connection,
                account=account,
                account_id=account_id,
                limit=limit,
                excluding=excluding,
                cut=cut,
            ),
        )

    async def claim_due(  # noqa: PLR0913 - one claim, all by name
        self,
        account: str,
        *,
        now_ms: int,
        horizon_ms: int,
        excluding: Container[int] = (),
        limit: int = 1,
        cut: Callable[[Sequence[Receipt]], Cut] = lambda due: Cut(len(due)),
    ) -> DueClaim:
        """Put a receipt in flight that waited out a refusal, or some that an admin replays."""
        account_id = self._account_id(account)
        if not self._writer.claims.may_be_delayed(account_id):
            return DueClaim(None, None)
        return await self._claim(
            account_id,
            lambda connection: self._claimer.due(
                connection,
                account=account,
                account_id=account_id,
                now=now_ms,
                horizon_ms=horizon_ms,
                excluding=excluding,
                limit=limit,
                cut=cut,
            ),
        )

    async def claim_newest(self, account: str, *, excluding: Container[int]) -> Claim:
        """Put the newest fresh receipt of an account in flight."""
        account_id = self._account_id(account)
        return await self._claim(
            account_id,
            lambda connection: self._claimer.newest(
                connection, account=account, account_id=account_id, excluding=excluding
            ),
        )

    async def claim_behind(self, account: str, *, after: int, excluding: Container[int]) -> Claim:
        """Put the first fresh receipt above ``after`` in flight that `claim` has passed."""
        account_id = self._account_id(account)
        return await self._claim(
            account_id,
            lambda connection: self._claimer.behind(
                connection, account=account, account_id=account_id, after=after, excluding=excluding
            ),
        )

    async def claim_these(self, account: str, request_ids: Sequence[int]) -> Claim:
        """Put those of the named receipts in flight that can be."""
        account_id = self._account_id(account)
        return await self._claim(
            account_id,
            lambda connection: self._claimer.these(
                connection,
                account=account,
                account_id=account_id,
                request_ids=request_ids,
            ),
        )

    async def _claim(
        self, account_id: int, take: Callable[[Connection], tuple[_ClaimT, list[int]]]
    ) -> _ClaimT:
        """Claim on the writer's thread.

        If whoever asked never hears of it (cancelled, or the stale ones could not be dropped), what was
        claimed is given back.
        """
        taken: list[int] = []

        def read(connection: Connection) -> tuple[_ClaimT, list[int]]:
            claim, stale = take(connection)
            taken.extend(_claimed_ids(claim))
            return claim, stale

        try:
            claim, stale = await self._writer.submit(Lane.CLAIM, read=read)
            await self._drop_stale(account_id, stale)
        except BaseException:
            self._give_back(account_id, taken, sent=False)
            raise
        result: _ClaimT = claim
        return result

    async def _drop_stale(self, account_id: int, stale: Sequence[int]) -> None:
        if stale:
            await self._writer.submit(
                Lane.SETTLE,
                weight=len(stale),
                run=lambda tx: settling.supersede_stale(tx, account_id, stale, self._now_ms()),
            )

    async def settle(  # noqa: PLR0913 - what came of one request, all by name
        self,
        account: str,
        *,
        acknowledged: Sequence[Acknowledged] = (),
        refused: Sequence[Refused] = (),
        returned: Sequence[int] = (),
        apart: Container[int] = (),
        unwaited: Sequence[int] = (),
        sent: bool = True,
        policy: RefusalPolicy,
        now_ms: int,
    ) -> Settled:
        """Write what came of a request and end its claims; what is in flight no more stays as it is.

        ``returned`` alone, unless overtaken or ``unwaited``, writes nothing. Those ``apart`` are not offered as
        fresh ones.
        """
        account_id = self._account_id(account)
        claims = self._writer.claims
        if not acknowledged and not refused and not unwaited:

            def release(_connection: Connection) -> bool:
                # Asked here, on the writer's thread: a report may have overtaken one a moment ago.
                if any(claims.overtaken(each) for each in returned):
                    return False
                settling.give_back(claims, account_id, returned, sent=sent, apart=apart)
                return True

            if await self._writer.submit(Lane.CLAIM, read=release):
                return Settled(0, 0, 0, 0)
        settlement = Settlement(
            account, account_id, acknowledged, refused, returned, apart, unwaited, sent, policy, now_ms
        )
        settled: Settled = await self._writer.submit(
            Lane.SETTLE,
            weight=len(acknowledged) + len(refused) + len(returned),
            run=lambda tx: settling.settle(tx, settlement),
        )
        return settled

    def give_back(self, account: str, request_ids: Sequence[int], *, sent: bool) -> None:
        """End the claims of receipts, without waiting for it, though the database may not be able to write.

        One that was overtaken becomes superseded when its turn to be claimed comes.
        """
        self._give_back(self._account_id(account), request_ids, sent=sent)

    def _give_back(self, account_id: int, request_ids: Sequence[int], *, sent: bool) -> None:
        # What the ids are is asked when the writer's thread comes to it: a claim before may still add some.
        self._writer.afterwards(
            lambda _connection: settling.give_back(self._writer.claims, account_id, request_ids, sent=sent)
        )

    # Expiry and retention

    async def expire_chunk(self, now_ms: int, *, look_first: bool = True) -> Swept:
        """Expire the next few overdue messages.

        Looks first (unless the last chunk said that there are more), so that an idle queue is not written to.
        """
        numbers = self._writer.numbers
        if look_first and not await self._look(
            lambda connection: sweeping.anything_due(
                connection, numbers.swept_to, numbers.swept_message, now_ms
            )
        ):
            return Swept(0, 0, more=False)
        swept: Swept = await self._writer.submit(
            Lane.SWEEP, weight=0, run=lambda tx: sweeping.expire(tx, now_ms)
        )
        return swept

    async def purge_candidates(
        self, *, after: int, settled_before_ms: int, dead_before_ms: int
    ) -> tuple[list[int], int | None]:
        """Receipts whose retention is over, found on a reader.

        And where to go on (None: the walk is done).
        """
        return await self._read(
            lambda connection: sweeping.purge_candidates(
                connection,
                after=after,
                settled_before=settled_before_ms,
                dead_before=dead_before_ms,
                now=self._now_ms(),
            )
        )

    async def purge(
        self, request_ids: Sequence[int], *, settled_before_ms: int, dead_before_ms: int
    ) -> Purged:
        """Remove these receipts if their retention is over, and messages with their last one."""
        purged: Purged = await self._writer.submit(
            Lane.SWEEP,
            weight=0,
            run=lambda tx: sweeping.purge(
                tx,
                request_ids,
                settled_before=settled_before_ms,
                dead_before=dead_before_ms,
                now=self._now_ms(),
            ),
        )
        return purged

    async def purge_bereft(self, *, before_ms: int) -> Purged:
        """Remove final messages whose last receipt an admin deleted before this time."""
        if not await self._look(lambda connection: sweeping.anything_bereft(connection, before=before_ms)):
            return Purged(0, 0, 0)
        purged: Purged = await self._writer.submit(
            Lane.SWEEP,
            weight=0,
            run=lambda tx: sweeping.purge_bereft(tx, before=before_ms),
        )
        return purged

    async def first_in_question(
        self, *, at_least_ms: int, at_most_ms: int, passing_over_since_ms: int
    ) -> int:
        """Number of the first of the newest messages that all bear a registration time between these two.

        Newer ones from ``passing_over_since_ms`` on are passed over. One above all numbers if there are none.
        """

        def read(connection: Connection) -> int:
            first = redating.first_of_the_newest(
                connection,
                at_least=at_least_ms,
                at_most=at_most_ms,
                passing_over_since=passing_over_since_ms,
            )
            return first if first is not None else redating.last_message(connection) + 1

        return await self._look(read)

    async def redate_chunk(self, first: int, *, right_since_ms: int, now_ms: int) -> int | None:
        """Let a few waiting messages from number ``first`` on have been registered now, but those since then.

        Returns the number to go on with, None at the end.
        """
        if first > await self._look(redating.last_message):
            return None
        await self._writer.submit(
            Lane.SWEEP,
            weight=0,
            run=lambda tx: redating.redate(tx, first=first, right_since=right_since_ms, now=now_ms),
        )
        return first + redating.REDATED_AT_ONCE

    async def clock_mark(self) -> ClockMark:
        """The clock as the last sweep stored it."""
        return await self._look(_read_clock_mark)

    async def keep_clock_mark(
        self,
        *,
        boot_id: str | None,
        offset_ms: int | None,
        now_ms: int | None,
        stopped_since_ms: int | None,
        stop_reason: str | None,
    ) -> None:
        """Store how the clock looks now, and whether expiry is stopped."""
        mark = ClockMark(boot_id, offset_ms, now_ms, stopped_since_ms, stop_reason)
        await self._writer.submit(Lane.SWEEP, weight=0, run=lambda tx: _write_clock_mark(tx, mark))

    # Facts

    def facts(self) -> DatabaseFacts:
        """Sizes and figures of the database; zeros for what is not there (any more)."""
        try:
            free = free_bytes(self._folder)
        except OSError:
            free = 0
        return DatabaseFacts(
            path=self.path,
            size_bytes=_size(self.path),
            wal_bytes=_size(self.path.with_name(self.path.name + "-wal")),
            free_bytes=free,
            sqlite_version=sqlite3.sqlite_version,
            commits=self._writer.commits,
            checkpoints=self._writer.checkpoints,
            waiting_rows=self._writer.waiting_rows,
            waiting_commands=self._writer.waiting_commands,
        )

    @property
    def deliveries(self) -> int:
        """Commands finished so far; while some wait (`facts`), this must grow."""
        return self._writer.deliveries

    def progress(self) -> tuple[int, ...]:
        """Values that change while the writer gets on, also in the middle of something long; asked again and again."""
        return self._writer.progress()

    def working(self) -> tuple[int, ...]:
        """Those of `progress` that change while it is in the middle of something long."""
        return self._writer.working()

    @property
    def writer_thread(self) -> int | None:
        """The thread that writes, as `threading` knows it."""
        return self._writer.thread_id

    def look_after(self, *, say_again: bool = False) -> None:
        """Notice what nobody's request would show while little happens; to be called every few seconds.

        Files that were replaced, commits that would succeed again, a disk that is nearly full or has room again.
        ``say_again`` has troubles that last logged once more.
        """
        self._registration_stopped()
        self._writer.look_after(say_again=say_again)

    def _stopped_this_turn(self) -> StorageFull | None:
        """As `_registration_stopped`, but the disk is looked at once for all requests that come at once."""
        if self._writer.turn_begins:
            self._no_room_this_turn = self._registration_stopped()
        return self._no_room_this_turn

    def _registration_stopped(self) -> StorageFull | None:
        """Why nothing may be registered, if the disk is nearly full; logs when that begins and ends."""
        no_room = self._no_room()
        if (no_room is not None) != self._stopped:
            self._stopped = no_room is not None
            if no_room is not None:
                _log.warning("registration stops: %s", no_room, extra=about(Event.REGISTRATION_STOPPED))
            else:
                _log.warning(
                    "registration goes on: there is more free space than min_free beside %s",
                    self.path,
                    extra=about(Event.REGISTRATION_RESUMED),
                )
        return no_room

    def registration_stopped(self, free_bytes: int) -> bool:
        """Whether so little free space stops registration."""
        return free_bytes < self._min_free_bytes

    def _no_room(self) -> StorageFull | None:
        """Why nothing may be registered, if the disk is nearly full."""
        try:
            free = free_bytes(self._folder)
        except OSError:
            # The folder is gone: the writer finds that out before it acknowledges anything.
            return None
        if not self.registration_stopped(free):
            return None
        return StorageFull(
            f"only {free // 2**20} MiB are free beside {self.path}, less than [database] min_free"
            f" ({self._min_free_bytes // 2**20} MiB); free some space. Reports and deliveries go on"
        )

    def _account_id(self, account: str) -> int:
        try:
            return self._ids[account]
        except KeyError:
            raise NotFound(f"no account is called {account!r}") from None

    def _committed(self, committed: Committed) -> None:
        if committed.events:
            self._listeners.events(committed.events)
        if committed.replayed:
            self._listeners.replayed(
                {self._names[account_id]: ids for account_id, ids in committed.replayed.items()}
            )
        if committed.fresh:
            self._listeners.fresh({self._names[account_id]: n for account_id, n in committed.fresh.items()})

    async def _read(self, query: Callable[[Connection], _T]) -> _T:
        """Run a query that may take a while."""
        return await self._run(self._lists, query)

    async def _look(self, query: Callable[[Connection], _T]) -> _T:
        """Run a query of a few look-ups; never behind one that takes a while."""
        return await self._run(self._looks, query)

    async def _run(self, threads: ThreadPoolExecutor, query: Callable[[Connection], _T]) -> _T:
        def run() -> _T:
            self._require_open()
            connection = self._reader_connection()
            with translated(self.path):
                return query(connection)

        self._require_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, run)
        except StoreUnavailable as error:
            # What can't be read any more may not be added to either, even if the writer has not met it yet.
            if error.fatal and not self._closing:
                self._writer.broken(error)
            raise

    def _reader_connection(self) -> Connection:
        """This reader's own connection, opened at its first query."""
        connection: Connection | None = getattr(self._reader_local, "connection", None)
        if connection is None:
            # SQLite would make an empty database where the queue's is gone.
            self._writer.files.require_names()
            try:
                with translated(self.path):
                    connection = self._reader_engine.connect()
            except StoreUnavailable as error:
                if not cannot_open(error.__cause__):
                    raise
                # Too many open files, most likely; the connections that are open are none the worse for it.
                raise StoreUnavailable(f"no more connections can be opened to read: {error}") from error
            self._reader_local.connection = connection
            self._reader_connections.append(connection)
        return connection

    def _require_open(self) -> None:
        if self._closing:
            raise StoreUnavailable("the daemon is stopping; try again when it runs again")

    def _find_messages(
        self, connection: Connection, narrow: MessageFilter, after: int, limit: int
    ) -> tuple[list[tuple[int, Message]], int | None]:
        column = schema.messages.c
        where: list[ColumnElement[bool]] = []
        account_ids = self._account_ids(narrow.account)
        if narrow.account is not None:
            where.append(column.account_id.in_(account_ids))
        if narrow.state is not None:
            where.append(column.state == schema.STATE_CODES[narrow.state])
        if narrow.waiting is not None:
            where.append(schema.not_final() if narrow.waiting else ~schema.not_final())
        if narrow.before_ms is not None:
            where.append(column.registered_at < narrow.before_ms)
        if narrow.after_ms is not None:
            where.append(column.registered_at > narrow.after_ms)
        if narrow.message_id is not None:
            named = [
                each
                for each in self._reader.named_message(connection, account_ids, narrow.message_id, where)
                if each[0] > after
            ]
            return named[:limit], (named[limit - 1][0] if len(named) > limit else None)
        return self._reader.messages(connection, where, after=after, limit=limit)

    def _find_receipts(
        self, connection: Connection, narrow: ReceiptFilter, after: int, limit: int
    ) -> tuple[list[Receipt], int | None]:
        column = schema.receipts.c
        where: list[ColumnElement[bool]] = []
        account_ids = self._account_ids(narrow.account)
        if narrow.account is not None:
            where.append(column.account_id.in_(account_ids))
        if narrow.state is not None:
            where.append(column.state == schema.STATE_CODES[narrow.state])
        statuses = _statuses(narrow)
        if statuses != frozenset(ReceiptStatus):
            where.append(column.status.in_([schema.STATUS_CODES[status] for status in statuses]))
        if narrow.before_ms is not None:
            where.append(column.created_at < narrow.before_ms)
        if narrow.after_ms is not None:
            where.append(column.created_at > narrow.after_ms)
        if narrow.error_code is not None:
            where.append(column.error_code == narrow.error_code)
        if narrow.message_id is not None:
            ids = [
                each
                for each in self._reader.receipts_of_messages(connection, account_ids, narrow.message_id)
                if each > after
            ]
            found = self._reader.receipts_among(connection, ids, where)
            return found[:limit], (found[limit - 1].request_id if len(found) > limit else None)
        return self._reader.receipts(
            connection,
            where,
            account_ids=account_ids,
            statuses=statuses,
            after=after,
            limit=limit,
        )

    def _account_ids(self, account: str | None) -> list[int]:
        if account is None:
            return list(self._ids.values())
        account_id = self._ids.get(account)
        return [] if account_id is None else [account_id]


def _claimed_ids(claim: Claim | DueClaim) -> list[int]:
    match claim:
        case Claim():
            return [each.receipt.request_id for each in claim.claimed]
        case DueClaim():
            first = () if claim.claimed is None else (claim.claimed,)
            return [each.receipt.request_id for each in (*first, *claim.company)]
        case _:
            assert_never(claim)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lane(items: int) -> Lane:
    return Lane.SINGLE if items == 1 else Lane.BULK


def _statuses(narrow: ReceiptFilter) -> frozenset[ReceiptStatus]:
    statuses = frozenset(ReceiptStatus) if narrow.status is None else frozenset({narrow.status})
    if narrow.waiting is None:
        return statuses
    waiting = frozenset({ReceiptStatus.PENDING, ReceiptStatus.HELD})
    return statuses & waiting if narrow.waiting else statuses - waiting


def _prepare(
    connection: Connection, accounts: Sequence[str], first_request_id: int
) -> tuple[dict[int, str], set[str]]:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    state = schema.queue_state
    if connection.execute(select(state.c.id)).first() is None:
        connection.execute(
            insert(state).values(
                id=1,
                next_request_id=first_request_id,
                next_message=1,
                swept_to=0,
                swept_message=0,
            )
        )
    else:
        connection.execute(
            update(state)
            .where(state.c.next_request_id < bindparam("b_first"))
            .values(next_request_id=bindparam("b_first2")),
            {"b_first": first_request_id, "b_first2": first_request_id},
        )
    rows = connection.execute(select(schema.accounts)).all()
    known = {row.name for row in rows}
    names = {row.id: row.name for row in rows}
    names |= _add_accounts(connection, [name for name in accounts if name not in known])
    connection.exec_driver_sql("COMMIT")
    return names, {row.name for row in rows if row.paused}


def _beyond_restore(
    connection: Connection, path: Path, last: LastRun, first_request_id: int, now_ms: Callable[[], int]
) -> int:
    """Where request ids have to go on: as configured, or far ahead in a database older than the last run's."""
    kept = connection.execute(select(schema.queue_state.c.next_request_id)).scalar() or 1
    if last.next_request_id is None or max(kept, first_request_id) >= last.next_request_id:
        return first_request_id
    # How many that run has used since it was opened nobody knows. The time in milliseconds is above all that
    # any queue has come to that sends less than a thousand a second for its whole life, and still has 13 digits.
    onward = max(now_ms(), last.next_request_id + RESTORED_GAP)
    _log.warning(
        "%s is older than the queue that ran here last (its next request_id is %d, there it was %d): restored from"
        " a backup, it goes on with request_id %d, so that none is used twice. What was registered and reported"
        " since the backup is not in it: let the apps repeat that",
        path,
        kept,
        last.next_request_id,
        onward,
        extra=about(Event.QUEUE_RESTORED, path=str(path)),
    )
    return onward


def _add_accounts(connection: Connection, names: Sequence[str]) -> dict[int, str]:
    added: dict[int, str] = {}
    for name in names:
        connection.execute(insert(schema.accounts).values(name=name, paused=0))
        account_id = connection.execute(
            select(schema.accounts.c.id).where(schema.accounts.c.name == name)
        ).scalar_one()
        added[account_id] = name
        connection.execute(
            insert(schema.message_counts),
            [{"account_id": account_id, "state": code, "rows": 0} for code in schema.STATE_NAMES],
        )
        connection.execute(
            insert(schema.receipt_counts),
            [{"account_id": account_id, "status": code, "rows": 0} for code in schema.STATUSES],
        )
    return added


def _read_clock_mark(connection: Connection) -> ClockMark:
    row = connection.execute(select(schema.queue_state)).one()
    return ClockMark(row.boot_id, row.clock_offset, row.last_now, row.stopped_since, row.stop_reason)


def _write_clock_mark(tx: Transaction, mark: ClockMark) -> None:
    tx.connection.execute(
        update(schema.queue_state).values(
            boot_id=mark.boot_id,
            clock_offset=mark.offset_ms,
            last_now=mark.now_ms,
            stopped_since=mark.stopped_since_ms,
            stop_reason=mark.stop_reason,
        )
    )
