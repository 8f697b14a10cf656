"""Reading answers: DESIGN §4's table row by row, and arbitrary bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlr_buffer.receipts import Acknowledged, ReceiptError
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    HttpAnswer,
    Outage,
    RequestRefused,
    TooLarge,
    classify,
    retry_after_ms,
)
from dlr_buffer.smartswitch.redaction import redactor

NOW_MS = 1_700_000_000_000
ONE = """{
	"data" : {
		"attributes" : {
			"status" : "ok"
		},
		"id" : "1561370632713",
		"meta" : {
			"request_id" : "1"
		},
		"type" : "dlr"
	}
}"""
ERROR = """{
	"errors" : [
		{
			"code" : "authentication",
			"detail" : "Please check your login and password",
			"title" : "Authentication error"
		}
	]
}"""
AUTHENTICATION = {"errors": [{"code": "authentication"}]}
INTERNAL = {"code": "internal", "title": "Internal error", "detail": "Try later"}
UNKNOWN = {"code": "unknown-message", "title": "Unknown message", "detail": "No 7"}


def entry(request_id: object, status: object = "ok", number: object = "r") -> dict[str, Any]:
    """Make an entry as the seed shows it."""
    return {"attributes": {"status": status}, "id": number, "meta": {"request_id": request_id}, "type": "dlr"}


def read(
    body: object,
    *asked: int,
    status: int = 200,
    reason: str = "",
    retry_after: str | None = None,
    fault: Outage | None = None,
) -> Answer:
    """Classify ``body`` (bytes and text as they are, anything else as JSON) as the answer to ``asked`` (1)."""
    if not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode("utf-8", "surrogatepass")
    http = HttpAnswer(status, reason, retry_after, body, fault)
    return classify(http, asked or (1,), now_ms=NOW_MS, redact=redactor("supplier", "hunter2"))


def cause(answer: Answer) -> str:
    """Return an outage's cause."""
    assert isinstance(answer, Outage), answer
    return answer.cause


def codes(answer: Answer) -> dict[int, str]:
    """Return why the entries at fault are."""
    assert isinstance(answer, Answered), answer
    return {refused.request_id: refused.error.code for refused in answer.faulted}


def acknowledged(answer: Answer) -> list[int]:
    """Return what was acknowledged."""
    assert isinstance(answer, Answered), answer
    return [one.request_id for one in answer.acknowledged]


# --- the seed's examples


def test_the_seeds_answer_to_one() -> None:
    """The first example acknowledges request 1 and keeps the response's id."""
    assert read(ONE) == Answered((Acknowledged(1, "1561370632713"),), (), 0)


def test_the_seeds_answer_to_two() -> None:
    """The second example acknowledges both."""
    body = {"data": [entry("1", number="1561371433517"), entry("2", number="1561371433518")]}
    assert read(body, 1, 2) == Answered(
        (Acknowledged(1, "1561371433517"), Acknowledged(2, "1561371433518")), (), 0
    )


def test_the_seeds_error() -> None:
    """The third example is an authentication failure in Smartswitch's own words."""
    error = ReceiptError("authentication", "Authentication error", "Please check your login and password")
    assert read(ERROR) == AuthenticationFailed(error, coded=True)


# --- the table's rows, in order


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 413, 429, 500, 503])
def test_authentication_wins_at_any_status(status: int) -> None:
    """The code `authentication` decides before the HTTP status does."""
    answer = read(AUTHENTICATION, status=status)
    assert isinstance(answer, AuthenticationFailed)
    assert answer.coded


def test_authentication_wins_beside_others() -> None:
    """It wins behind other errors and beside data, and the others are told in the detail."""
    answer = read({"errors": [INTERNAL, AUTHENTICATION["errors"][0]], "data": [entry(1)]})
    assert answer == AuthenticationFailed(
        ReceiptError("authentication", "", "; internal: Internal error: Try later"), coded=True
    )


@pytest.mark.parametrize("status", [401, 403])
def test_401_and_403_without_the_code(status: int) -> None:
    """HTTP's own refusals count as authentication, but not as Smartswitch's word."""
    answer = read("<h1>Go away</h1>", status=status, reason="Forbidden")
    assert answer == AuthenticationFailed(
        ReceiptError(f"http-{status}", "Forbidden", "<h1>Go away</h1>"), coded=False
    )


@pytest.mark.parametrize("status", [413, 414, 431])
def test_too_large(status: int) -> None:
    """The three statuses for too long a request are told apart from refusals, whatever the body."""
    assert read("<html>", status=status) == TooLarge(status)
    assert read({"errors": [INTERNAL]}, status=status) == TooLarge(status)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_outage_by_status(status: int) -> None:
    """These are outages even with errors in the body or with receipts named ok."""
    assert cause(read("", status=status)) == f"http-{status}"
    assert cause(read({"errors": [UNKNOWN]}, status=status)) == f"http-{status}"
    assert cause(read({"data": entry(1)}, status=status)) == f"http-{status}"


def test_an_outage_says_what_the_server_said() -> None:
    """The detail holds the first error, or the reason and the beginning of the page."""
    told = read({"errors": [INTERNAL]}, status=500)
    assert isinstance(told, Outage)
    assert told.detail == "HTTP 500 (Internal error: Try later)"
    page = read("<h1>\n  Down  </h1>", status=503, reason="Service Unavailable", retry_after="7")
    assert page == Outage("http-503", "HTTP 503 (Service Unavailable: <h1> Down </h1>)", 7000)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirects_are_outages(status: int) -> None:
    """A redirect acknowledges nothing, even if its body would."""
    assert cause(read({"data": entry(1)}, status=status)) == "redirect"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"<html>ok</html>",
        b'{"data": ',
        b'{"data": NaN}',
        b'{"data": -Infinity}',
        b'\xff\xfe{"data": 1}',
        b'{"data": "\xc3("}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"data": 01}',
    ],
)
def test_what_is_not_json_is_an_outage(body: bytes) -> None:
    """Empty, cut off, not UTF-8, NaN, nested without end: a 2xx that is not JSON says nothing."""
    assert cause(read(body)) == "not-json"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        1,
        "1",
        None,
        True,
        {"data": None},
        {"errors": []},
        {"errors": {}},
        {"errors": "bad"},
        {"errors": 3},
    ],
)
def test_neither_data_nor_errors(body: object) -> None:
    """JSON with neither member, or only empty or unreadable ones, is an outage."""
    assert cause(read(json.dumps(body))) == "neither"


@pytest.mark.parametrize("errors", [[UNKNOWN], UNKNOWN, "bad", 7, True])
def test_both_data_and_errors(errors: object) -> None:
    """Both at once is an outage, and nothing is acknowledged."""
    assert cause(read({"data": entry(1), "errors": errors})) == "both"


@pytest.mark.parametrize("errors", [None, [], {}, "", False])
def test_empty_errors_beside_data_are_absent(errors: object) -> None:
    """A serialiser that always writes both members does not stop the account."""
    assert acknowledged(read({"data": entry(1), "errors": errors})) == [1]


@pytest.mark.parametrize("data", [[], [entry("7")], [1, None, "x", [[]]], "1", 1, {"id": "1"}])
def test_data_that_names_none_of_ours(data: object) -> None:
    """An answer that names none of what was sent is an outage."""
    assert cause(read({"data": data}, 1, 2)) == "names-none"


def test_errors_in_a_2xx_refuse_the_request() -> None:
    """The seed's way to refuse: errors, whatever the status."""
    assert read({"errors": [UNKNOWN]}) == RequestRefused(
        ReceiptError("unknown-message", "Unknown message", "No 7")
    )
    assert read({"errors": UNKNOWN}) == RequestRefused(
        ReceiptError("unknown-message", "Unknown message", "No 7")
    )


def test_several_errors_are_joined() -> None:
    """The first error gives code and title, the detail tells them all."""
    assert read({"errors": [UNKNOWN, INTERNAL]}, status=400) == RequestRefused(
        ReceiptError("unknown-message", "Unknown message", "No 7; internal: Internal error: Try later")
    )


@pytest.mark.parametrize("errors", [[None], ["bad"], [{}], [{"code": None}], [[[]]]])
def test_errors_without_a_code(errors: list[Any]) -> None:
    """An error that is no object or has no code still refuses, with a code of ours."""
    answer = read({"errors": errors})
    assert isinstance(answer, RequestRefused)
    assert answer.error.code == "missing-code"


@pytest.mark.parametrize("status", [400, 402, 404, 405, 410, 422, 451])
def test_other_4xx_refuse_the_request(status: int) -> None:
    """A wrong URL's HTML page refuses; it is not an outage though it is not JSON."""
    assert read("<h1>No such page</h1>", status=status, reason="Not Found") == RequestRefused(
        ReceiptError(f"http-{status}", "Not Found", "<h1>No such page</h1>")
    )
    assert isinstance(read({"data": entry(1)}, status=status), RequestRefused)


def test_a_status_below_200_is_no_answer() -> None:
    """Switching protocols is not what was asked for."""
    assert cause(read("", status=101)) == "protocol"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "truncated"), (404, "truncated"), (503, "http-503"), (429, "http-429"), (307, "redirect")],
)
def test_a_broken_body_is_an_outage_unless_the_status_says_more(status: int, expected: str) -> None:
    """The body's fault is the cause only where the status alone does not decide."""
    answer = read("", status=status, retry_after="2", fault=Outage("truncated", "cut off"))
    assert cause(answer) == expected
    assert isinstance(answer, Outage)
    assert answer.retry_after_ms == 2000


def test_a_broken_body_does_not_hide_a_status_that_decides() -> None:
    """A server that answers 413 or 401 and resets the connection is understood nevertheless."""
    fault = Outage("reset", "broke off")
    assert read("", status=413, fault=fault) == TooLarge(413)
    assert isinstance(read("", status=401, fault=fault), AuthenticationFailed)


# --- entries


@pytest.mark.parametrize(
    "one",
    [
        entry("1"),
        entry(1),
        {"attributes": {"status": "ok"}, "request_id": "1"},
        {"attributes": {"status": "ok", "request_id": 1}},
        {"attributes": {"status": "ok", "request_id": 1}, "request_id": "1", "meta": {"request_id": "1"}},
    ],
)
def test_where_the_request_id_may_stand(one: dict[str, Any]) -> None:
    """In meta, as a member, among the attributes, as text or number, all agreeing; alone or in an array."""
    assert acknowledged(read({"data": one})) == [1]
    assert acknowledged(read({"data": [one]})) == [1]


@pytest.mark.parametrize(
    "other", ["1.0", "true", '"01"', '" 1"', "1e0", "[1]", '{"1":1}', "null", '"\uff11"', "-1"]
)
def test_what_does_not_equal_the_request_id(other: str) -> None:
    """Only 1 and "1" are request 1."""
    body = '{"data": [{"attributes": {"status": "ok"}, "meta": {"request_id": %s}}]}'
    assert cause(read(body % other)) == "names-none"


def test_a_batch_answered_in_part() -> None:
    """One ok, one bad, one without status, one left out: each is told, only the first is acknowledged."""
    nothing = entry("3")
    del nothing["attributes"]["status"]
    answer = read({"data": [entry("1"), entry("2", "failed"), nothing]}, 1, 2, 3, 4)
    assert acknowledged(answer) == [1]
    assert codes(answer) == {2: "status", 3: "missing-status", 4: "missing-entry"}
    assert isinstance(answer, Answered)
    assert answer.violations == 0
    assert answer.faulted[0].error == ReceiptError("status", "failed", '{"status": "failed"}')


@pytest.mark.parametrize("status", ["OK", "ok ", "okay", True, 0, ["ok"], {"ok": 1}, "ок"])
def test_only_ok_is_ok(status: object) -> None:
    """Another case, type or alphabet is another status."""
    assert codes(read({"data": entry(1, status)})) == {1: "status"}


@pytest.mark.parametrize("attributes", [None, [], "ok", 1, {}, {"status": None}, {"status": ""}])
def test_a_missing_status(attributes: object) -> None:
    """No attributes, or none that is a status: not acknowledged."""
    answer = read({"data": {"attributes": attributes, "meta": {"request_id": "1"}}})
    assert codes(answer) == {1: "missing-status"}


def test_entries_not_asked_for_are_ignored_and_counted() -> None:
    """Others' entries and rubbish are violations and change nothing."""
    answer = read({"data": [entry("9"), 7, {}, entry("1")]})
    assert acknowledged(answer) == [1]
    assert isinstance(answer, Answered)
    assert answer.violations == 3


def test_duplicates_that_agree() -> None:
    """The first of two equal entries counts, the second is a violation."""
    answer = read({"data": [entry("1", number="a"), entry("1", number="b")]})
    assert answer == Answered((Acknowledged(1, "a"),), (), 1)


@pytest.mark.parametrize(
    "statuses", [("ok", "failed"), ("failed", "ok"), ("ok", None), ("ok", "failed", "ok")]
)
def test_duplicates_that_disagree(statuses: tuple[Any, ...]) -> None:
    """What two entries contradict each other about is not acknowledged; the neighbour is."""
    answer = read({"data": [*(entry("1", status) for status in statuses), entry("2")]}, 1, 2)
    assert codes(answer) == {1: "contradictory"}
    assert acknowledged(answer) == [2]


def test_an_entry_with_two_request_ids() -> None:
    """An entry that names two of ours acknowledges neither, and spoils a clean entry for them too."""
    double = {**entry("1"), "request_id": "2"}
    assert codes(read({"data": [double]}, 1, 2)) == {1: "contradictory", 2: "contradictory"}
    assert codes(read({"data": [entry("1"), double]}, 1, 2)) == {1: "contradictory", 2: "contradictory"}


@pytest.mark.parametrize(
    "body",
    [
        '{"data": {"attributes": {"status": "failed", "status": "ok"}, "meta": {"request_id": "1"}}}',
        '{"data": {"attributes": {"status": "failed"}, "attributes": {"status": "ok"}, "request_id": "1"}}',
        '{"data": {"attributes": {"status": "ok"}, "request_id": "2", "request_id": "1", "meta": {"request_id": 1}}}',
    ],
)
def test_a_member_written_twice_is_contradictory(body: str) -> None:
    """The last of two different values does not win."""
    assert codes(read(body)) == {1: "contradictory"}


def test_a_member_written_twice_alike_is_harmless() -> None:
    """A repeated but equal member changes nothing."""
    body = '{"data": {"type": "dlr", "type": "dlr", "attributes": {"status": "ok"}, "meta": {"request_id": "1"}}}'
    assert acknowledged(read(body)) == [1]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('"007"', "007"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1" * 5000, "1" * 255),
        ("1.50", "1.50"),
        ('"a\\u0000\\ud800b"', "a\ufffd\ufffdb"),
        ("null", None),
        ("[1]", None),
    ],
)
def test_the_response_id_is_kept_as_text(written: str, kept: str | None) -> None:
    """Digits stay as they came, at most 255, without what a database or a terminal cannot take."""
    body = '{"data": {"attributes": {"status": "ok"}, "id": ID, "meta": {"request_id": "1"}}}'
    assert read(body.replace("ID", written)) == Answered((Acknowledged(1, kept),), (), 0)


def test_a_byte_order_mark_is_skipped() -> None:
    """UTF-8 with a BOM is read."""
    assert acknowledged(read(b"\xef\xbb\xbf" + ONE.encode())) == [1]


# --- texts


def test_no_credential_is_kept() -> None:
    """Wherever the server repeats a credential, it is gone from what is kept."""
    echo = "no /api/dlr?_login=supplier&_password=hunter2 here, supplier"
    answers = [
        read(echo, status=404, reason=echo),
        read(echo, status=503, reason=echo),
        read(echo),
        read({"errors": [{"code": "hunter2", "title": echo, "detail": echo}, echo]}),
        read({"errors": [{"code": "authentication", "title": echo, "detail": echo}]}),
        read({"data": entry(1, echo)}),
        read({"data": entry(1, "ok", "hunter2")}),
        read("x" * 16_380 + "hunter2" + "y" * 9000, status=404),
        read(" " * 16_380 + "hunter2" + "y" * 9000, status=404),
    ]
    for answer in answers:
        assert "hunter2" not in repr(answer)
        assert "hunt" not in repr(answer)
        assert "supplier" not in repr(answer)


def test_long_texts_are_cut_and_cleaned() -> None:
    """Four megabytes of detail with control characters become a short printable one."""
    answer = read({"errors": [{"code": "c" * 9999, "title": "\x1b[31m\x00\ud800 т", "detail": "d " * 10**6}]})
    assert isinstance(answer, RequestRefused)
    assert answer.error.code == "c" * 100
    assert answer.error.title == "\ufffd[31m\ufffd\ufffd т"
    assert len(answer.error.detail) == 1000


# --- Retry-After


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("120", 120_000),
        (" 5 ", 5_000),
        ("-3", 0),
        ("9" * 5000, 10**12),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60_000),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60_000),
        ("Tue Nov 14 22:14:20 2023", 60_000),
        ("Tue, 14 Nov 2023 22:13:19 GMT", 0),
        ("Tue, 99 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 99999999999 22:14:20 GMT", None),
    ],
)
def test_retry_after(value: str | None, expected: int | None) -> None:
    """Seconds and all three forms of an HTTP date are read from now; the past is 0, garbage is nothing."""
    assert retry_after_ms(value, NOW_MS) == expected


@settings(deadline=None)
@given(st.text())
def test_retry_after_never_raises(value: str) -> None:
    """Whatever the header holds, it is a wait that is not negative, or none."""
    wait = retry_after_ms(value, NOW_MS)
    assert wait is None or wait >= 0


# --- anything at all

scalars = (
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.sampled_from(["1", "2", "ok", "", "x"])
)
names = st.sampled_from(
    ["data", "errors", "attributes", "meta", "status", "request_id", "id", "code", "type"]
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=30,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "attributes": st.dictionaries(names, scalars, max_size=3) | scalars,
        "meta": st.dictionaries(names, scalars, max_size=2) | scalars,
        "request_id": scalars,
        "id": scalars,
    },
)


@settings(deadline=None)
@given(st.binary(), st.integers(100, 599), st.text(max_size=20))
@example(b"\xef\xbb\xbf", 200, "\ud800")
def test_any_bytes_are_an_answer(body: bytes, status: int, reason: str) -> None:
    """No bytes and no status raise, and rubbish acknowledges nothing."""
    assert not isinstance(read(body, 1, 2, status=status, reason=reason), Answered)


@settings(deadline=None)
@given(documents, st.integers(100, 599))
def test_any_json_is_an_answer(document: object, status: int) -> None:
    """No JSON raises at any status, and only a 2xx acknowledges."""
    answer = read(document, 1, 2, status=status)
    assert not isinstance(answer, Answered) or 200 <= status < 300


@settings(deadline=None)
@given(st.lists(entries, max_size=6))
def test_only_what_was_asked_and_answered_ok_is_acknowledged(data: list[dict[str, Any]]) -> None:
    """Each request asked is either acknowledged, with an entry that says ok for it and none against, or at fault."""
    answer = read({"data": data}, 1, 2)
    if not isinstance(answer, Answered):
        assert cause(answer) in ("names-none", "not-json")
        return
    assert sorted([*acknowledged(answer), *codes(answer)]) == [1, 2]
    for request_id in acknowledged(answer):
        about = [one for one in data if mentions(one, request_id)]
        assert about
        assert all(one["attributes"]["status"] == "ok" for one in about)


def mentions(one: dict[str, Any], request_id: int) -> bool:
    """Say whether an entry gives ``request_id`` anywhere, as the number or its text."""
    for place in (one, one.get("meta"), one.get("attributes")):
        value = place.get("request_id") if isinstance(place, dict) else None
        if value == str(request_id) or (type(value) is int and value == request_id):
            return True
    return False
