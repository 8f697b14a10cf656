"""Reading the queue: one message, one receipt, and filtered lists of both, page by page."""

from __future__ import annotations

import re

from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.errors import InvalidItem
from dlr_buffer.local_api.listing import message_list_request, parse_query, receipt_list_request
from dlr_buffer.local_api.resources import (
    MessageList,
    ReceiptList,
    encode,
    message_resource,
    message_view_resource,
    receipt_resource,
    receipt_view_resource,
)
from dlr_buffer.local_api.services import Services, path_text
from dlr_buffer.local_api.submissions import JSON

_REQUEST_ID = re.compile(r"[1-9][0-9]{0,18}")


async def message(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Look up one message with its receipts and their history."""
    message_id = path_text(scope, "message_id")
    query = parse_query(scope["query_string"], ("account",))
    view = await services.queue.message(message_id, query.get("account"))
    return Response(encode(message_view_resource(view)), media_type=JSON)


async def receipt(services: Services, scope: Scope, _receive: Receive) -> Response:
    """Look up one receipt with its history."""
    view = await services.queue.receipt(request_id(path_text(scope, "request_id")))
    return Response(encode(receipt_view_resource(view)), media_type=JSON)


async def messages(services: Services, scope: Scope, _receive: Receive) -> Response:
    """List messages."""
    asked = message_list_request(
        scope["query_string"], now_ms=services.clock.now_ms(), check_account=services.queue.resolve_account
    )
    page = await services.queue.list_messages(asked.narrow, after=asked.after, limit=asked.limit)
    found = MessageList([message_resource(item) for item in page.items], asked.next_cursor(page.next_after))
    return Response(encode(found), media_type=JSON)


async def receipts(services: Services, scope: Scope, _receive: Receive) -> Response:
    """List receipts."""
    asked = receipt_list_request(
        scope["query_string"], now_ms=services.clock.now_ms(), check_account=services.queue.resolve_account
    )
    page = await services.queue.list_receipts(asked.narrow, after=asked.after, limit=asked.limit)
    found = ReceiptList([receipt_resource(item) for item in page.items], asked.next_cursor(page.next_after))
    return Response(encode(found), media_type=JSON)


def request_id(text: str) -> int:
    """Read a request_id as we write it; raises InvalidItem."""
    if _REQUEST_ID.fullmatch(text):
        return int(text)
    raise InvalidItem(
        f"{text!r} is not a request_id: those are decimal numbers from 1 on, without leading zeros"
    )
