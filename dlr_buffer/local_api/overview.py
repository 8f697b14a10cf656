"""The daemon at a glance: status, accounts, health, metrics, and the description of the API itself.

All of it is polled, so nothing here scans the queue.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope

from dlr_buffer.local_api.problems import ProblemCode, Refusal
from dlr_buffer.local_api.resources import AccountList, Healthy, account_resource, encode, status_resource
from dlr_buffer.local_api.services import Services
from dlr_buffer.local_api.submissions import JSON


async def health(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """Say whether commits succeed and flushers run."""
    if problems := services.vitals.problems():
        raise Refusal(
            ProblemCode.OVERLOADED,
            "not healthy: " + "; ".join(problems),
            facts={"problems": problems},
            headers={"retry-after": "5"},
        )
    return Response(encode(Healthy("ok")), media_type=JSON)


async def status(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """Show counts, ages, rates and health."""
    oldest = await services.queue.oldest()
    resource = status_resource(
        facts=services.vitals.facts(),
        expiry=services.expiry.view(),
        accounts=services.accounts.views(),
        counts=services.queue.counts(),
        oldest=oldest,
        now_ms=services.clock.now_ms(),
    )
    return Response(encode(resource), media_type=JSON)


async def accounts(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """List the accounts."""
    found = AccountList([account_resource(view) for view in services.accounts.views()])
    return Response(encode(found), media_type=JSON)


async def metrics(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """Show the metrics for Prometheus."""
    body, content_type = services.vitals.exposition()
    return Response(body, media_type=content_type)


async def description(services: Services, _scope: Scope, _receive: Receive) -> Response:
    """Show the OpenAPI document of this socket."""
    return Response(services.description(), media_type=JSON)
