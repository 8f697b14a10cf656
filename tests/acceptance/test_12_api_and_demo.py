"""The description and the permissions of the two sockets, and the demo."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import sys

import pytest
from openapi_spec_validator import validate

from dlr_buffer.client import ApiError
from tests.acceptance.harness import Site

CLIENT_CALLS = {
    ("post", "/v1/messages"),
    ("post", "/v1/receipts"),
    ("get", "/v1/messages/{message_id}"),
    ("get", "/healthz"),
    ("get", "/openapi.json"),
}
ADMIN_CALLS = CLIENT_CALLS | {
    ("get", "/v1/messages"),
    ("get", "/v1/receipts"),
    ("get", "/v1/receipts/{request_id}"),
    *(("post", f"/v1/receipts/{action}") for action in ("retry", "hold", "release", "delete")),
    *(("post", f"/v1/messages/{action}") for action in ("expire", "delete")),
    ("get", "/v1/accounts"),
    *(("post", f"/v1/accounts/{{name}}/{action}") for action in ("pause", "resume")),
    ("post", "/v1/expiry/resume"),
    ("get", "/v1/status"),
    ("get", "/metrics"),
}


def a_group() -> int:
    """A group that this user may give a file to, another than its own if there is one."""
    if os.geteuid() == 0:
        return next(each.gr_gid for each in grp.getgrall() if each.gr_gid != os.getgid())
    return next((group for group in os.getgroups() if group != os.getgid()), os.getgid())


def test_description_and_permissions(site: Site) -> None:
    """Both sockets have their modes and groups, describe validly what they serve, and apps get no admin's calls."""
    site.configure(tables={"api": {"client_group": a_group()}})
    site.start()
    modes = {}
    for path, calls in ((site.client_socket, CLIENT_CALLS), (site.admin_socket, ADMIN_CALLS)):
        found = path.stat()
        modes[path] = (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode), found.st_gid)
        with site.client() if path == site.client_socket else site.admin() as client:
            document = client.request("GET", "/openapi.json")
        validate(document)
        described = {(method, route) for route, methods in document["paths"].items() for method in methods}
        assert described == calls
    assert modes == {
        site.client_socket: (True, 0o660, a_group()),
        site.admin_socket: (True, 0o600, os.getgid()),
    }
    with site.client() as app:
        for method, call in (("GET", "/v1/status"), ("GET", "/metrics"), ("POST", "/v1/receipts/delete")):
            with pytest.raises(ApiError) as refused:
                app.request(method, call, {"filter": {"all": True}})
            assert refused.value.status in (404, 405)


def test_the_demo() -> None:
    """The demo shows the whole job and exits 0, its sums in step with the stand-in's."""
    done = subprocess.run(
        [sys.executable, "-m", "dlr_buffer", "--json", "demo", "--messages", "200"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done
    sums = json.loads(done.stdout)
    assert (sums["registered"], sums["expired"], sums["dead"]) == (200, 20, 0)
