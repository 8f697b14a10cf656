"""How a record looks: for a person, as a line of JSON, with a syslog priority in front, and as the journal's fields.

What comes from outside (ids of apps, error texts of Smartswitch) may stand in any text: control characters are
escaped, so that none of it can forge a line or move a terminal's cursor. Texts are cut, so that no line is endless.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator
from typing import Final

from dlr_buffer.logs.events import NOTICE, event_of, facts_of

IDENTIFIER: Final = "dlr-buffer"
MOST_CHARACTERS: Final = 16_000
"""Of a text or a fact; with four bytes each, all of a record still fits into one datagram."""
PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    NOTICE: 5,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""syslog(3)'s, by level."""

# All of C0 and C1 but tab and line feed, DEL, what turns text around, and broken surrogates.
_UNPRINTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FIELD_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_traceback = logging.Formatter().formatException


def text_of(record: logging.LogRecord) -> str:
    """The text of a record, of one line or several, with the traceback if there is one."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text = f"{text}\n{_traceback(record.exc_info)}"
    return _clean(text)


def as_text(record: logging.LogRecord) -> str:
    """For a person: time in UTC, level, text; further lines of the text are set in, lest they be taken for new ones."""
    text = text_of(record).replace("\n", "\n    ")
    return f"{_time(record)} {record.levelname:<7} {text}\n"


def as_prefixed(record: logging.LogRecord) -> str:
    """For sd-daemon(3): each line with its syslog priority in front, and no time, which the reader adds."""
    priority = priority_of(record)
    return "".join(f"<{priority}>{line}\n" for line in text_of(record).split("\n"))


def as_json(record: logging.LogRecord) -> str:
    """One object on one line: time, level, message, logger, and then what the record is about."""
    line: dict[str, object] = {
        "time": _time(record),
        "level": record.levelname.lower(),
        "message": text_of(record),
        "logger": record.name,
    }
    if (event := event_of(record)) is not None:
        line |= {"event": event.slug, "event_id": event.message_id}
    line |= {
        name: value if isinstance(value, int) else _clean(value) for name, value in facts_of(record).items()
    }
    if record.exc_info and record.exc_info[0] is not None:
        line["exception"] = record.exc_info[0].__name__
    return json.dumps(line, ensure_ascii=False) + "\n"


def journal_fields(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    """The fields of a journal entry (systemd.journal-fields(7)), the record's facts among them in capitals."""
    yield "MESSAGE", text_of(record)
    yield "PRIORITY", str(priority_of(record))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    if (event := event_of(record)) is not None:
        yield "MESSAGE_ID", event.message_id
    for name, value in facts_of(record).items():
        yield name.upper(), _clean(str(value))
    yield "LOGGER", record.name
    yield "CODE_FILE", record.pathname
    yield "CODE_LINE", str(record.lineno)
    yield "CODE_FUNC", record.funcName or ""
    if record.exc_info and record.exc_info[0] is not None:
        yield "EXCEPTION", record.exc_info[0].__name__


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Write fields in the journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

    A value with line feeds is preceded by its length, 64 bits little endian. Raises ValueError for a name that the
    journal would not take.
    """
    written = bytearray()
    for name, value in fields:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a field")
        content = value.encode("utf-8", "backslashreplace")
        if b"\n" in content:
            written += b"%b\n%b%b\n" % (name.encode(), len(content).to_bytes(8, "little"), content)
        else:
            written += b"%b=%b\n" % (name.encode(), content)
    return bytes(written)


def priority_of(record: logging.LogRecord) -> int:
    """The syslog priority of a record; of a level that is not ours, that of the next one below."""
    return next((priority for level, priority in PRIORITIES.items() if record.levelno >= level), 7)


def _clean(text: str) -> str:
    """Escape control characters; of a text that is too long, leave out the middle."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]} … [{len(text) - 2 * half} characters left out] … {text[-half:]}"
    return _UNPRINTED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _time(record: logging.LogRecord) -> str:
    seconds = int(record.created)
    milliseconds = int((record.created - seconds) * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"
