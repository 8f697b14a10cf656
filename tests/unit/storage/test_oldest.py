"""The walk that finds each account's oldest waiting message, on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, create_engine, event, insert, update
from sqlalchemy.pool import StaticPool

from dlr_buffer.storage import oldest, schema
from dlr_buffer.storage.oldest import WINDOW, OldestWaiting

ENROUTE, DELIVERED = 3, 6


@pytest.fixture
def database() -> Iterator[Connection]:
    """A database with the schema and nothing in it."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    schema.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def add(
    database: Connection, first: int, last: int, *, account: int = 1, state: int = schema.WAITING
) -> None:
    """Messages with these numbers, the last included; each was registered at ten times its number."""
    database.execute(
        insert(schema.messages),
        [
            {
                "id": number,
                "account_id": account,
                "message_id": f"m{number}",
                "state": state,
                "implicit": 0,
                "registered_at": number * 10,
                "expires_at": number * 10 + 1000,
                "changed_at": number * 10,
                "receipt_id": 0,
            }
            for number in range(first, last + 1)
        ],
    )


@contextmanager
def statements(database: Connection) -> Iterator[list[str]]:
    """The statements that are run meanwhile."""
    run: list[str] = []

    def note(*facts: object) -> None:
        run.append(str(facts[2]))

    event.listen(database, "before_cursor_execute", note)
    yield run
    event.remove(database, "before_cursor_execute", note)


def finish(database: Connection, *numbers: int) -> None:
    """Give these messages a final state."""
    database.execute(update(schema.messages).where(schema.messages.c.id.in_(numbers)).values(state=DELIVERED))


def test_found_behind_many_windows(database: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting message behind many final ones is found after several steps, none of them longer than allowed."""
    monkeypatch.setattr(oldest, "WINDOWS_PER_STEP", 2)
    behind = 5 * WINDOW + 7
    add(database, 1, behind - 1, state=DELIVERED)
    add(database, behind, behind + 1)
    walk = OldestWaiting()
    for _ in range(2):
        with statements(database) as run:
            walk.step(database, {1})
        assert len(run) == 2
        assert walk.found == {}
    walk.step(database, {1})
    assert walk.found == {1: behind * 10}


def test_one_look_while_it_still_waits(database: Connection) -> None:
    """What was found is looked at again by its key alone, and an intermediate state is waiting still."""
    add(database, 1, 100, state=DELIVERED)
    add(database, 101, 200)
    walk = OldestWaiting()
    walk.step(database, {1})
    database.execute(update(schema.messages).where(schema.messages.c.id == 101).values(state=ENROUTE))
    with statements(database) as run:
        walk.step(database, {1})
    assert len(run) == 1
    assert "messages.id = ?" in run[0]
    assert walk.found == {1: 1010}


def test_it_moves_on_when_the_oldest_becomes_final(database: Connection) -> None:
    """The next one is found in the step that finds the old one final or gone, from there on and not from the start."""
    add(database, 1, WINDOW + 50)
    walk = OldestWaiting()
    walk.step(database, {1})
    assert walk.found == {1: 10}
    finish(database, 1, 2, 4)
    walk.step(database, {1})
    assert walk.found == {1: 30}
    database.execute(schema.messages.delete().where(schema.messages.c.id.between(3, WINDOW + 20)))
    with statements(database) as run:
        walk.step(database, {1})
    assert walk.found == {1: (WINDOW + 21) * 10}
    assert len(run) == 2, "its key, and one window from there"


def test_every_account_has_its_own(database: Connection) -> None:
    """Accounts are looked for in one walk; one that has none is not shown, and holds up none of the others."""
    add(database, 1, WINDOW, account=1, state=DELIVERED)
    add(database, WINDOW + 1, WINDOW + 3, account=2)
    add(database, WINDOW + 4, WINDOW + 5, account=1)
    add(database, 3 * WINDOW, 4 * WINDOW, account=3)
    walk = OldestWaiting()
    walk.step(database, {1, 2, 3})
    assert walk.found == {1: (WINDOW + 4) * 10, 2: (WINDOW + 1) * 10, 3: 3 * WINDOW * 10}
    finish(database, WINDOW + 1, WINDOW + 4)
    walk.step(database, {1, 2})
    assert walk.found == {1: (WINDOW + 5) * 10, 2: (WINDOW + 2) * 10}
    finish(database, WINDOW + 5)
    walk.step(database, {2, 3})
    assert walk.found == {2: (WINDOW + 2) * 10, 3: 3 * WINDOW * 10}


def test_new_messages_are_met_after_the_end(database: Connection) -> None:
    """A walk that has come to the end finds what is registered afterwards, of an account that had none before too."""
    add(database, 1, 10, state=DELIVERED)
    walk = OldestWaiting()
    for _ in range(3):
        walk.step(database, {1})
    assert walk.found == {}
    add(database, 11, 12, account=1)
    add(database, 13, 14, account=2)
    walk.step(database, {1, 2})
    assert walk.found == {1: 110, 2: 130}


def test_one_account_does_not_set_another_back(database: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that has still to be looked for from the start does not make the others walk again."""
    monkeypatch.setattr(oldest, "WINDOWS_PER_STEP", 1)
    add(database, 1, 3 * WINDOW, state=DELIVERED)
    walk = OldestWaiting()
    for _ in range(3):
        walk.step(database, {1})
    walk.step(database, {1, 2})
    add(database, 3 * WINDOW + 1, 3 * WINDOW + 1)
    walk.step(database, {1})
    assert walk.found == {1: (3 * WINDOW + 1) * 10}
