"""Statements that are compiled once and then go straight to the driver.

They are written with SQLAlchemy Core like all others. But what SQLAlchemy does around each execution takes several
times as long as SQLite itself needs for one row, so the statements of the hot paths (registering, reporting, claiming,
settling, counting) are given to the driver as the text that Core has made of them. What else runs, runs through
SQLAlchemy. Errors of the driver come as they are (`connection.translate` knows both kinds).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, Protocol

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.sql.compiler import SQLCompiler

_NAME: Final = re.compile(r":(\w+)")
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

    def run_many(self, connection: Connection, values: Iterable[Mapping[str, Any]]) -> int:
        """Run it for each of many; returns how many rows were changed in all."""
        return driver(connection).executemany(self.sql, values).rowcount


def driver(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection."""
    raw: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]  # it is open
    return raw
