"""How records look: the journal's native protocol against any field, and the three kinds of lines."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlr_buffer.logs import NOTICE, Event, about
from dlr_buffer.logs.events import Facts
from dlr_buffer.logs.formats import (
    MOST_CHARACTERS,
    as_json,
    as_prefixed,
    as_text,
    encode,
    journal_fields,
    priority_of,
)

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)
FORGERY = "ok\n2026-11-28T00:00:00.000Z CRITICAL forged\n<0>forged\x1b[2J\r\u202e"


def record(
    text: str = "hello", level: int = logging.WARNING, extra: dict[str, object] | None = None
) -> logging.LogRecord:
    """A record as the loggers make it."""
    made = logging.getLogger("dlr_buffer.x").makeRecord(
        "dlr_buffer.x", level, "/x.py", 7, "%s", (text,), None, "here", extra
    )
    made.created = 1_800_000_000.25
    return made


def decoded(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Read the journal's native protocol, as its description has it."""
    at = 0
    while at < len(content):
        end = content.index(b"\n", at)
        name, equals, value = content[at:end].partition(b"=")
        at = end + 1
        if not equals:
            length = int.from_bytes(content[at : at + 8], "little")
            value = content[at + 8 : at + 8 + length]
            at += 8 + length + 1
            assert content[at - 1 : at] == b"\n"
        yield name.decode(), value


@given(st.lists(st.tuples(NAMES, st.text())))
@example([("MESSAGE", "two\nlines"), ("A", ""), ("A", "="), ("B", "\n"), ("C", "\x00\ud800")])
def test_any_field_arrives_as_it_was(fields: list[tuple[str, str]]) -> None:
    """Whatever a value holds (line feeds, NUL, =, nothing), and twice the same name: a reader gets it back."""
    assert list(decoded(encode(fields))) == [
        (name, value.encode("utf-8", "backslashreplace")) for name, value in fields
    ]


@pytest.mark.parametrize("name", ["", "account", "_PID", "1ST", "A B", "A=B", "A\n", "Ä", "A" * 65])
def test_a_name_that_the_journal_would_not_take_is_refused(name: str) -> None:
    """The journal drops such fields, or with a line feed would read another one: that is a mistake of ours."""
    with pytest.raises(ValueError, match="no name of a field"):
        encode([(name, "x")])


def test_a_record_as_fields() -> None:
    """Text, priority, kind, facts in capitals, and where in the code: what journalctl can filter by."""
    made = record(extra=about(Event.ACCOUNT_OUTAGE, account="default", receipt=7, cause=None))
    assert dict(journal_fields(made)) == {
        "MESSAGE": "hello",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "dlr-buffer",
        "MESSAGE_ID": "53d018ca90344680985be1d9b6819a86",
        "ACCOUNT": "default",
        "RECEIPT": "7",
        "LOGGER": "dlr_buffer.x",
        "CODE_FILE": "/x.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "here",
    }


def test_a_traceback_is_part_of_the_message() -> None:
    """An exception is told with its traceback, and by its name in a field of its own."""
    made = record()
    try:
        int("a defect")
    except ValueError:
        made.exc_info = sys.exc_info()
    fields = dict(journal_fields(made))
    assert fields["EXCEPTION"] == "ValueError"
    assert fields["MESSAGE"].startswith("hello\nTraceback (most recent call last):\n")
    assert json.loads(as_json(made))["exception"] == "ValueError"


def test_a_line_for_a_person() -> None:
    """Time in UTC with milliseconds, level, text."""
    assert as_text(record()) == "2027-01-15T08:00:00.250Z WARNING hello\n"
    assert as_text(record(level=NOTICE)) == "2027-01-15T08:00:00.250Z NOTICE  hello\n"


def test_a_line_with_a_priority() -> None:
    """Every line of an event carries sd-daemon(3)'s priority and no time, which the journal adds."""
    assert as_prefixed(record("two\nlines")) == "<4>two\n<4>lines\n"


def test_a_line_of_json() -> None:
    """One object on one line, with what the record is about by the names of the documentation."""
    made = record("two\nlines", extra=about(Event.ADMIN_ACTION, peer_uid=0, account="default"))
    (line,) = as_json(made).splitlines()
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "warning",
        "message": "two\nlines",
        "logger": "dlr_buffer.x",
        "event": "admin-action",
        "event_id": "a6dca8a2c97c4fd29ca131a2b3885a7a",
        "peer_uid": 0,
        "account": "default",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [(50, 2), (40, 3), (35, 4), (30, 4), (25, 5), (20, 6), (10, 7), (5, 7), (99, 2)],
)
def test_levels_are_syslogs(level: int, priority: int) -> None:
    """A level between ours has the priority of the one below it, so that nothing seems worse than it is."""
    assert priority_of(record(level=level)) == priority


def test_nobody_forges_a_line() -> None:
    """A text from outside can't begin a line that looks like ours, move a cursor or turn text around."""
    made = record(FORGERY, extra=about(account=FORGERY))
    for written in (as_text(made), as_prefixed(made), as_json(made), *dict(journal_fields(made)).values()):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", written)
    assert [line[:4] for line in as_text(made).splitlines()] == ["2027", "    ", "    "]
    assert all(line.startswith("<4>") for line in as_prefixed(made).splitlines())
    assert len(as_json(made).splitlines()) == 1


def test_no_line_is_endless() -> None:
    """A text that is too long keeps beginning and end, and says how much is left out."""
    text = as_text(record("a" * MOST_CHARACTERS + "b" * MOST_CHARACTERS))
    assert len(text) < MOST_CHARACTERS + 200
    assert "[16000 characters left out]" in text
    assert text.endswith("b\n")


@given(st.text(), st.text())
def test_any_text_can_be_written(text: str, fact: str) -> None:
    """No text whatever, broken surrogates included, keeps a record from being written in any format."""
    made = record(text, extra=about(account=fact))
    json.loads(as_json(made).encode())
    for written in (as_text(made), as_prefixed(made)):
        written.encode()
    encode(journal_fields(made))


def test_every_kind_of_event_is_told_apart() -> None:
    """The ids are 128 bits in the journal's spelling, and no two are the same."""
    ids = [event.message_id for event in Event]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)


def test_the_docs_list_every_kind_and_every_fact() -> None:
    """docs/logging.md has each kind with its id and meaning, and each field; and knows no others."""
    docs = (Path(__file__).parents[3] / "docs/logging.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \| (.*) \|$", docs, flags=re.MULTILINE)
    assert listed == [(event.slug, event.message_id, event.meaning) for event in Event]
    table = docs.partition("## Facts\n")[2].partition("\n## ")[0]
    fields = re.findall(
        r"`([A-Z_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)
    )
    ours = {name.upper() for name in Facts.__annotations__}
    assert set(fields) == ours | {"LOGGER", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "EXCEPTION"}
