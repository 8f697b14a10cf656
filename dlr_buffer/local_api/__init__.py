"""The local API: HTTP/1.1 over Unix sockets for apps and admins (DESIGN §5).

A request comes in through `server` (uvicorn, on a socket bound by `sockets`), is matched by `app` against the one table
of `operations`, from which `openapi` writes the description too, and is answered by an endpoint: `submissions`
(register, report), `lookups`, `steering` (what changes something on an admin's word) or `overview`.
`bodies` reads and decodes, `resources` says how records look in JSON, `problems` how errors look. What the
endpoints need beside the receipt queue is declared in `ports`. Only this package knows Starlette and uvicorn;
it knows no database.
"""

from dlr_buffer.local_api.app import create_app
from dlr_buffer.local_api.bodies import BodyLimits, BodyRoom
from dlr_buffer.local_api.ports import Accounts, DaemonFacts, DatabaseFacts, Expiry, ExpiryView, Vitals
from dlr_buffer.local_api.server import ApiServer
from dlr_buffer.local_api.sockets import bind

__all__ = [
    "Accounts",
    "ApiServer",
    "BodyLimits",
    "BodyRoom",
    "DaemonFacts",
    "DatabaseFacts",
    "Expiry",
    "ExpiryView",
    "Vitals",
    "bind",
    "create_app",
]
