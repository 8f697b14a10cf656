"""What every endpoint is given, and what it is: the services behind the API, and the endpoint's signature."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.clock import Clock
from dlr_buffer.local_api.bodies import BodyRoom
from dlr_buffer.local_api.ports import Accounts, Expiry, Vitals
from dlr_buffer.local_api.problems import MalformedItem
from dlr_buffer.receipt_queue.queue import ReceiptQueue

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Services:
    """The services behind one socket's API; ``description`` gives its OpenAPI document."""

    queue: ReceiptQueue
    accounts: Accounts
    expiry: Expiry
    vitals: Vitals
    clock: Clock
    room: BodyRoom
    description: Callable[[], bytes]


Endpoint = Callable[[Services, Scope, Receive], Awaitable[Response]]
"""Answers one request, or raises one of `dlr_buffer.errors` or of this package's own errors."""


def path_text(scope: Scope, parameter: str) -> str:
    """Return a part of the path, percent-decoded once; raises MalformedItem unless it is UTF-8 (RFC 3986 §2.1)."""
    raw: str = scope["path_params"][parameter]
    if "%" not in raw:
        return raw
    if _BROKEN_ESCAPE.search(raw):
        raise MalformedItem(
            "the path holds a % that two hexadecimal digits do not follow; write a plain % as %25"
        )
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise MalformedItem("the path is not percent-encoded UTF-8") from None
