"""Look-ups, lists, actions and overviews over a real socket, and what each of the two sockets serves."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from msgspec.structs import replace

from dlr_buffer.errors import StoreUnavailable
from dlr_buffer.messages import MessageState, Report
from dlr_buffer.receipts import ReceiptError, ReceiptStatus
from tests.integration.local_api.harness import NOW_MS, Api, Reply, described

HOUR_MS = 3_600_000


def register(api: Api, *ids: str, account: str = "default") -> None:
    """Register some messages."""
    reply = api.call("POST", "/v1/messages", [{"message_id": name, "account": account} for name in ids])
    assert reply.json["registered"] == len(ids)


def report(api: Api, message_id: str, *states: str, account: str = "default") -> None:
    """Report some states of a message."""
    for state in states:
        item = {"message_id": message_id, "message_state": state, "account": account}
        assert api.call("POST", "/v1/receipts", item).status == 202


def kill(api: Api, request_id: int) -> None:
    """Make a dead letter."""
    receipt = api.store.receipts[request_id]
    error = ReceiptError("bad-id", "Bad id", "We know no such message")
    api.store.receipts[request_id] = replace(receipt, status=ReceiptStatus.DEAD, refusals=5, error=error)


def ids_of(reply: Reply) -> list[str]:
    """Return the ids of a list."""
    return [item.get("request_id") or item["message_id"] for item in reply.json["items"]]


@pytest.mark.parametrize(
    ("raw", "message_id"),
    [
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("//a//", "//a//"),
        ("%2525", "%25"),
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("caf%C3%A9", "caf\u00e9"),
        ("cafe%CC%81", "cafe\u0301"),
        ("expire", "expire"),
        ("delete", "delete"),
        ("..", ".."),
        ("a%3Fb%23c", "a?b#c"),
    ],
)
def test_a_message_is_looked_up_by_the_raw_rest_of_the_path(api: Api, raw: str, message_id: str) -> None:
    """The id is decoded exactly once, on both sockets, and similar ids beside it are not found instead."""
    register(api, message_id)
    for socket in ("client", "admin"):
        reply = api.call("GET", f"/v1/messages/{raw}", socket=socket)
        assert (reply.status, reply.json["message_id"]) == (200, message_id)


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        ("nobody", 404, "not-found"),
        ("", 422, "invalid"),
        ("a%00b", 422, "invalid"),
        ("%0A", 422, "invalid"),
        ("x" * 256, 422, "invalid"),
        ("%FF", 400, "malformed"),
        ("%zz", 400, "malformed"),
        ("100%", 400, "malformed"),
        ("%ED%A0%80", 400, "malformed"),
        ("a?account=nobody", 422, "unknown-account"),
        ("a?acount=default", 422, "invalid"),
        ("a?account=%FF", 400, "malformed"),
    ],
)
def test_a_message_that_cannot_be_looked_up(api: Api, raw: str, status: int, code: str) -> None:
    """Each wrong path or query gets its own code."""
    reply = api.call("GET", f"/v1/messages/{raw}", socket="client")
    assert (reply.status, reply.json["code"]) == (status, code)


def test_a_look_up_shows_receipts_with_their_history(api: Api) -> None:
    """A message's look-up and a receipt's both show the history; the account of the query is the one that counts."""
    register(api, "1", account="other")
    report(api, "1", "enroute", "delivered", account="other")
    assert api.call("GET", "/v1/messages/1").status == 404
    message = api.call("GET", "/v1/messages/1?account=other").json
    first, second = message["receipts"]
    assert (message["state"], message["finalized_at"]) == ("delivered", "2026-11-23T18:41:00.250Z")
    superseded = {"at": "2026-11-23T18:41:00.250Z", "event": "superseded", "detail": "by delivered"}
    assert (first["status"], first["history"]) == ("superseded", [superseded])
    assert api.call("GET", "/v1/receipts/2").json == second


@pytest.mark.parametrize(
    ("raw", "status"),
    [("3", 404), ("0", 422), ("01", 422), ("x", 422), ("9" * 19, 404), ("1" + "0" * 19, 422)],
)
def test_a_receipt_that_cannot_be_looked_up(api: Api, raw: str, status: int) -> None:
    """An id that we never give is invalid, another one that is not there is 404."""
    assert api.call("GET", f"/v1/receipts/{raw}").status == status


def test_head_answers_without_a_body(api: Api) -> None:
    """HEAD goes where GET goes (RFC 9110 §9.3.2)."""
    reply = api.call("HEAD", "/healthz", socket="client")
    assert (reply.status, reply.raw) == (200, b"")


def test_lists_leave_out_what_only_look_ups_show(api: Api) -> None:
    """A message in a list has no receipts, a receipt in a list no history."""
    report(api, "1", "delivered")
    assert "receipts" not in api.call("GET", "/v1/messages").json["items"][0]
    assert "history" not in api.call("GET", "/v1/receipts").json["items"][0]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["old", "new", "done", "there"]),
        ("account=other", ["there"]),
        ("message_id=new", ["new"]),
        ("state=delivered", ["done"]),
        ("waiting=true", ["old", "new", "there"]),
        ("waiting=false", ["done"]),
        ("older_than=72h", ["old"]),
        ("older_than=3d", ["old"]),
        ("newer_than=72h", ["new", "done", "there"]),
        ("older_than=2026-11-23T18:00:00Z", ["old"]),
        ("older_than=2026-11-23T20:00:00%2B02:00", ["old"]),
        ("waiting=true&account=default&newer_than=1h", ["new"]),
    ],
)
def test_filters_narrow_messages(api: Api, query: str, expected: list[str]) -> None:
    """Each filter of the contract narrows the list of messages."""
    api.clock.ms = NOW_MS - 80 * HOUR_MS
    register(api, "old")
    api.clock.ms = NOW_MS
    register(api, "new", "done")
    report(api, "done", "delivered")
    register(api, "there", account="other")
    assert ids_of(api.call("GET", f"/v1/messages?{query}")) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1", "2", "3"]),
        ("status=dead", ["2"]),
        ("status=superseded", ["1"]),
        ("state=delivered", ["2"]),
        ("waiting=true", ["3"]),
        ("error_code=bad-id", ["2"]),
        ("message_id=m", ["1", "2"]),
        ("account=other", ["3"]),
        ("newer_than=500ms", []),
        ("older_than=500ms", ["1", "2", "3"]),
    ],
)
def test_filters_narrow_receipts(api: Api, query: str, expected: list[str]) -> None:
    """Each filter of the contract narrows the list of receipts."""
    report(api, "m", "enroute", "delivered")
    kill(api, 2)
    report(api, "n", "accepted", account="other")
    api.clock.ms += 1000
    assert ids_of(api.call("GET", f"/v1/receipts?{query}")) == expected


@pytest.mark.parametrize(
    ("target", "code", "mentions"),
    [
        ("messages?status=dead", "invalid", "older_than"),
        ("messages?colour=red", "invalid", "colour"),
        ("messages?error_code=x", "invalid", "error_code"),
        ("receipts?state=lost", "invalid", "undeliverable"),
        ("receipts?status=late", "invalid", "superseded"),
        ("receipts?waiting=yes", "invalid", "true or false"),
        ("receipts?older_than=soon", "invalid", "72h"),
        ("receipts?older_than=2026-11-23T18:41:00", "invalid", "2026-11-23T18:41:00Z"),
        ("receipts?limit=0", "invalid", "1000"),
        ("receipts?limit=1001", "invalid", "1000"),
        ("receipts?limit=%C2%B2", "invalid", "1000"),
        ("receipts?state=unknown&state=unknown", "invalid", "twice"),
        ("receipts?account=nobody", "unknown-account", "default, other"),
        ("receipts?message_id=" + "x" * 300, "invalid", "300 bytes"),
        ("receipts?cursor=", "invalid", "cursor"),
        ("receipts?cursor=!!!", "invalid", "cursor"),
        ("receipts?cursor=e30", "invalid", "cursor"),
    ],
)
def test_a_query_that_is_not_allowed(api: Api, target: str, code: str, mentions: str) -> None:
    """A wrong query is 422 and says what is known instead."""
    reply = api.call("GET", f"/v1/{target}")
    assert (reply.status, reply.json["code"]) == (422, code)
    assert mentions in reply.json["detail"]


def test_a_cursor_carries_the_filter_and_the_moment(api: Api) -> None:
    """Following cursors shows every row once, ages count from the first page, and the filter may stand beside it."""
    api.clock.ms = NOW_MS - 2 * HOUR_MS
    register(api, *(f"old{number}" for number in range(5)))
    api.clock.ms = NOW_MS
    register(api, "new")
    query = "older_than=1h&waiting=true"
    page = api.call("GET", f"/v1/messages?{query}&limit=2")
    found = ids_of(page)
    api.clock.ms += 2 * HOUR_MS  # "new" is over an hour old by now, but was not when the list began
    while (cursor := page.json["next_cursor"]) is not None:
        page = api.call("GET", f"/v1/messages?cursor={cursor}&limit=2&{query if len(found) > 2 else ''}")
        found += ids_of(page)
    assert found == [f"old{number}" for number in range(5)]


def test_a_cursor_of_another_list_or_filter_is_refused(api: Api) -> None:
    """A cursor goes with its own filter and resource only, and a tampered one is no way around the checks."""
    register(api, "a", "b", "c")
    cursor = api.call("GET", "/v1/messages?limit=1").json["next_cursor"]
    assert api.call("GET", f"/v1/messages?cursor={cursor}&waiting=true").status == 422
    assert api.call("GET", f"/v1/receipts?cursor={cursor}").status == 422
    content = json.loads(base64.urlsafe_b64decode(cursor + "=="))
    for change in (
        {"after": -1},
        {"after": 2**64},
        {"narrow": {"colour": "red"}},
        {"narrow": {"state": "x"}},
    ):
        forged = base64.urlsafe_b64encode(json.dumps({**content, **change}).encode()).decode()
        reply = api.call("GET", f"/v1/messages?cursor={quote_plus(forged)}")
        assert (reply.status, reply.json["code"]) == (422, "invalid"), change


def test_receipts_are_held_released_retried_and_deleted(api: Api) -> None:
    """The four actions change what they apply to, by id, and say how many they skipped."""
    report(api, "1", "delivered")
    report(api, "2", "delivered")
    assert api.call("POST", "/v1/receipts/hold", {"request_ids": ["1", "1", "9"]}).json == {
        "changed": 1,
        "skipped": 1,
        "in_flight": 0,
        "dry_run": False,
    }
    assert api.call("POST", "/v1/receipts/release", {"request_ids": ["1", "2"]}).json["changed"] == 1
    kill(api, 2)
    assert api.call("POST", "/v1/receipts/retry", {"request_ids": ["2"]}).json["changed"] == 1
    api.store.receipts[1] = replace(api.store.receipts[1], in_flight=True)
    gone = api.call("POST", "/v1/receipts/delete", {"request_ids": ["1", "2"]}).json
    assert (gone["changed"], gone["in_flight"]) == (1, 1)
    assert list(api.store.receipts) == [1]


def test_ids_of_nineteen_digits(api: Api) -> None:
    """A queue whose ids begin far from 1 is looked up and steered like any other."""
    report(api, "1", "delivered")
    long = 10**18
    api.store.history[long] = api.store.history[1]
    api.store.receipts[long] = replace(api.store.receipts.pop(1), request_id=long)
    assert api.call("GET", f"/v1/receipts/{long}").json["request_id"] == str(long)
    done = api.call("POST", "/v1/receipts/hold", {"request_ids": [str(long), "9" * 19]}).json
    assert (done["changed"], done["skipped"]) == (1, 1)
    assert api.call("POST", "/v1/receipts/hold", {"request_ids": ["1" + "0" * 19]}).status == 422


def test_a_dry_run_only_counts(api: Api) -> None:
    """With dry_run the count comes and nothing changes."""
    report(api, "1", "delivered")
    reply = api.call("POST", "/v1/receipts/delete", {"filter": {"all": True}, "dry_run": True})
    assert reply.json == {"changed": 1, "skipped": 0, "in_flight": 0, "dry_run": True}
    assert list(api.store.receipts) == [1]


def test_actions_take_filters(api: Api) -> None:
    """A filter in a body means what it means in a list."""
    for name in ("1", "2", "3"):
        report(api, name, "delivered")
    kill(api, 2)
    narrow = {"status": "dead", "error_code": "bad-id", "older_than": "0s", "account": "default"}
    api.clock.ms += 1
    assert api.call("POST", "/v1/receipts/retry", {"filter": narrow}).json["changed"] == 1
    assert api.call("POST", "/v1/receipts/hold", {"filter": {"waiting": True}}).json["changed"] == 3


def test_messages_are_expired_and_deleted(api: Api) -> None:
    """The two actions on messages work by id in one account, and by filter."""
    register(api, "a", "b")
    register(api, "a", account="other")
    by_id = api.call("POST", "/v1/messages/expire", {"message_ids": ["a", "x"], "account": "other"})
    assert (by_id.json["changed"], by_id.json["skipped"]) == (1, 1)
    assert api.call("GET", "/v1/messages/a?account=other").json["state"] == "expired"
    assert api.call("GET", "/v1/messages/a").json["state"] is None
    assert api.call("POST", "/v1/messages/delete", {"filter": {"state": "expired"}}).json["changed"] == 1
    assert api.call("POST", "/v1/messages/delete", {"filter": {"all": True}}).json["changed"] == 2
    assert not api.store.rows


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("receipts/retry", {}, "invalid"),
        ("receipts/retry", {"filter": {}}, "invalid"),
        ("receipts/retry", {"filter": {"all": False}}, "invalid"),
        ("receipts/retry", {"filter": {"all": True, "account": "default"}}, "invalid"),
        ("receipts/retry", {"filter": {"account": None}}, "invalid"),
        ("receipts/retry", {"filter": {"acount": "default"}}, "invalid"),
        ("receipts/retry", {"filter": {"account": "nobody"}}, "unknown-account"),
        ("receipts/retry", {"filter": {"waiting": "true"}}, "invalid"),
        ("receipts/retry", {"filter": {"all": True}, "request_ids": ["1"]}, "invalid"),
        ("receipts/retry", {"request_ids": [1]}, "invalid"),
        ("receipts/retry", {"request_ids": ["x"]}, "invalid"),
        ("receipts/retry", {"request_ids": ["1"], "dry_run": "yes"}, "invalid"),
        ("receipts/retry", {"request_ids": ["1"], "dryrun": True}, "invalid"),
        ("messages/delete", {"filter": {}}, "invalid"),
        ("messages/delete", {"filter": {"status": "dead"}}, "invalid"),
        ("messages/delete", {"filter": {"all": True}, "account": "default"}, "invalid"),
        ("messages/delete", {"message_ids": [""]}, "invalid"),
        ("messages/delete", {"message_ids": ["1"], "account": "nobody"}, "unknown-account"),
        ("messages/delete", {"account": "default"}, "invalid"),
    ],
)
def test_an_order_that_is_not_allowed_changes_nothing(api: Api, path: str, body: object, code: str) -> None:
    """Nothing ever means everything by accident: each unclear order is 422 and leaves all as it was."""
    report(api, "1", "delivered")
    kill(api, 1)
    reply = api.call("POST", f"/v1/{path}", body)
    assert (reply.status, reply.json["code"]) == (422, code)
    assert api.store.receipts[1].status is ReceiptStatus.DEAD


def test_an_order_on_too_many_ids_is_413(api: Api) -> None:
    """Actions are bounded as submissions are."""
    ids = ["1"] * (api.room.limits.items + 1)
    assert api.call("POST", "/v1/receipts/hold", {"request_ids": ids}).status == 413
    assert api.call("POST", "/v1/messages/expire", {"message_ids": ids}).status == 413
    assert api.call("POST", "/v1/messages/expire", b"[]").json["code"] == "invalid"
    assert api.call("POST", "/v1/messages/expire", b"{").json["code"] == "malformed"


def test_accounts_are_listed_paused_and_resumed(api: Api) -> None:
    """Pausing and resuming answer with the account as it is then; an unknown one is 404."""
    assert [item["health"] for item in api.call("GET", "/v1/accounts").json["items"]] == ["open", "open"]
    assert api.call("POST", "/v1/accounts/other/pause").json["health"] == "paused"
    assert [item["health"] for item in api.call("GET", "/v1/accounts").json["items"]] == ["open", "paused"]
    assert api.call("POST", "/v1/accounts/%6Fther/resume").json["health"] == "open"
    assert api.call("POST", "/v1/accounts/nobody/pause").status == 404
    assert api.call("POST", "/v1/accounts/%FF/resume").status == 400


def test_expiry_is_resumed(api: Api) -> None:
    """After the admin's word expiry is not stopped any more, and status shows it."""
    assert api.call("GET", "/v1/status").json["expiry"]["stopped"] is True
    assert api.call("POST", "/v1/expiry/resume").json["stopped"] is False
    assert api.call("GET", "/v1/status").json["expiry"]["stopped"] is False


def test_status_shows_counts_and_ages(api: Api) -> None:
    """Counts come by account with zeros filled in, ages as times, uptime in seconds."""
    register(api, "1", "2")
    api.clock.ms += 1000
    report(api, "2", "delivered")
    status = api.call("GET", "/v1/status").json
    default, other = status["accounts"]
    assert status["uptime"] == 91.0
    assert (default["messages"]["waiting"], default["messages"]["delivered"]) == (1, 1)
    assert default["receipts"]["pending"] == 1
    assert (default["oldest_waiting_at"], default["oldest_pending_at"]) == (
        "2026-11-23T18:41:00.250Z",
        "2026-11-23T18:41:01.250Z",
    )
    assert set(other["messages"].values()) == {0}
    assert other["oldest_pending_at"] is None


def test_health_is_200_or_503_with_the_reasons(api: Api) -> None:
    """While nothing is wrong it says ok, else every reason."""
    assert api.call("GET", "/healthz", socket="client").json == {"status": "ok"}
    api.daemon.troubles = ("no commit succeeded for 60 s", "the flusher of default died")
    sick = api.call("GET", "/healthz", socket="client")
    assert (sick.status, sick.json["problems"]) == (503, list(api.daemon.troubles))


def test_metrics_are_passed_on_as_they_are(api: Api) -> None:
    """The exposition and its content type are the daemon's."""
    reply = api.call("GET", "/metrics")
    assert (reply.raw, reply.headers["content-type"]) == (
        b"dlr_up 1\n",
        "text/plain; version=1.0.0; charset=utf-8",
    )


def test_a_read_from_a_failing_store_is_503(api: Api) -> None:
    """A look-up too turns a failing database into an honest 503."""
    api.store.unreadable = StoreUnavailable("the file is gone")
    reply = api.call("GET", "/v1/messages/1")
    assert (reply.status, reply.json["code"]) == (503, "overloaded")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PATCH", "/v1/messages", "GET, HEAD, POST"),
        ("POST", "/v1/messages/1", "GET, HEAD"),
        ("DELETE", "/v1/receipts/retry", "GET, HEAD, POST"),
        ("GET", "/v1/accounts/default/pause", "POST"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_allow(api: Api, method: str, path: str, allow: str) -> None:
    """Allow lists all that the path takes (RFC 9110 §10.2.1)."""
    reply = api.call(method, path)
    assert (reply.status, reply.json["code"], reply.headers["allow"]) == (405, "method", allow)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/messages//", "/v1/status/", "/v2/messages", "/v1%2Fstatus"]
)
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    """Nothing is redirected or guessed; an encoded slash is no slash."""
    if path == "/v1/messages//":
        assert api.call("GET", path).status == 404  # the message with the id "/" is not there
    else:
        assert api.call("GET", path).json["code"] == "not-found"


def test_the_client_socket_serves_only_its_part(api: Api) -> None:
    """Every operation that only admins have is 404 on the client socket, and says where it lives."""
    admin, client = described("admin"), described("client")
    for path, methods in admin["paths"].items():
        for method in methods:
            if method in client["paths"].get(path, {}):
                continue
            reply = api.call(method.upper(), quote(path.replace("{name}", "default").replace("{request_id}", "1")),
                             socket="client")  # fmt: skip
            assert reply.status == 404, (method, path)
            assert "admin socket" in reply.json["detail"]
    assert api.call("DELETE", "/v1/messages", socket="client").headers["allow"] == "POST"
    assert api.call("PUT", "/metrics", socket="client").status == 404


def test_the_description_is_served_on_both_sockets(api: Api) -> None:
    """Each socket describes itself, and only that."""
    for socket in ("client", "admin"):
        served = api.call("GET", "/openapi.json", socket=socket).json
        assert served["paths"].keys() == described(socket)["paths"].keys()
    assert list(described("client")["paths"]) == [
        "/v1/messages",
        "/v1/receipts",
        "/v1/messages/{message_id}",
        "/healthz",
        "/openapi.json",
    ]


def test_one_account_alone_is_meant_by_default(folder: Path) -> None:
    """With a single account, whatever its name, none has to be named."""
    with Api(folder, accounts=frozenset({"only"})) as api:
        assert api.call("POST", "/v1/messages", {"message_id": "1"}).json["account"] == "only"
        assert api.call("GET", "/v1/messages/1").json["account"] == "only"


def test_an_account_with_rows_only_can_be_looked_up(api: Api) -> None:
    """A message of an account that is not configured any more is still found, but nothing new is taken for it."""
    item = Report("1", MessageState.ENROUTE, "gone")
    arguments: Any = {
        "default_validity_ms": 1000,
        "register_in": frozenset({"gone"}),
        "max_waiting": {},
        "now_ms": NOW_MS,
    }
    api.run(api.store.report([item], **arguments))
    assert api.call("GET", "/v1/messages/1?account=gone").status == 200
    assert ids_of(api.call("GET", "/v1/messages?account=gone")) == ["1"]
    refused = api.call("POST", "/v1/messages", {"message_id": "2", "account": "gone"})
    assert refused.json["code"] == "unknown-account"
