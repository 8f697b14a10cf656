"""The ASGI application of one socket: routes from the table of operations, and errors turned into problems.

The two calls that apps make all day are matched before Starlette's router. Paths are matched as they came,
undecoded: an id may hold anything, encoded slashes and line feeds included.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from dlr_buffer.clock import Clock
from dlr_buffer.errors import DlrBufferError, NotFound
from dlr_buffer.local_api.audit import peer_in
from dlr_buffer.local_api.bodies import BodyRoom, ClientGone
from dlr_buffer.local_api.express import Express
from dlr_buffer.local_api.openapi import openapi_document
from dlr_buffer.local_api.operations import OPERATIONS, Operation
from dlr_buffer.local_api.ports import Accounts, Expiry, Vitals
from dlr_buffer.local_api.problems import ProblemCode, Refusal, code_of, problem_response, stopping
from dlr_buffer.local_api.services import Endpoint, Services
from dlr_buffer.logs import Event, about
from dlr_buffer.receipt_queue.queue import ReceiptQueue

_MOST_PATH_CHARACTERS = 300
_HOT = ("/v1/messages", "/v1/receipts")

_logger = logging.getLogger(__name__)


def create_app(  # noqa: PLR0913 - the composition root hands over each service by name
    queue: ReceiptQueue,
    *,
    accounts: Accounts,
    expiry: Expiry,
    vitals: Vitals,
    clock: Clock,
    admin: bool,
    room: BodyRoom | None = None,
) -> LocalApi:
    """Build the app of the admin socket (``admin``) or the client socket.

    ``room`` bounds the bodies in flight; hand the same one to both apps of a daemon.
    """
    description = functools.cache(functools.partial(openapi_document, OPERATIONS, admin=admin))
    services = Services(queue, accounts, expiry, vitals, clock, room or BodyRoom(), description)
    return LocalApi(services, OPERATIONS, admin=admin)


class LocalApi:
    """An ASGI application over ``services``.

    ``routes`` says what it serves, for tests; ``express`` takes what need not go through ASGI.
    """

    def __init__(self, services: Services, operations: tuple[Operation, ...], *, admin: bool) -> None:
        """Serve all of ``operations`` if ``admin``, else those for clients."""
        paths = list(dict.fromkeys(operation.path for operation in operations))
        paths.sort(key=lambda path: "{" in path)  # what is spelled out goes before what is matched
        self.routes = {path: _resource(services, path, operations, admin=admin) for path in paths}
        self._router = Router(
            [Route(path, resource) for path, resource in self.routes.items()],
            redirect_slashes=False,
            default=_Resource(services, {}, frozenset()),
        )
        self.express = Express(services)
        self._hot = {path.encode(): self.routes[path] for path in _HOT if path in self.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        raw_path: bytes = scope["raw_path"]
        if (resource := self._hot.get(raw_path)) is not None:
            await resource(scope, receive, send)
            return
        scope["path"] = raw_path.decode("ascii")
        await self._router(scope, receive, send)


def _resource(services: Services, path: str, operations: tuple[Operation, ...], *, admin: bool) -> _Resource:
    """Gather the methods of ``path``, those of a pattern that covers it included.

    `POST /v1/messages/expire` is an action, but GET of the same path looks up the message with the id "expire".
    """
    served: dict[str, _Served] = {}
    elsewhere: set[str] = set()
    for operation in operations:
        covering = None
        if operation.path != path:
            covering = Route(operation.path, _unused).path_regex.match(path)
            if covering is None:
                continue
        if not (admin or operation.client):
            elsewhere.add(operation.method)
        elif covering is None:
            served[operation.method] = _Served(operation.endpoint, None)
        else:
            served.setdefault(operation.method, _Served(operation.endpoint, covering.groupdict()))
    if "GET" in served:
        served["HEAD"] = served["GET"]
    return _Resource(services, served, frozenset(elsewhere))


async def _unused(_request: Request) -> Response:
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _Served:
    endpoint: Endpoint
    path_params: dict[str, str] | None
    """Set where the path is spelled out, but the endpoint expects it matched by a pattern."""


class _Resource:
    """One path: picks the endpoint by method, and turns whatever it raises into a problem."""

    def __init__(self, services: Services, served: Mapping[str, _Served], elsewhere: frozenset[str]) -> None:
        """``elsewhere`` are the methods that only the admin socket serves; no method at all means: no such path."""
        self.served = served
        self._services = services
        self._elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(scope, receive)
        except ClientGone:
            return
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        try:
            method = scope["method"]
            served = self.served.get(method)
            if served is None:
                return problem_response(self._not_served(method, scope))
            if served.path_params is not None:
                scope["path_params"] = served.path_params
            return await served.endpoint(self._services, scope, receive)
        except DlrBufferError as error:
            if code_of(error) is ProblemCode.INTERNAL:
                _log_defect(scope, error)
            return problem_response(error)
        except asyncio.CancelledError:
            # Only the server cancels, at the end of its grace. The request may be carried out all the same, and is
            # harmless to repeat.
            return problem_response(stopping())
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defence: even a defect is answered, and logged
            _log_defect(scope, error)
            return problem_response(
                Refusal(ProblemCode.INTERNAL, "an error that nobody foresaw; the daemon's log has it")
            )

    def _not_served(self, method: str, scope: Scope) -> DlrBufferError:
        # HEAD goes where GET goes.
        if ("GET" if method == "HEAD" else method) in self._elsewhere or (
            self._elsewhere and not self.served
        ):
            return NotFound(f"{method} {scope['path']} is served on the admin socket only")
        if not self.served:
            return NotFound(f"there is nothing at {scope['path']}; /openapi.json lists what there is")
        allow = ", ".join(sorted(self.served))
        return Refusal(
            ProblemCode.METHOD,
            f"{scope['path']} does not take {method}, only {allow}",
            facts={"allow": sorted(self.served)},
            headers={"allow": allow},
        )


def _log_defect(scope: Scope, error: Exception) -> None:
    """Log an error that is answered 500, with whom it met; the path is a client's, and cut."""
    _logger.error(
        "%s %s of %s failed in a way that nobody foresaw, and was answered 500; please report it",
        scope["method"],
        scope["path"][:_MOST_PATH_CHARACTERS],
        peer_in(scope),
        exc_info=error,
        extra=about(Event.DEFECT, peer_uid=peer_in(scope).uid),
    )
