"""Wrong answers of every kind against the client: the outcome is the table's, and the client works on."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from dlr_buffer.flusher.judgement import outcome_of
from dlr_buffer.smartswitch.answers import Answered
from tests.integration.smartswitch.conftest import (
    LOGIN,
    PASSWORD,
    acknowledge,
    receipt,
    respond,
    serving,
    talking,
)
from tests.integration.smartswitch.misconduct import ACKNOWLEDGED, Misconduct, table

pytestmark = pytest.mark.anyio

ROWS = {row.name: row for row in table()}
TARGET = f"/api/dlr?_login={quote(LOGIN, safe='')}&_password={quote(PASSWORD, safe='')}".encode()
PARTS_OF_CREDENTIALS = ("canary", "rdir", "p&ss", "%26ss")


def test_no_row_is_lost() -> None:
    """Every row of the table has a name of its own."""
    assert len(ROWS) == len(list(table()))


@pytest.mark.parametrize("asked", [(1,), (11, 12, 13)], ids=["alone", "batch"])
@pytest.mark.parametrize("name", ROWS)
async def test_the_outcome_is_the_tables(name: str, asked: tuple[int, ...]) -> None:
    """One wrong answer: acknowledged is what it says and no more, no credential is kept, the next request works."""
    row = ROWS[name]
    async with (
        serving(respond(row.raw(asked, TARGET), close=True), acknowledge(*asked)) as server,
        talking(server.port, concurrency=1) as client,
    ):
        outcome = await client.send([receipt(each) for each in asked])
        assert outcome_of(outcome) == expected(row, asked), outcome
        if isinstance(outcome, Answered):
            by_first = row.outcome == "acknowledged-first"
            right = asked[:1] if by_first else asked if row.outcome == ACKNOWLEDGED else ()
            assert tuple(each.request_id for each in outcome.acknowledged) == right
        assert not any(part in repr(outcome) for part in PARTS_OF_CREDENTIALS), outcome

        again = await client.send([receipt(each) for each in asked])
        assert isinstance(again, Answered)
        assert tuple(each.request_id for each in again.acknowledged) == asked
        assert len(server.requests) == 2, "the second answer was there before its request"


def expected(row: Misconduct, asked: tuple[int, ...]) -> str:
    """Return the outcome's word; only one row's depends on how many were asked."""
    if row.outcome == "acknowledged-first":
        return ACKNOWLEDGED if len(asked) == 1 else "partial"
    return row.outcome
