"""What apps submit: registrations and reports, one or many in a request. The hot end of the API.

A 2xx leaves here only after the queue has committed. Lists, look-ups and what an admin does are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.errors import DlrBufferError, NotFound
from dlr_buffer.local_api.bodies import BodyRoom, ItemDecoder, T, is_ndjson, read_body
from dlr_buffer.local_api.problems import MalformedItem, code_of, problem_response, stopping
from dlr_buffer.local_api.resources import (
    BulkRegistered,
    BulkReported,
    ItemError,
    encode,
    message_resource,
    message_view_resource,
    receipt_resource,
)
from dlr_buffer.local_api.services import Services
from dlr_buffer.messages import Message, MessageState, Registration, Report
from dlr_buffer.receipt_queue.queue import Interrupted
from dlr_buffer.receipts import MessageView, Receipt, Registered, Reported

JSON = "application/json"

REGISTRATIONS = ItemDecoder(
    Registration, "message_id (string), account (string, optional), validity_period (whole seconds, optional)"
)
REPORTS = ItemDecoder(
    Report,
    f"message_id (string), message_state (one of {', '.join(MessageState)}), account (string, optional)",
)


async def register(services: Services, scope: Scope, receive: Receive) -> Response:
    """Register one message or many (DESIGN §5)."""
    body = await read_body(scope, receive, services.room)
    try:
        submitted = _decode(REGISTRATIONS, body, services.room, ndjson=is_ndjson(scope))
        if isinstance(submitted, Registration):
            return await _register_one(services, submitted)
        try:
            results = await services.queue.register(submitted)
        except Interrupted as broken:
            summary = _registered(broken.done)
            facts = {
                "registered": summary.registered,
                "duplicates": summary.duplicates,
                "errors": summary.errors,
            }
            return problem_response(_why(broken), facts=facts)
        return Response(encode(_registered(results)), 200, media_type=JSON)
    finally:
        services.room.give_back(len(body))


async def report(services: Services, scope: Scope, receive: Receive) -> Response:
    """Report the state of one message or of many (DESIGN §5)."""
    body = await read_body(scope, receive, services.room)
    try:
        submitted = _decode(REPORTS, body, services.room, ndjson=is_ndjson(scope))
        if isinstance(submitted, Report):
            return await _report_one(services, submitted)
        try:
            results = await services.queue.report(submitted)
        except Interrupted as broken:
            summary = _reported(broken.done)
            facts = {"queued": summary.queued, "duplicates": summary.duplicates, "errors": summary.errors}
            return problem_response(_why(broken), facts=facts)
        return Response(encode(_reported(results)), 200, media_type=JSON)
    finally:
        services.room.give_back(len(body))


def _decode(
    decoder: ItemDecoder[T], body: bytes, room: BodyRoom, *, ndjson: bool
) -> T | list[T | DlrBufferError]:
    if ndjson and body.strip():
        return decoder.lines(body, room.limits.items)
    match body[:1] if body[:1] in {b"{", b"["} else body.lstrip()[:1]:
        case b"[":
            return decoder.array(body, room.limits.items)
        case b"{" | b"":  # the decoder knows what to say of an empty body
            return decoder.one(body)
        case _:
            raise MalformedItem(
                "the body must be a JSON object or a JSON array (or NDJSON, by its content type)"
            )


async def _register_one(services: Services, item: Registration) -> Response:
    try:
        (result,) = await services.queue.register([item])
    except Interrupted as broken:
        raise broken.cause from None
    if isinstance(result, DlrBufferError):
        raise result
    return await registered_answer(services, result)


def registered_body(result: Registered) -> bytes:
    """Write a message that was registered just now."""
    return encode(message_resource(result.message, ()))


async def registered_answer(services: Services, result: Registered) -> Response:
    """Answer a registration that was taken."""
    if result.new:
        return Response(registered_body(result), 201, media_type=JSON)
    view = await _look_up(services, result.message)
    resource = message_resource(result.message, ()) if view is None else message_view_resource(view)
    return Response(encode(resource), 200, media_type=JSON)


async def _report_one(services: Services, item: Report) -> Response:
    try:
        (result,) = await services.queue.report([item])
    except Interrupted as broken:
        raise broken.cause from None
    if isinstance(result, DlrBufferError):
        raise result
    return await reported_answer(services, item, result)


def reported_body(receipt: Receipt) -> bytes:
    """Write a receipt that a report has caused."""
    return encode(receipt_resource(receipt))


async def reported_answer(services: Services, item: Report, result: Reported) -> Response:
    """Answer a report that was taken."""
    if result.receipt is not None:
        return Response(reported_body(result.receipt), 202, media_type=JSON)
    # The state was known already: show the receipt that tells it, unless an admin deleted it or it was purged.
    view = await _look_up(services, result.message)
    if view is None:
        return Response(encode(message_resource(result.message, ())), 200, media_type=JSON)
    if view.receipts and view.receipts[-1].receipt.message_state is item.message_state:
        return Response(encode(receipt_resource(view.receipts[-1].receipt)), 200, media_type=JSON)
    return Response(encode(message_view_resource(view)), 200, media_type=JSON)


def _why(broken: Interrupted) -> DlrBufferError:
    return broken.cause if isinstance(broken.cause, DlrBufferError) else stopping()


async def _look_up(services: Services, message: Message) -> MessageView | None:
    try:
        return await services.queue.message(message.message_id, message.account)
    except NotFound:  # purged or deleted between the commit and this look
        return None


def _registered(results: Sequence[Registered | Reported | DlrBufferError]) -> BulkRegistered:
    registered = sum(isinstance(result, Registered) and result.new for result in results)
    errors = _errors(results)
    return BulkRegistered(registered, len(results) - registered - len(errors), errors)


def _reported(results: Sequence[Registered | Reported | DlrBufferError]) -> BulkReported:
    queued = sum(isinstance(result, Reported) and result.receipt is not None for result in results)
    errors = _errors(results)
    return BulkReported(queued, len(results) - queued - len(errors), errors)


def _errors(results: Sequence[Registered | Reported | DlrBufferError]) -> list[ItemError]:
    return [
        ItemError(index, code_of(result), str(result))
        for index, result in enumerate(results)
        if isinstance(result, DlrBufferError)
    ]
