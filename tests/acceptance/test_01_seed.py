"""The seed's three examples, byte for byte on the wire, and their answers understood."""

from __future__ import annotations

import pytest

from tests.acceptance.harness import Fixed, Site, eventually

ONE_ANSWER = """{
\t"data" : {
\t\t"attributes" : {
\t\t\t"status" : "ok"
\t\t},
\t\t"id" : "1561370632713",
\t\t"meta" : {
\t\t\t"request_id" : "1"
\t\t},
\t\t"type" : "dlr"
\t}
}"""
TWO_ANSWER = """{
\t"data" : [
\t\t{
\t\t\t"attributes" : {
\t\t\t\t"status" : "ok"
\t\t\t},
\t\t\t"id" : "1561371433517",
\t\t\t"meta" : {
\t\t\t\t"request_id" : "1"
\t\t\t},
\t\t\t"type" : "dlr"
\t\t},
\t\t{
\t\t\t"attributes" : {
\t\t\t\t"status" : "ok"
\t\t\t},
\t\t\t"id" : "1561371433518",
\t\t\t"meta" : {
\t\t\t\t"request_id" : "2"
\t\t\t},
\t\t\t"type" : "dlr"
\t\t}
\t]
}"""
ERROR_ANSWER = """{
\t"errors" : [
\t\t{
\t\t\t"code" : "authentication",
\t\t\t"detail" : "Please check your login and password",
\t\t\t"title" : "Authentication error"
\t\t}
\t]
}"""
ONE_TARGET = (
    "/api/dlr?message_id=1561370632513&message_state=delivered&request_id=1&_login=LOGIN&_password=PASSWORD"
)
TWO_TARGET = (
    "/api/dlr?message_id=1561370632513&message_state=delivered&request_id=1"
    "&message_id=1561370632522&message_state=delivered&request_id=2&_login=LOGIN&_password=PASSWORD"
)


def answer(body: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer with the seed's text as its body."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/vnd.api+json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


def request_line(request: bytes) -> str:
    """The first line of a recorded request."""
    return request.partition(b"\r\n")[0].decode()


def test_one_message(site: Site) -> None:
    """The first report of a fresh queue is the seed's first request, and its answer acknowledges it."""
    with Fixed(answer(ONE_ANSWER)) as server:
        site.configure(server.url)
        site.start()
        with site.client() as app:
            app.register("1561370632513")
            assert app.report("1561370632513", "delivered")["request_id"] == "1"
        site.wait_until_sent()
        (request,) = server.requests
    assert request_line(request) == f"POST {ONE_TARGET} HTTP/1.1"
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b""
    assert b"\r\ncontent-length: 0" in head.lower()
    assert b"\r\naccept: application/vnd.api+json, application/json" in head.lower()
    assert b"\r\naccept-encoding: identity" in head.lower()
    receipt = site.ask("GET", "/v1/receipts/1")
    assert (receipt["status"], receipt["response_id"]) == ("acknowledged", "1561370632713")
    assert (receipt["attempts"], receipt["refusals"], receipt["error"]) == (1, 0, None)


def test_two_messages(site: Site) -> None:
    """Two reports together are the seed's second request, ids 1 and 2, and its answer acknowledges both."""
    with Fixed(answer(TWO_ANSWER)) as server:
        site.configure(server.url, batch={"linger": "250ms"})
        site.start()
        with site.client() as app:
            app.register_many(["1561370632513", "1561370632522"])
            app.report_many([("1561370632513", "delivered"), ("1561370632522", "delivered")])
        site.wait_until_sent()
        (request,) = server.requests
    assert request_line(request) == f"POST {TWO_TARGET} HTTP/1.1"
    receipts = site.pages("/v1/receipts")
    assert [(receipt["request_id"], receipt["status"], receipt["response_id"]) for receipt in receipts] == [
        ("1", "acknowledged", "1561371433517"),
        ("2", "acknowledged", "1561371433518"),
    ]


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized"])
def test_the_error(site: Site, status: str) -> None:
    """The seed's error suspends the account, whatever the HTTP status, and the receipt stays pending."""
    with Fixed(answer(ERROR_ANSWER, status)) as server:
        site.configure(server.url)
        site.start()
        with site.client() as app:
            app.register("1561370632513")
            app.report("1561370632513", "delivered")
        account = eventually(site.account, lambda account: account["health"] != "open")
        (request,) = server.requests
    assert request_line(request) == f"POST {ONE_TARGET} HTTP/1.1"
    assert account["health"] == "suspended"
    assert "authentication" in account["cause"]
    assert "Authentication error" in account["cause"]
    receipt = site.ask("GET", "/v1/receipts/1")
    assert (receipt["status"], receipt["attempts"], receipt["refusals"]) == ("pending", 1, 0)
