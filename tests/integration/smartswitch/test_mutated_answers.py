"""Sound answers, mutated: acknowledged is what an independent, strict reader says, or nothing."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlr_buffer.smartswitch.answers import Answered, HttpAnswer, classify
from dlr_buffer.smartswitch.redaction import redactor
from tests.integration.smartswitch import reference
from tests.integration.smartswitch.conftest import (
    LOGIN,
    PASSWORD,
    receipt,
    respond,
    serving,
    talking,
)
from tests.integration.smartswitch.misconduct import (
    chunked,
    entry,
    framed,
    good_body,
    good_document,
    http,
    table,
)

ASKED = (1, 2, 3)
SOUND = [
    http(good_body(ASKED), b"Content-Type: application/vnd.api+json"),
    http(json.dumps(good_document(ASKED), indent="\t").encode()),
    framed(good_body(ASKED), b"Connection: close"),
    framed(chunked(good_body(ASKED), end=b"0\r\nA: b\r\n\r\n"), b"Transfer-Encoding: chunked"),
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + http(good_body(ASKED)),
]
ONLY_TOO_MUCH = ("a-header-of-200-KB", "100000-headers", "json-too-many-values")
"""Rows of the table that would be sound if they were smaller: the reference knows no limits."""
PIECES = [
    b"\r\n", b"\n", b" ", b"\x00", b"\xff", b'"', b",", b"{", b"}", b"[", b"]", b":", b"0", b"1", b"2", b"-1", b"1.0",
    b"null", b"true", b"ok", b"failed", b'"errors":[1],', b'"request_id":2,', b'"request_id":"1",', b'"status":"ok",',
    b'"status":"no",', b'"meta":{},', b'"data":[],', b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Take a sound answer and cut, double, swap, overwrite or insert in some places."""
    raw = draw(st.sampled_from(SOUND))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        to = min(len(raw), at + draw(st.integers(0, 80)))
        match draw(st.sampled_from(["cut", "double", "insert", "overwrite", "move", "end"])):
            case "cut":
                raw = raw[:at] + raw[to:]
            case "double":
                raw = raw[:to] + raw[at:to] + raw[to:]
            case "insert":
                raw = raw[:at] + draw(st.sampled_from(PIECES)) + raw[at:]
            case "overwrite":
                piece = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=2))
                raw = raw[:at] + piece + raw[at + len(piece) :]
            case "move":
                where = draw(st.integers(0, at))
                raw = raw[:where] + raw[at:to] + raw[where:at] + raw[to:]
            case _:
                raw = raw[:at]
    return raw


def test_mutated_bytes_on_the_wire() -> None:
    """Whatever happens to the bytes of an answer, none is acknowledged that the strict reader would not."""
    seen = {True: 0, False: 0}
    with asyncio.Runner() as runner:

        @settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
        @given(mutated())
        def check(raw: bytes) -> None:
            got = runner.run(_acknowledged_by_the_client(raw))
            assert got in (set(), reference.acknowledged(raw, ASKED))
            seen[bool(got)] += 1

        check()
    # A test in which nothing, or everything, is acknowledged would prove nothing.
    assert min(seen.values()) > 10


async def _acknowledged_by_the_client(raw: bytes) -> set[int]:
    async with serving(respond(raw, close=True)) as server, talking(server.port) as client:
        outcome = await client.send([receipt(each) for each in ASKED])
    if not isinstance(outcome, Answered):
        return set()
    return {each.request_id for each in outcome.acknowledged}


ID = st.sampled_from(['"1"', "1", '"2"', "2", "3", "1.0", '"01"', "true", "null", '"\\u0031"', "9", "[1]"])
STATUS = st.sampled_from(
    ['"ok"', '"ok"', '"ok"', '"OK"', '"failed"', "true", "null", '""', '"\\u006fk"', '["ok"]']
)


@st.composite
def members(draw: st.DrawFn, *pairs: tuple[str, st.SearchStrategy[str]]) -> str:
    """Write an object with any of these members in any order, some of them more than once."""
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=len(pairs) + 1))
    return "{" + ",".join(f'"{name}":{draw(value)}' for name, value in chosen) + "}"


ODD = st.sampled_from(["null", "1", "[]", '"ok"', "{}"])
META = members(("request_id", ID), ("other", ODD)) | ODD
ATTRIBUTES = members(("status", STATUS), ("status", STATUS), ("request_id", ID)) | ODD
ENTRIES = members(
    ("attributes", ATTRIBUTES),
    ("attributes", ATTRIBUTES),
    ("meta", META),
    ("meta", META),
    ("request_id", ID),
    ("id", ODD),
)
GOOD = st.sampled_from([json.dumps(entry(str(each))) for each in ASKED])
DATA = (
    st.lists(GOOD | GOOD | ENTRIES, max_size=5).map(lambda entries: f"[{','.join(entries)}]") | ENTRIES | ODD
)
ERRORS = st.sampled_from(["null", "[]", "{}", '[{"code":"x"}]', '"x"', "[null]", "0"])
DOCUMENTS = members(("data", DATA), ("data", DATA), ("data", DATA), ("data", DATA), ("errors", ERRORS)) | DATA


TWICE_OVER = (
    '{"data":{"request_id":"1","attributes":{"status":"ok"},"attributes":{"status":"ok","status":"ok"}}}'
)


@settings(deadline=None, max_examples=600)
@given(DOCUMENTS)
@example(TWICE_OVER)
def test_generated_json(document: str) -> None:
    """Whatever JSON says ok, twice over and in contradiction too, is read as the strict reader reads it."""
    body = document.encode()
    answer = classify(HttpAnswer(200, "OK", None, body), ASKED, now_ms=0, redact=redactor(LOGIN, PASSWORD))
    got = {each.request_id for each in answer.acknowledged} if isinstance(answer, Answered) else set()
    assert got in (set(), reference.acknowledged(http(body), ASKED)), document


def test_the_strict_reader_reads_the_table() -> None:
    """The reference knows sound answers, and those of the table that acknowledge nothing."""
    for raw in SOUND:
        assert reference.acknowledged(raw, ASKED) == set(ASKED)
    for row in table():
        if "acknowledged" not in row.outcome and row.name not in ONLY_TOO_MUCH:
            assert reference.acknowledged(row.raw(ASKED, b"/api/dlr?_login=a&_password=b"), ASKED) == set(), (
                row.name
            )
