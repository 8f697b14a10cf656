"""Statements that go straight to the driver do what SQLAlchemy's own execution of them does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    create_engine,
    insert,
    select,
    update,
)

from dlr_buffer.storage.prepared import Prepared

TABLE = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", Text),
    Column("rank", Integer, CheckConstraint("rank < 1000")),
    Column("kind", Integer),
)
INSERT = insert(TABLE).values(id=bindparam("id"), name=bindparam("name"), rank=bindparam("rank"), kind=3)
CHANGE = (
    update(TABLE)
    .where(TABLE.c.id == bindparam("b_id"), TABLE.c.kind.between(2, 3))
    .values(name=bindparam("b_name"), rank=TABLE.c.rank + bindparam("b_more"), kind=None)
)
names = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.just("a 'quoted' \"name\" :id ?")
)
rows = st.lists(st.tuples(names, st.integers(0, 900)), max_size=150).map(
    lambda found: [{"id": number, "name": name, "rank": rank} for number, (name, rank) in enumerate(found)]
)


@contextmanager
def table() -> Iterator[Connection]:
    """An empty table."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


def content(connection: Connection) -> list[Any]:
    """Every row."""
    return [tuple(row) for row in connection.execute(select(TABLE).order_by(TABLE.c.id))]


@settings(deadline=None)
@given(rows)
def test_many_rows_are_inserted(given_: list[dict[str, Any]]) -> None:
    """Any number of rows, in wide statements and single ones, leaves what inserting each alone leaves."""
    prepared = Prepared(INSERT)
    with table() as one, table() as many, table() as tuples:
        for row in given_:
            one.execute(INSERT, row)
        assert prepared.run_many(many, given_) == len(given_)
        assert prepared.run_rows(
            tuples, [tuple(row[name] for name in prepared.names) for row in given_]
        ) == len(given_)
        assert content(one) == content(many) == content(tuples)


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_many_rows_are_changed(given_: list[dict[str, Any]], random: Any) -> None:  # noqa: ANN401 - Hypothesis' own
    """Each row gets its own values, in any order, and those that are not there are not counted."""
    wanted = [
        {"b_id": row["id"] * 2, "b_name": f"{row['name']}!", "b_more": row["rank"] % 7} for row in given_
    ]
    random.shuffle(wanted)
    with table() as one, table() as many:
        for connection in (one, many):
            Prepared(INSERT).run_many(connection, given_)
        for row in wanted:
            one.execute(CHANGE, row)
        there = sum(row["b_id"] < len(given_) for row in wanted)
        assert Prepared(CHANGE).run_many(many, wanted) == there
        assert content(one) == content(many)


@pytest.mark.parametrize("bad", [0, 63, 64, 100, 129])
def test_a_row_that_is_refused_fails_all(bad: int) -> None:
    """A constraint that one of many rows breaks is an error, wherever the row stands."""
    given_ = [{"id": number, "name": None, "rank": 1000 if number == bad else 1} for number in range(130)]
    with table() as connection, pytest.raises(sqlite3.IntegrityError):
        Prepared(INSERT).run_many(connection, given_)


def test_rows_are_read() -> None:
    """Rows come as tuples, and constants of the statement are part of its text."""
    found = Prepared(
        select(TABLE.c.id, TABLE.c.name).where(TABLE.c.kind == 3, TABLE.c.rank < bindparam("below"))
    )
    assert found.names == ("below",)
    assert "3" in found.sql
    with table() as connection:
        Prepared(INSERT).run_many(connection, [{"id": each, "name": "x", "rank": each} for each in range(5)])
        assert found.rows(connection, {"below": 2}) == [(0, "x"), (1, "x")]


def test_only_numbers_are_written_out() -> None:
    """A constant that would have to be quoted is refused when the statement is compiled."""
    with pytest.raises(TypeError, match="a constant of type str"):
        assert Prepared(select(TABLE).where(TABLE.c.name == "x")).sql
