"""Looking through a whole database for damage: its pages, its schema, and what must hold between its rows.

Everything is read in one transaction on a connection that can't write, so that a running daemon is neither
disturbed nor in the way. What is found is said in plain words with what to do about it. What can be mended
without losing anything is mended by `repairing`; what is looked at on every start is in `whole`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import CheckConstraint, Index, Table
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import Integer

from dlr_buffer.clock import SystemBootClock
from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.storage import schema
from dlr_buffer.storage.connection import BUSY_TIMEOUT_MS, translated
from dlr_buffer.storage.lock import last_run, running
from dlr_buffer.storage.rules import COUNTERS, ROW_RULES, USED_MESSAGES, USED_REQUEST_IDS, RowRule
from dlr_buffer.storage.wal import lost_commits
from dlr_buffer.storage.whole import RESTORE, require_there

CACHE_KIB: Final = 32_768
_PROGRESS_EVERY: Final = 1_000_000
"""Steps of SQLite's machine between two calls of the caller: about every 10 ms."""
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MOST_LINES: Final = 20
_REPAIR: Final = "stop the daemon and run `dlr-buffer check-db --repair`"
_INDEX_LINE: Final = re.compile(
    r"(?:wrong # of entries in|non-unique entry in|row \d+ missing from) index (\w+)"
)
_SEEN_OTHERWISE: Final = re.compile(r"(?:CHECK constraint failed in|NULL value in) ")
"""What integrity_check says of rows is said better, with the constraint's name, by the row rules."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    code: str
    """A short name that stays the same for programs."""
    detail: str
    remedy: str
    rows: int = 0
    """How many rows are concerned, 0 if it is not about rows."""
    mendable: bool = False
    """Whether `repairing` mends it, without losing anything."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to."""

    path: Path
    version: str | None
    """The schema's, None if it can't be read."""
    messages: int
    receipts: int
    findings: tuple[Finding, ...]


Progress = Callable[[int, int, str], None]
"""Told often: steps done, steps in all, what is looked at now. What it raises ends the check."""


def check(
    path: Path, *, quick: bool = False, progress: Progress | None = None, immutable: bool = False
) -> Checked:
    """Look through the database at ``path``; ``quick`` leaves out what takes longest (indexes, links, history).

    ``immutable`` promises that nobody else has it open, and leaves no file beside it. Raises StoreUnavailable
    if there is nothing to look at.
    """
    if (finding := damaged_log(path)) is not None:
        return Checked(path, None, 0, 0, (finding,))
    try:
        database = open_read_only(path, immutable=immutable)
    except StoreUnavailable as error:
        if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            return Checked(path, None, 0, 0, (_damaged(path, [str(error.__cause__)]),))
        raise
    with closing(database):
        return _Check(database, path, quick=quick, progress=progress).run()


def damaged_log(path: Path) -> Finding | None:
    """Whether the log beside a database that nobody has open lost commits; raises StoreUnavailable if all is gone.

    To be asked before SQLite opens the database: opening it wipes out the traces.
    """
    try:
        last = last_run(path)
        if running(last):
            return None
        if (lost := lost_commits(path, last, SystemBootClock().boot_id())) is not None:
            return Finding("log", lost, f"{RESTORE}, or do as it says")
    except OSError as error:
        raise StoreUnavailable(f"cannot read {error.filename}: {error.strerror}", fatal=True) from error
    require_there(path, last)
    return None


def open_read_only(path: Path, *, immutable: bool = False) -> sqlite3.Connection:
    """Open a connection that can neither write nor checkpoint, in one read transaction that is begun already.

    The same state of the database is seen until it is closed. Raises StoreUnavailable.
    """
    if not path.is_file() or not path.stat().st_size:
        what = "is empty" if path.is_file() else "is no file" if path.exists() else "does not exist"
        raise StoreUnavailable(f"{path} {what}: there is no queue", fatal=True)
    with translated(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_MS / 1000,
        )
        try:
            database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            database.execute("PRAGMA query_only = ON")
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            database.close()
            raise
    return database


class _Check:
    """One look through one database."""

    def __init__(
        self, database: sqlite3.Connection, path: Path, *, quick: bool, progress: Progress | None
    ) -> None:
        self._database = database
        self._path = path
        self._quick = quick
        self._progress = progress
        self._damage: dict[str, None] = {}
        self._findings: list[Finding] = []
        self._interrupted: BaseException | None = None

    def run(self) -> Checked:
        """Take every step; one that meets damaged pages does not keep the others from theirs."""
        steps: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
            ("schema", self._schema),
            ("pages", self._pages),
            ("numbers", self._numbers),
            *((f"rows of {table.name}", self._rows_of(table)) for table in schema.metadata.tables.values()),
            *(
                (rule.code.replace("-", " "), self._rule(rule))
                for rule in ROW_RULES
                if not (rule.slow and self._quick)
            ),
            ("counters", self._counters),
        ]
        for number, (words, step) in enumerate(steps):
            self._show(number, len(steps), words)
            try:
                self._findings.extend(step())
            except sqlite3.DatabaseError as error:
                if self._interrupted is not None:
                    raise self._interrupted from None
                # What is missing is told once; that queries for it fail follows.
                unknown = error.sqlite_errorcode == sqlite3.SQLITE_ERROR
                if not (unknown and any(each.code.startswith("schema-") for each in self._findings)):
                    self._damage[str(error)] = None
        self._show(len(steps), len(steps), "done")
        if self._damage:
            self._findings.insert(0, _damaged(self._path, list(self._damage)))
        return Checked(
            self._path,
            self._one("SELECT version_num FROM alembic_version"),
            self._count("messages"),
            self._count("receipts"),
            tuple(self._findings),
        )

    def _show(self, done: int, steps: int, words: str) -> None:
        progress = self._progress
        if progress is None:
            return
        progress(done, steps, words)

        def go_on() -> int:
            # What is raised here would be swallowed by SQLite; so a Ctrl-C is kept until the query has ended.
            try:
                progress(done, steps, words)
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._interrupted = error
                return 1
            return 0

        self._database.set_progress_handler(go_on, _PROGRESS_EVERY)

    def _one(self, query: str) -> str | None:
        try:
            row = self._database.execute(query).fetchone()
        except sqlite3.DatabaseError:
            return None
        return None if row is None or row[0] is None else str(row[0])

    def _count(self, table: str) -> int:
        return int(self._one(f"SELECT count(*) FROM {table}") or 0)  # noqa: S608 - a table of our schema

    def _schema(self) -> Iterator[Finding]:
        """The tables, columns, constraints and indexes are those that this program's migrations make."""
        versions = [row[0] for row in self._database.execute("SELECT version_num FROM alembic_version")]
        if versions != [schema.HEAD]:
            told = ", ".join(map(str, versions)) or "none"
            yield Finding(
                "schema-version",
                f"the schema is {told}, this program's is {schema.HEAD}",
                "check it with the program that made it, or start the daemon once, which migrates it"
                if versions
                else RESTORE,
            )
        wanted, found = expected_objects(), objects(self._database)
        for name, wording in wanted.items():
            if name not in found:
                index = wording.lower().startswith(("create index", "create unique index"))
                yield Finding(
                    "schema-missing",
                    f"the {'index' if index else 'table'} {name} is missing",
                    _REPAIR if index else RESTORE,
                    mendable=index and wording.partition("ON")[2].partition("(")[0] in found,
                )
            elif found[name] != wording:
                yield Finding("schema-differs", f"{name} is not defined as this program has it", RESTORE)
        for name in found.keys() - wanted.keys() - {"alembic_version"}:
            yield Finding(
                "schema-foreign",
                f"{name} is not this program's: something else has written to the database",
                "find out what it was, and let no other program write there",
            )

    def _pages(self) -> Iterator[Finding]:
        """SQLite's own check of pages and (unless quick) of the indexes against the rows."""
        pragma = "quick_check" if self._quick else "integrity_check"
        indexes: dict[str, None] = {}
        for (line,) in self._database.execute(f"PRAGMA {pragma}"):
            if match := _INDEX_LINE.search(line):
                indexes[match[1]] = None
            elif line != "ok" and not _SEEN_OTHERWISE.match(line):
                self._damage[line.removeprefix("*** in database main ***\n").replace("\n", "; ")] = None
        if self._interrupted is not None:
            raise self._interrupted
        for name in indexes:
            yield Finding("index", f"the index {name} does not agree with its table", _REPAIR, mendable=True)

    def _numbers(self) -> Iterator[Finding]:
        """No number that is in use would be given out again."""
        row = self._database.execute("SELECT next_request_id, next_message FROM queue_state").fetchone()
        if row is None:
            if self._count("accounts") or self._count("messages"):
                yield Finding(
                    "queue-state",
                    "the row of queue_state, which numbers receipts, is missing",
                    _REPAIR,
                    mendable=True,
                )
            return
        for kept, query, words in (
            (row[0], USED_REQUEST_IDS, "request_id"),
            (row[1], USED_MESSAGES, "number of a message"),
        ):
            used = self._database.execute(query).fetchone()[0]
            if used is not None and kept <= used:
                yield Finding(
                    "numbers",
                    f"the next {words} would be {kept}, but {used} is in use already",
                    _REPAIR,
                    mendable=True,
                )

    def _rows_of(self, table: Table) -> Callable[[], Iterator[Finding]]:
        """Every constraint of a table, and the type of each value, in one pass."""
        rules = {
            f"the constraint {constraint.name}": f"({constraint.sqltext}) IS 0"
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }
        for column in table.columns:
            kind = "integer" if isinstance(column.type, Integer) else "text"
            kinds = f"'{kind}', 'null'" if column.nullable else f"'{kind}'"
            wrong = f'typeof("{column.name}") NOT IN ({kinds})'
            rules[f"the type of {column.name}"] = wrong
        sums = ", ".join(f"sum({rule})" for rule in rules.values())

        def look() -> Iterator[Finding]:
            found = self._database.execute(f"SELECT {sums} FROM {table.name}").fetchone()  # noqa: S608 - our schema
            for words, rows in zip(rules, found, strict=True):
                if rows:
                    yield Finding(
                        "constraint",
                        f"{_rows(rows)} of {table.name} break {words}: something else has written to the database,"
                        " or it is damaged",
                        RESTORE,
                        rows,
                    )

        return look

    def _rule(self, rule: RowRule) -> Callable[[], Iterator[Finding]]:
        def look() -> Iterator[Finding]:
            count, first = self._database.execute(
                f"SELECT count(*), min(id) FROM ({rule.query})"  # noqa: S608 - one of ours
            ).fetchone()
            if count:
                words = rule.words.format(rows=_rows(count), first=first)
                yield Finding(
                    rule.code, words, _REPAIR if rule.mendable else RESTORE, count, mendable=rule.mendable
                )

        return look

    def _counters(self) -> Iterator[Finding]:
        """The counters are there, and say what a recount says."""
        names = dict(self._database.execute("SELECT id, name FROM accounts").fetchall())
        for counts, table, code, codes in COUNTERS:
            kept = {
                (account, each): rows
                for account, each, rows in self._database.execute(
                    f'SELECT account_id, {code}, "rows" FROM {counts}'  # noqa: S608 - our schema
                )
            }
            real = {
                (account, each): rows
                for account, each, rows in self._database.execute(
                    f"SELECT account_id, {code}, count(*) FROM {table} GROUP BY 1, 2"  # noqa: S608 - our schema
                )
            }
            wanted = {(account, each) for account in names for each in codes} | real.keys() | kept.keys()
            for account, each in sorted(wanted):
                says, is_ = kept.get((account, each)), real.get((account, each), 0)
                if says != is_:
                    yield Finding(
                        "counter",
                        f"{counts} says {'nothing' if says is None else says} for account"
                        f" {names.get(account, account)!r} and {code} {each}, but there are {is_} {table}",
                        _REPAIR,
                        mendable=True,
                    )


def _damaged(path: Path, said: list[str]) -> Finding:
    return Finding(
        "damaged",
        f"{path} is damaged: {'; '.join(said[:_MOST_LINES])}",
        f"{RESTORE} (docs/operations.md tells how); keep the damaged file",
    )


def objects(database: sqlite3.Connection) -> dict[str, str]:
    """Every table, index, trigger and view of a database with its definition, in one spelling."""
    return {
        name: _plain(sql)
        for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }


def expected_objects() -> dict[str, str]:
    """Return what `objects` has to give for a database of this program's schema."""
    with closing(sqlite3.connect(":memory:")) as database:
        for table in schema.metadata.tables.values():
            database.execute(str(CreateTable(table).compile(dialect=dialect.dialect())))
            for index in table.indexes:
                database.execute(index_statement(index))
        return objects(database)


def index_statement(index: Index) -> str:
    """Return the statement that makes an index."""
    return str(CreateIndex(index).compile(dialect=dialect.dialect()))


def _plain(statement: str) -> str:
    """One spelling of a definition: spaces and quotes do not matter, nor the order of a table's constraints."""
    text = re.sub(r"\s+", "", statement.replace('"', ""))
    start = text.find("(")
    if not text.startswith("CREATETABLE"):
        return statement[:20].lower().strip() + text
    parts, depth, part = [], 0, ""
    for letter in text[start + 1 : -1]:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append(part)
            part = ""
        else:
            part += letter
    return text[:start] + "(" + ",".join(sorted([*parts, part])) + ")"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
