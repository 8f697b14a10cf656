"""The short way for the two calls that apps make all day: one registration or one report in a request.

Neither a task nor an ASGI cycle is made for one: the item goes to the queue at once, and the answer is written when the
queue has committed it. Whatever is not the plain case (several items, an item that does not fit, another account than
there is, a state that was known) takes the long way of `app` and `submissions`, or ends on it; what an answer says is
decided there in all cases. How requests get here is `server`'s.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, Protocol

from starlette.responses import Response

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.local_api.problems import problem_response
from dlr_buffer.local_api.services import Services
from dlr_buffer.local_api.submissions import (
    REGISTRATIONS,
    REPORTS,
    registered_answer,
    registered_body,
    reported_answer,
    reported_body,
)
from dlr_buffer.messages import Report
from dlr_buffer.receipts import Registered, Reported

MAX_BODY_BYTES: Final = 2048
"""One item with the longest id fits in it. So little, and one a connection, does not count among bodies in flight."""

_CREATED: Final = b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%b"
_ACCEPTED: Final = b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%b"

_STORE_REFUSES: Final = (Overloaded, StorageFull, StoreUnavailable)


class Reply(Protocol):
    """Takes the answer of one request; exactly one of the two is called, once."""

    def answer(self, content: bytes) -> None:
        """Write a whole answer, head and body."""
        ...

    def finish(self, response: Coroutine[Any, Any, Response]) -> None:
        """Write what a coroutine comes to; it runs as a task like those of the long way."""
        ...


class Express:
    """Takes the requests of one socket that go the short way."""

    def __init__(self, services: Services) -> None:
        """Work on ``services``."""
        self._services = services
        self._takes = {b"/v1/messages": self._register, b"/v1/receipts": self._report}

    @property
    def paths(self) -> frozenset[bytes]:
        """Paths whose POST may go the short way."""
        return frozenset(self._takes)

    def take(self, path: bytes, body: bytes, reply: Reply) -> bool:
        """Take a POST to ``path`` and answer it later; False if it has to go the long way: then nothing was done."""
        return self._takes[path](body, reply)

    def _register(self, body: bytes, reply: Reply) -> bool:
        try:
            self._services.queue.register_one(REGISTRATIONS.plain(body), partial(self._registered, reply))
        except _STORE_REFUSES as error:
            reply.finish(_problem(error))
        except Exception:  # noqa: BLE001 - the long way meets it again, and says what it is
            return False
        return True

    def _registered(self, reply: Reply, result: Registered | DlrBufferError) -> None:
        if isinstance(result, DlrBufferError):
            reply.finish(_problem(result))
        elif result.new:
            body = registered_body(result)
            reply.answer(_CREATED % (len(body), body))
        else:
            reply.finish(registered_answer(self._services, result))

    def _report(self, body: bytes, reply: Reply) -> bool:
        try:
            item = REPORTS.plain(body)
            self._services.queue.report_one(item, partial(self._reported, reply, item))
        except _STORE_REFUSES as error:
            reply.finish(_problem(error))
        except Exception:  # noqa: BLE001 - the long way meets it again, and says what it is
            return False
        return True

    def _reported(self, reply: Reply, item: Report, result: Reported | DlrBufferError) -> None:
        if isinstance(result, DlrBufferError):
            reply.finish(_problem(result))
        elif result.receipt is not None:
            body = reported_body(result.receipt)
            reply.answer(_ACCEPTED % (len(body), body))
        else:
            reply.finish(reported_answer(self._services, item, result))


async def _problem(error: DlrBufferError) -> Response:
    return problem_response(error)
