"""Bulk requests of every mixture: the daemon answers as a small reference of the contract does, and stores the same."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.harness import Site
from tests.acceptance.misuse.reference import Meant, Reference

EXAMPLES = 150
STATES = ("enroute", "delivered", "expired", "undeliverable", "accepted", "unknown", "rejected")
NDJSON = "application/x-ndjson"
JSON = "application/json"
_settings = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# Few ids, so that they meet again; some that are alike to whoever normalises, trims or counts.
IDS = st.sampled_from(
    ["7", "007", "a", "A", "é", "e\u0301", " a", "a ", "%61", "\u2028", "x" * 255, "😀" * 63]
)
BAD_IDS = st.sampled_from(
    [b'""', b"7", b"null", b"true", b'["a"]', b'{"a":1}', b'"a\\u0000"', b'"\\n"', b'"' + b"x" * 256 + b'"']
)
# Each is one line that no JSON parser may take.
NO_JSON = st.sampled_from(
    [
        b"{",
        b'{"message_id":"a"',
        b'{"message_id":"a",}',
        b'{"message_id":"a"}}',
        b'{"message_id":"a"}{"message_id":"a"}',
        b"{'message_id':'a'}",
        b'{"message_id":"\xff"}',
        b'{"message_id":"\xed\xa0\x80"}',
        b'{"message_id":"\\ud800"}',
        b'{"message_id":"a\x01"}',
        b'\xef\xbb\xbf{"message_id":"a"}',
        b'{"message_id":NaN}',
        b"\x00",
        b"nul",
        b"[" * 5000,
        b'{"message_id":' * 5000,
    ]
)
NO_OBJECT = st.sampled_from([b"7", b'"a"', b"null", b"true", b"1e5", b"[]", b'[{"message_id":"a"}]'])


def written(**fields: object) -> bytes:
    """Write an object as JSON, what is None left out."""
    given_fields = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(given_fields, ensure_ascii=False).encode()


@st.composite
def registrations(draw: st.DrawFn) -> Meant:
    """A registration that may be taken."""
    name, validity = draw(IDS), draw(st.sampled_from([None, 60, 259_200, 2_592_000]))
    account = draw(st.sampled_from([None, "default"]))
    return Meant(
        written(message_id=name, validity_period=validity, account=account), name, validity_s=validity
    )


@st.composite
def reports(draw: st.DrawFn) -> Meant:
    """A report that may be taken."""
    name, state = draw(IDS), draw(st.sampled_from(STATES))
    return Meant(written(message_state=state, message_id=name), name, state)


@st.composite
def broken(draw: st.DrawFn, state: str | None) -> Meant:
    """An item with one fault, and its code."""
    good = {"message_id": "a", "message_state": state}
    match draw(st.sampled_from(["json", "object", "id", "no id", "field", "account", "value"])):
        case "json":
            return Meant(draw(NO_JSON), bad="malformed")
        case "object":
            return Meant(draw(NO_OBJECT), bad="invalid")
        case "id":
            rest = b"" if state is None else b',"message_state":"%s"' % state.encode()
            return Meant(b'{"message_id":%s%s}' % (draw(BAD_IDS), rest), bad="invalid")
        case "no id":
            return Meant(written(message_state=state), bad="invalid")
        case "field":
            return Meant(written(**good, mesage="x"), bad="invalid")
        case "account":
            return Meant(
                written(**good, account=draw(st.sampled_from(["", "Default", "none"]))), bad="unknown-account"
            )
        case _ if state is None:
            wrong = draw(st.sampled_from([0, -1, 2_592_001, 10**30, 1.5, True, "60", [60]]))
            return Meant(written(message_id="a", validity_period=wrong), bad="invalid")
        case _:
            wrong = draw(st.sampled_from(["", "Delivered", "DELIVERED", "deliverd", 7, ["delivered"], False]))
            return Meant(written(message_id="a", message_state=wrong), bad="invalid")


class Asker:
    """Plain HTTP on the admin socket, on one connection, kept alive."""

    def __init__(self, site: Site) -> None:
        """Connect."""
        self._connection = http.client.HTTPConnection("localhost")
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.settimeout(30)
        self._connection.sock.connect(str(site.admin_socket))

    def ask(self, method: str, target: str, body: bytes | None = None, kind: str = JSON) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        self._connection.request(method, target, body, {"Content-Type": kind})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def empty(self) -> None:
        """Begin with an empty queue."""
        assert self.ask("POST", "/v1/messages/delete", b'{"filter":{"all":true}}')[0] == 200

    def stored(self) -> dict[str, str | None]:
        """The state of each message in the queue."""
        _, page = self.ask("GET", "/v1/messages?limit=1000")
        return {item["message_id"]: item["state"] for item in page["items"]}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@pytest.fixture(scope="module")
def asker(running: Site) -> Iterator[Asker]:
    """A connection to a daemon that sends nothing: a receipt on the wire could not be deleted."""
    for name in ("default", "two"):
        running.ask("POST", f"/v1/accounts/{name}/pause")
    with closing(Asker(running)) as opened:
        yield opened


def check_bulk(asker: Asker, first: list[Meant], second: list[Meant], blanks: list[bytes]) -> None:
    """Register and report in one NDJSON request each, to an empty queue; compare answers and what is stored."""
    reference = Reference()
    asker.empty()
    turns = count()
    for path, items, judge, word in (
        ("/v1/messages", first, reference.register, "registered"),
        ("/v1/receipts", second, reference.report, "queued"),
        ("/v1/messages", first, reference.register, "registered"),
    ):
        if not items:
            continue
        lines = [blanks[next(turns) % len(blanks)] + item.raw for item in items]
        expected = judge(items)
        status, answer = asker.ask("POST", path, b"\n".join(lines), NDJSON)
        assert status == 200, answer
        found = [(error["index"], error["code"]) for error in answer["errors"]]
        assert (answer[word], answer["duplicates"], found) == (
            expected.stored,
            expected.duplicates,
            expected.errors,
        )
        assert all(error["detail"] for error in answer["errors"])
    assert asker.stored() == reference.states


@_settings
@given(
    first=st.lists(st.one_of(registrations(), registrations(), broken(None)), max_size=40),
    second=st.lists(st.one_of(reports(), reports(), broken("delivered")), max_size=40),
    blanks=st.lists(st.sampled_from([b"", b"\n", b" ", b"\r\n", b"\t\n \n"]), min_size=1, max_size=5),
)
def test_bulk_is_as_the_contract_says(
    asker: Asker, first: list[Meant], second: list[Meant], blanks: list[bytes]
) -> None:
    """Good lines, bad lines, duplicates and blank lines: counts, errors with index and code, and what is stored."""
    check_bulk(asker, first, second, blanks)


@_settings
@given(items=st.lists(st.one_of(registrations(), broken(None)), max_size=30))
def test_an_array_is_as_the_contract_says(asker: Asker, items: list[Meant]) -> None:
    """An array is taken as lines are, but one that is no JSON is refused whole, and then stores nothing."""
    reference = Reference()
    asker.empty()
    status, answer = asker.ask("POST", "/v1/messages", b"[" + b" ,\n".join(item.raw for item in items) + b"]")
    if any(item.bad == "malformed" for item in items):
        assert (status, answer["code"]) == (400, "malformed")
    else:
        expected = reference.register(items)
        assert status == 200, answer
        found = [(error["index"], error["code"]) for error in answer["errors"]]
        assert (answer["registered"], answer["duplicates"], found) == (
            expected.stored,
            expected.duplicates,
            expected.errors,
        )
    assert asker.stored() == reference.states


@_settings
@given(item=st.one_of(registrations(), broken(None)), again=st.booleans())
def test_one_is_as_the_contract_says(asker: Asker, item: Meant, *, again: bool) -> None:
    """A single item gets the status of its outcome: 201, 200, or its error's."""
    asker.empty()
    if again and item.bad is None:
        assert asker.ask("POST", "/v1/messages", item.raw)[0] == 201
    status, answer = asker.ask("POST", "/v1/messages", item.raw)
    if item.raw.startswith(b"[{"):
        assert status == 200  # an array of one
    elif item.raw == b"[]":
        assert (status, answer) == (200, {"registered": 0, "duplicates": 0, "errors": []})
    elif item.bad is None:
        assert status == (200 if again else 201)
        assert answer["message_id"] == item.message_id
    elif not item.raw.startswith((b"{", b"[")):
        assert (status, answer["code"]) == (400, "malformed")
    else:
        assert (status, answer["code"]) == (400 if item.bad == "malformed" else 422, item.bad)


@pytest.mark.parametrize("content", [b"", b" ", b"\n\n", b"\r\n\t "])
@pytest.mark.parametrize("kind", [NDJSON, JSON])
def test_nothing_at_all_is_malformed(asker: Asker, kind: str, content: bytes) -> None:
    """A body without any item is a mistake, whatever it is called."""
    status, answer = asker.ask("POST", "/v1/messages", content, kind)
    assert (status, answer["code"]) == (400, "malformed")
    assert "empty" in answer["detail"]
