"""The wire format, against the seed's examples and urllib.parse as an oracle."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import Receipt, ReceiptStatus
from dlr_buffer.smartswitch import wire

ENCODED = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2}|[=&])*")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def receipt(request_id: int, message_id: str, state: MessageState = MessageState.DELIVERED) -> Receipt:
    """Make a receipt that waits to be sent."""
    return Receipt(request_id, "default", message_id, state, ReceiptStatus.PENDING, 0, 0, 0)


receipts = st.builds(receipt, st.integers(1, 2**63), texts, st.sampled_from(MessageState))


def test_the_seeds_example_of_one_receipt() -> None:
    """One receipt gives the seed's query byte for byte."""
    assert wire.encode_query([receipt(1, "1561370632513")], "LOGIN", "PASSWORD") == (
        "message_id=1561370632513&message_state=delivered&request_id=1&_login=LOGIN&_password=PASSWORD"
    )


def test_the_seeds_example_of_two_receipts() -> None:
    """Two receipts give the seed's query byte for byte."""
    both = [receipt(1, "1561370632513"), receipt(2, "1561370632522")]
    assert wire.encode_query(both, "LOGIN", "PASSWORD") == (
        "message_id=1561370632513&message_state=delivered&request_id=1"
        "&message_id=1561370632522&message_state=delivered&request_id=2&_login=LOGIN&_password=PASSWORD"
    )


def test_reserved_characters_are_percent_encoded() -> None:
    """A space is %20, the rest %XX in capitals of the UTF-8; only RFC 3986's unreserved stay raw."""
    assert wire.encode_pairs([receipt(3, "a b+c/ä*'(&=~._-")]).split("&")[0] == (
        "message_id=a%20b%2Bc%2F%C3%A4%2A%27%28%26%3D~._-"
    )


@settings(deadline=None)
@given(st.lists(receipts, min_size=1, max_size=5), texts, texts)
def test_what_is_encoded_is_read_back(sent: list[Receipt], login: str, password: str) -> None:
    """A form decoder reads back exactly what was sent, in order, and nothing but the safe characters is raw."""
    query = wire.encode_query(sent, login, password)
    assert ENCODED.fullmatch(query)
    expected = []
    for one in sent:
        expected.append(("message_id", one.message_id))
        expected.append(("message_state", one.message_state.value))
        expected.append(("request_id", str(one.request_id)))
    expected += [("_login", login), ("_password", password)]
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=True) == expected


@settings(deadline=None)
@given(st.lists(receipts, min_size=1, max_size=5), texts, texts)
def test_the_lengths_add_up_exactly(sent: list[Receipt], login: str, password: str) -> None:
    """Overhead and shares are the length of the request target, and of the form body."""
    query = wire.encode_query(sent, login, password)
    shares = sum(map(wire.encoded_length, sent))
    assert wire.overhead("/api/dlr", login, password) + shares == len(f"/api/dlr?{query}")
    assert wire.overhead(None, login, password) + shares == len(query)


@settings(deadline=None)
@given(st.lists(receipts, min_size=1, max_size=8), st.integers(0, 600), st.integers(1, 8))
def test_fitting_takes_as_many_as_fit(waiting: list[Receipt], room: int, max_receipts: int) -> None:
    """What fits is within the budget, one more is not (or would be too many), and one always goes."""
    budget = wire.overhead("/api/dlr", "LOGIN", "PASSWORD") + room
    count = wire.fitting(waiting, budget_bytes=room, max_receipts=max_receipts)

    def target(number: int) -> int:
        return len("/api/dlr?" + wire.encode_query(waiting[:number], "LOGIN", "PASSWORD"))

    assert 1 <= count <= min(len(waiting), max_receipts)
    assert count == 1 or target(count) <= budget
    assert count == min(len(waiting), max_receipts) or target(count + 1) > budget


def test_about_98_receipts_fit_into_the_default_limit() -> None:
    """DESIGN §4's figure holds for 13-digit ids, 7-digit request_ids and the longest state."""
    waiting = [receipt(10**6 + i, "1561370632513", MessageState.UNDELIVERABLE) for i in range(200)]
    room = 7168 - wire.overhead("/api/dlr", "supplier", "a-long-password")
    assert 95 <= wire.fitting(waiting, budget_bytes=room, max_receipts=1000) <= 101


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://example.com/api/dlr", "/api/dlr"),
        ("https://example.com", "/"),
        ("https://example.com/a b/ä", "/a%20b/%C3%A4"),
        ("https://example.com/a%20b", "/a%20b"),
    ],
)
def test_the_path_is_legal_in_a_request_line(url: str, path: str) -> None:
    """An empty path is the root, illegal characters are encoded, encoded ones left alone."""
    assert wire.target_path(url) == path
