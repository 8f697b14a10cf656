"""Statements that are compiled once and then go straight to the driver.

They are written with SQLAlchemy Core like all others. But what SQLAlchemy does around each execution takes several
times as long as SQLite itself needs for one row, so the statements of the hot paths (registering, reporting, claiming,
settling, counting) are given to the driver as the text that Core has made of them. What else runs, runs through
SQLAlchemy. Errors of the driver come as they are (`connection.translate` knows both kinds).

``executemany`` lets go of the interpreter and takes it again for each row, and with another busy thread beside it waits
each time. So many rows go in a few statements of many rows each: half the time when alone, far less when not.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, Final, Protocol

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql.compiler import SQLCompiler

_NAME: Final = re.compile(r":(\w+)")
_WIDTHS: Final = (64, 16, 8, 4, 2)
"""Rows in one statement: each width is one more text for SQLite to prepare and to keep."""
_NOTHING: Final[Mapping[str, Any]] = {}


class _Compiles(Protocol):
    def compile(self, *, dialect: SQLiteDialect) -> Any: ...  # noqa: ANN401 - SQLAlchemy's own type is wider


class Prepared:
    """One statement; its parameters are bound by the names that Core has for them."""

    def __init__(self, statement: _Compiles) -> None:
        """Take a statement of Core; it is compiled when it is first used."""
        self._statement = statement

    @cached_property
    def sql(self) -> str:
        """The text that SQLite gets: constants are written out, parameters are ``:name``."""
        compiled: SQLCompiler = self._statement.compile(dialect=SQLiteDialect(paramstyle="named"))
        constants = {
            name: bind.value
            for name, bind in compiled.binds.items()
            if not bind.required and bind.value is not None
        }
        nulls = {name for name, bind in compiled.binds.items() if not bind.required and bind.value is None}

        def written(match: re.Match[str]) -> str:
            name = match[1]
            if name in nulls:
                return "NULL"
            if name not in constants:
                return match[0]
            value = constants[name]
            if not isinstance(value, int):  # none of ours has another; quoting is not for us to invent
                raise TypeError(f"a constant of type {type(value).__name__} in {compiled}")
            return str(int(value))

        return _NAME.sub(written, compiled.string)

    def rows(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> list[Any]:
        """Run it and return all rows, as tuples."""
        return driver(connection).execute(self.sql, values).fetchall()

    def run(self, connection: Connection, values: Mapping[str, Any] = _NOTHING) -> int:
        """Run it once; returns how many rows it changed."""
        return driver(connection).execute(self.sql, values).rowcount

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each of many; returns how many rows were changed in all.

        An UPDATE's rows must differ in what they look for. If it fails, some rows may be changed.
        """
        changed, done = self._run_wide(connection, [self._values_of(row) for row in rows])
        if done < len(rows):
            changed += driver(connection).executemany(self.sql, rows[done:]).rowcount
        return changed

    def run_rows(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """As `run_many`, for an INSERT whose rows have their values in the order of `names`."""
        changed, done = self._run_wide(connection, rows)
        for row in rows[done:]:
            changed += driver(connection).execute(self._one, row).rowcount
        return changed

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Its parameters, in the order in which they first come."""
        return tuple(dict.fromkeys(_NAME.findall(self.sql)))

    def _run_wide(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> tuple[int, int]:
        """Run as many as fit into wide statements; returns how many rows were changed, and how many are done."""
        raw, done, changed = driver(connection), 0, 0
        for width, sql in self._wide:
            while len(rows) - done >= width:
                changed += raw.execute(sql, list(chain.from_iterable(rows[done : done + width]))).rowcount
                done += width
        return changed, done

    @cached_property
    def _values_of(self) -> itemgetter[Any]:
        return itemgetter(*self.names)

    @cached_property
    def _one(self) -> str:
        return _NAME.sub("?", self.sql)

    @cached_property
    def _wide(self) -> list[tuple[int, str]]:
        """The same statement for many rows at once, by how many."""
        if len(self.names) < 2:  # noqa: PLR2004 - itemgetter gives tuples only for several
            return []
        if self.sql.startswith("INSERT"):
            head, _, values = self.sql.partition("VALUES")
            row = _NAME.sub("?", values.strip())  # constants stay in their places
            return [(width, f"{head}VALUES {', '.join([row] * width)}") for width in _WIDTHS]
        row = f"({', '.join('?' * len(self.names))})"
        # SQLite's names for the columns of VALUES.
        column = {name: f"given.column{number}" for number, name in enumerate(self.names, 1)}
        changes, _, condition = _NAME.sub(lambda match: column[match[1]], self.sql).partition("WHERE")
        return [
            (width, f"{changes}FROM (VALUES {', '.join([row] * width)}) AS given WHERE{condition}")
            for width in _WIDTHS
        ]


def driver(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection."""
    raw: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]  # it is open
    return raw
