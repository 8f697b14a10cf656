"""The API keeps to its own description: schemathesis asks every operation of a daemon, with good and bad data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig

from dlr_buffer.local_api.openapi import openapi_document
from dlr_buffer.local_api.operations import OPERATIONS
from tests.acceptance.harness import Site
from tests.acceptance.misuse.unix_http import session_over

EXAMPLES = 20
"""For each operation, socket and kind of cases; more find nothing more in this time."""
BASE_URL = "http://localhost"
load_all_checks()
_NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
CONFORMS: Any = [CHECKS.get_one(name) for name in _NAMES]
REFUSES: Any = [CHECKS.get_one("negative_data_rejection")]
# Of many items the good ones are taken though others are bad: 200, with an error for each (see test_bulk.py).
TAKES_THE_GOOD = ("registerMessages", "reportStates")


def described(socket: str) -> dict[str, Any]:
    """The description as it is written."""
    document: dict[str, Any] = json.loads(openapi_document(OPERATIONS, admin=socket == "admin"))
    return document


ASKED = [
    (socket, path, method)
    for socket in ("client", "admin")
    for path, methods in described(socket)["paths"].items()
    for method in methods
]
# Where nothing can be violated (any text is a name) there is no bad data.
VIOLABLE = [
    (path, method)
    for path, methods in described("admin")["paths"].items()
    for method, operation in methods.items()
    if "requestBody" in operation
    or any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
]


# Names that nobody would guess.
THERE = {"request_id": "1", "message_id": "m1", "name": "two"}


@pytest.fixture(scope="module")
def sessions(running: Site) -> Iterator[dict[str, requests.Session]]:
    """A session for each socket; something of everything is in the queue."""
    with running.client() as app:
        for number in range(20):
            app.register(f"m{number}", account="two" if number % 3 else None)
        for number in range(0, 20, 2):
            app.report(f"m{number}", "delivered" if number % 4 else "enroute", "two" if number % 3 else None)
    opened = {"client": session_over(running.client_socket), "admin": session_over(running.admin_socket)}
    yield opened
    for session in opened.values():
        session.close()


@pytest.mark.parametrize("socket", ["client", "admin"])
def test_the_description_is_served(sessions: dict[str, requests.Session], socket: str) -> None:
    """What is tested below is what a client gets."""
    answer = sessions[socket].get(f"{BASE_URL}/openapi.json")
    assert answer.json() == described(socket)


def ask(session: requests.Session, socket: str, path: str, method: str, mode: GenerationMode) -> set[int]:
    """Send cases of one kind, and check each answer against the description; returns the statuses that came."""
    seen: set[int] = set()
    schema = schemathesis.openapi.from_dict(described(socket), config=SchemathesisConfig())
    operation = schema[path][method.upper()]
    checks = list(CONFORMS)
    if described(socket)["paths"][path][method]["operationId"] not in TAKES_THE_GOOD:
        checks += REFUSES

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Case[Any]) -> None:
        answer = case.call(base_url=BASE_URL, session=session)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    each()
    if mode is GenerationMode.POSITIVE and "{" in path:
        case = operation.Case(path_parameters={name: there for name, there in THERE.items() if name in path})
        answer = case.call(base_url=BASE_URL, session=session)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=checks)
    return seen


@pytest.mark.parametrize(("socket", "path", "method"), ASKED)
def test_good_data(sessions: dict[str, requests.Session], socket: str, path: str, method: str) -> None:
    """What the description allows draws no 5xx, and no status, content type, header or body that it lacks.

    Each operation succeeds at least once: else nothing would have been seen of what it answers then.
    """
    seen = ask(sessions[socket], socket, path, method, GenerationMode.POSITIVE)
    assert any(200 <= status < 300 for status in seen), f"nothing succeeded, so nothing was looked at: {seen}"


@pytest.mark.parametrize(("path", "method"), VIOLABLE)
def test_bad_data(sessions: dict[str, requests.Session], path: str, method: str) -> None:
    """What the description forbids is refused, and as it says."""
    ask(sessions["admin"], "admin", path, method, GenerationMode.NEGATIVE)
