"""What Smartswitch's answer means: the table of DESIGN §4, read in its order.

Pure: bytes in, one record of a closed union out, whatever the bytes are. Nothing here raises on input, and
nothing is acknowledged but what was asked and answered ok. What each outcome does to the queue and the
account is the flusher's and account health's; failures to get an answer at all are told apart in `client`,
with the same `Outage`.

Where the seed and JSON:API leave room:

- ``errors`` or ``data`` that are null, and ``errors`` that are empty in any way (``[]``, ``{}``, ``""``,
  false), count as absent: some serialisers always write both members. ``errors`` as one object is one error.
  Any other ``errors`` that are not an array cannot be read: beside ``data`` they count as *both*, alone as
  *neither*.
- A member that stands twice with different values contradicts itself: it is never ok, and what it names is not
  acknowledged, whatever other entries say of it.
- A UTF-8 byte order mark is skipped (RFC 8259 §8.1 allows it); NaN and Infinity are not JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

import msgspec

from dlr_buffer.receipts import Acknowledged, ReceiptError, Refused

AUTHENTICATION = "authentication"
"""The seed's error code for a wrong login or password."""

_MAX_ID = 255
_MAX_CODE = 100
_MAX_TITLE = 255
_MAX_DETAIL = 1000
_MAX_EXCERPT = 200
_MAX_ERRORS = 20
_WINDOW = 16_384
_MARGIN = 4_096
"""Of a long text, 16 Ki characters are looked at, the last 4 Ki of them only for a credential cut there."""
MAX_ANSWER_VALUES = 200_000
"""Commas and opening brackets in an answer: 4 MiB of the smallest values would take 40 times that in memory, and
seconds to read. An entry has about eight, and a batch 10,000 entries at most."""
_MAX_RETRY_AFTER_MS = 10**12
_UNAUTHORISED = (401, 403)
_TOO_LARGE = (413, 414, 431)
_TRY_LATER = frozenset((408, 425, 429, *range(500, 1000)))
_SUCCESS = range(200, 300)
_REDIRECT = range(300, 400)
_REFUSAL = range(400, 500)
_MAX_SECONDS_DIGITS = 9
_SECONDS = re.compile(r"(-?)([0-9]+)")

Redact = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Answered:
    """A 2xx that names at least one of the receipts asked.

    ``faulted`` are those not acknowledged, each with why (``status``, ``missing-status``, ``missing-entry``,
    ``contradictory``); together with ``acknowledged`` they are all that was asked. ``violations`` counts what
    was ignored: entries for nothing that was asked, duplicates, contradictions.
    """

    acknowledged: tuple[Acknowledged, ...]
    faulted: tuple[Refused, ...]
    violations: int


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """Smartswitch refuses the request as a whole: at least one receipt of it is bad, or all are."""

    error: ReceiptError


@dataclass(frozen=True, slots=True)
class AuthenticationFailed:
    """Login or password are wrong; ``coded``: Smartswitch's own code says so, not only HTTP's 401 or 403."""

    error: ReceiptError
    coded: bool


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The request is too long for the server (413, 414, 431)."""

    status: int


@dataclass(frozen=True, slots=True)
class Outage:
    """Nothing can be said of the receipts; the account has to wait.

    ``cause`` is a short stable slug (``http-503``, ``refused``, ``reset``, ``unreachable``, ``timeout``,
    ``tls``, ``dns``, ``proxy``, ``not-json``, ``truncated``, ``too-long``, ``neither``, ``both``, ``names-none``,
    ``redirect``, ``protocol``), ``detail`` a sentence for people without any credential. ``retry_after_ms``
    is what the server asked for, not capped.
    """

    cause: str
    detail: str
    retry_after_ms: int | None = None


Answer = Answered | RequestRefused | AuthenticationFailed | TooLarge | Outage


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An HTTP answer as it came; ``fault`` is what went wrong with the body (which is not looked at then)."""

    status: int
    reason: str
    retry_after: str | None
    body: bytes
    fault: Outage | None = None


def classify(  # noqa: C901, PLR0912 - the table, row by row: in pieces its order would be lost
    http: HttpAnswer, asked: Sequence[int], *, now_ms: int, redact: Redact
) -> Answer:
    """Say what the answer to a request with the request_ids ``asked`` means (DESIGN §4, row by row).

    ``now_ms`` is the wall time in milliseconds, for a Retry-After date; ``redact`` takes the credentials out
    of every text that is kept.
    """
    if (answered := _all_ok(http, asked, redact)) is not None:
        return answered
    fault = http.fault or _crowd(http.body)
    document, unreadable = (None, "it did not come whole") if fault else _document(http.body)
    errors, malformed_errors = _errors(document)
    status = http.status
    outage = partial(Outage, retry_after_ms=retry_after_ms(http.retry_after, now_ms))
    coded = [error for error in errors if isinstance(error, dict) and error.get("code") == AUTHENTICATION]
    if coded:
        others = [error for error in errors if error is not coded[0]]
        return AuthenticationFailed(_joined([coded[0], *others], AUTHENTICATION, redact), coded=True)
    if status in _UNAUTHORISED:
        return AuthenticationFailed(_http_error(http, errors, redact), coded=False)
    if status in _TOO_LARGE:
        return TooLarge(status)
    if status in _TRY_LATER:
        return outage(f"http-{status}", _told(http, errors, redact))
    if status in _REDIRECT:
        return outage(
            "redirect", f"HTTP {status}: not followed, as the query holds the password; correct the URL"
        )
    if fault is not None:
        return outage(fault.cause, fault.detail)
    if status in _REFUSAL:
        return RequestRefused(_http_error(http, errors, redact))
    if status not in _SUCCESS:
        return outage("protocol", f"HTTP {status} is no answer to a POST")
    if unreadable:
        told = _excerpt(http.body, redact)
        return outage(
            "not-json", f"HTTP {status}, but the body is not JSON: {unreadable}{told and f' ({told})'}"
        )
    data = document.get("data") if isinstance(document, dict) else None
    if data is not None and (errors or malformed_errors):
        return outage("both", "the answer holds data and errors at the same time")
    if errors:
        return RequestRefused(_joined(errors, "missing-code", redact))
    if data is None:
        return outage("neither", "the answer is JSON, but holds neither data nor errors")
    answered = _read_entries(data if isinstance(data, list) else [data], asked, redact)
    if answered is None:
        return outage("names-none", "the answer names none of the request_ids that were sent")
    return answered


def retry_after_ms(value: str | None, now_ms: int) -> int | None:
    """Read a Retry-After header (RFC 9110 §10.2.3) into milliseconds from ``now_ms``; None if it is garbage.

    What lies in the past is 0; the caller caps it (here only so that no number is absurd).
    """
    if value is None:
        return None
    text = value.strip()
    if seconds := _SECONDS.fullmatch(text):
        sign, digits = seconds.groups()
        if sign:
            return 0
        return _MAX_RETRY_AFTER_MS if len(digits) > _MAX_SECONDS_DIGITS else int(digits) * 1000
    try:
        moment = parsedate_to_datetime(text)
        at_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
        return None
    return min(max(0, at_ms - now_ms), _MAX_RETRY_AFTER_MS)


# --- the answer that nearly always comes


class _OkAttributes(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    status: str


class _OkMeta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    request_id: str


class _OkEntry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    attributes: _OkAttributes
    id: str
    meta: _OkMeta
    type: str


class _OkDocument(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    data: _OkEntry | list[_OkEntry]


_decode_ok = msgspec.json.Decoder(_OkDocument).decode
_QUOTES_AN_ENTRY: Final = 2 * (6 + 4)
"""Six names and four values."""
_QUOTES_BESIDES: Final = 2


def _all_ok(http: HttpAnswer, asked: Sequence[int], redact: Redact) -> Answered | None:
    """Read an answer that names all that was asked, each once, each ok, in the seed's form, and nothing else.

    None for any other: the table is asked then. It would say the same of this one, but takes ten times as long.
    """
    body = http.body
    # So many quotes, none of them escaped, are what the names and values take at least. So no member is there twice,
    # and the answer is no longer than its values are.
    if (
        http.status not in _SUCCESS
        or http.fault is not None
        or body.count(b'"') != len(asked) * _QUOTES_AN_ENTRY + _QUOTES_BESIDES
        or b"\\" in body
        or not body.isascii()
    ):
        return None
    try:
        data = _decode_ok(body).data
    except (msgspec.MsgspecError, RecursionError):
        return None
    entries = data if isinstance(data, list) else [data]
    ids = {entry.meta.request_id: entry.id for entry in entries if entry.attributes.status == "ok"}
    if len(ids) != len(asked) or len(entries) != len(asked):
        return None
    kept = "".join(ids.values())
    if redact(kept) != kept or not kept.isprintable():
        return None
    acknowledged: list[Acknowledged] = []
    for request_id in asked:
        response_id = ids.get(str(request_id))
        if response_id is None or len(response_id) > _MAX_ID:
            return None
        acknowledged.append(Acknowledged(request_id, response_id))
    return Answered(tuple(acknowledged), (), 0)


# --- the entries of data


@dataclass(frozen=True, slots=True, eq=False)
class _Contradiction:
    """Stands for a member that was written with different ``values``: equal to nothing, of no JSON type."""

    values: tuple[Any, ...]


@dataclass(slots=True)
class _Named:
    """What the entries so far said about one request_id; ``status`` is the first entry's."""

    status: str | None
    response_id: str | None
    attributes: object
    contradictory: bool


def _read_entries(entries: list[Any], asked: Sequence[int], redact: Redact) -> Answered | None:
    """Match the entries with what was asked; None if they name none of it."""
    ours = {str(request_id): request_id for request_id in asked}
    named: dict[int, _Named] = {}
    violations = 0
    for entry in entries:
        if not isinstance(entry, dict):
            violations += 1
            continue
        attributes = entry.get("attributes")
        texts, sound = _request_ids(entry, attributes)
        hits = [ours[text] for text in texts if text in ours]
        if not hits:
            violations += 1
            continue
        status, readable = _status(attributes)
        sound = sound and readable and len(texts) == 1
        violations += not sound
        for request_id in hits:
            earlier = named.get(request_id)
            if earlier is None:
                named[request_id] = _Named(status, _response_id(entry, redact), attributes, not sound)
                continue
            violations += sound
            earlier.contradictory |= not sound or earlier.status != status
    if not named:
        return None

    acknowledged: list[Acknowledged] = []
    faulted: list[Refused] = []
    for request_id in asked:
        said = named.get(request_id)
        if said is not None and said.status == "ok" and not said.contradictory:
            acknowledged.append(Acknowledged(request_id, said.response_id))
        else:
            faulted.append(Refused(request_id, _fault(said, redact)))
    return Answered(tuple(acknowledged), tuple(faulted), violations)


def _request_ids(entry: dict[str, Any], attributes: object) -> tuple[list[str], bool]:
    """Return the different request_ids that the entry gives itself, and whether none is written twice over.

    It stands in ``meta`` in the seed's examples and is a member by its table. Numbers were read as text
    already.
    """
    written = [entry.get("meta"), entry, attributes]
    places = [place for each in written for place in _values(each)]
    values = [place["request_id"] for place in places if isinstance(place, dict) and "request_id" in place]
    texts = [text for value in values for text in _values(value) if isinstance(text, str)]
    sound = not any(isinstance(each, _Contradiction) for each in [*written, *values])
    return list(dict.fromkeys(texts)), sound


def _values(value: object) -> tuple[Any, ...]:
    """Return everything that was written for a member."""
    return value.values if isinstance(value, _Contradiction) else (value,)


def _status(attributes: object) -> tuple[str | None, bool]:
    """Return the status as text (None: there is none), and whether it does not contradict itself."""
    if isinstance(attributes, _Contradiction):
        return None, False
    value = attributes.get("status") if isinstance(attributes, dict) else None
    if isinstance(value, str):
        return value or None, True
    # Neither string nor number, but it came: the text is for people, and none of these is "ok".
    return (None if value is None else _text(value)), not isinstance(value, _Contradiction)


def _response_id(entry: dict[str, Any], redact: Redact) -> str | None:
    value = entry.get("id")
    return _printable(_redacted(value, redact))[:_MAX_ID] if isinstance(value, str) else None


def _fault(said: _Named | None, redact: Redact) -> ReceiptError:
    if said is None:
        return ReceiptError("missing-entry", "Not in the answer", "the answer names others of the batch only")
    came = _clean(_text(said.attributes), redact, _MAX_DETAIL)
    if said.contradictory:
        return ReceiptError("contradictory", "The answer contradicts itself", came)
    if said.status is None:
        return ReceiptError("missing-status", "The answer gives no status", came)
    return ReceiptError("status", _clean(said.status, redact, _MAX_TITLE), came)


# --- errors


def _errors(document: object) -> tuple[list[Any], bool]:
    """Return the ``errors`` as a list (empty if there are none), and whether they are unreadable."""
    errors = document.get("errors") if isinstance(document, dict) else None
    if isinstance(errors, list):
        return errors, False
    if isinstance(errors, dict):
        return ([errors] if errors else []), False
    return [], bool(errors)


def _joined(errors: list[Any], default_code: str, redact: Redact) -> ReceiptError:
    """Make one error of several: the first one's code and title, all of them in the detail."""
    first, *others = (_error(error, default_code, redact) for error in errors[:_MAX_ERRORS])
    if not others:
        return first
    more = "; ".join(": ".join(filter(None, (error.code, error.title, error.detail))) for error in others)
    return ReceiptError(first.code, first.title, f"{first.detail}; {more}"[:_MAX_DETAIL])


def _error(error: object, default_code: str, redact: Redact) -> ReceiptError:
    if not isinstance(error, dict):
        return ReceiptError(default_code, "", _clean(_text(error), redact, _MAX_DETAIL))
    return ReceiptError(
        _clean(_text(error.get("code")), redact, _MAX_CODE) or default_code,
        _clean(_text(error.get("title")), redact, _MAX_TITLE),
        _clean(_text(error.get("detail")), redact, _MAX_DETAIL),
    )


def _http_error(http: HttpAnswer, errors: list[Any], redact: Redact) -> ReceiptError:
    code = f"http-{http.status}"
    if errors:
        return _joined(errors, code, redact)
    return ReceiptError(code, _clean(http.reason, redact, _MAX_TITLE), _excerpt(http.body, redact))


def _told(http: HttpAnswer, errors: list[Any], redact: Redact) -> str:
    error = _http_error(http, errors, redact)
    words = ": ".join(filter(None, (error.title, error.detail)))[:_MAX_EXCERPT]
    return f"HTTP {http.status}{words and f' ({words})'}"


# --- JSON and text


def _crowd(body: bytes) -> Outage | None:
    """Return what is wrong with a body that holds too many values, before they are made."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= MAX_ANSWER_VALUES:
        return None
    return Outage("too-long", f"the answer holds more than {MAX_ANSWER_VALUES:,} values")


def _document(body: bytes) -> tuple[Any, str | None]:
    """Read JSON; return it and None, or None and why it cannot be read."""
    try:
        text = body.decode("utf-8-sig")
        if not text.strip():
            return None, "it is empty"
        # Numbers stay the text that they came as: none is too big, and 1 equals "1" but 1.0 does not.
        parsed = json.loads(
            text, parse_int=str, parse_float=str, parse_constant=_refuse_constant, object_pairs_hook=_members
        )
    except UnicodeDecodeError:
        return None, "it is not UTF-8"
    except RecursionError:
        return None, "it is nested too deeply"
    except ValueError:
        return None, "the syntax is wrong"
    return parsed, None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    written: dict[str, list[Any]] = {}
    for name, value in pairs:
        written.setdefault(name, []).append(value)
    for name, values in written.items():
        if any(value != values[0] for value in values):
            members[name] = _Contradiction(tuple(values))
    return members


def _text(value: object) -> str:
    """Write any JSON value as text; None is empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda _: "(contradictory)")
    except RecursionError:
        return "(nested too deeply)"


def _clean(text: str, redact: Redact, limit: int) -> str:
    """Take out credentials first, then what cannot be printed and runs of white space; cut to ``limit``."""
    return _printable(" ".join(_redacted(text, redact).split()))[:limit]


def _redacted(text: str, redact: Redact) -> str:
    """Return the beginning of ``text`` without credentials, not even half of one where it is cut."""
    if len(text) <= _WINDOW:
        return redact(text)
    return redact(text[:_WINDOW])[:-_MARGIN]


def _printable(text: str) -> str:
    # Control characters and lone surrogates would not survive the database, or would play with an admin's
    # terminal.
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _excerpt(body: bytes, redact: Redact) -> str:
    """Return the beginning of a body, for people."""
    # Four bytes at most make a character: what the window shows is all there.
    return _clean(body[: 4 * _WINDOW + 4].decode("utf-8", "replace"), redact, _MAX_EXCERPT)
