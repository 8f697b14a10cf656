"""What apps were answered, read from the recorded bytes, and whether a database holds it.

Requests and answers of one connection follow each other, so that an answer belongs to what was received on it since
the last one. Only 2xx answers promise anything; an app's promise of a message that an admin deletes, or retention soon
takes (`DOOMED`, `REFUSED`), is not remembered.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, assert_never

from dlr_buffer.receipts import ReceiptStatus
from dlr_buffer.storage.schema import HEAD, STATE_NAMES, STATUS_CODES
from tests.crash.power.recording import Kind, Record
from tests.integration.storage.harness import assert_counters, assert_linked

HELD: Final = "-held"
DOOMED: Final = "-doomed"
REFUSED: Final = "-refused"
_FORGETTABLE: Final = (DOOMED, REFUSED)


class Fate(StrEnum):
    """What was promised."""

    THERE = "there"
    HELD = "held"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing that an app or an admin was told is durable.

    A message (``state`` None), or a receipt of it, and the receipt's id if it was told; or that a receipt is held, or
    a message gone.
    """

    message_id: str = ""
    state: str | None = None
    request_id: int | None = None
    fate: Fate = Fate.THERE


class Listener:
    """Follows what is said on the sockets."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._asked: dict[int, bytes] = {}
        self._answered: dict[int, bytes] = {}

    def hear(self, record: Record) -> list[Promise]:
        """Follow one record; returns what is promised by the answer that it ends."""
        match record.kind:
            case Kind.START:
                self._asked.clear()
                self._answered.clear()
            case Kind.RECV:
                if self._answered.pop(record.fd, None) is not None:
                    self._asked.pop(record.fd, None)
                self._asked[record.fd] = self._asked.get(record.fd, b"") + record.content
            case Kind.SEND if record.fd in self._asked:
                answer = self._answered.get(record.fd, b"") + record.content
                self._answered[record.fd] = answer
                return _promises(self._asked[record.fd], answer)
            case _:
                pass
        return []


def _promises(request: bytes, answer: bytes) -> list[Promise]:
    """What an answer promises, as soon as its body is whole."""
    if not answer.startswith(b"HTTP/1.1 2") or not request.startswith(b"POST /v1/"):
        return []
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    if len(body) != length:
        return []
    line, _, asked = request.partition(b"\r\n\r\n")
    told = json.loads(body)
    if "errors" in told:
        assert not told["errors"], told
        promises = [Promise(item["message_id"], item.get("message_state")) for item in _items(asked)]
    elif "changed" in told:
        wanted = json.loads(asked)
        if told["changed"] != 1:
            return []
        if line.startswith(b"POST /v1/receipts/hold "):
            return [Promise(request_id=int(wanted["request_ids"][0]), fate=Fate.HELD)]
        return [Promise(wanted["message_ids"][0], fate=Fate.GONE)]
    elif line.startswith(b"POST /v1/messages "):
        promises = [Promise(told["message_id"])]
    else:
        promises = [Promise(told["message_id"], told["message_state"], int(told["request_id"]))]
    return [each for each in promises if not each.message_id.endswith(_FORGETTABLE)]


def _items(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


class Broken(AssertionError):
    """A database after a power cut is not what it should be."""


@contextmanager
def _readable(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection for looking, which brings in the log without syncing; raises Broken if that fails."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA synchronous = OFF")
            yield connection
        except sqlite3.Error as error:
            raise Broken(f"the database can't be read: {error}") from error


def check_promises(database: Path, promises: set[Promise]) -> None:
    """Raise Broken unless the database has everything that was promised."""
    if not database.exists() or not database.stat().st_size:
        if promises:
            raise Broken(f"there is no database, but {len(promises)} answers were given")
        return
    with _readable(database) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            if promises:
                raise Broken(f"the database is empty, but {len(promises)} answers were given")
            return
        found = _Found.of(connection)
    missing = [promise for promise in promises if not found.keeps(promise)]
    if missing:
        raise Broken(f"{len(missing)} of {len(promises)} answered are missing, such as {missing[0]}")


@dataclass(frozen=True, slots=True)
class _Found:
    """What a database has of what can be promised."""

    messages: frozenset[str]
    receipts: dict[tuple[str, str], int]
    """Request ids by message and state."""
    held: frozenset[int]

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> _Found:
        """Look."""
        receipts: dict[tuple[str, str], int] = {}
        held = set()
        for message_id, state, status, request_id in connection.execute(
            "SELECT message_id, receipts.state, status, request_id FROM receipts JOIN messages ON message = messages.id"
        ):
            receipts[message_id, STATE_NAMES[state]] = request_id
            if status == STATUS_CODES[ReceiptStatus.HELD]:
                held.add(request_id)
        messages = frozenset(row[0] for row in connection.execute("SELECT message_id FROM messages"))
        return cls(messages, receipts, frozenset(held))

    def keeps(self, promise: Promise) -> bool:
        """Whether what was promised is so."""
        match promise.fate:
            case Fate.HELD:
                return promise.request_id in self.held
            case Fate.GONE:
                return promise.message_id not in self.messages
            case Fate.THERE if promise.state is None:
                return promise.message_id in self.messages
            case Fate.THERE:
                found = self.receipts.get((promise.message_id, str(promise.state)))
                return found is not None and promise.request_id in (None, found)
            case _:
                assert_never(promise.fate)


def check_whole(database: Path) -> None:
    """Raise Broken if the database is torn: damaged, of another schema, miscounted or badly linked."""
    if not database.exists() or not database.stat().st_size:
        return
    with _readable(database) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
        if found != [("ok",)]:
            raise Broken(f"the database is damaged: {found[:3]}")
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            return
        if (version := connection.execute("SELECT version_num FROM alembic_version").fetchall()) != [(HEAD,)]:
            raise Broken(f"the schema is {version}")
    try:
        assert_counters(database)
        assert_linked(database)
    except (AssertionError, sqlite3.Error) as error:
        raise Broken(f"a transaction is torn: {error}") from error
