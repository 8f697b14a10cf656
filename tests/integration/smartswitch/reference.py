"""A second, strict reader of answers, written on its own: what may be acknowledged at the very most.

It shares nothing with the reader under test, knows HTTP only as far as sound answers need it, and takes every
doubt for a no.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

_STATUS_LINE = re.compile(rb"HTTP/\d\.\d 2\d\d(?: .*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
_INTERIM = re.compile(rb"HTTP/\d\.\d 1\d\d")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,20})[ \t]*(?:;[^\r\n]*)?\r?\n")


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object as they stand, repetitions and all."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        """Whether both say the same: the order of members is nothing, nor is one that is there twice with one value."""
        if not isinstance(other, _Pairs):
            return NotImplemented
        names = {name for name, _ in self}
        return names == {name for name, _ in other} and all(
            self.the(each) == other.the(each) for each in names
        )

    def all(self, name: str) -> list[Any]:
        """Every value that the member has."""
        return [value for key, value in self if key == name]

    def the(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """The only value of the member, None if there is none; ValueError if it has different ones."""
        values = self.all(name)
        if not all(value == values[0] for value in values[1:]):  # a list's own `!=` would not ask for `==`
            raise ValueError(name)
        return values[0] if values else None


def acknowledged(raw: bytes, asked: Collection[int]) -> set[int]:
    """Return which of ``asked`` the answer ``raw``, after which the connection was closed, acknowledges."""
    try:
        body = _body(raw)
        answer = json.loads(
            body.decode("utf-8").removeprefix("\ufeff"),
            object_pairs_hook=_Pairs,
            parse_int=str,
            parse_float=str,
            parse_constant=_no_constant,
        )
        if not isinstance(answer, _Pairs) or answer.the("errors"):
            return set()
        entries = answer.the("data")
    except (ValueError, RecursionError):
        return set()
    entries = entries if type(entries) is list else [entries]
    return {each for each in asked if _says_ok(entries, str(each))}


def _says_ok(entries: list[Any], request_id: str) -> bool:
    """Whether some entry is about this one, and all that are say ok and nothing else."""
    about = [each for each in entries if isinstance(each, _Pairs) and request_id in _names(each)]
    try:
        return bool(about) and all(
            _names(each) == {request_id} and each.the("attributes").the("status") == "ok" for each in about
        )
    except (ValueError, AttributeError):
        return False


def _names(entry: _Pairs) -> set[str]:
    """All the request_ids that an entry names anywhere, repetitions included."""
    places = [entry, *entry.all("meta"), *entry.all("attributes")]
    values = [value for place in places if isinstance(place, _Pairs) for value in place.all("request_id")]
    return {value for value in values if isinstance(value, str)}


def _body(raw: bytes) -> bytes:
    """Return the body of a whole 2xx answer; ValueError if it is none."""
    head, raw = _split_head(raw)
    while _INTERIM.match(head):
        head, raw = _split_head(raw)
    fields = _fields(head)
    if fields.get(b"content-encoding", set()) - {b"", b"identity"}:
        raise ValueError("encoded")
    if codings := fields.get(b"transfer-encoding"):
        if {coding.lower() for coding in codings} != {b"chunked"}:
            raise ValueError("an unknown transfer coding")
        return _joined(raw)
    lengths = fields.get(b"content-length")
    if lengths is None:
        return raw
    values = {value.strip(b" \t") for each in lengths for value in each.split(b",")}
    length = int(next(iter(values))) if len(values) == 1 else -1
    if not 0 <= length <= len(raw):
        raise ValueError("not as long as it says")
    return raw[:length]


def _fields(head: bytes) -> dict[bytes, set[bytes]]:
    """Return all values of each header by its name in small letters."""
    status_line, *lines = re.split(rb"\r?\n", head)
    if not _STATUS_LINE.fullmatch(status_line) or status_line[9:12] == b"204":
        raise ValueError("no success")
    fields: dict[bytes, set[bytes]] = {}
    for line in lines:
        if not (field := _FIELD.fullmatch(line)):
            raise ValueError("a header is broken")
        fields.setdefault(field[1].lower(), set()).add(field[2].strip(b" \t"))
    return fields


def _split_head(raw: bytes) -> tuple[bytes, bytes]:
    found = re.search(rb"\r?\n\r?\n", raw)
    if not found:
        raise ValueError("no head")
    return raw[: found.start()], raw[found.end() :]


def _joined(raw: bytes) -> bytes:
    """Put the chunks together; ValueError if they do not come to their end."""
    body = b""
    while True:
        found = _CHUNK.match(raw)
        if not found:
            raise ValueError("no chunk")
        size = int(found[1], 16)
        if size == 0:
            if not re.match(rb"\r?\n|[^\r\n]+:.*?\r?\n\r?\n", raw[found.end() :], re.DOTALL):
                raise ValueError("no end")
            return body
        end = found.end() + size
        if raw[end : end + 2] != b"\r\n":
            raise ValueError("a chunk that is longer than it says")
        body, raw = body + raw[found.end() : end], raw[end + 2 :]


def _no_constant(name: str) -> None:
    raise ValueError(name)
