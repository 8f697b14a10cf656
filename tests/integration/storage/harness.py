"""A real store on a real file, with its listeners recorded and its counters recounted.

`opened` is how a test gets a store; when it is left, the counters are compared with a recount of the tables
and the chains of receipts are walked.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlr_buffer.errors import DlrBufferError, StoreUnavailable
from dlr_buffer.messages import Message, MessageState, Registration, Report
from dlr_buffer.receipts import (
    Acknowledged,
    Claim,
    Cut,
    DueClaim,
    MessageView,
    Receipt,
    ReceiptAction,
    ReceiptError,
    ReceiptStatus,
    RefusalPolicy,
    Refused,
    Registered,
    Reported,
    Settled,
)
from dlr_buffer.selection import ActionCount, MessageAction, MessageName
from dlr_buffer.storage import schema
from dlr_buffer.storage.store import SqliteStore, StoreListeners
from dlr_buffer.storage.transaction import Transaction
from dlr_buffer.storage.writer import Lane
from tests.clocks import FakeClock

HOUR = 3_600_000
DAY = 24 * HOUR
VALIDITY = 3 * DAY
WRONG = ReceiptError("no-such-message", "No such message", "Please check the id")
POLICY = RefusalPolicy(max_refusals=3, lifetime_ms=7 * DAY, backoff_ms=lambda refusals: refusals * 1000)

ENROUTE, DELIVERED = MessageState.ENROUTE, MessageState.DELIVERED
ACCEPTED, UNKNOWN = MessageState.ACCEPTED, MessageState.UNKNOWN
EXPIRED, REJECTED = MessageState.EXPIRED, MessageState.REJECTED
UNDELIVERABLE = MessageState.UNDELIVERABLE
PENDING, HELD = ReceiptStatus.PENDING, ReceiptStatus.HELD
ACKNOWLEDGED, SUPERSEDED = ReceiptStatus.ACKNOWLEDGED, ReceiptStatus.SUPERSEDED
DEAD = ReceiptStatus.DEAD


@dataclass(slots=True)
class Heard:
    """What the store told its listeners."""

    fresh: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    failures: list[StoreUnavailable] = field(default_factory=list)
    replayed: Callable[[Mapping[str, Sequence[int]]], None] = lambda _replayed: None
    """Who is told of receipts that an admin made due."""

    def add_fresh(self, counts: Mapping[str, int]) -> None:
        """Receipts became claimable."""
        self.fresh.update(counts)

    def add_events(self, counts: Mapping[str, int]) -> None:
        """Something to count in metrics."""
        self.events.update(counts)


@dataclass(slots=True)
class Queue:
    """A store with shorter calls for tests: one account, one policy, and the time of one clock."""

    store: SqliteStore
    clock: FakeClock
    heard: Heard
    account: str = "default"

    async def register(
        self, *message_ids: str, validity: int | None = None, account: str | None = None
    ) -> list[Registered | DlrBufferError]:
        """Register messages in one call."""
        items = [Registration(each, account or self.account, validity) for each in message_ids]
        return await self.store.register(items, default_validity_ms=VALIDITY, now_ms=self.clock.now_ms())

    async def report(
        self, *items: tuple[str, MessageState], account: str | None = None, may_register: bool = True
    ) -> list[Reported | DlrBufferError]:
        """Report states in one call."""
        name = account or self.account
        return await self.store.report(
            [Report(message_id, state, name) for message_id, state in items],
            default_validity_ms=VALIDITY,
            register_in=frozenset({name}) if may_register else frozenset(),
            now_ms=self.clock.now_ms(),
        )

    async def report_one(self, message_id: str, state: MessageState, account: str | None = None) -> int:
        """Report a new state; returns the request_id of its receipt."""
        (outcome,) = await self.report((message_id, state), account=account)
        assert isinstance(outcome, Reported), outcome
        assert outcome.receipt is not None
        return outcome.receipt.request_id

    async def claim(
        self, limit: int = 1000, account: str | None = None, excluding: Iterable[int] = ()
    ) -> list[int]:
        """Put fresh receipts in flight; returns their ids."""
        claim: Claim = await self.store.claim(
            account or self.account, limit=limit, excluding=set(excluding), cut=lambda all_: Cut(len(all_))
        )
        return [each.receipt.request_id for each in claim.claimed]

    async def claim_due(self, horizon_ms: int = 600_000, account: str | None = None) -> DueClaim:
        """Put one receipt in flight that waited out a refusal."""
        return await self.store.claim_due(
            account or self.account, now_ms=self.clock.now_ms(), horizon_ms=horizon_ms
        )

    async def claim_replays(self, limit: int = 1000, account: str | None = None) -> list[int]:
        """Put those in flight that an admin replays; returns their ids."""
        claim: DueClaim = await self.store.claim_due(
            account or self.account, now_ms=self.clock.now_ms(), horizon_ms=600_000, limit=limit
        )
        found = (*(() if claim.claimed is None else (claim.claimed,)), *claim.company)
        return [each.receipt.request_id for each in found]

    async def settle(
        self,
        *,
        acknowledged: Iterable[int] = (),
        refused: Iterable[int] = (),
        returned: Sequence[int] = (),
        sent: bool = True,
        policy: RefusalPolicy = POLICY,
        account: str | None = None,
    ) -> Settled:
        """Write what came of a request."""
        return await self.store.settle(
            account or self.account,
            acknowledged=[Acknowledged(each, f"answer-{each}") for each in acknowledged],
            refused=[Refused(each, WRONG) for each in refused],
            returned=returned,
            sent=sent,
            policy=policy,
            now_ms=self.clock.now_ms(),
        )

    async def acknowledge_all(self, account: str | None = None) -> int:
        """Send and acknowledge whatever is fresh; returns how many."""
        total = 0
        while ids := await self.claim(account=account):
            await self.settle(acknowledged=ids, account=account)
            total += len(ids)
        return total

    async def kill(self, message_id: str, state: MessageState = DELIVERED) -> int:
        """Report a state whose receipt becomes a dead letter; returns its request_id."""
        request_id = await self.report_one(message_id, state)
        claim = await self.store.claim_these(self.account, [request_id])
        assert len(claim.claimed) == 1
        await self.settle(refused=[request_id], policy=RefusalPolicy(1, DAY, lambda _: 1000))
        return request_id

    async def act(
        self, action: ReceiptAction, *request_ids: int, dry_run: bool = False
    ) -> tuple[int, int, int]:
        """Have an admin act on receipts; returns how many changed, were skipped, were in flight."""
        count = await self.store.steer_receipts(
            action, request_ids, now_ms=self.clock.now_ms(), dry_run=dry_run
        )
        return _plain(count)

    async def act_on_messages(
        self, action: MessageAction, *message_ids: str, dry_run: bool = False
    ) -> tuple[int, int, int]:
        """Have an admin act on messages."""
        count = await self.store.steer_messages(
            action,
            [MessageName(self.account, each) for each in message_ids],
            now_ms=self.clock.now_ms(),
            dry_run=dry_run,
        )
        return _plain(count)

    async def view(self, message_id: str, account: str | None = None) -> MessageView:
        """A message with its receipts; it must be there."""
        view = await self.store.message(MessageName(account or self.account, message_id))
        assert view is not None
        return view

    async def message(self, message_id: str, account: str | None = None) -> Message:
        """A message; it must be there."""
        return (await self.view(message_id, account)).message

    async def gone(self, message_id: str) -> bool:
        """Whether the queue does not know this message."""
        return await self.store.message(MessageName(self.account, message_id)) is None

    async def receipt(self, request_id: int) -> Receipt:
        """A receipt; it must be there."""
        view = await self.store.receipt(request_id)
        assert view is not None
        return view.receipt

    async def status(self, request_id: int) -> ReceiptStatus:
        """What has become of a receipt."""
        return (await self.receipt(request_id)).status

    async def statuses(self, message_id: str) -> list[tuple[MessageState, ReceiptStatus]]:
        """The receipts of a message, oldest first."""
        view = await self.view(message_id)
        return [(each.receipt.message_state, each.receipt.status) for each in view.receipts]

    async def expire(self) -> int:
        """Expire all that is due by the clock; returns how many."""
        total, more = 0, True
        while more:
            swept = await self.store.expire_chunk(self.clock.now_ms())
            total, more = total + swept.expired, swept.more
        return total

    def hold_writer(self) -> Barrier:
        """Keep the writer busy, so that what is submitted meanwhile gathers in one group."""
        return Barrier(self.store)


class Barrier:
    """Blocks the writer's thread while it is entered."""

    def __init__(self, store: SqliteStore) -> None:
        """Block nothing yet."""
        self._store = store
        self._reached = threading.Event()
        self._go_on = threading.Event()
        self._command: asyncio.Task[Any] | None = None

    def _block(self, _tx: Transaction) -> None:
        self._reached.set()
        assert self._go_on.wait(60)

    async def __aenter__(self) -> None:
        """Return once the writer's thread is blocked."""
        self._command = asyncio.create_task(self._store._writer.submit(Lane.SETTLE, run=self._block))
        assert await asyncio.to_thread(self._reached.wait, 60)

    async def __aexit__(self, *_exc: object) -> None:
        """Let the writer go on; what was submitted meanwhile is its next group."""
        # Whoever was started as a task before has to come as far as submitting.
        for _ in range(5):
            await asyncio.sleep(0)
        self._go_on.set()
        assert self._command is not None
        await self._command


@asynccontextmanager
async def opened(
    path: Path,
    clock: FakeClock | None = None,
    *,
    accounts: Sequence[str] = ("default",),
    min_free_bytes: int = 0,
    first_request_id: int = 1,
) -> AsyncIterator[Queue]:
    """Open the queue at ``path``, and check it when it is closed."""
    clock, heard = clock or FakeClock(), Heard()
    store = await SqliteStore.open(
        path,
        accounts=accounts,
        min_free_bytes=min_free_bytes,
        first_request_id=first_request_id,
        listeners=StoreListeners(
            heard.add_fresh,
            heard.add_events,
            heard.failures.append,
            # Who listens is said after the queue was opened.
            lambda ids: heard.replayed(ids),  # noqa: PLW0108 - looked up at each call
        ),
        now_ms=clock.now_ms,
    )
    try:
        yield Queue(store, clock, heard, accounts[0])
    finally:
        await store.close()
    counts = store.counts()
    assert_counters(path)
    messages, receipts = recount(path)
    assert {(name, key): n for name, by in counts.messages.items() for key, n in by.items() if n} == messages
    assert {(name, key): n for name, by in counts.receipts.items() for key, n in by.items() if n} == receipts
    assert_linked(path)


def crash_copy(path: Path, target: Path) -> Path:
    """What a killed daemon leaves behind: the database and its log as they are on the disk now."""
    for ending in ("", "-wal"):
        source = path.with_name(path.name + ending)
        if source.exists():
            shutil.copyfile(source, target.with_name(target.name + ending))
    return target


def rows(path: Path, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What a query finds, on a connection of its own."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query, parameters).fetchall()


def recount(path: Path) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """Count the tables: messages by account and state, receipts by account and status."""
    messages = {
        (name, schema.STATE_NAMES[state]): n
        for name, state, n in rows(
            path,
            "SELECT name, state, count(*) FROM messages JOIN accounts ON accounts.id = account_id GROUP BY 1, 2",
        )
    }
    receipts = {
        (name, schema.STATUSES[status].value): n
        for name, status, n in rows(
            path,
            "SELECT name, status, count(*) FROM receipts JOIN accounts ON accounts.id = account_id GROUP BY 1, 2",
        )
    }
    return messages, receipts


def assert_counters(path: Path) -> None:
    """The counter tables say what a recount says."""
    for table, counted, code in (
        ("messages", "message_counts", "state"),
        ("receipts", "receipt_counts", "status"),
    ):
        kept = rows(path, f"SELECT account_id, {code}, rows FROM {counted} WHERE rows <> 0 ORDER BY 1, 2")
        real = rows(path, f"SELECT account_id, {code}, count(*) FROM {table} GROUP BY 1, 2 ORDER BY 1, 2")
        assert kept == real


def assert_linked(path: Path) -> None:
    """Every receipt is reached from its message, newest first; no history and no final message is orphaned."""
    receipts = {
        row[0]: row for row in rows(path, "SELECT request_id, message, previous_id, account_id FROM receipts")
    }
    seen: set[int] = set()
    bereft = {row[0] for row in rows(path, "SELECT message FROM bereft")}
    for message, account_id, newest, state in rows(
        path, "SELECT id, account_id, receipt_id, state FROM messages"
    ):
        at = newest
        while at in receipts:
            assert receipts[at][1] == message
            assert receipts[at][3] == account_id
            seen.add(at)
            at = receipts[at][2]
        if newest not in receipts:
            assert newest <= 0
            assert (message in bereft) == (state >= schema.FIRST_FINAL), "it would never be purged"
    assert seen == set(receipts)
    assert not rows(path, "SELECT 1 FROM history WHERE request_id NOT IN (SELECT request_id FROM receipts)")
    assert not rows(path, "SELECT 1 FROM bereft WHERE message NOT IN (SELECT id FROM messages)")


def _plain(count: ActionCount) -> tuple[int, int, int]:
    return count.changed, count.skipped, count.in_flight
