"""The short way of reading an answer says what the table says, whatever the answer is."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlr_buffer.receipts import Acknowledged
from dlr_buffer.smartswitch import answers
from dlr_buffer.smartswitch.answers import Answered, HttpAnswer, classify
from dlr_buffer.smartswitch.redaction import redactor

NOW_MS = 1_700_000_000_000
REDACT = redactor("login", "secret")

numbers = st.sampled_from(
    ["1561370632713", "secret", "a\u0007", "", "x" * 255, "x" * 256, "\u00e9", 'a"b', "a\\b", 7, None]
)
entries = st.fixed_dictionaries(
    {
        "attributes": st.sampled_from(
            [{"status": "ok"}] * 5
            + [{"status": "OK"}, {"status": None}, {}, {"status": "ok", "request_id": "1"}, "ok"]
        ),
        "id": st.just("r") | numbers,
        "meta": st.sampled_from(
            [{"request_id": "1"}, {"request_id": "2"}, {"request_id": "3"}] * 3
            + [{"request_id": 1}, {"request_id": "01"}, {"request_id": "1", "extra": "x"}, {}]
        ),
        "type": st.sampled_from(["dlr", "dlr", "dlr", 1, "other"]),
    },
    optional={"request_id": st.sampled_from(["1", "2"]), "links": st.just({})},
)
documents: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"data": entries | st.lists(entries, max_size=4)},
    optional={"errors": st.sampled_from([[], None, [{"code": "x"}]]), "meta": st.just({})},
)


def good(*request_ids: str) -> dict[str, Any]:
    """The seed's answer."""
    return {
        "data": [
            {"attributes": {"status": "ok"}, "id": "r", "meta": {"request_id": each}, "type": "dlr"}
            for each in request_ids
        ]
    }


def agree(body: bytes, asked: tuple[int, ...], status: int = 200) -> None:
    """Read the answer both ways."""
    http = HttpAnswer(status, "", None, body)
    short = classify(http, asked, now_ms=NOW_MS, redact=REDACT)
    with patch.object(answers, "_all_ok", return_value=None):
        assert classify(http, asked, now_ms=NOW_MS, redact=REDACT) == short


def test_the_usual_answer_goes_the_short_way() -> None:
    """What the seed answers to receipts that are all ok is read without the table, in the order asked."""
    http = HttpAnswer(200, "OK", None, json.dumps(good("2", "1"), indent=2).encode())
    with patch.object(answers, "_document", side_effect=AssertionError):
        assert classify(http, (1, 2), now_ms=NOW_MS, redact=REDACT) == Answered(
            (Acknowledged(1, "r"), Acknowledged(2, "r")), (), 0
        )


@settings(deadline=None, max_examples=500)
@given(
    documents,
    st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True),
    st.sampled_from([200, 200, 201, 299, 302, 400, 503]),
    st.sampled_from([None, 1]),
    st.sampled_from([b"", b"\xef\xbb\xbf", b" \n", b"x"]),
)
@example(good("1", "2"), [1, 2], 200, None, b"")
@example(good("1", "1"), [1, 2], 200, None, b"")
@example(good("1", "2"), [1], 200, None, b"")
def test_both_ways_agree(
    document: dict[str, Any], asked: list[int], status: int, indent: int | None, before: bytes
) -> None:
    """An answer of about the seed's shape, with what may be wrong in it, means the same on both ways."""
    for plain in (True, False):
        body = before + json.dumps(document, indent=indent, ensure_ascii=plain).encode()
        agree(body, tuple(asked), status)


ENTRY = '{"attributes":{"status":"ok"},"id":"r","meta":{"request_id":"1"},"type":"dlr"}'
TWICE = [
    ('"status":"ok"', '"status":"no","status":"ok"'),
    ('"id":"r"', '"id":"r","id":"s"'),
    ('"request_id":"1"', '"request_id":"2","request_id":"1"'),
    ('"ok"', '"\\u006fk"'),
    ('"r"', '"\x07"'),
    ('"r"', '"a secret b"'),
]


@pytest.mark.parametrize(
    "body",
    [
        *('{"data":' + ENTRY.replace(*change) + "}" for change in TWICE),
        '{"data":' + ENTRY + ',"data":' + ENTRY.replace('"ok"', '"no"') + "}",
        '{"data":[' + ENTRY + "],}",
        '{"data":[' + ENTRY + "]} x",
        '{"data":[[' + ENTRY + "]]}",
        "[" * 100_000,
    ],
)
def test_what_may_not_be_overlooked(body: str) -> None:
    """Members that stand twice, escapes, credentials and garbage mean the same on both ways."""
    agree(body.encode(), (1,))


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_one_byte_changed(draw: st.DataObject) -> None:
    """A good answer in which one byte is another, is missing, or stands twice, means the same on both ways."""
    body = json.dumps(good("1", "2")).encode()
    at = draw.draw(st.integers(0, len(body) - 1))
    piece = draw.draw(st.sampled_from([b"", body[at : at + 1] * 2]) | st.binary(min_size=1, max_size=1))
    agree(body[:at] + piece + body[at + 1 :], (1, 2))
