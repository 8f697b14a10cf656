"""Errors as the local API shows them: RFC 9457 problem details, and which of our errors is which.

Every error of the API has this shape, whatever raised it. Nothing here reads a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from starlette.responses import Response

from dlr_buffer.errors import (
    Conflict,
    DlrBufferError,
    InvalidItem,
    MessageFinal,
    NotFound,
    Overloaded,
    StorageFull,
    StoreUnavailable,
    UnknownAccount,
)

CONTENT_TYPE = "application/problem+json"
_UNAVAILABLE_RETRY_AFTER_S = 5


class ProblemCode(StrEnum):
    """The stable short names of errors (DESIGN §5)."""

    MALFORMED = "malformed"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    METHOD = "method"
    MESSAGE_FINAL = "message-final"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    INVALID = "invalid"
    UNKNOWN_ACCOUNT = "unknown-account"
    INTERNAL = "internal"
    OVERLOADED = "overloaded"
    STORAGE_FULL = "storage-full"

    @property
    def status(self) -> int:
        """The HTTP status it is answered with."""
        return _STATUS_AND_MEANING[self][0]

    @property
    def meaning(self) -> str:
        """What it means, the same for every occurrence (RFC 9457 §3.1.3)."""
        return _STATUS_AND_MEANING[self][1]


_STATUS_AND_MEANING = {
    ProblemCode.MALFORMED: (400, "The request could not be read"),
    ProblemCode.FORBIDDEN: (403, "This socket is for others"),
    ProblemCode.NOT_FOUND: (404, "There is no such thing here"),
    ProblemCode.METHOD: (405, "This resource does not take that method"),
    ProblemCode.MESSAGE_FINAL: (409, "The message has another final state"),
    ProblemCode.CONFLICT: (409, "The request contradicts what is known"),
    ProblemCode.TOO_LARGE: (413, "The request is too large"),
    ProblemCode.INVALID: (422, "A value is not allowed"),
    ProblemCode.UNKNOWN_ACCOUNT: (422, "The account is not known"),
    ProblemCode.INTERNAL: (500, "The daemon has a defect"),
    ProblemCode.OVERLOADED: (503, "The daemon cannot take this now"),
    ProblemCode.STORAGE_FULL: (507, "The disk is full"),
}


class MalformedItem(DlrBufferError):
    """An item, a body or a URL could not be read at all (`malformed`)."""


class Refusal(DlrBufferError):
    """A request that the API itself turns down, with the facts that go into the problem and the headers."""

    def __init__(
        self,
        code: ProblemCode,
        detail: str,
        *,
        facts: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Remember the code, extra members of the problem (``facts``) and extra headers."""
        self.code = code
        self.facts = facts or {}
        self.headers = headers or {}
        super().__init__(detail)


def code_of(error: DlrBufferError) -> ProblemCode:
    """Return the code of an error, of a whole request or of one item."""
    match error:
        case Refusal():
            return error.code
        case MalformedItem():
            return ProblemCode.MALFORMED
        case InvalidItem():
            return ProblemCode.INVALID
        case UnknownAccount():
            return ProblemCode.UNKNOWN_ACCOUNT
        case NotFound():
            return ProblemCode.NOT_FOUND
        case MessageFinal():
            return ProblemCode.MESSAGE_FINAL
        case Conflict():
            return ProblemCode.CONFLICT
        case Overloaded() | StoreUnavailable():
            return ProblemCode.OVERLOADED
        case StorageFull():
            return ProblemCode.STORAGE_FULL
        case _:
            return ProblemCode.INTERNAL


def problem_response(error: DlrBufferError, *, facts: Mapping[str, Any] | None = None) -> Response:
    """Answer with an error as `application/problem+json`; ``facts`` are further members of it."""
    code = code_of(error)
    headers: dict[str, str] = {}
    detail = str(error)
    known: dict[str, Any] = {}
    match error:
        case Refusal():
            known.update(error.facts)
            headers.update(error.headers)
        case MessageFinal():
            known["state"] = error.state
        case UnknownAccount():
            known["known_accounts"] = error.known
        case Overloaded() | StorageFull():
            headers["retry-after"] = str(error.retry_after_s)
        case StoreUnavailable():
            detail = f"the database is not available, so nothing is acknowledged: {detail}"
            headers["retry-after"] = str(_UNAVAILABLE_RETRY_AFTER_S)
        case _:
            if code is ProblemCode.INTERNAL:  # not written for a client's eyes
                detail = "an error that nobody foresaw; the daemon's log has it"
    if facts:
        detail = f"{detail}; what is counted here was stored before that, and stays so"
    body = {**_standing_members(code), "detail": detail, "code": code.value, **known, **(facts or {})}
    return Response(msgspec.json.encode(body), code.status, headers, CONTENT_TYPE)


def stopping() -> Overloaded:
    """Build the error for a request that the daemon does not finish because it stops."""
    return Overloaded(
        "the daemon is stopping and did not wait for this request; send it again", _UNAVAILABLE_RETRY_AFTER_S
    )


def problem_body(code: ProblemCode, detail: str) -> bytes:
    """Write a problem for the places where no response object can be used (a request that is not HTTP)."""
    return msgspec.json.encode({**_standing_members(code), "detail": detail, "code": code.value})


def _standing_members(code: ProblemCode) -> dict[str, Any]:
    return {"type": f"urn:dlr-buffer:problem:{code}", "title": code.meaning, "status": code.status}
