"""Requests of any bytes: paths, queries, cursors, headers, steering bodies, and no HTTP at all. Never a 5xx."""

from __future__ import annotations

import base64
import json
import socket

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlr_buffer.local_api.listing import RECEIPT_FILTERS
from tests.acceptance.harness import Site
from tests.acceptance.misuse.crowd import connected
from tests.integration.local_api.harness import checked

EXAMPLES = 120
_settings = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
PATHS = st.sampled_from(
    [
        "/v1/messages",
        "/v1/receipts",
        "/v1/messages/",
        "/v1/receipts/",
        "/v1/receipts/1",
        "/v1/receipts/delete",
        "/v1/messages/expire",
        "/v1/accounts/",
        "/v1/accounts/default/pause",
        "/v1/expiry/resume",
        "/v1/status",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/",
        "//",
    ]
)
# What may stand in a request target: anything but blanks and control characters; those end it.
TARGETS = st.text(
    st.sampled_from([chr(code) for code in range(0x21, 0x7F) if chr(code) != "#"]), max_size=60
) | st.lists(
    st.sampled_from(
        ["%00", "%0A", "%FF", "%2F", "%2E%2E", "%", "%zz", "..", "/", "a", "%C3%A9", "%ED%A0%80"]
    ),
    max_size=12,
).map("".join)
NAMES = st.sampled_from([*RECEIPT_FILTERS, "limit", "cursor", "x"])
WORDS = (
    " 0 1 -1 1001 999999999999999999999999 true default 72h 9999999999d 0001-01-01T00:00:00Z 9999-12-31T23:59:59Z "
    "2026-02-30T00:00:00Z delivered pending %00"
)
VALUES = TARGETS | st.sampled_from(WORDS.split(" "))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1", "9" * 19, "delivered", "dead", "72h", "default"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["request_ids", "message_ids", "filter", "dry_run", "all", "account", "older_than", "status"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def site(running: Site) -> Site:
    """A daemon with something in its queue."""
    with running.client() as app:
        for number in range(30):
            app.report(f"m{number}", "delivered" if number % 2 else "enroute", account="default")
    return running


def ask(site: Site, request: bytes) -> list[bytes]:
    """Send bytes and nothing after them; returns the pieces of what comes back until the end."""
    received = b""
    with connected(site.admin_socket) as raw:
        try:
            raw.sendall(request)
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(65536):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
    return received.split(b"\r\n\r\n", 1)


def check(site: Site, method: str, target: str, headers: bytes = b"", body: bytes = b"") -> int:
    """Send one request; the answer is one that the description knows, or a 400 for what is not HTTP."""
    line = f"{method} {target} HTTP/1.1\r\n".encode()
    head, content = ask(
        site, line + headers + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split(" ")[1])
    received = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert status < 500, (status, content)
    if status != 400:
        checked("admin", method, target, status, received, content)
    else:
        assert json.loads(content or b'{"code":"malformed"}')["code"] == "malformed"
    return status


@_settings
@given(method=METHODS, path=PATHS, rest=TARGETS)
def test_any_path(site: Site, method: str, path: str, rest: str) -> None:
    """Whatever stands in the path, percent signs, dots and slashes included."""
    check(site, method, path + rest)


@_settings
@given(path=PATHS, pairs=st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_any_query(site: Site, path: str, pairs: list[tuple[str, str]]) -> None:
    """Whatever stands in the query, known and unknown names, twice, empty, broken."""
    check(site, "GET", f"{path}?{'&'.join(f'{name}={value}' for name, value in pairs)}")


@_settings
@given(
    resource=st.sampled_from(["messages", "receipts"]) | st.text(max_size=5),
    narrow=st.dictionaries(NAMES, st.text(max_size=10) | VALUES, max_size=3),
    now_ms=st.integers(),
    after=st.integers(),
    cut=st.just(400) | st.integers(0, 400),
)
@example(
    resource="messages", narrow={"older_than": "9999999999d"}, now_ms=2**62 - 1, after=2**63 - 1, cut=400
)
@example(resource="messages", narrow={}, now_ms=0, after=2**63, cut=400)
@example(resource="messages", narrow={"older_than": "1d"}, now_ms=-(2**63), after=0, cut=400)
@example(resource="receipts", narrow={"newer_than": "9999999999d"}, now_ms=0, after=0, cut=400)
def test_any_cursor(
    site: Site, resource: str, narrow: dict[str, str], now_ms: int, after: int, cut: int
) -> None:
    """Cursors that nobody was given: forged, cut, of the other list, beyond every number."""
    forged = {"resource": resource, "narrow": narrow, "now_ms": now_ms, "after": after}
    text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode().rstrip("=")[:cut]
    for kind in ("messages", "receipts"):
        assert check(site, "GET", f"/v1/{kind}?cursor={text}") in {200, 422}


@_settings
@given(
    path=st.sampled_from(
        [f"/v1/receipts/{word}" for word in ("retry", "hold", "release", "delete")]
        + [f"/v1/messages/{word}" for word in ("expire", "delete")]
        + ["/v1/messages", "/v1/receipts"]
    ),
    value=JSON_VALUES,
    kind=st.sampled_from([b"application/json", b"application/x-ndjson", b"text/plain; x=\xff", b""]),
)
def test_any_json(site: Site, path: str, value: object, kind: bytes) -> None:
    """JSON of any shape to whatever takes JSON (NaN and infinities, which are none, included)."""
    check(site, "POST", path, b"Content-Type: %s\r\n" % kind, json.dumps(value).encode())


@_settings
@given(
    path=st.sampled_from(["/v1/messages", "/v1/receipts", "/v1/receipts/hold"]), body=st.binary(max_size=300)
)
def test_any_body(site: Site, path: str, body: bytes) -> None:
    """Bytes for a body."""
    check(site, "POST", path, b"Content-Type: application/x-ndjson\r\n", body)


@_settings
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"Content-Type", b"Expect", b"Accept", b"Transfer-Encoding", b"Host", b"Connection"]
            )
            | st.binary(max_size=10),
            st.binary(max_size=30),
        ),
        max_size=6,
    )
)
def test_any_headers(site: Site, headers: list[tuple[bytes, bytes]]) -> None:
    """Headers of any bytes: an answer or several, the first one never a 5xx, or the end."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    head = ask(site, b"GET /v1/messages?limit=1 HTTP/1.1\r\n" + lines + b"\r\n")[0]
    assert head[:10] in {b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 1", b""}


@_settings
@given(request=st.binary(max_size=400))
@example(request=b"\r\n" * 100)
@example(request=b"GET / HTTP/1.1")
def test_any_bytes(site: Site, request: bytes) -> None:
    """No HTTP at all: 400, or the end where nothing came whole."""
    head = ask(site, request)[0]
    assert head[:12] in {b"HTTP/1.1 400", b""}


@_settings
@given(position=st.integers(0, 130), piece=st.binary(min_size=1, max_size=4), skip=st.integers(0, 3))
def test_a_good_request_with_a_flaw(site: Site, position: int, piece: bytes, skip: int) -> None:
    """A good request with some bytes changed, put in or left out: what comes back is never a 5xx."""
    body = b'{"message_id":"flawed","account":"two"}'
    good = (
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    head = ask(site, good[:position] + piece + good[position + skip :])[0]
    assert head[:10] in {b"HTTP/1.1 2", b"HTTP/1.1 4", b""}
