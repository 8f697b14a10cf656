"""The seed's wire format as the stand-in reads and writes it."""

from __future__ import annotations

import json

import pytest

from dlr_buffer.simulator.protocol import (
    Arguments,
    Entry,
    Receipt,
    data_body,
    errors_body,
    mask_target,
    read_arguments,
)

CREDENTIALS = "_login=LOGIN&_password=PASSWORD"

SEED_ONE = """{
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
}
"""

SEED_TWO = """{
	"data" : [
		{
			"attributes" : {
				"status" : "ok"
			},
			"id" : "1561371433517",
			"meta" : {
				"request_id" : "1"
			},
			"type" : "dlr"
		},
		{
			"attributes" : {
				"status" : "ok"
			},
			"id" : "1561371433518",
			"meta" : {
				"request_id" : "2"
			},
			"type" : "dlr"
		}
	]
}
"""

SEED_ERROR = """{
	"errors" : [
		{
			"code" : "authentication",
			"detail" : "Please check your login and password",
			"title" : "Authentication error"
		}
	]
}
"""


def _query(query: str) -> Arguments:
    return read_arguments(f"/api/dlr?{query}", "", b"")


def _problem(query: str) -> str:
    arguments = _query(query)
    assert arguments.receipts == ()
    assert arguments.problem is not None
    return arguments.problem


def test_seed_answers() -> None:
    """The three answers of the seed come out byte for byte, tabs and order of members included."""
    assert data_body([Entry("1561370632713", "1")], array=False).decode() == SEED_ONE
    assert (
        data_body([Entry("1561371433517", "1"), Entry("1561371433518", "2")], array=True).decode() == SEED_TWO
    )
    detail = "Please check your login and password"
    assert errors_body("authentication", "Authentication error", detail).decode() == SEED_ERROR


def test_seed_requests() -> None:
    """The seed's request targets are understood: receipts in order, credentials apart."""
    one = _query(f"message_id=1561370632513&message_state=delivered&request_id=1&{CREDENTIALS}")
    assert one == Arguments((Receipt("1561370632513", "delivered", "1"),), "LOGIN", "PASSWORD")
    two = _query(
        "message_id=1561370632513&message_state=delivered&request_id=1&"
        f"message_id=1561370632522&message_state=delivered&request_id=2&{CREDENTIALS}"
    )
    assert two.receipts == (
        Receipt("1561370632513", "delivered", "1"),
        Receipt("1561370632522", "delivered", "2"),
    )


def test_request_id_is_optional() -> None:
    """Without request_id the answer has no meta, as the seed demands it only if it was passed."""
    arguments = _query(f"message_id=a&message_state=unknown&{CREDENTIALS}")
    assert arguments.receipts == (Receipt("a", "unknown", None),)
    assert json.loads(data_body([Entry("5", None)], array=False)) == {
        "data": {"attributes": {"status": "ok"}, "id": "5", "type": "dlr"}
    }


def test_request_ids_are_escaped() -> None:
    """A request_id with quotes, backslashes and non-ASCII comes back as it was, in valid JSON."""
    odd = 'a"b\\c\té'
    body = json.loads(data_body([Entry("5", odd), Entry("6", "x")], array=True))
    assert [entry["meta"]["request_id"] for entry in body["data"]] == [odd, "x"]


def test_an_empty_array_is_valid_json() -> None:
    """An answer that leaves out all receipts is still an array."""
    assert json.loads(data_body([], array=True)) == {"data": []}


def test_values_are_decoded_once() -> None:
    """Percent-encoding is undone exactly once, as UTF-8, and an encoded separator separates nothing."""
    arguments = _query(
        "message_id=a%26b%3Dc%2525%20%C3%A9%2B&message_state=delivered&_login=L&_password=%26%25"
    )
    assert arguments.receipts == (Receipt("a&b=c%25 é+", "delivered", None),)
    assert arguments.password == "&%"


def test_form_body() -> None:
    """The same pairs are taken from a form body, where a plus is a space."""
    body = b"message_id=a+b&message_state=rejected&request_id=1&_login=L&_password=P"
    content_type = "application/x-www-form-urlencoded; charset=utf-8"
    arguments = read_arguments("/api/dlr", content_type, body)
    assert arguments == Arguments((Receipt("a b", "rejected", "1"),), "L", "P")
    both = read_arguments("/api/dlr?message_id=a", content_type, body)
    assert both.problem == "the arguments are either in the query or in the body, not in both"
    assert "application/x-www-form-urlencoded" in str(read_arguments("/api/dlr", "text/plain", body).problem)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "message_id is missing"),
        ("message_id=a", "message_state is missing"),
        ("message_state=delivered", "message_id is missing"),
        ("message_id=a&message_id=b&message_state=delivered", "2 message_id but 1 message_state"),
        ("message_id=a&message_state=delivered&request_id=1&request_id=2", "1 message_id but 2 request_id"),
        (
            "message_id=a&message_state=delivered&message_id=b&message_state=delivered&request_id=1",
            "1 request_id",
        ),
        ("message_id=&message_state=delivered", "a message_id is empty"),
        ("message_id=a&message_state=DELIVERED", "message_state 'DELIVERED' is none of enroute,"),
        ("message_id=a%&message_state=delivered", "two hex digits"),
        ("message_id=a%zz&message_state=delivered", "two hex digits"),
        ("message_id=a%FF&message_state=delivered", "not UTF-8"),
        ("message_id=a+b&message_state=delivered", "not percent-encoded"),
        ("message_id=a#b&message_state=delivered", "not percent-encoded"),
        ("message_id=a&message_state=delivered&&", "an argument is none of"),
        ("message_id=a&message_state=delivered&login=x", "an argument is none of"),
        ("message_id=a&message_state=delivered&_login=x&_login=x", "_login is given more than once"),
    ],
)
def test_strictness(query: str, problem: str) -> None:
    """What a lenient server might guess is refused with a sentence that names the fault."""
    assert problem in _problem(query)


def test_all_seven_states_and_no_other() -> None:
    """Exactly the seed's seven states are taken."""
    states = ("enroute", "delivered", "expired", "undeliverable", "accepted", "unknown", "rejected")
    for state in states:
        assert _query(f"message_id=a&message_state={state}").problem is None
    assert "none of" in _problem("message_id=a&message_state=deleted")


def test_arguments_never_show_credentials() -> None:
    """The repr of arguments holds neither login nor password."""
    shown = repr(_query("message_id=a&message_state=delivered&_login=topsecret1&_password=topsecret2"))
    assert "topsecret" not in shown


@pytest.mark.parametrize(
    ("target", "masked"),
    [
        (
            "/api/dlr?message_id=1&message_state=delivered&request_id=1&_login=L&_password=P",
            "/api/dlr?message_id=1&message_state=delivered&request_id=1&_login=***&_password=***",
        ),
        ("/api/dlr?_password=half&secret", "/api/dlr?_password=***&***"),
        ("/api/dlr?_password=a&b=secret", "/api/dlr?_password=***&***"),
        ("/api/dlr?%5Fpassword=secret", "/api/dlr?***"),
        ("http://user:secret@host/api/dlr?_login=secret", "/api/dlr?_login=***"),
        ("/api/dlr", "/api/dlr"),
    ],
)
def test_masking(target: str, masked: str) -> None:
    """Only what is certainly no credential stays readable."""
    assert mask_target(target) == masked
