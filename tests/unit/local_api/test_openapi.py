"""The description: valid OpenAPI 3.1, complete, and in step with the routes."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from openapi_spec_validator import validate

from dlr_buffer.local_api.app import LocalApi
from dlr_buffer.local_api.listing import MESSAGE_FILTERS, RECEIPT_FILTERS
from dlr_buffer.local_api.openapi import openapi_document
from dlr_buffer.local_api.operations import OPERATIONS
from dlr_buffer.local_api.services import Services


@pytest.fixture(params=[True, False], ids=["admin", "client"])
def admin(request: pytest.FixtureRequest) -> bool:
    """Each of the two sockets."""
    return bool(request.param)


@pytest.fixture
def document(admin: bool) -> dict[str, Any]:  # noqa: FBT001 - a fixture
    """The socket's document."""
    document: dict[str, Any] = json.loads(openapi_document(OPERATIONS, admin=admin))
    return document


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """The document obeys the OpenAPI 3.1 schema."""
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_served_and_described_are_the_same(document: dict[str, Any], admin: bool) -> None:  # noqa: FBT001 - a fixture
    """Every route is described and every description is served."""
    app = LocalApi(cast("Services", None), OPERATIONS, admin=admin)
    served = {
        (method, path.replace(":path}", "}"))
        for path, resource in app.routes.items()
        for method, served in resource.served.items()
        if method != "HEAD" and served.path_params is None
    }
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert served == described


def test_every_operation_is_told_whole(document: dict[str, Any]) -> None:
    """Each has a summary, its own id, a schema for each answer, and the problems that any request may meet."""
    names = []
    for methods in document["paths"].values():
        for operation in methods.values():
            names.append(operation["operationId"])
            assert operation["summary"]
            assert {"405", "500"} <= operation["responses"].keys()
            for response in operation["responses"].values():
                assert response["description"]
                assert all("schema" in content for content in response["content"].values())
    assert len(names) == len(set(names))


def test_every_filter_is_told() -> None:
    """The parameters of the lists are the filters that the lists understand, and the two for paging."""
    paths = json.loads(openapi_document(OPERATIONS, admin=True))["paths"]
    for path, filters in (("/v1/messages", MESSAGE_FILTERS), ("/v1/receipts", RECEIPT_FILTERS)):
        told = [parameter["name"] for parameter in paths[path]["get"]["parameters"]]
        assert told == [*filters, "limit", "cursor"]


def test_every_schema_is_used_and_explained(document: dict[str, Any]) -> None:
    """No schema is left over, and each says what it is."""
    text = json.dumps(document)
    for name, schema in document["components"]["schemas"].items():
        assert f'"#/components/schemas/{name}"' in text
        assert schema["description"]
