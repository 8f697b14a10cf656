"""The description of the API: an OpenAPI 3.1 document, written from the table of operations.

The schemas are msgspec's of the very types that are decoded and encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from dlr_buffer import __version__
from dlr_buffer.local_api.bodies import BodyLimits
from dlr_buffer.local_api.operations import Operation, Parameter, Payload
from dlr_buffer.local_api.problems import CONTENT_TYPE, ProblemCode
from dlr_buffer.local_api.resources import ProblemResource
from dlr_buffer.messages import MAX_MESSAGE_ID_BYTES, MAX_VALIDITY_MS, MIN_VALIDITY_MS

_ABOUT = """\
The local daemon that takes over the delivery receipts owed to a Smartswitch server. It speaks HTTP/1.1 over two Unix
sockets: the client socket registers messages and takes reports, the admin socket does everything.

A 2xx to a registration or a report is sent only after its transaction is committed and synced, so that asking again
after a lost answer is safe. Errors are RFC 9457 problem details; `code` is stable, `detail` is for people.
"""
_ANYWHERE = (ProblemCode.FORBIDDEN, ProblemCode.METHOD, ProblemCode.INTERNAL)
_RETRY_AFTER = {
    "Retry-After": {
        "description": "seconds after which to ask again",
        "schema": {"type": "integer", "minimum": 0},
    }
}
_ALLOW = {"Allow": {"description": "the methods that are taken", "schema": {"type": "string"}}}


def openapi_document(operations: Sequence[Operation], *, admin: bool) -> bytes:
    """Write the document of the admin or the client socket as JSON."""
    served = [operation for operation in operations if admin or operation.client]
    types = list(_types(served))
    schemas, components = msgspec.json.schema_components(
        [*types, ProblemResource], ref_template="#/components/schemas/{name}"
    )
    # Types are told apart by their place, for some (Annotated lists) cannot be hashed.
    schema_of = {id(item): schema for item, schema in zip(types, schemas, strict=False)}
    _say_limits(components)
    paths: dict[str, dict[str, Any]] = {}
    for operation in served:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schema_of)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": f"dlr-buffer local API, {'admin' if admin else 'client'} socket",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "http://localhost", "description": "any host name will do on a Unix socket"}],
        "paths": paths,
        "components": {"schemas": components},
    }
    return msgspec.json.encode(document)


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    for operation in operations:
        for payload in _payloads(operation):
            yield from payload.types
        for parameter in operation.parameters:
            yield parameter.schema


def _payloads(operation: Operation) -> Iterable[Payload]:
    yield from operation.bodies
    for answer in operation.answers.values():
        yield answer.payload


def _operation(operation: Operation, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": ["apps" if operation.client else "admins"],
        "responses": {},
    }
    if operation.notes:
        described["description"] = operation.notes
    if operation.parameters:
        described["parameters"] = [_parameter(parameter, schema_of) for parameter in operation.parameters]
    if operation.bodies:
        described["requestBody"] = {
            "required": True,
            "description": f"At most {BodyLimits().body_bytes} bytes.",
            "content": {payload.media_type: _content(payload, schema_of) for payload in operation.bodies},
        }
    for status, answer in operation.answers.items():
        described["responses"][str(status)] = {
            "description": answer.description,
            "content": {answer.payload.media_type: _content(answer.payload, schema_of)},
        }
    by_status: dict[int, list[ProblemCode]] = {}
    for code in (*operation.problems, *_ANYWHERE):
        by_status.setdefault(code.status, []).append(code)
    for status, codes in sorted(by_status.items()):
        described["responses"][str(status)] = _problem(codes)
    return described


def _parameter(parameter: Parameter, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.description,
        "schema": schema_of[id(parameter.schema)],
    }


def _content(payload: Payload, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    schemas = [schema_of[id(item)] for item in payload.types]
    content: dict[str, Any] = {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}
    if payload.example is not None:
        content["example"] = payload.example
    return content


def _problem(codes: Sequence[ProblemCode]) -> dict[str, Any]:
    narrowed = {
        "allOf": [
            {"$ref": f"#/components/schemas/{ProblemResource.__name__}"},
            {
                "properties": {
                    "code": {"enum": [code.value for code in codes]},
                    "status": {"const": codes[0].status},
                }
            },
        ]
    }
    example = {
        "type": f"urn:dlr-buffer:problem:{codes[0]}",
        "title": codes[0].meaning,
        "status": codes[0].status,
        "detail": "what went wrong here, and what to do",
        "code": codes[0].value,
    }
    problem: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {code.meaning}" for code in codes),
        "content": {CONTENT_TYPE: {"schema": narrowed, "example": example}},
    }
    if ProblemCode.OVERLOADED in codes or ProblemCode.STORAGE_FULL in codes:
        problem["headers"] = _RETRY_AFTER
    if ProblemCode.METHOD in codes:
        problem["headers"] = _ALLOW
    return problem


def _say_limits(components: dict[str, Any]) -> None:
    """Add what the queue checks itself, because the decoder must let it through as an item."""
    for name in ("Registration", "Report"):
        components[name]["properties"]["message_id"] |= {
            "minLength": 1,
            "maxLength": MAX_MESSAGE_ID_BYTES,
            "description": "1 to 255 bytes of UTF-8 without control characters, kept byte for byte",
        }
        components[name]["properties"]["account"]["description"] = (
            "left out: the only account, else the one named default"
        )
    components["Registration"]["properties"]["validity_period"] |= {
        "description": (
            f"whole seconds until the message expires, {MIN_VALIDITY_MS // 1000} to {MAX_VALIDITY_MS // 1000}"
        )
    }
