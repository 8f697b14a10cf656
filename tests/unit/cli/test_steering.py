"""What an action is applied to, read from the command line."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from dlr_buffer.cli.exits import UsageError
from dlr_buffer.cli.parser import build_parser
from dlr_buffer.cli.steering import IDS_PER_REQUEST, Target, read_target


def _target(line: str) -> Target:
    return read_target(build_parser(simulate=False).parse_args(shlex.split(line)))


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("retry 1 20", {"request_ids": ["1", "20"]}),
        (f"retry {10**18} {2**63 - 1}", {"request_ids": [str(10**18), str(2**63 - 1)]}),
        ("hold ALL", {"filter": {"all": True}}),
        ("release --account a --waiting", {"filter": {"account": "a", "waiting": True}}),
        (
            "delete receipts --status dead --error-code x --older-than 7d",
            {"filter": {"status": "dead", "error_code": "x", "older_than": "7d"}},
        ),
        ("expire a 7", {"message_ids": ["a", "7"]}),
        ("expire a --account x", {"message_ids": ["a"], "account": "x"}),
        ("delete messages --message-id ALL", {"filter": {"message_id": "ALL"}}),
        ("expire all", {"message_ids": ["all"]}),
        ("retry --account ''", {"filter": {"account": ""}}),
    ],
)
def test_ids_filters_and_all_become_request_bodies(line: str, body: dict[str, Any]) -> None:
    """Each of the three ways to say what is meant is sent as DESIGN §5 writes it; nothing empty means everything."""
    assert _target(line).bodies == (body,)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("retry", "ALL in capitals"),
        ("delete messages", "ALL in capitals"),
        ("delete messages --yes", "ALL in capitals"),
        ("retry 1 --account a", "not both"),
        ("hold 1 --waiting", "not both"),
        ("expire a --state enroute", "not both"),
        ("expire a --account x --waiting", "not both"),
        ("retry ALL 1", "cannot stand beside"),
        ("retry ALL --account a", "cannot stand beside"),
        ("retry all", "'all' is not a request id"),
        ("retry 007", "'007' is not a request id"),
        ("retry ''", "'' is not a request id"),
        (f"retry {10**19}", f"'{10**19}' is not a request id"),
    ],
)
def test_what_is_not_clearly_meant_is_refused(line: str, problem: str) -> None:
    """Ids beside filters, nothing at all, or ALL beside anything is a usage error that says what to write."""
    with pytest.raises(UsageError, match=problem):
        _target(line)


def test_very_many_ids_are_sent_in_parts() -> None:
    """More ids than a request may carry become several requests, none lost."""
    ids = [str(number) for number in range(1, 2 * IDS_PER_REQUEST + 2)]
    parts = [body["request_ids"] for body in _target("hold " + " ".join(ids)).bodies]
    assert [len(part) for part in parts] == [IDS_PER_REQUEST, IDS_PER_REQUEST, 1]
    assert [name for part in parts for name in part] == ids
