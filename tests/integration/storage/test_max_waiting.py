"""A limit of waiting messages per account is exact, whatever comes together in one transaction."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dlr_buffer.errors import DlrBufferError, Overloaded
from dlr_buffer.messages import MessageState, Registration, Report
from dlr_buffer.storage.writer import Lane
from tests.integration.storage.harness import opened
from tests.loops import on_loop

LIMITS = {"default": 5}


def arguments(queue: Any) -> dict[str, Any]:  # noqa: ANN401 - the harness's queue
    """What both calls take."""
    return {"default_validity_ms": 1_000_000, "max_waiting": LIMITS, "now_ms": queue.clock.now_ms()}


def register(queue: Any, *ids: str) -> Any:  # noqa: ANN401 - as above
    """Register these at once."""
    return queue.store.register([Registration(each, "default") for each in ids], **arguments(queue))


def report(queue: Any, *pairs: tuple[str, MessageState]) -> Any:  # noqa: ANN401 - as above
    """Report these states at once."""
    items = [Report(name, state, "default") for name, state in pairs]
    return queue.store.report(items, register_in=frozenset({"default"}), **arguments(queue))


def refused(outcomes: list[Any]) -> list[bool]:
    """Which outcomes are the limit's."""
    for outcome in outcomes:
        assert isinstance(outcome, Overloaded) or not isinstance(outcome, DlrBufferError)
    return [isinstance(outcome, Overloaded) for outcome in outcomes]


def waiting(queue: Any) -> int:  # noqa: ANN401 - as above
    """How many wait by the kept counters."""
    states = queue.store.counts().messages["default"]
    return sum(states[state] for state in ("waiting", "enroute", "accepted", "unknown"))


@on_loop
async def test_singles_that_come_together_share_the_places_that_are_left(path: Path) -> None:
    """Of many registrations in one commit exactly as many are taken as there is room for; the first ones."""
    async with opened(path) as queue:
        results = await asyncio.gather(*(register(queue, f"m{number}") for number in range(20)))
        assert [refused(each)[0] for each in results] == [False] * 5 + [True] * 15
        assert waiting(queue) == 5
        assert queue.heard.events["refused_waiting"] == 15
        assert refused(await register(queue, "m0", "new", "m4")) == [False, True, False]


@on_loop
async def test_a_final_state_makes_room_at_once(path: Path) -> None:
    """Within one request too: items act in order, as if sent singly; intermediate states make no room."""
    async with opened(path) as queue:
        await register(queue, "a", "b", "c", "d", "e")
        outcomes = await report(
            queue,
            ("a", MessageState.ENROUTE),
            ("new", MessageState.ENROUTE),
            ("a", MessageState.DELIVERED),
            ("new", MessageState.ENROUTE),
            ("newer", MessageState.ENROUTE),
            ("new", MessageState.DELIVERED),
            ("newer", MessageState.DELIVERED),
            ("newest", MessageState.DELIVERED),
        )
        assert refused(outcomes) == [False, True, False, False, True, False, False, False]
        assert waiting(queue) == 4
        assert refused(await register(queue, "x", "y")) == [False, True]


@on_loop
async def test_another_account_is_not_concerned(path: Path) -> None:
    """A limit is of one account, and one that is left out has none."""
    async with opened(path, accounts=("default", "other")) as queue:
        await register(queue, "a", "b", "c", "d", "e")
        items = [Registration(f"m{number}", "other") for number in range(50)]
        assert not any(refused(await queue.store.register(items, **arguments(queue))))
        assert refused(await register(queue, "f")) == [True]


@on_loop
async def test_the_limit_holds_after_a_restart_and_a_failed_neighbour(path: Path) -> None:
    """It counts what the database has, and a group that is rolled back takes no place."""
    async with opened(path) as queue:
        await register(queue, "a", "b", "c", "d")

        def fail(_tx: object) -> None:
            raise RuntimeError("a defect")

        failing = queue.store._writer.submit(Lane.ADMIN, run=fail)
        results: Any = await asyncio.gather(
            register(queue, "e"), failing, register(queue, "f"), return_exceptions=True
        )
        assert (refused(results[0]), refused(results[2])) == ([False], [True])
    async with opened(path) as queue:
        assert refused(await register(queue, "f")) == [True]
        assert waiting(queue) == 5
