"""What an admin changes: receipts, messages, accounts, and expiry after a clock alarm.

A selection is either named ids or a filter, and never everything by accident: an empty filter is refused. Whatever
changes something is written down, with who did it (`audit`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.errors import DlrBufferError, InvalidItem, NotFound
from dlr_buffer.local_api import audit
from dlr_buffer.local_api.audit import Deed, admin_in
from dlr_buffer.local_api.bodies import ItemDecoder, read_body, too_many
from dlr_buffer.local_api.listing import message_filter, receipt_filter
from dlr_buffer.local_api.lookups import request_id
from dlr_buffer.local_api.problems import ProblemCode, code_of, problem_response, stopping
from dlr_buffer.local_api.resources import ActionResource, account_resource, encode, expiry_resource
from dlr_buffer.local_api.services import Endpoint, Services, path_text
from dlr_buffer.local_api.submissions import JSON
from dlr_buffer.messages import MessageState, check_message_id
from dlr_buffer.receipt_queue.queue import CHUNK, ActionInterrupted
from dlr_buffer.receipts import ReceiptAction, ReceiptStatus
from dlr_buffer.selection import (
    ActionCount,
    MessageAction,
    MessageFilter,
    MessageName,
    ReceiptFilter,
)

_Order = TypeVar("_Order", "ReceiptOrder", "MessageOrder")
_View = TypeVar("_View")

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
        selected = _receipts(services, order)
        deed = _deed(f"{action} receipts", selected, order.filter, deletes=action is ReceiptAction.DELETE)
        steer = partial(services.queue.steer_receipts, action, selected, dry_run=order.dry_run)
        return await _steer(scope, deed, steer, dry_run=order.dry_run)

    return endpoint


def steer_messages(action: MessageAction) -> Endpoint:
    """Build the endpoint of one action on messages."""

    async def endpoint(services: Services, scope: Scope, receive: Receive) -> Response:
        order = await _read(_message_orders, services, scope, receive)
        selected = _messages(services, order)
        deed = _deed(f"{action} messages", selected, order.filter, deletes=action is MessageAction.DELETE)
        steer = partial(services.queue.steer_messages, action, selected, dry_run=order.dry_run)
        return await _steer(scope, deed, steer, dry_run=order.dry_run)

    return endpoint


async def pause(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Pause an account."""
    name = path_text(scope, "name")
    view = await _done(scope, Deed("pause account", (name,), name), services.accounts.pause(name))
    return Response(encode(account_resource(view)), media_type=JSON)


async def resume(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Resume an account."""
    name = path_text(scope, "name")
    view = await _done(scope, Deed("resume account", (name,), name), services.accounts.resume(name))
    return Response(encode(account_resource(view)), media_type=JSON)


async def resume_expiry(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Let expiry go on after a clock alarm."""
    view = await _done(scope, Deed("resume expiry"), services.expiry.resume())
    return Response(encode(expiry_resource(view)), media_type=JSON)


async def _done(scope: Scope, deed: Deed, work: Awaitable[_View]) -> _View:
    """Have something done that has no count, and write down who did it."""
    admin = await admin_in(scope)
    try:
        view = await work
    except NotFound:
        raise
    except BaseException as error:
        audit.failed(admin, deed, error)
        raise
    audit.done(admin, deed)
    return view


class _Steer(Protocol):
    def __call__(self, *, by: str) -> Awaitable[ActionCount]: ...


async def _steer(scope: Scope, deed: Deed, steer: _Steer, *, dry_run: bool) -> Response:
    """Have an action done, and write down who did it; a dry run only counts."""
    admin = await admin_in(scope)
    if not dry_run:
        audit.begins(admin, deed)
    try:
        count = await steer(by=str(admin))
    except ActionInterrupted as broken:
        if not dry_run:
            audit.failed(admin, deed, broken.cause, broken.done)
        return _broken_off(broken, dry_run=dry_run)
    if not dry_run:
        audit.done(admin, deed, count)
    return _counted(count, dry_run=dry_run)


def _broken_off(broken: ActionInterrupted, *, dry_run: bool) -> Response:
    """Answer an action that broke off: with what was changed before that, if anything was."""
    cause = stopping() if isinstance(broken.cause, asyncio.CancelledError) else broken.cause
    if not isinstance(cause, DlrBufferError) or code_of(cause) is ProblemCode.INTERNAL:
        raise cause
    facts = None if dry_run or not broken.done.changed else msgspec.structs.asdict(broken.done)
    return problem_response(cause, facts=facts)


def _deed(
    action: str,
    selected: Sequence[int] | Sequence[MessageName] | ReceiptFilter | MessageFilter,
    narrowing: ReceiptNarrowing | MessageNarrowing | UnsetType,
    *,
    deletes: bool,
) -> Deed:
    """Word what is about to be done. Of what is deleted no history is left, so every id that was named is told."""
    if isinstance(selected, ReceiptFilter | MessageFilter):
        written = {} if narrowing is UNSET else _written(narrowing)
        words = " ".join(f"{name}={value}" for name, value in written.items()) or "all"
        return Deed(action, (f"filter {words}",), selected.account, announced=deletes)
    ids = [each.message_id if isinstance(each, MessageName) else str(each) for each in selected]
    account = next((each.account for each in selected if isinstance(each, MessageName)), None)
    return Deed(
        action, audit.named("id", ids, every=deletes), account, announced=deletes and len(ids) > CHUNK
    )


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
