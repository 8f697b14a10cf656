"""The one table of what is served: from it come the routes (`app`) and their description (`openapi`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from dlr_buffer.local_api import lookups, overview, steering, submissions
from dlr_buffer.local_api.bodies import BodyLimits
from dlr_buffer.local_api.listing import DEFAULT_LIMIT, MAX_LIMIT
from dlr_buffer.local_api.problems import ProblemCode
from dlr_buffer.local_api.resources import (
    AccountList,
    AccountResource,
    ActionResource,
    BulkRegistered,
    BulkReported,
    ExpiryResource,
    Healthy,
    MessageList,
    MessageResource,
    ReceiptList,
    ReceiptResource,
    StatusResource,
)
from dlr_buffer.local_api.services import Endpoint
from dlr_buffer.messages import MessageState, Registration, Report
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from dlr_buffer.selection import MessageAction

JSON = "application/json"
NDJSON = "application/x-ndjson"
TEXT = "text/plain"

_MAX_ITEMS = BodyLimits().items


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query or the path; ``schema`` is a type as msgspec reads it."""

    name: str
    where: str
    schema: object
    description: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What a body holds by content type: types as msgspec reads them (several: one of them), and an example."""

    media_type: str
    types: tuple[object, ...]
    example: object = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One successful answer."""

    description: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path; ``client`` operations are served on the client socket too."""

    method: str
    path: str
    endpoint: Endpoint
    name: str
    summary: str
    answers: Mapping[int, Answer]
    problems: tuple[ProblemCode, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[Payload, ...] = ()
    client: bool = False
    notes: str = ""


_STORE = (ProblemCode.OVERLOADED, ProblemCode.STORAGE_FULL)
_BODY = (ProblemCode.MALFORMED, ProblemCode.TOO_LARGE, ProblemCode.INVALID, ProblemCode.UNKNOWN_ACCOUNT)
_READ = (ProblemCode.MALFORMED, ProblemCode.INVALID, ProblemCode.UNKNOWN_ACCOUNT, ProblemCode.OVERLOADED)

_BULK = (
    "An object is one item; an array or NDJSON are many, which act in order as if sent singly. Of many, the good ones "
    f"are stored even where others are bad. At most {_MAX_ITEMS} items and {BodyLimits().body_bytes} bytes. If "
    "the store fails in the middle, the problem carries the counts and errors so far."
)

_ACCOUNT = Parameter("account", "query", str, "left out: the only account, else the one named default")
_AGE = "an age such as 90s or 72h (ms, s, m, h, d), or an RFC 3339 time (write + as %2B)"
_MESSAGE_LIST = (
    Parameter("account", "query", str, "only of this account"),
    Parameter("message_id", "query", str, "only of messages with exactly this id"),
    Parameter("state", "query", MessageState, "only in this state"),
    Parameter("waiting", "query", bool, "true: without a final state; false: with one"),
    Parameter("older_than", "query", str, f"registered before this: {_AGE}"),
    Parameter("newer_than", "query", str, f"registered after this: {_AGE}"),
)
_RECEIPT_LIST = (
    Parameter("account", "query", str, "only of this account"),
    Parameter("message_id", "query", str, "only of messages with exactly this id"),
    Parameter("state", "query", MessageState, "only receipts that tell this state"),
    Parameter("status", "query", ReceiptStatus, "only in this status"),
    Parameter("waiting", "query", bool, "true: pending or held; false: settled"),
    Parameter("older_than", "query", str, f"created before this: {_AGE}"),
    Parameter("newer_than", "query", str, f"created after this: {_AGE}"),
    Parameter("error_code", "query", str, "only with this error code"),
)
_PAGING = (
    Parameter(
        "limit",
        "query",
        Annotated[int, Meta(ge=1, le=MAX_LIMIT)],
        f"rows on a page, {DEFAULT_LIMIT} if left out",
    ),
    Parameter("cursor", "query", str, "next_cursor of the page before; it carries the filter"),
)
_NAME = Parameter("name", "path", str, "the account")

_MESSAGE_EXAMPLE: dict[str, Any] = {
    "account": "default",
    "message_id": "1561370632513",
    "state": None,
    "registered_at": "2026-11-23T18:41:00.250Z",
    "expires_at": "2026-11-26T18:41:00.250Z",
    "finalized_at": None,
    "receipts": [],
}
_RECEIPT_EXAMPLE: dict[str, Any] = {
    "request_id": "1",
    "account": "default",
    "message_id": "1561370632513",
    "message_state": "delivered",
    "status": "pending",
    "attempts": 0,
    "refusals": 0,
    "created_at": "2026-11-23T18:41:00.250Z",
    "next_attempt_at": None,
    "acknowledged_at": None,
    "response_id": None,
    "error": None,
    "in_flight": False,
}


def _many(item: type) -> object:
    return Annotated[list[item], Meta(max_length=_MAX_ITEMS)]  # type: ignore[valid-type]  # a type made at run time


def _json(description: str, *types: object, example: object = None) -> Answer:
    return Answer(description, Payload(JSON, types, example))


def _steer_receipts(action: ReceiptAction, summary: str) -> Operation:
    return Operation(
        "POST",
        f"/v1/receipts/{action}",
        steering.steer_receipts(action),
        f"{action}Receipts",
        summary,
        {200: _json("What was done", ActionResource)},
        (*_BODY, *_STORE),
        bodies=(Payload(JSON, (steering.ReceiptOrder,), {"request_ids": ["1", "2"], "dry_run": True}),),
    )


def _steer_messages(action: MessageAction, summary: str) -> Operation:
    return Operation(
        "POST",
        f"/v1/messages/{action}",
        steering.steer_messages(action),
        f"{action}Messages",
        summary,
        {200: _json("What was done", ActionResource)},
        (*_BODY, *_STORE),
        bodies=(Payload(JSON, (steering.MessageOrder,), {"filter": {"waiting": True, "older_than": "72h"}}),),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/v1/messages",
        submissions.register,
        "registerMessages",
        "Register messages that an app accepted",
        {
            200: _json(
                "One: it was registered already. Many: what became of them", MessageResource, BulkRegistered
            ),
            201: _json("One: it is registered, durably", MessageResource, example=_MESSAGE_EXAMPLE),
        },
        (*_BODY, ProblemCode.CONFLICT, *_STORE),
        bodies=(
            Payload(JSON, (Registration, _many(Registration)), {"message_id": "1561370632513"}),
            Payload(NDJSON, (str,), '{"message_id":"1561370632513"}\n{"message_id":"1561370632522"}\n'),
        ),
        client=True,
        notes=_BULK,
    ),
    Operation(
        "POST",
        "/v1/receipts",
        submissions.report,
        "reportStates",
        "Report the states of messages",
        {
            200: _json(
                "One: that is the current state already; its receipt, or the message if that is gone. "
                "Many: what became of them",
                ReceiptResource,
                MessageResource,
                BulkReported,
            ),
            202: _json("One: the receipt is queued, durably", ReceiptResource, example=_RECEIPT_EXAMPLE),
        },
        (*_BODY, ProblemCode.NOT_FOUND, ProblemCode.MESSAGE_FINAL, *_STORE),
        bodies=(
            Payload(
                JSON, (Report, _many(Report)), {"message_id": "1561370632513", "message_state": "delivered"}
            ),
            Payload(NDJSON, (str,), '{"message_id":"1561370632513","message_state":"delivered"}\n'),
        ),
        client=True,
        notes=_BULK,
    ),
    Operation(
        "GET",
        "/v1/messages/{message_id:path}",
        lookups.message,
        "getMessage",
        "Look up one message with its receipts and their history",
        {200: _json("The message", MessageResource, example=_MESSAGE_EXAMPLE)},
        (*_READ, ProblemCode.NOT_FOUND),
        (
            Parameter(
                "message_id",
                "path",
                str,
                "the rest of the path, percent-decoded once as UTF-8; / may be written as it is or as %2F",
            ),
            _ACCOUNT,
        ),
        client=True,
    ),
    Operation(
        "GET",
        "/healthz",
        overview.health,
        "getHealth",
        "Whether commits succeed and flushers run",
        {200: _json("They do", Healthy)},
        (ProblemCode.OVERLOADED,),
        client=True,
        notes="If not, the member problems of the problem says why.",
    ),
    Operation(
        "GET",
        "/openapi.json",
        overview.description,
        "getDescription",
        "This document, for the socket it is asked on",
        {200: _json("An OpenAPI 3.1 document", dict[str, Any])},
        client=True,
    ),
    Operation(
        "GET",
        "/v1/messages",
        lookups.messages,
        "listMessages",
        "List messages",
        {200: _json("A page; the messages are shown without their receipts", MessageList)},
        _READ,
        (*_MESSAGE_LIST, *_PAGING),
    ),
    Operation(
        "GET",
        "/v1/receipts",
        lookups.receipts,
        "listReceipts",
        "List receipts",
        {200: _json("A page; the receipts are shown without their history", ReceiptList)},
        _READ,
        (*_RECEIPT_LIST, *_PAGING),
    ),
    Operation(
        "GET",
        "/v1/receipts/{request_id}",
        lookups.receipt,
        "getReceipt",
        "Look up one receipt with its history",
        {200: _json("The receipt", ReceiptResource, example=_RECEIPT_EXAMPLE)},
        (*_READ, ProblemCode.NOT_FOUND),
        (Parameter("request_id", "path", str, "as sent upstream"),),
    ),
    _steer_receipts(ReceiptAction.RETRY, "Make dead receipts pending again, and pending ones due now"),
    _steer_receipts(ReceiptAction.HOLD, "Keep pending receipts from being sent"),
    _steer_receipts(ReceiptAction.RELEASE, "Make held receipts pending again"),
    _steer_receipts(ReceiptAction.DELETE, "Delete pending, held or dead receipts for good"),
    _steer_messages(MessageAction.EXPIRE, "Expire messages now, each with its receipt"),
    _steer_messages(MessageAction.DELETE, "Delete messages and their receipts for good"),
    Operation(
        "GET",
        "/v1/accounts",
        overview.accounts,
        "listAccounts",
        "Show the accounts: health, backoff, limits",
        {200: _json("The accounts", AccountList)},
    ),
    Operation(
        "POST",
        "/v1/accounts/{name}/pause",
        steering.pause,
        "pauseAccount",
        "Stop sending for an account until it is resumed",
        {200: _json("The account", AccountResource)},
        (ProblemCode.MALFORMED, ProblemCode.NOT_FOUND, *_STORE),
        (_NAME,),
    ),
    Operation(
        "POST",
        "/v1/accounts/{name}/resume",
        steering.resume,
        "resumeAccount",
        "Send for an account again",
        {200: _json("The account", AccountResource)},
        (ProblemCode.MALFORMED, ProblemCode.NOT_FOUND, *_STORE),
        (_NAME,),
    ),
    Operation(
        "POST",
        "/v1/expiry/resume",
        steering.resume_expiry,
        "resumeExpiry",
        "Trust the clock again after a clock alarm",
        {200: _json("Whether expiry runs", ExpiryResource)},
        _STORE,
    ),
    Operation(
        "GET",
        "/v1/status",
        overview.status,
        "getStatus",
        "The daemon at a glance: counts, ages, rates, health",
        {200: _json("The status", StatusResource)},
        (ProblemCode.OVERLOADED,),
    ),
    Operation(
        "GET",
        "/metrics",
        overview.metrics,
        "getMetrics",
        "Metrics for Prometheus",
        {200: Answer("Metrics in an exposition format of Prometheus", Payload(TEXT, (str,)))},
    ),
)
