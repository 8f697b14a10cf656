"""What a list or an action is narrowed to: filters as they are written in queries and bodies, and cursors.

Query strings and JSON filters have the same names and the same meaning; what they select is the queue's
(`dlr_buffer.selection`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar
from urllib.parse import parse_qsl

import msgspec

from dlr_buffer.clock import parse_rfc3339
from dlr_buffer.errors import InvalidItem
from dlr_buffer.local_api.problems import MalformedItem
from dlr_buffer.messages import MessageState, check_message_id
from dlr_buffer.receipts import ReceiptStatus
from dlr_buffer.selection import MessageFilter, ReceiptFilter

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MESSAGE_FILTERS = ("account", "message_id", "state", "waiting", "older_than", "newer_than")
RECEIPT_FILTERS = (
    "account",
    "message_id",
    "state",
    "status",
    "waiting",
    "older_than",
    "newer_than",
    "error_code",
)
_PAGING = ("limit", "cursor")

_AGE = re.compile(r"([0-9]{1,10})(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Narrow = TypeVar("Narrow", MessageFilter, ReceiptFilter)
Vocabulary = TypeVar("Vocabulary", bound=StrEnum)
CheckAccount = Callable[[str], object]
"""Raises UnknownAccount for a name that cannot be meant."""


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a list goes on: the filter as it was written, the moment from which its ages count, and the last row."""

    resource: str
    narrow: dict[str, str]
    now_ms: int
    after: int


@dataclass(frozen=True, slots=True)
class ListRequest(Generic[Narrow]):
    """One page that is asked for."""

    narrow: Narrow
    after: int
    limit: int
    cursor: Cursor

    def next_cursor(self, next_after: int | None) -> str | None:
        """Write the cursor of the page behind this one, None at the end."""
        if next_after is None:
            return None
        cursor = msgspec.json.encode(msgspec.structs.replace(self.cursor, after=next_after))
        return base64.urlsafe_b64encode(cursor).decode().rstrip("=")


def parse_query(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Read a query string; raises MalformedItem if it is not UTF-8, InvalidItem for unknown or repeated names."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise MalformedItem("the query is not percent-encoded UTF-8") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        _check_known(name, known, "query parameter")
        if name in values:
            raise InvalidItem(f"the query parameter {name!r} is given twice; give it once")
        values[name] = value
    return values


def message_list_request(
    query: bytes, *, now_ms: int, check_account: CheckAccount
) -> ListRequest[MessageFilter]:
    """Read what page of messages is asked for; raises MalformedItem, InvalidItem or UnknownAccount."""
    return _list_request("messages", MESSAGE_FILTERS, message_filter, query, now_ms, check_account)


def receipt_list_request(
    query: bytes, *, now_ms: int, check_account: CheckAccount
) -> ListRequest[ReceiptFilter]:
    """Read what page of receipts is asked for; raises MalformedItem, InvalidItem or UnknownAccount."""
    return _list_request("receipts", RECEIPT_FILTERS, receipt_filter, query, now_ms, check_account)


def _list_request(  # noqa: PLR0913 - one call each from the two functions above
    resource: str,
    filters: tuple[str, ...],
    build: Callable[[Mapping[str, str], int, CheckAccount], Narrow],
    query: bytes,
    now_ms: int,
    check_account: CheckAccount,
) -> ListRequest[Narrow]:
    written = parse_query(query, (*filters, *_PAGING))
    limit = _limit(written.pop("limit", None))
    if (text := written.pop("cursor", None)) is None:
        cursor = Cursor(resource, written, now_ms, 0)
    else:
        cursor = _read_cursor(text)
        if cursor.resource != resource:
            raise InvalidItem(f"the cursor is of a list of {cursor.resource}; ask for {resource} without it")
        if written and written != cursor.narrow:
            raise InvalidItem("the cursor carries another filter than the query; leave one of them out")
    for name in cursor.narrow:
        _check_known(name, filters, "filter")
    return ListRequest(build(cursor.narrow, cursor.now_ms, check_account), cursor.after, limit, cursor)


def message_filter(written: Mapping[str, str], now_ms: int, check_account: CheckAccount) -> MessageFilter:
    """Read a filter for messages, ages counting back from ``now_ms``; raises InvalidItem or UnknownAccount."""
    _check_names(written, check_account)
    return MessageFilter(
        account=written.get("account"),
        message_id=written.get("message_id"),
        state=_word(written, "state", MessageState),
        waiting=_truth(written.get("waiting")),
        before_ms=_moment("older_than", written.get("older_than"), now_ms),
        after_ms=_moment("newer_than", written.get("newer_than"), now_ms),
    )


def receipt_filter(written: Mapping[str, str], now_ms: int, check_account: CheckAccount) -> ReceiptFilter:
    """Read a filter for receipts, ages counting back from ``now_ms``; raises InvalidItem or UnknownAccount."""
    _check_names(written, check_account)
    return ReceiptFilter(
        account=written.get("account"),
        message_id=written.get("message_id"),
        state=_word(written, "state", MessageState),
        status=_word(written, "status", ReceiptStatus),
        waiting=_truth(written.get("waiting")),
        before_ms=_moment("older_than", written.get("older_than"), now_ms),
        after_ms=_moment("newer_than", written.get("newer_than"), now_ms),
        error_code=written.get("error_code"),
    )


def _check_known(name: str, known: tuple[str, ...], what: str) -> None:
    if name not in known:
        raise InvalidItem(f"there is no {what} {name!r} here; known are {', '.join(known)}")


def _check_names(written: Mapping[str, str], check_account: CheckAccount) -> None:
    if (account := written.get("account")) is not None:
        check_account(account)
    if (message_id := written.get("message_id")) is not None:
        check_message_id(message_id)


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT:  # noqa: PLR2004
        return int(text)
    raise InvalidItem(f"limit is {text!r}; it must be a number from 1 to {MAX_LIMIT}")


def _read_cursor(text: str) -> Cursor:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=Cursor)
    except (binascii.Error, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        cursor = None
    if cursor is None or not (0 <= cursor.after < 2**63 and 0 <= cursor.now_ms < 2**62):
        raise InvalidItem(
            "the cursor is not one of ours; pass next_cursor on as it came, or start without it"
        )
    return cursor


def _word(written: Mapping[str, str], name: str, vocabulary: type[Vocabulary]) -> Vocabulary | None:
    if (text := written.get(name)) is None:
        return None
    try:
        return vocabulary(text)
    except ValueError:
        raise InvalidItem(f"{name} is {text!r}; it must be one of {', '.join(vocabulary)}") from None


def _truth(text: str | None) -> bool | None:
    match text:
        case None:
            return None
        case "true":
            return True
        case "false":
            return False
        case _:
            raise InvalidItem(f"waiting is {text!r}; it must be true or false")


def _moment(name: str, text: str | None, now_ms: int) -> int | None:
    if text is None:
        return None
    if found := _AGE.fullmatch(text):
        return now_ms - int(found[1]) * _UNIT_MS[found[2]]
    try:
        return parse_rfc3339(text)
    except (ValueError, OverflowError):
        raise InvalidItem(
            f"{name} is {text!r}; it must be an age such as 90s or 72h (ms, s, m, h, d), "
            "or a time such as 2026-11-23T18:41:00Z (in a query, write + as %2B)"
        ) from None
