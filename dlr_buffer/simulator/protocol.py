"""The seed's wire format from the server's side: arguments in, JSON:API out, and masking.

Pure. Strict on purpose: what a lenient server might guess is refused here with a sentence that says what is
wrong. Which answer is given when is `behaviour`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

PATH = "/api/dlr"
"""The one path of the seed's API."""

MEDIA_TYPE = "application/vnd.api+json"
"""The media type of JSON:API (jsonapi.org/format)."""

MESSAGE_STATES = ("enroute", "delivered", "expired", "undeliverable", "accepted", "unknown", "rejected")
"""The seed's seven message states, in its order."""

FINAL_STATES = frozenset({"delivered", "expired", "undeliverable", "rejected"})
"""The states that end a message; the other three are intermediate."""

_quoted = json.JSONEncoder(ensure_ascii=False).encode
_FORM = "application/x-www-form-urlencoded"
_MANDATORY = ("message_id", "message_state")
_NAMES = frozenset({"message_id", "message_state", "request_id", "_login", "_password"})
_OPEN_NAMES = frozenset({"message_id", "message_state", "request_id"})
# RFC 3986 section 3.4, but no raw "+": some servers read it as a space, so a strict client never sends one.
_QUERY = re.compile(r"(?:[A-Za-z0-9\-._~!$'()*,;:@/?&=]+|%[0-9A-Fa-f]{2})*")
_FORM_BODY = re.compile(r"(?:[A-Za-z0-9\-._~!$'()*,;:@/?&=+]+|%[0-9A-Fa-f]{2})*")


class Receipt(NamedTuple):
    """One entry of a request: a state of one message, with the client's own name for it if it gave one."""

    message_id: str
    message_state: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Arguments:
    """A request's arguments: ``problem`` is None, or says what is wrong; there are no receipts then."""

    receipts: tuple[Receipt, ...] = ()
    login: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    problem: str | None = None


class Entry(NamedTuple):
    """One entry of an answer's ``data``; ``request_id`` None leaves ``meta`` out."""

    response_id: str
    request_id: str | None
    status: str = "ok"


def read_arguments(target: str, content_type: str, body: bytes) -> Arguments:
    """Read the arguments from a request target's query or from a form body.

    Names and values are percent-decoded once as UTF-8; in a form body ``+`` is a space. Missing credentials
    are not a problem of form: ``login`` or ``password`` is None then. Never raises.
    """
    _, _, query = target.partition("?")
    if body and content_type.partition(";")[0].strip().lower() != _FORM:
        return Arguments(problem=f"a body has to be {_FORM}; leave it empty to use the query")
    if body and query:
        return Arguments(problem="the arguments are either in the query or in the body, not in both")
    try:
        if body:
            return _arguments(_pairs(body.decode("ascii", "replace"), _FORM_BODY))
        return _arguments(_pairs(query, _QUERY))
    except _ArgumentError as problem:
        return Arguments(problem=str(problem))


class _ArgumentError(Exception):
    """The text says which argument is wrong; it never holds a value of one that is secret."""


def _pairs(text: str, allowed: re.Pattern[str]) -> dict[str, list[str]]:
    if allowed.fullmatch(text) is None:
        raise _ArgumentError(
            "a character is not percent-encoded, or a percent sign is not followed by two hex digits"
        )
    found: dict[str, list[str]] = {}
    plus_is_space = allowed is _FORM_BODY
    for pair in text.split("&") if text else ():
        name, equals, value = pair.partition("=")
        if "%" in pair or (plus_is_space and "+" in pair):
            name, value = (
                _decoded(name, plus_is_space=plus_is_space),
                _decoded(value, plus_is_space=plus_is_space),
            )
        if not equals or name not in _NAMES:
            raise _ArgumentError("an argument is none of " + ", ".join(sorted(_NAMES)))
        if name in found:
            found[name].append(value)
        else:
            found[name] = [value]
    return found


def _decoded(text: str, *, plus_is_space: bool) -> str:
    if plus_is_space:
        text = text.replace("+", " ")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise _ArgumentError("an argument is not UTF-8") from None


def _arguments(found: dict[str, list[str]]) -> Arguments:
    for name in ("_login", "_password"):
        if len(found.get(name, ())) > 1:
            raise _ArgumentError(f"{name} is given more than once")
    for name in _MANDATORY:
        if name not in found:
            raise _ArgumentError(f"{name} is missing")
    message_ids, states = found["message_id"], found["message_state"]
    request_ids = found.get("request_id")
    if len(states) != len(message_ids):
        raise _ArgumentError(f"{len(message_ids)} message_id but {len(states)} message_state")
    if request_ids is not None and len(request_ids) != len(message_ids):
        raise _ArgumentError(f"{len(message_ids)} message_id but {len(request_ids)} request_id")
    if "" in message_ids:
        raise _ArgumentError("a message_id is empty")
    wrong = next((state for state in states if state not in MESSAGE_STATES), None)
    if wrong is not None:
        raise _ArgumentError(f"message_state {wrong!r} is none of " + ", ".join(MESSAGE_STATES))
    receipts = tuple(map(Receipt, message_ids, states, request_ids or (None,) * len(message_ids)))
    return Arguments(receipts, found.get("_login", [None])[0], found.get("_password", [None])[0])


def data_body(entries: Iterable[Entry], *, array: bool) -> bytes:
    """Write an answer's ``data`` in the seed's very layout: an array, or else the object of the one entry."""
    # Written by hand: json's indenting encoder is pure Python and would be the stand-in's bottleneck.
    indent = "\t\t" if array else "\t"
    texts = [_entry(entry, indent) for entry in entries]
    if not array:
        (text,) = texts
        return f'{{\n\t"data" : {text}\n}}\n'.encode()
    inner = ",\n".join(indent + text for text in texts)
    return f'{{\n\t"data" : [\n{inner}\n\t]\n}}\n'.encode() if inner else b'{\n\t"data" : []\n}\n'


def _entry(entry: Entry, indent: str) -> str:
    meta = ""
    if entry.request_id is not None:
        name = _quoted(entry.request_id)
        meta = f'{indent}\t"meta" : {{\n{indent}\t\t"request_id" : {name}\n{indent}\t}},\n'
    return (
        f'{{\n{indent}\t"attributes" : {{\n{indent}\t\t"status" : "{entry.status}"\n{indent}\t}},\n'
        f'{indent}\t"id" : "{entry.response_id}",\n{meta}{indent}\t"type" : "dlr"\n{indent}}}'
    )


def errors_body(code: str, title: str, detail: str) -> bytes:
    """Write an answer's ``errors`` with one error, in the seed's layout."""
    error = {"code": code, "detail": detail, "title": title}
    text = json.dumps({"errors": [error]}, ensure_ascii=False, indent="\t", separators=(",", " : "))
    return text.encode() + b"\n"


def mask_target(target: str) -> str:
    """Return a request target fit to be shown: nothing but path, message ids, states and request ids stays.

    Every other argument's value becomes ``***``, and so does whatever is no known argument: it may be a piece
    of a password that was not encoded. An absolute target loses its scheme and authority.
    """
    path, mark, query = target.partition("?")
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*", "", path)
    return path + mark + "&".join(map(_masked_pair, query.split("&")))


def _masked_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    if not pair or (equals and name in _OPEN_NAMES):
        return pair
    return f"{name}=***" if name in _NAMES else "***"
