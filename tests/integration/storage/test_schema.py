"""The migrated schema: equal to the one in code, and unable to hold an illegal row."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, create_engine
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.schema import CreateIndex

import dlr_buffer.storage.migrate
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptStatus
from dlr_buffer.storage import schema
from tests.integration.storage.harness import DELIVERED, ENROUTE, HOUR, opened, rows
from tests.loops import on_loop

MESSAGE = {
    "id": 1,
    "account_id": 1,
    "message_id": "m",
    "state": 2,
    "implicit": 0,
    "registered_at": 10,
    "expires_at": 20,
    "changed_at": 10,
    "receipt_id": -1,
}
RECEIPT = {
    "request_id": 5,
    "message": 1,
    "account_id": 1,
    "state": 3,
    "status": 2,
    "attempts": 0,
    "refusals": 0,
    "created_at": 10,
    "counted_since": 10,
    "next_attempt_at": None,
    "settled_at": None,
    "response_id": None,
    "error_code": None,
    "error_title": None,
    "error_detail": None,
    "previous_id": None,
}
ERROR = {"error_code": "c", "error_title": "t", "error_detail": "d"}
STATE = {
    "id": 1,
    "next_request_id": 1,
    "next_message": 1,
    "swept_to": 0,
    "swept_message": 0,
    "boot_id": None,
    "clock_offset": None,
    "last_now": None,
    "stopped_since": None,
    "stop_reason": None,
}
ACCOUNT = {"name": "a", "paused": 0}
Row = dict[str, Any]
TABLES: dict[str, Row] = {
    "messages": MESSAGE,
    "receipts": RECEIPT,
    "queue_state": STATE,
    "accounts": ACCOUNT,
}

ILLEGAL: list[tuple[str, str, dict[str, Any]]] = [
    ("messages_state", "messages", {"state": 1}),
    ("messages_state", "messages", {"state": 10}),
    ("messages_implicit", "messages", {"implicit": 2}),
    ("messages_validity", "messages", {"expires_at": 10}),
    ("messages_message_id", "messages", {"message_id": ""}),
    ("messages_message_id", "messages", {"message_id": "x" * 256}),
    ("messages_message_id", "messages", {"message_id": "é" * 128}),
    ("messages_message_id", "messages", {"message_id": b"bytes"}),
    ("messages_receipt", "messages", {"receipt_id": 7}),
    ("receipts_state", "receipts", {"state": 2}),
    ("receipts_state", "receipts", {"state": 10}),
    ("receipts_status", "receipts", {"status": 1}),
    ("receipts_status", "receipts", {"status": 7, "settled_at": 1}),
    ("receipts_counts", "receipts", {"attempts": -1}),
    ("receipts_counts", "receipts", {"refusals": -1}),
    ("receipts_settled", "receipts", {"settled_at": 11}),
    ("receipts_settled", "receipts", {"status": 3, "settled_at": 11}),
    ("receipts_settled", "receipts", {"status": 4}),
    ("receipts_settled", "receipts", {"status": 5}),
    ("receipts_settled", "receipts", {"status": 6, **ERROR}),
    ("receipts_next_attempt", "receipts", {"status": 3, "next_attempt_at": 5}),
    ("receipts_next_attempt", "receipts", {"status": 4, "settled_at": 5, "next_attempt_at": 5}),
    ("receipts_response", "receipts", {"response_id": "9"}),
    ("receipts_error_title", "receipts", {**ERROR, "error_title": None}),
    ("receipts_error_detail", "receipts", {**ERROR, "error_detail": None}),
    ("receipts_error_title", "receipts", {"error_title": "t"}),
    ("receipts_error_detail", "receipts", {"error_detail": "d"}),
    ("receipts_dead_says_why", "receipts", {"status": 6, "settled_at": 5}),
    ("receipts_previous", "receipts", {"previous_id": 5}),
    ("receipts_superseded", "receipts", {"status": 5, "settled_at": 5, "state": 6}),
    ("queue_state_single", "queue_state", {"id": 2}),
    ("queue_state_ids", "queue_state", {"next_request_id": 0}),
    ("queue_state_ids", "queue_state", {"next_message": 0}),
    ("queue_state_stop", "queue_state", {"stopped_since": 5}),
    ("queue_state_stop", "queue_state", {"stop_reason": "leapt"}),
    ("accounts_paused", "accounts", {"paused": 2}),
]
LEGAL: list[tuple[str, dict[str, Any]]] = [
    ("messages", {}),
    ("messages", {"state": 3, "receipt_id": 7}),
    ("messages", {"message_id": "é" * 127}),
    ("receipts", {}),
    ("receipts", {"next_attempt_at": 50, "refusals": 1, **ERROR}),
    ("receipts", {"status": 3}),
    ("receipts", {"status": 4, "settled_at": 11, "response_id": "9"}),
    ("receipts", {"status": 5, "settled_at": 11, "previous_id": 4}),
    ("receipts", {"status": 6, "settled_at": 11, **ERROR}),
    ("queue_state", {"stopped_since": 5, "stop_reason": "leapt"}),
]


def put(database: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row."""
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))


@pytest.mark.parametrize(("constraint", "table", "changes"), ILLEGAL)
def test_an_illegal_row_cannot_be(path: Path, constraint: str, table: str, changes: dict[str, Any]) -> None:
    """The CHECK of that name refuses the row, whoever writes it."""
    refused = pytest.raises(sqlite3.IntegrityError, match=f"CHECK constraint failed: {constraint}")
    with closing(sqlite3.connect(path)) as database, refused:
        put(database, table, TABLES[table] | changes)


@pytest.mark.parametrize(("table", "changes"), LEGAL)
def test_a_legal_row_can_be(path: Path, table: str, changes: dict[str, Any]) -> None:
    """The rows that the illegal ones were made from are taken, so it is the change that is refused."""
    with closing(sqlite3.connect(path)) as database:
        put(database, table, TABLES[table] | changes)


def test_every_check_is_tried() -> None:
    """No CHECK constraint is without an illegal row above (the counters' are struck in other tests)."""
    names = {
        str(constraint.name)
        for table in schema.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert names == {name for name, _, _ in ILLEGAL} | {"message_counts_rows", "receipt_counts_rows"}


@pytest.mark.parametrize(("table", "code"), [("message_counts", "state"), ("receipt_counts", "status")])
def test_a_counter_cannot_be_negative(path: Path, table: str, code: str) -> None:
    """A counter below zero, which would be a lie, is refused."""
    with (
        closing(sqlite3.connect(path)) as database,
        pytest.raises(sqlite3.IntegrityError, match=f"{table}_rows"),
    ):
        put(database, table, {"account_id": 1, code: 2, "rows": -1})


def test_names_are_unique_byte_for_byte(path: Path) -> None:
    """One message per account and id: the same id again is refused, another account or case is not."""
    with closing(sqlite3.connect(path)) as database:
        put(database, "messages", MESSAGE)
        put(database, "messages", MESSAGE | {"id": 2, "message_id": "M"})
        put(database, "messages", MESSAGE | {"id": 3, "account_id": 2})
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            put(database, "messages", MESSAGE | {"id": 4})


def test_the_migrated_schema_is_the_one_in_code(path: Path) -> None:
    """Alembic finds no difference, and every CHECK and every index says the same in both, word for word."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()
    made = dict(rows(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    for table in schema.metadata.tables.values():
        wanted = {
            (str(each.name), _plain(str(each.sqltext)))
            for each in table.constraints
            if isinstance(each, CheckConstraint)
        }
        assert _checks(made[table.name]) == wanted
        for index in table.indexes:
            statement = str(CreateIndex(index).compile(dialect=dialect.dialect()))
            assert _plain(made[str(index.name)]) == _plain(statement)


def test_head_is_alembics() -> None:
    """The version that the daemon compares with is the newest migration's, and there is one line of them."""
    folder = Path(dlr_buffer.storage.migrate.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_every_state_and_status_has_a_code() -> None:
    """States and statuses are written one to one, final states above the others, all within the CHECKs."""
    assert set(schema.STATE_CODES) == set(MessageState)
    assert sorted(schema.STATES) == list(range(3, 10))
    assert all((code >= schema.FIRST_FINAL) == state.final for code, state in schema.STATES.items())
    assert set(schema.STATUS_CODES) == set(ReceiptStatus)
    assert sorted(schema.STATUSES) == list(range(2, 7))


@on_loop
async def test_a_message_does_not_grow_when_it_is_reported_on(path: Path) -> None:
    """Registered, intermediate and final, a message's row takes the same bytes, so its page is never split."""
    async with opened(path, first_request_id=1_000_000) as queue:
        await queue.register(*(f"m{n}" for n in range(50)))
        waiting = row_bytes(path)
        queue.clock.advance(HOUR)
        await queue.report(*((f"m{n}", ENROUTE) for n in range(50)))
        assert row_bytes(path) == waiting
        await queue.report(*((f"m{n}", DELIVERED) for n in range(50)))
        assert row_bytes(path) == waiting
        await queue.acknowledge_all()
        assert row_bytes(path) == waiting


def row_bytes(path: Path) -> list[int]:
    """The bytes of each message's record (SQLite's file format, §2.1: the sizes of its values)."""
    return [
        sum(len(value.encode()) if isinstance(value, str) else _integer_bytes(value) for value in row)
        for row in rows(
            path,
            "SELECT message_id, account_id, state, implicit, registered_at, expires_at, changed_at, receipt_id"
            " FROM messages ORDER BY id",
        )
    ]


def _integer_bytes(value: int) -> int:
    if value in (0, 1):
        return 0
    return next(size for size in (1, 2, 3, 4, 6, 8) if -(1 << (8 * size - 1)) <= value < 1 << (8 * size - 1))


def _checks(statement: str) -> set[tuple[str, str]]:
    found = set()
    for start in re.finditer(r"CONSTRAINT (\w+) CHECK \(", statement):
        depth, end = 1, start.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(statement[end], 0)
            end += 1
        found.add((start[1], _plain(statement[start.end() : end - 1])))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())
