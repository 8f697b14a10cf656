"""Every error of ours has its code, and every code its status."""

from __future__ import annotations

import json

import pytest

from dlr_buffer import errors
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.local_api.problems import MalformedItem, ProblemCode, code_of, problem_response

ERRORS: dict[ProblemCode, list[DlrBufferError]] = {
    ProblemCode.MALFORMED: [MalformedItem("x")],
    ProblemCode.NOT_FOUND: [errors.NotFound("x")],
    ProblemCode.MESSAGE_FINAL: [errors.MessageFinal("delivered")],
    ProblemCode.CONFLICT: [errors.Conflict("x")],
    ProblemCode.INVALID: [errors.InvalidItem("x")],
    ProblemCode.UNKNOWN_ACCOUNT: [errors.UnknownAccount("x", ("default",))],
    ProblemCode.INTERNAL: [DlrBufferError("x")],
    ProblemCode.OVERLOADED: [errors.Overloaded("x"), errors.StoreUnavailable("x")],
    ProblemCode.STORAGE_FULL: [errors.StorageFull("x")],
}


def test_no_error_is_forgotten() -> None:
    """Each public error of `dlr_buffer.errors` has a code of its own choosing, not `internal` by default."""
    public = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, DlrBufferError)
    }
    assert public <= {type(error) for group in ERRORS.values() for error in group}


@pytest.mark.parametrize(("code", "group"), ERRORS.items())
def test_errors_become_problems(code: ProblemCode, group: list[DlrBufferError]) -> None:
    """The problem carries type, title, status, detail and code as RFC 9457 and DESIGN §5 want it."""
    for error in group:
        assert code_of(error) is code
        response = problem_response(error, facts={"registered": 3})
        body = json.loads(bytes(response.body))
        assert response.status_code == body["status"] == code.status
        assert response.headers["content-type"] == "application/problem+json"
        assert body["type"] == f"urn:dlr-buffer:problem:{code}"
        assert (body["title"], body["code"], body["registered"]) == (code.meaning, code, 3)
        assert body["detail"]
