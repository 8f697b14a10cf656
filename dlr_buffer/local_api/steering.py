"""What an admin changes: receipts, messages, accounts, and expiry after a clock alarm.

A selection is either named ids or a filter, and never everything by accident: an empty filter is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.errors import InvalidItem
from dlr_buffer.local_api.bodies import ItemDecoder, read_body, too_many
from dlr_buffer.local_api.listing import message_filter, receipt_filter
from dlr_buffer.local_api.lookups import request_id
from dlr_buffer.local_api.resources import ActionResource, account_resource, encode, expiry_resource
from dlr_buffer.local_api.services import Endpoint, Services, path_text
from dlr_buffer.local_api.submissions import JSON
from dlr_buffer.messages import MessageState, check_message_id
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from dlr_buffer.selection import (
    ActionCount,
    MessageAction,
    MessageFilter,
    MessageName,
    ReceiptFilter,
)

_Order = TypeVar("_Order", "ReceiptOrder", "MessageOrder")

_ALL = Meta(description="everything; stands alone, and may only be true")
_AGE = Meta(description="an age such as 90s or 72h (ms, s, m, h, d), or an RFC 3339 time", examples=["72h"])


class MessageNarrowing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages are meant; at least one member."""

    all: Annotated[bool, _ALL] | UnsetType = UNSET
    account: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    state: MessageState | UnsetType = UNSET
    waiting: bool | UnsetType = UNSET
    older_than: Annotated[str, _AGE] | UnsetType = UNSET
    newer_than: Annotated[str, _AGE] | UnsetType = UNSET


class ReceiptNarrowing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which receipts are meant; at least one member."""

    all: Annotated[bool, _ALL] | UnsetType = UNSET
    account: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    state: MessageState | UnsetType = UNSET
    status: ReceiptStatus | UnsetType = UNSET
    waiting: bool | UnsetType = UNSET
    older_than: Annotated[str, _AGE] | UnsetType = UNSET
    newer_than: Annotated[str, _AGE] | UnsetType = UNSET
    error_code: str | UnsetType = UNSET


class ReceiptOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to act on: either `request_ids` or `filter`; `dry_run` only counts."""

    request_ids: list[str] | UnsetType = UNSET
    filter: ReceiptNarrowing | UnsetType = UNSET
    dry_run: bool = False


class MessageOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to act on: either `message_ids` (with `account`) or `filter`; `dry_run` only counts."""

    message_ids: list[str] | UnsetType = UNSET
    account: str | UnsetType = UNSET
    filter: MessageNarrowing | UnsetType = UNSET
    dry_run: bool = False


_receipt_orders = ItemDecoder(
    ReceiptOrder, "request_ids (array of strings) or filter (object), and dry_run (true or false)"
)
_message_orders = ItemDecoder(
    MessageOrder,
    "message_ids (array of strings) with account (string, optional), or filter (object), and dry_run (true or false)",
)


def steer_receipts(action: ReceiptAction) -> Endpoint:
    """Build the endpoint of one action on receipts."""

    async def endpoint(services: Services, scope: Scope, receive: Receive) -> Response:
        order = await _read(_receipt_orders, services, scope, receive)
        count = await services.queue.steer_receipts(action, _receipts(services, order), dry_run=order.dry_run)
        return _counted(count, dry_run=order.dry_run)

    return endpoint


def steer_messages(action: MessageAction) -> Endpoint:
    """Build the endpoint of one action on messages."""

    async def endpoint(services: Services, scope: Scope, receive: Receive) -> Response:
        order = await _read(_message_orders, services, scope, receive)
        count = await services.queue.steer_messages(action, _messages(services, order), dry_run=order.dry_run)
        return _counted(count, dry_run=order.dry_run)

    return endpoint


async def pause(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Pause an account."""
    view = await services.accounts.pause(path_text(scope, "name"))
    return Response(encode(account_resource(view)), media_type=JSON)


async def resume(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Resume an account."""
    view = await services.accounts.resume(path_text(scope, "name"))
    return Response(encode(account_resource(view)), media_type=JSON)


async def resume_expiry(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """Let expiry go on after a clock alarm."""
    return Response(encode(expiry_resource(await services.expiry.resume())), media_type=JSON)


async def _read(decoder: ItemDecoder[_Order], services: Services, scope: Scope, receive: Receive) -> _Order:
    body = await read_body(scope, receive, services.room)
    try:
        return decoder.one(body)
    finally:
        services.room.give_back(len(body))


def _receipts(services: Services, order: ReceiptOrder) -> list[int] | ReceiptFilter:
    match order:
        case ReceiptOrder(request_ids=list() as ids, filter=UnsetType()):
            if len(ids) > services.room.limits.items:
                raise too_many(services.room.limits.items)
            return [request_id(text) for text in ids]
        case ReceiptOrder(request_ids=UnsetType(), filter=ReceiptNarrowing() as narrowing):
            return receipt_filter(
                _written(narrowing), services.clock.now_ms(), services.queue.resolve_account
            )
        case _:
            raise InvalidItem('say what is meant: either "request_ids" or "filter"')


def _messages(services: Services, order: MessageOrder) -> list[MessageName] | MessageFilter:
    match order:
        case MessageOrder(message_ids=list() as ids, filter=UnsetType()):
            if len(ids) > services.room.limits.items:
                raise too_many(services.room.limits.items)
            account = services.queue.resolve_account(None if order.account is UNSET else order.account)
            for message_id in ids:
                check_message_id(message_id)
            return [MessageName(account, message_id) for message_id in ids]
        case MessageOrder(
            message_ids=UnsetType(), account=UnsetType(), filter=MessageNarrowing() as narrowing
        ):
            return message_filter(
                _written(narrowing), services.clock.now_ms(), services.queue.resolve_account
            )
        case _:
            raise InvalidItem(
                'say what is meant: "message_ids" (and "account" beside it), or "filter" (with the account in it)'
            )


def _written(narrowing: MessageNarrowing | ReceiptNarrowing) -> Mapping[str, str]:
    """Return the filter as a query would write it."""
    written: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(narrowing).items():
        if isinstance(value, bool):
            written[name] = "true" if value else "false"
        elif value is not UNSET:
            written[name] = str(value)
    everything = written.pop("all", None)
    if everything is None and written:
        return written
    if everything == "true" and not written:
        return {}
    raise InvalidItem(
        'the filter must narrow by something; to mean everything send {"all": true} and nothing beside it'
    )


def _counted(count: ActionCount, *, dry_run: bool) -> Response:
    done = ActionResource(count.changed, count.skipped, count.in_flight, dry_run)
    return Response(encode(done), media_type=JSON)
