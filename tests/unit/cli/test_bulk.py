"""Reading lines for `register` and `report`: cutting, parsing, and what is said of bad ones."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer.cli import bulk
from dlr_buffer.cli.bulk import MAX_LINE_BYTES, Faulty, Item, Line, parse_line, read_lines


class Dripping(io.BytesIO):
    """A stream that gives at most a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        """Give ``content``, ``size`` bytes a read."""
        super().__init__(content)
        self._size = size

    def read1(self, size: int | None = -1, /) -> bytes:
        """Read a little."""
        return super().read1(self._size)


@given(
    st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)),
    st.sampled_from([b"", b"\n"]),
    st.integers(1, 7),
)
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], end: bytes, size: int) -> None:
    """Cutting does not depend on how the bytes come in, and a last line needs no newline."""
    content = b"\n".join(lines) + (end if lines else b"")
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    found = list(read_lines(Dripping(content, size)))
    assert found == [Line(number, line) for number, line in enumerate(expected, start=1)]


def test_an_endless_line_is_given_up_without_being_kept() -> None:
    """A line over the limit is reported by its number, and the lines around it are read as ever."""
    content = b"one\n" + b"x" * (3 * MAX_LINE_BYTES) + b"\nthree\n" + b"y" * (MAX_LINE_BYTES + 1)
    found = list(read_lines(Dripping(content, 10_000)))
    assert found == [Line(1, b"one"), Line(2, None), Line(3, b"three"), Line(4, None)]


def _plain(words: str) -> dict[str, Any]:
    return {"message_id": bulk._single(words)}


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"007", {"message_id": "007"}),
        (b" 0xAb\t\r", {"message_id": "0xAb"}),
        (b"\xef\xbb\xbf7", {"message_id": "7"}),
        (b'{"message_id": "a b"}', {"message_id": "a b"}),
        (b'{"message_id": 7}', {"message_id": 7}),
        (b"a\xc2\xa0b", {"message_id": "a\xa0b"}),
    ],
)
def test_a_line_is_an_id_or_an_object(content: bytes, fields: dict[str, Any]) -> None:
    """Blanks around an id and a byte order mark at the start are not part of it; an object is not judged here."""
    assert parse_line(Line(1, content), _plain, {}) == Item("line 1", fields)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a b", "as JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"message_id": ', "not a JSON object"),
        (b'{"a":' * 9000, "not a JSON object"),
        (None, "longer than 65,536 bytes"),
    ],
)
def test_a_bad_line_is_named_and_explained(content: bytes | None, problem: str) -> None:
    """What cannot be sent is told with its line number and what would be right."""
    found = parse_line(Line(17, content), _plain, {})
    assert isinstance(found, Faulty)
    assert found.origin == "line 17"
    assert problem in found.problem


def test_blank_lines_are_nothing() -> None:
    """Empty lines and lines of blanks are skipped."""
    assert [parse_line(Line(2, content), _plain, {}) for content in (b"", b" \t\r")] == [None, None]


def test_options_fill_in_what_a_line_leaves_out() -> None:
    """--account and the like hold for every line that does not say otherwise; options not given add nothing."""
    defaults = {"account": "a", "validity_period": None}
    found = [
        parse_line(Line(2, content), _plain, defaults)
        for content in (b"7", b'{"message_id": "7", "account": "b"}')
    ]
    assert found == [
        Item("line 2", {"message_id": "7", "account": "a"}),
        Item("line 2", {"message_id": "7", "account": "b"}),
    ]


@pytest.mark.parametrize("line", ["7\tdelivered", "7 delivered", "7 \t delivered"])
def test_a_report_line_is_an_id_and_a_state(line: str) -> None:
    """A tab or blanks stand between them."""
    assert bulk._with_state(line) == {"message_id": "7", "message_state": "delivered"}


@pytest.mark.parametrize("line", ["7", "7 delivered now"])
def test_a_report_line_needs_exactly_two_words(line: str) -> None:
    """An id alone, or too much, is refused rather than guessed at."""
    with pytest.raises(ValueError, match="a message id, a tab or space, and a state"):
        bulk._with_state(line)
