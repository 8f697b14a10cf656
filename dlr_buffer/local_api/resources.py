"""How records look in JSON (DESIGN §5): the resources, and the making of each from a record.

These types are also what `/openapi.json` describes, so that the description cannot drift from the answers. Times are
RFC 3339 UTC with milliseconds; a field left UNSET is not in the answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from dlr_buffer.clock import rfc3339
from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.local_api.ports import DaemonFacts, ExpiryView
from dlr_buffer.messages import Message, MessageState
from dlr_buffer.receipts import (
    HistoryEntry,
    MessageView,
    QueueCounts,
    QueueOldest,
    Receipt,
    ReceiptError,
    ReceiptStatus,
    ReceiptView,
)

_TIME = Meta(
    description="RFC 3339, UTC, milliseconds",
    extra_json_schema={"format": "date-time"},
    examples=["2026-11-23T18:41:00.250Z"],
)
Time = Annotated[str, _TIME]

_WAITING = "waiting"
_encode = msgspec.json.Encoder().encode


class HistoryResource(msgspec.Struct, frozen=True, gc=False):
    """One thing out of the ordinary that happened to a receipt."""

    at: Time
    event: str
    detail: str


class ReceiptResource(msgspec.Struct, frozen=True, gc=False):
    """One state of one message that Smartswitch has to be told.

    `history` is there in look-ups of one receipt or one message, not in lists nor in the answer to a report.
    """

    request_id: Annotated[str, Meta(description="sent upstream, the same over every retry", examples=["1"])]
    account: str
    message_id: str
    message_state: MessageState
    status: ReceiptStatus
    attempts: Annotated[int, Meta(description="how often it was on the wire")]
    refusals: Annotated[int, Meta(description="how often the blame was its own; only these kill")]
    created_at: Time
    next_attempt_at: Annotated[
        Time | None,
        Meta(description="set while it waits out a refusal of its own, or is replayed by an admin"),
    ]
    acknowledged_at: Time | None
    response_id: Annotated[str | None, Meta(description="Smartswitch's own id of its answer")]
    error: Annotated[ReceiptError | None, Meta(description="why it was last refused, in Smartswitch's words")]
    in_flight: bool
    history: tuple[HistoryResource, ...] | UnsetType = UNSET


class MessageResource(msgspec.Struct, frozen=True, gc=False):
    """A message that waits for its final state, or has it.

    `receipts` (oldest first) is there in look-ups of one message and in answers to a registration, not in lists.
    """

    account: str
    message_id: str
    state: Annotated[MessageState | None, Meta(description="null until one is reported")]
    registered_at: Time
    expires_at: Time
    finalized_at: Time | None
    receipts: tuple[ReceiptResource, ...] | UnsetType = UNSET


class ItemError(msgspec.Struct, frozen=True, gc=False):
    """Why one item of a bulk request was not taken; `index` counts from 0 (in NDJSON: the lines that are not blank)."""

    index: int
    code: str
    detail: str


class BulkRegistered(msgspec.Struct, frozen=True):
    """What became of many registrations; the good ones are stored even where others are bad."""

    registered: int
    duplicates: int
    errors: list[ItemError]


class BulkReported(msgspec.Struct, frozen=True):
    """What became of many reports; the good ones are stored even where others are bad."""

    queued: int
    duplicates: int
    errors: list[ItemError]


class MessageList(msgspec.Struct, frozen=True):
    """A page of messages, ascending by an internal number; pass `next_cursor` on for the next one."""

    items: list[MessageResource]
    next_cursor: str | None


class ReceiptList(msgspec.Struct, frozen=True):
    """A page of receipts, ascending by request_id; pass `next_cursor` on for the next one."""

    items: list[ReceiptResource]
    next_cursor: str | None


class ActionResource(msgspec.Struct, frozen=True):
    """What an action did, or with `dry_run` would do: rows changed, skipped for their status, left as in flight."""

    changed: int
    skipped: int
    in_flight: int
    dry_run: bool


class AccountResource(msgspec.Struct, frozen=True, kw_only=True):
    """How an account is doing."""

    name: str
    configured: bool
    health: HealthState
    since: Annotated[Time | None, Meta(description="when it entered this state")]
    cause: Annotated[str | None, Meta(description="why it is not open")]
    next_probe_at: Time | None
    backoff_ms: int | None
    failures: Annotated[int, Meta(description="failures in a row")]
    batch_limit: Annotated[int | None, Meta(description="receipts that a request may carry now")]
    concurrency: int | None
    rate_limit: Annotated[float | None, Meta(description="requests a second, 0 for no limit")]
    max_receipts: int | None
    in_flight_requests: int
    in_flight_receipts: int
    set_aside: Annotated[int, Meta(description="receipts kept apart in memory as suspects")]


class AccountStatus(AccountResource, frozen=True, kw_only=True):
    """An account with what lies in the queue for it."""

    messages: Annotated[dict[str, int], Meta(description="by state; `waiting` where none is reported yet")]
    receipts: Annotated[dict[str, int], Meta(description="by status")]
    oldest_pending_at: Annotated[Time | None, Meta(description="creation of the oldest pending receipt")]
    oldest_waiting_at: Annotated[
        Time | None,
        Meta(description="registration of the oldest message without final state; may lag by a minute"),
    ]


class AccountList(msgspec.Struct, frozen=True):
    """Every account that is configured or has rows."""

    items: list[AccountResource]


class ExpiryResource(msgspec.Struct, frozen=True):
    """Whether expiry runs, and if not, why and since when."""

    stopped: bool
    reason: str | None
    since: Time | None
    last_sweep_at: Time | None


class DatabaseResource(msgspec.Struct, frozen=True):
    """Where the queue lies and how large it is."""

    path: str
    size_bytes: int
    wal_bytes: int
    free_bytes: Annotated[int, Meta(description="what the disk has left")]
    sqlite_version: str


class ConfigurationResource(msgspec.Struct, frozen=True):
    """The configuration that holds."""

    loaded_at: Time
    reloads: Annotated[int, Meta(description="how many were tried since the start")]
    error: Annotated[
        str | None, Meta(description="why the last one failed; the configuration before it holds")
    ]


class StatusResource(msgspec.Struct, frozen=True):
    """The daemon at a glance."""

    version: str
    pid: int
    started_at: Time
    uptime: Annotated[float, Meta(description="seconds", ge=0)]
    alarms: list[str]
    configuration: ConfigurationResource
    expiry: ExpiryResource
    database: DatabaseResource
    rates: Annotated[dict[str, float], Meta(description="events a second over the last minute")]
    totals: Annotated[dict[str, int], Meta(description="events since the start")]
    accounts: list[AccountStatus]


class Healthy(msgspec.Struct, frozen=True):
    """Commits succeed and flushers run."""

    status: Literal["ok"] = "ok"


class ProblemResource(msgspec.Struct, frozen=True):
    """RFC 9457 problem details; further members give the facts, `errors` and counts after a bulk request broke off."""

    type: Annotated[str, Meta(examples=["urn:dlr-buffer:problem:not-found"])]
    title: str
    status: int
    detail: str
    code: str


def encode(resource: msgspec.Struct) -> bytes:
    """Write a resource as JSON."""
    return _encode(resource)


def message_resource(
    message: Message, receipts: tuple[ReceiptResource, ...] | UnsetType = UNSET
) -> MessageResource:
    """Show a message, without ``receipts`` as in a list, or with them."""
    return MessageResource(
        message.account,
        message.message_id,
        message.state,
        rfc3339(message.registered_at_ms),
        rfc3339(message.expires_at_ms),
        _time(message.finalized_at_ms),
        receipts,
    )


def receipt_resource(receipt: Receipt, history: tuple[HistoryEntry, ...] | None = None) -> ReceiptResource:
    """Show a receipt, with its history if that is given."""
    return ReceiptResource(
        str(receipt.request_id),
        receipt.account,
        receipt.message_id,
        receipt.message_state,
        receipt.status,
        receipt.attempts,
        receipt.refusals,
        rfc3339(receipt.created_at_ms),
        _time(receipt.next_attempt_at_ms),
        _time(receipt.acknowledged_at_ms),
        receipt.response_id,
        receipt.error,
        receipt.in_flight,
        UNSET
        if history is None
        else tuple(HistoryResource(rfc3339(entry.at_ms), entry.event, entry.detail) for entry in history),
    )


def message_view_resource(view: MessageView) -> MessageResource:
    """Show a message with its receipts and their history."""
    return message_resource(view.message, tuple(receipt_view_resource(receipt) for receipt in view.receipts))


def receipt_view_resource(view: ReceiptView) -> ReceiptResource:
    """Show a receipt with its history."""
    return receipt_resource(view.receipt, view.history)


def account_resource(view: AccountView) -> AccountResource:
    """Show an account."""
    return AccountResource(
        name=view.name,
        configured=view.configured,
        health=view.health,
        since=_time(view.since_ms),
        cause=view.cause,
        next_probe_at=_time(view.next_probe_at_ms),
        backoff_ms=view.backoff_ms,
        failures=view.failures,
        batch_limit=view.batch_limit,
        concurrency=view.concurrency,
        rate_limit=view.rate_limit,
        max_receipts=view.max_receipts,
        in_flight_requests=view.in_flight_requests,
        in_flight_receipts=view.in_flight_receipts,
        set_aside=view.set_aside,
    )


def account_status(view: AccountView, counts: QueueCounts, oldest: QueueOldest) -> AccountStatus:
    """Show an account with what lies in the queue for it, a zero where nothing does."""
    return AccountStatus(
        **msgspec.structs.asdict(account_resource(view)),
        messages={**_NO_MESSAGES, **counts.messages.get(view.name, {})},
        receipts={**_NO_RECEIPTS, **counts.receipts.get(view.name, {})},
        oldest_pending_at=_time(oldest.pending_ms.get(view.name)),
        oldest_waiting_at=_time(oldest.waiting_ms.get(view.name)),
    )


_NO_MESSAGES = {_WAITING: 0, **{state.value: 0 for state in MessageState}}
_NO_RECEIPTS = {status.value: 0 for status in ReceiptStatus}


def expiry_resource(view: ExpiryView) -> ExpiryResource:
    """Show whether expiry runs."""
    return ExpiryResource(view.stopped, view.reason, _time(view.since_ms), _time(view.last_sweep_at_ms))


def status_resource(  # noqa: PLR0913 - the parts of one picture, all by name
    *,
    facts: DaemonFacts,
    expiry: ExpiryView,
    accounts: tuple[AccountView, ...],
    counts: QueueCounts,
    oldest: QueueOldest,
    now_ms: int,
) -> StatusResource:
    """Show the daemon at a glance."""
    return StatusResource(
        facts.version,
        facts.pid,
        rfc3339(facts.started_at_ms),
        max(0, now_ms - facts.started_at_ms) / 1000,
        list(facts.alarms),
        ConfigurationResource(
            rfc3339(facts.configuration.loaded_at_ms),
            facts.configuration.reloads,
            facts.configuration.error,
        ),
        expiry_resource(expiry),
        DatabaseResource(*msgspec.structs.astuple(facts.database)),
        facts.rates,
        facts.totals,
        [account_status(view, counts, oldest) for view in accounts],
    )


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
