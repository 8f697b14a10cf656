"""What `show` says comes next, and how `list` walks through pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.cli.inspection import _pages, next_step
from dlr_buffer.client import Client
from dlr_buffer.clock import parse_rfc3339
from tests.unit.cli.scripted_daemon import Reply, ScriptedDaemon

NOW_MS = parse_rfc3339("2026-11-23T18:41:00.000Z")
OPEN = {"name": "default", "health": "open", "next_probe_at": None}


def _receipt(
    request_id: int = 7, state: str = "delivered", status: str = "pending", **changes: object
) -> dict[str, Any]:
    return {
        "request_id": str(request_id),
        "account": "default",
        "message_state": state,
        "status": status,
        "refusals": 0,
        "next_attempt_at": None,
        "in_flight": False,
    } | changes


def _message(state: str | None, *receipts: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "expires_at": "2026-11-23T18:44:12.000Z", "receipts": list(receipts)}


@pytest.mark.parametrize(
    ("message", "account", "sentence"),
    [
        (
            _message(None),
            OPEN,
            "It waits for a final state: if none is reported, it is reported as expired in 3m12s.",
        ),
        (
            _message("enroute", _receipt(state="enroute")),
            OPEN,
            "Receipt 7 (enroute) is sent with one of the next batches; the wait for a final state ends in 3m12s.",
        ),
        (
            _message("enroute", _receipt(state="enroute", status="dead")),
            OPEN,
            (
                "Receipt 7 (enroute) is a dead letter: `dlr-buffer retry 7` sends it again; "
                "the wait for a final state ends in 3m12s."
            ),
        ),
        (
            _message("delivered", _receipt()),
            None,
            "Receipt 7 (delivered) is sent with one of the next batches.",
        ),
        (_message("delivered", _receipt(in_flight=True)), OPEN, "Receipt 7 (delivered) is on the wire."),
        (
            _message("delivered", _receipt(6, "enroute", in_flight=True), _receipt()),
            OPEN,
            "Receipt 6 (enroute) is on the wire.",
        ),
        (
            _message("delivered", _receipt(status="held")),
            OPEN,
            "Receipt 7 (delivered) is held until `dlr-buffer release 7`.",
        ),
        (
            _message("delivered", _receipt(status="dead")),
            OPEN,
            "Receipt 7 (delivered) is a dead letter: `dlr-buffer retry 7` sends it again.",
        ),
        (
            _message("delivered", _receipt(refusals=2, next_attempt_at="2026-11-23T18:41:10.000Z")),
            OPEN,
            "Receipt 7 (delivered) was refused 2 times and is sent again in 10s.",
        ),
        (
            _message("delivered", _receipt()),
            OPEN | {"health": "paused"},
            "Receipt 7 (delivered) waits until `dlr-buffer resume default`.",
        ),
        (
            _message("delivered", _receipt()),
            OPEN | {"health": "unconfigured"},
            "Receipt 7 (delivered) waits until the account default is configured again.",
        ),
        (
            _message("delivered", _receipt()),
            OPEN | {"health": "suspended", "next_probe_at": "2026-11-23T18:42:00.000Z"},
            "Receipt 7 (delivered) waits for the account default, which is suspended and is tried again in 1m.",
        ),
        (
            _message("delivered", _receipt(6, "enroute", "superseded"), _receipt(status="acknowledged")),
            OPEN,
            "Nothing: Smartswitch confirmed that it is delivered; it is purged after the retention period.",
        ),
        (_message("delivered"), OPEN, "Nothing: it is delivered, and no receipt about that is left to send."),
    ],
)
def test_what_comes_next_is_one_true_sentence(
    message: dict[str, Any], account: dict[str, Any] | None, sentence: str
) -> None:
    """For every situation of a message the sentence names what happens next, and what an admin can do about it."""
    assert next_step(message, account, NOW_MS) == sentence


def _listed(path: Path, limit: int, narrow: dict[str, Any], pages: list[tuple[int, str | None]]) -> list[str]:
    replies = [Reply(document={"items": [{}] * count, "next_cursor": cursor}) for count, cursor in pages]
    with ScriptedDaemon(path, replies) as daemon, Client(path) as client:
        rows = sum(len(page) for page in _pages(client, "receipts", narrow, limit))
    assert rows == sum(count for count, _ in pages)
    return [asked.target for asked in daemon.requests]


def test_everything_is_listed_by_following_the_cursors(folder: Path) -> None:
    """--limit 0 asks for full pages until there is none; the filter goes along once, since the cursor carries it."""
    narrow = {"account": "a b", "waiting": True}
    assert _listed(folder / "s", 0, narrow, [(1000, "x"), (1000, "y+"), (3, None)]) == [
        "/v1/receipts?account=a+b&waiting=true&limit=1000",
        "/v1/receipts?cursor=x&limit=1000",
        "/v1/receipts?cursor=y%2B&limit=1000",
    ]


def test_no_more_is_asked_than_is_wanted(folder: Path) -> None:
    """A limit over one page ends with a smaller page, and no further one is asked for."""
    assert _listed(folder / "s", 1500, {}, [(1000, "x"), (500, "y")]) == [
        "/v1/receipts?limit=1000",
        "/v1/receipts?cursor=x&limit=500",
    ]
