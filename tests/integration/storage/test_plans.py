"""No statement scans the queue: EXPLAIN QUERY PLAN of everything that a working day runs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, event

from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from dlr_buffer.selection import MessageAction, MessageFilter, ReceiptFilter
from dlr_buffer.storage import prepared
from dlr_buffer.storage.prepared import driver
from tests.integration.storage.harness import (
    ACCEPTED,
    DAY,
    DELIVERED,
    ENROUTE,
    Queue,
    opened,
)
from tests.loops import on_loop

MAY_BE_SCANNED = re.compile(r"SCAN (queue_state|accounts|anon_\d+|given|\d+ CONSTANT ROWS)\b")
"""One row, the accounts, SQLAlchemy's names for subqueries and json_each, and rows that come with the statement."""
MAY_BE_SORTED = (
    "ORDER BY history.id",  # the history of one page
    "ORDER BY messages.id",  # one message id, in each account
)

HOT = {
    "fresh": (r"status = 2 AND receipts.next_attempt_at IS NULL .*request_id >= ", "receipts_fresh"),
    "due": (r"next_attempt_at <= .* ORDER BY receipts.next_attempt_at LIMIT", "receipts_due"),
    "far": (r"ORDER BY receipts.next_attempt_at DESC", "receipts_due"),
    "next due": (r"^SELECT receipts.next_attempt_at FROM", "COVERING INDEX receipts_due"),
    "known messages": (r"^SELECT messages.id, .* messages.message_id IN \(SELECT", "messages_name"),
    "one message": (r"AND messages.message_id = \?$", "messages_name"),
    "expiry, later": (r"messages.expires_at > \? AND messages.expires_at <= \?", "messages_expiry"),
    "expiry, same moment": (r"messages.expires_at = \? AND messages.id > \?", "messages_expiry"),
    "change state": (r"^UPDATE messages SET state", "INTEGER PRIMARY KEY"),
    "supersede": (r"^UPDATE receipts SET status=5, .* BETWEEN 2 AND 3", "INTEGER PRIMARY KEY"),
    "acknowledge": (r"^UPDATE receipts SET .*response_id=", "INTEGER PRIMARY KEY"),
    "retention": (
        r"WHERE receipts.request_id > \? ORDER BY receipts.request_id LIMIT",
        "INTEGER PRIMARY KEY",
    ),
    "oldest fresh": (r"^SELECT receipts.created_at .*next_attempt_at IS NULL", "receipts_fresh"),
    "oldest due": (r"^SELECT min\(receipts.request_id\)", "receipts_backing_off"),
    "list of what backs off": (
        r"^SELECT anon_1.* receipts.next_attempt_at IS NOT NULL AND receipts.request_id >",
        "receipts_backing_off (account_id=? AND rowid>?)",
    ),
    "bereft": (r"FROM bereft JOIN messages", "bereft_since"),
    "held": (r"status = 3 AND", "receipts_held"),
    "dead": (r"status = 6 AND", "receipts_dead"),
    "history": (r"^SELECT history", "history_receipt"),
}


@contextmanager
def recorded(queue: Queue) -> Iterator[dict[str, Any]]:
    """Every statement that is run, with parameters of one run."""
    seen: dict[str, Any] = {}

    def note(*facts: Any) -> None:  # noqa: ANN401 - SQLAlchemy gives six
        _connection, _cursor, statement, values, _context, many = facts
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            seen.setdefault(" ".join(statement.split()), values[0] if many else values)

    class Noting:
        """Stands for the driver's connection where prepared statements are given to it."""

        def __init__(self, connection: Connection) -> None:
            self._raw = driver(connection)

        def execute(self, sql: str, values: Any) -> sqlite3.Cursor:  # noqa: ANN401 - as the driver's
            note(None, None, sql, values, None, None)
            return self._raw.execute(sql, values)

        def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:  # noqa: ANN401 - as the driver's
            rows = list(values)
            note(None, None, sql, rows, None, "many")
            return self._raw.executemany(sql, rows)

    targets = [queue.store._writer._connection, queue.store._reader_engine]
    for target in targets:
        event.listen(target, "before_cursor_execute", note)
    with patch.object(prepared, "driver", Noting):
        yield seen
    for target in targets:
        event.remove(target, "before_cursor_execute", note)


async def work_a_day(queue: Queue) -> None:
    """Call everything that the store offers, with something for each to find."""
    store, now = queue.store, queue.clock.now_ms
    names = [f"m{n}" for n in range(60)]
    await queue.register(*names)
    await queue.report(*((name, ENROUTE) for name in names))
    await queue.report(*((name, ACCEPTED) for name in names[:20]))
    ids = await queue.claim(limit=20)
    await queue.settle(acknowledged=ids[:10], refused=ids[10:15], returned=ids[15:])
    await queue.claim_due()
    queue.clock.advance(10_000)
    due = await queue.claim_due()
    assert due.claimed is not None
    await queue.report((due.claimed.receipt.message_id, DELIVERED))
    await queue.settle(returned=[due.claimed.receipt.request_id])
    await queue.kill("dead")
    await store.claim_these("default", [50, 51])
    for status in (None, *ReceiptStatus):
        for account in (None, "default"):
            await store.list_receipts(ReceiptFilter(status=status, account=account), after=0, limit=5)
    await store.list_receipts(ReceiptFilter(waiting=True, error_code="x"), after=0, limit=5)
    await store.list_receipts(ReceiptFilter(message_id="m1"), after=0, limit=5)
    for narrow in (
        MessageFilter(waiting=True),
        MessageFilter(message_id="m1"),
        MessageFilter(account="default"),
    ):
        await store.list_messages(narrow, after=0, limit=5)
    await store.oldest()
    await store.look_for_oldest()
    await queue.view("m1")
    await store.receipt(1)
    for action in (ReceiptAction.HOLD, ReceiptAction.RELEASE, ReceiptAction.RETRY, ReceiptAction.DELETE):
        await queue.act(action, 60, 61)
    for message_action in MessageAction:
        await queue.act_on_messages(message_action, "m30", "m31")
    queue.clock.advance(40 * DAY)
    await queue.expire()
    await queue.acknowledge_all()
    queue.clock.advance(40 * DAY)
    found, _ = await store.purge_candidates(after=0, settled_before_ms=now(), dead_before_ms=now())
    await store.purge(found, settled_before_ms=now(), dead_before_ms=now())
    await store.purge_bereft(before_ms=now())


@on_loop
async def test_nothing_scans_or_sorts_the_queue(path: Path) -> None:
    """Every statement reaches its rows by an index, in the index's order where it promises one."""
    async with opened(path) as queue:
        with recorded(queue) as seen:
            await work_a_day(queue)
    assert len(seen) > 30
    plans: dict[str, list[str]] = {}
    with closing(sqlite3.connect(path)) as database:
        for statement, values in seen.items():
            steps = database.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()
            plan = plans[statement] = [row[3] for row in steps]
            # What a subquery gave, cut to a page and in order, may be merged with that of others.
            merging = {row[1] for row in steps if row[3].startswith("SCAN anon_")}
            for _, parent, _, step in steps:
                assert not step.startswith("SCAN") or MAY_BE_SCANNED.match(step), (statement, step)
                if "TEMP B-TREE" in step and parent not in merging:
                    assert any(each in statement for each in MAY_BE_SORTED), (statement, plan)
    for name, (pattern, index) in HOT.items():
        matching = {statement: plan for statement, plan in plans.items() if re.search(pattern, statement)}
        assert matching, f"no statement looks like {name}"
        for statement, plan in matching.items():
            assert any(index in step for step in plan), (name, statement, plan)
    for name in ("fresh", "due", "far", "next due", "expiry, later", "expiry, same moment", "oldest fresh"):
        for statement, plan in plans.items():
            if re.search(HOT[name][0], statement):
                assert not any("TEMP B-TREE" in step for step in plan), (name, plan)


@on_loop
async def test_what_backs_off_is_not_walked(path: Path) -> None:
    """`status` and a page of pending receipts cost the same however many wait out a refusal."""
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    async def cost() -> tuple[int, int]:
        nonlocal steps
        steps = 0
        oldest = await queue.store.oldest()
        assert oldest.pending_ms == {"default": queue.clock.now_ms()}
        status, steps = steps, 0
        page = await queue.store.list_receipts(ReceiptFilter(status=ReceiptStatus.PENDING), after=0, limit=10)
        assert [each.request_id for each in page.items] == list(range(1, 11))
        return status, steps

    async def refuse(first: int, last: int) -> None:
        await queue.report(*((f"m{n}", DELIVERED) for n in range(first, last)))
        await queue.settle(refused=await queue.claim(limit=last - first))

    async with opened(path) as queue:
        event.listen(
            queue.store._reader_engine, "connect", lambda raw, _record: raw.set_progress_handler(tick, 10)
        )
        await refuse(0, 2000)
        few = await cost()
        await refuse(2000, 6000)
        many = await cost()
        assert min(few) > 0
        assert many[0] <= few[0] + 2
        assert many[1] <= few[1] * 1.05
