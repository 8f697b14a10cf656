"""Request bodies: reading them within bounds, and decoding them into items.

An item that cannot be used becomes an error in its place, so that the good ones beside it still count. What is done
with the items is not decided here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from starlette.types import Receive, Scope

from dlr_buffer.errors import DlrBufferError, InvalidItem, Overloaded
from dlr_buffer.local_api.problems import MalformedItem, ProblemCode, Refusal

T = TypeVar("T")

NDJSON = b"application/x-ndjson"
_FOREIGN_TYPE = re.compile(
    r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`(?: - at `\$\.?(?P<where>[^`]*)`)?"
)
_FOREIGN_PLACE = re.compile(r"(?P<what>.*?) - at `(?:key in )?\$\.?(?P<where>[^`]*)`")
_JSON_WORDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number with a fraction",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
}
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ClientGone(Exception):
    """The client closed the connection before its body was complete; nothing of it counts."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much may come in (DESIGN §5): one body, all bodies in flight, items in one request; and how long it takes."""

    body_bytes: int = 16 * 1024 * 1024
    bodies_bytes: int = 64 * 1024 * 1024
    items: int = 50_000
    silence_s: float = 30.0
    """A body that stops coming for so long is given up: it would keep others out."""
    whole_s: float = 60.0
    """So is one that drips: the largest comes in a second from a client that has it at hand."""

    @property
    def small_bytes(self) -> int:
        """A body is small up to this size: what apps send all day, and a bulk request of a thousand items."""
        return self.body_bytes // 128

    @property
    def kept_for_small_bytes(self) -> int:
        """Room that larger bodies leave free, so that a few of them cannot keep out everybody else."""
        return self.bodies_bytes // 8


class BodyRoom:
    """The memory that bodies in flight may take together; share one between the sockets of a daemon."""

    def __init__(self, limits: BodyLimits | None = None) -> None:
        """Start empty."""
        self.limits = limits or BodyLimits()
        self.held_bytes = 0

    def take(self, size: int, held: int = 0) -> None:
        """Make room for ``size`` bytes of a body that holds ``held`` already; raises Overloaded if there is none."""
        limit = self.limits.bodies_bytes
        if held + size > self.limits.small_bytes:
            limit -= self.limits.kept_for_small_bytes
        if self.held_bytes + size > limit:
            raise Overloaded(
                f"the bodies of all requests in work take over {self.limits.bodies_bytes} bytes together; "
                "send this one again in a moment"
            )
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self.held_bytes -= size


async def read_body(scope: Scope, receive: Receive, room: BodyRoom) -> bytes:
    """Read the whole body; its length is taken from ``room``, and the caller gives it back.

    Raises Refusal (`too-large`, at once if Content-Length says so), Overloaded, or ClientGone.
    """
    limits = room.limits
    for name, value in scope["headers"]:
        # httptools lets only digits through.
        if name == b"content-length":
            _check_length(int(value), limits)
    message = await receive()
    body = _piece(message)
    if not message.get("more_body", False):
        _check_length(len(body), limits)
        room.take(len(body))
        return body
    pieces = bytearray()
    taken = 0
    clock = asyncio.get_running_loop().time
    last_s = clock() + limits.whole_s
    try:
        while True:
            room.take(len(body), taken)
            taken += len(body)
            pieces += body
            _check_length(len(pieces), limits)
            if not message.get("more_body", False):
                return bytes(pieces)
            try:
                async with asyncio.timeout(min(limits.silence_s, last_s - clock())):
                    message = await receive()
            except TimeoutError:
                raise Refusal(
                    ProblemCode.MALFORMED, _too_slow(len(pieces), limits, late=clock() >= last_s)
                ) from None
            body = _piece(message)
    except BaseException:
        room.give_back(taken)
        raise


def _too_slow(come: int, limits: BodyLimits, *, late: bool) -> str:
    if late:
        return (
            f"the body comes too slowly: {come} bytes in {limits.whole_s:g} s; send it once you have it all"
        )
    return f"the body stopped coming: {come} bytes, then {limits.silence_s:g} s of silence"


def _piece(message: MutableMapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    piece: bytes = message.get("body", b"")
    return piece


def _check_length(length: int, limits: BodyLimits) -> None:
    if length > limits.body_bytes:
        raise Refusal(
            ProblemCode.TOO_LARGE,
            f"a body may have {limits.body_bytes} bytes; split it into several requests",
        )


def is_ndjson(scope: Scope) -> bool:
    """Whether the content type, parameters aside, is `application/x-ndjson`."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type: bytes = value.partition(b";")[0]
            return media_type.strip().lower() == NDJSON
    return False


class ItemDecoder(Generic[T]):
    """Decodes bodies into items of one type; an item that does not fit becomes an InvalidItem or MalformedItem."""

    def __init__(self, item_type: type[T], allowed: str) -> None:
        """``allowed`` is said to a client whose item does not fit."""
        self._one = msgspec.json.Decoder(item_type)
        self._many = msgspec.json.Decoder(list[item_type])  # type: ignore[valid-type]
        self._allowed = allowed

    def plain(self, body: bytes) -> T:
        """Decode one object; raises what msgspec raises, unexplained."""
        return self._one.decode(body)

    def one(self, body: bytes) -> T:
        """Decode one object; raises MalformedItem or InvalidItem."""
        try:
            return self._one.decode(body)
        except msgspec.ValidationError as error:
            raise self._does_not_fit(body, error) from None
        except _UNREADABLE as error:
            raise _malformed(body, error) from None

    def array(self, body: bytes, limit: int) -> list[T | DlrBufferError]:
        """Decode a JSON array; raises MalformedItem if it is none, Refusal if it is longer than ``limit``."""
        items: list[T | DlrBufferError]
        try:
            items = self._many.decode(body)
        except msgspec.ValidationError:
            items = self._array_with_errors(body, limit)
        except _UNREADABLE as error:
            raise _malformed(body, error) from None
        if len(items) > limit:
            raise too_many(limit)
        return items

    def lines(self, body: bytes, limit: int) -> list[T | DlrBufferError]:
        """Decode NDJSON; blank lines are skipped and not counted. Raises Refusal if there are over ``limit``."""
        items: list[T | DlrBufferError] = []
        decode = self._one.decode
        for line in body.split(b"\n"):
            try:
                items.append(decode(line))
            except _UNREADABLE as error:
                if not line.strip():
                    continue
                if isinstance(error, msgspec.ValidationError):
                    items.append(self._does_not_fit(line, error))
                else:
                    items.append(_malformed(line, error))
            if len(items) > limit:
                raise too_many(limit)
        return items

    def _array_with_errors(self, body: bytes, limit: int) -> list[T | DlrBufferError]:
        # The pieces are cut out first, undecoded: an array of millions of tiny wrong items must not fill the memory.
        try:
            pieces = msgspec.json.decode(body, type=list[msgspec.Raw])
        except _UNREADABLE as error:
            raise _malformed(body, error) from None
        if len(pieces) > limit:
            raise too_many(limit)
        items: list[T | DlrBufferError] = []
        for piece in pieces:
            try:
                items.append(self._one.decode(piece))
            except msgspec.ValidationError as error:
                problem = self._does_not_fit(bytes(piece), error)
                if isinstance(problem, MalformedItem):  # then the array as a whole is
                    raise problem from None
                items.append(problem)
            except _UNREADABLE as error:
                raise _malformed(body, error) from None
        return items

    def _does_not_fit(self, body: bytes, error: msgspec.ValidationError) -> DlrBufferError:
        # The decoder stops at the first thing it dislikes: what follows may not even be JSON.
        try:
            msgspec.json.decode(body)
        except _UNREADABLE as unreadable:
            return _malformed(body, unreadable)
        return InvalidItem(f"{explain(error)}; allowed: {self._allowed}")


def explain(error: msgspec.ValidationError) -> str:
    """Say in words what a value is and what it should be, with its place."""
    text = str(error)
    if found := _FOREIGN_TYPE.fullmatch(text):
        what = found["where"] or "the item"
        return f"{what} must be {_in_words(found['expected'])}, not {_in_words(found['got'])}"
    if found := _FOREIGN_PLACE.fullmatch(text):
        return f"{found['where']}: {_lowered(found['what'])}"
    return _lowered(text)


def _in_words(types: str) -> str:
    return " or ".join(_JSON_WORDS.get(name, name) for name in types.split(" | "))


def _lowered(text: str) -> str:
    return (text[:1].lower() + text[1:]).replace("`", "'")


def too_many(limit: int) -> Refusal:
    """Build the error for more items than one request may carry."""
    return Refusal(
        ProblemCode.TOO_LARGE, f"one request may carry {limit} items; split them into several requests"
    )


def _malformed(body: bytes, error: Exception) -> MalformedItem:
    if not body.strip():
        return MalformedItem("the body is empty; send a JSON object, a JSON array, or NDJSON")
    match error:
        case UnicodeDecodeError():
            return MalformedItem("this is not UTF-8, which JSON has to be")
        case RecursionError():
            return MalformedItem("this is nested too deeply")
        case _:
            return MalformedItem(f"this is not JSON: {_lowered(str(error))}")
