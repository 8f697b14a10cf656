"""Registering and reporting over a real socket: one, many, bad ones among good ones, and a store that fails."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.errors import DlrBufferError, Overloaded, StorageFull, StoreUnavailable
from dlr_buffer.local_api import BodyLimits
from dlr_buffer.messages import MessageState
from dlr_buffer.receipt_queue.queue import CHUNK
from tests.integration.local_api.harness import Api, connect

NDJSON = "application/x-ndjson; charset=utf-8"


def test_registering_one_answers_201_then_200(api: Api) -> None:
    """A new message is 201 with its resource, the same again 200, and its validity period is its own."""
    item = {"message_id": "007", "account": "other", "validity_period": 60}
    first = api.call("POST", "/v1/messages", item, socket="client")
    assert first.status == 201
    assert first.json == {
        "account": "other",
        "message_id": "007",
        "state": None,
        "registered_at": "2026-11-23T18:41:00.250Z",
        "expires_at": "2026-11-23T18:42:00.250Z",
        "finalized_at": None,
        "receipts": [],
    }
    again = api.call("POST", "/v1/messages", item, socket="client")
    assert (again.status, again.json) == (200, first.json)


def test_registering_again_shows_the_receipts(api: Api) -> None:
    """The 200 of a repeated registration carries what has become of the message meanwhile."""
    api.call("POST", "/v1/messages", {"message_id": "1"})
    api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "enroute"})
    again = api.call("POST", "/v1/messages", {"message_id": "1"})
    assert again.status == 200
    assert [receipt["message_state"] for receipt in again.json["receipts"]] == ["enroute"]


def test_registering_with_another_validity_period_is_a_conflict(api: Api) -> None:
    """A contradiction is 409 `conflict`."""
    api.call("POST", "/v1/messages", {"message_id": "1", "validity_period": 60})
    reply = api.call("POST", "/v1/messages", {"message_id": "1", "validity_period": 61})
    assert (reply.status, reply.json["code"]) == (409, "conflict")


def test_reporting_one_answers_202_then_200_then_409(api: Api) -> None:
    """A new state is 202 with its receipt, the current one 200 with the same receipt, another after it 409."""
    report = {"message_id": "1", "message_state": "delivered"}
    first = api.call("POST", "/v1/receipts", report, socket="client")
    assert first.status == 202
    assert (first.json["request_id"], first.json["status"]) == ("1", "pending")
    again = api.call("POST", "/v1/receipts", report, socket="client")
    assert (again.status, again.json) == (200, first.json)
    late = api.call("POST", "/v1/receipts", {**report, "message_state": "rejected"}, socket="client")
    assert (late.status, late.json["code"], late.json["state"]) == (409, "message-final", "delivered")


def test_reporting_the_state_of_a_deleted_receipt_shows_the_message(api: Api) -> None:
    """Where the receipt of the current state is gone, the message answers for it, and no receipt revives."""
    api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "enroute"})
    api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "delivered"})
    api.call("POST", "/v1/receipts/delete", {"request_ids": ["2"]})
    reply = api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "delivered"})
    assert reply.status == 200
    assert (reply.json["state"], len(reply.json["receipts"])) == ("delivered", 1)


def test_an_unregistered_message_can_be_refused(api: Api) -> None:
    """With unknown messages rejected, reporting one is 404."""
    api.queue.settings = replace(api.queue.settings, register_unknown=False)
    reply = api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "delivered"})
    assert (reply.status, reply.json["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "item", "status", "code", "mentions"),
    [
        ("messages", {"message_id": 7}, 422, "invalid", "message_id must be a string, not a whole number"),
        ("messages", {}, 422, "invalid", "message_id"),
        ("messages", {"message_id": "1", "colour": "red"}, 422, "invalid", "colour"),
        ("messages", {"message_id": "1", "validity_period": "72h"}, 422, "invalid", "validity_period"),
        ("messages", {"message_id": "1", "validity_period": True}, 422, "invalid", "validity_period"),
        ("messages", {"message_id": "1", "validity_period": 10**30}, 422, "invalid", "2592000"),
        ("messages", {"message_id": "1", "validity_period": 0}, 422, "invalid", "from 1"),
        ("messages", {"message_id": ""}, 422, "invalid", "empty"),
        ("messages", {"message_id": "x" * 300}, 422, "invalid", "300 bytes"),
        ("messages", {"message_id": "é" * 128}, 422, "invalid", "256 bytes"),
        ("messages", {"message_id": "a\nb"}, 422, "invalid", "U+000A"),
        ("messages", {"message_id": "1", "account": "nobody"}, 422, "unknown-account", "default, other"),
        ("receipts", {"message_id": "1"}, 422, "invalid", "message_state"),
        ("receipts", {"message_id": "1", "message_state": "lost"}, 422, "invalid", "undeliverable"),
        ("receipts", {"message_id": "1", "message_state": "DELIVERED"}, 422, "invalid", "delivered"),
        ("receipts", {"message_id": "1", "message_state": None}, 422, "invalid", "message_state"),
    ],
)
def test_an_item_that_is_not_allowed(
    api: Api, path: str, item: dict[str, Any], status: int, code: str, mentions: str
) -> None:
    """Each wrong field is named, singly as a problem and in bulk as an item error, and nothing of it is stored."""
    single = api.call("POST", f"/v1/{path}", item, socket="client")
    assert (single.status, single.json["code"]) == (status, code)
    assert mentions in single.json["detail"]
    many = api.call("POST", f"/v1/{path}", [item], socket="client")
    assert many.status == 200
    assert many.json["errors"] == [{"index": 0, "code": code, "detail": single.json["detail"]}]
    assert not api.store.rows


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"7",
        b'"a"',
        b"null",
        b"{",
        b'{"message_id":"1"} x',
        b'{"colour":1, [[[',
        b'[{"message_id":"1"},{"colour":1},]',
        b'{"message_id":"\xff"}',
        b'[{"message_id":7},{"message_id":"\xff"}]',
        b'{"message_id":"\\ud800"}',
        b'[{"message_id":NaN}]',
        b'\xef\xbb\xbf{"message_id":"1"}',
        b"[" * 100_000,
        b'{"message_id":' + b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_json_is_400(api: Api, body: bytes) -> None:
    """What cannot be read as a JSON object or array is `malformed`, as a whole, and stores nothing."""
    reply = api.call("POST", "/v1/messages", body, socket="client")
    assert (reply.status, reply.json["code"]) == (400, "malformed")
    assert not api.store.rows


def test_bulk_counts_registered_duplicates_and_errors(api: Api) -> None:
    """Items act in order as if sent singly, duplicates within the request included, and good ones stay."""
    items: list[Any] = [
        {"message_id": "a"},
        {"message_id": "a", "account": "default"},
        {"message_id": "b", "validity_period": 60},
        {"message_id": 7},
        {"message_id": "b", "validity_period": 61},
        "c",
        {"message_id": "d"},
    ]
    reply = api.call("POST", "/v1/messages", items, socket="client")
    assert reply.status == 200
    assert (reply.json["registered"], reply.json["duplicates"]) == (3, 1)
    found = [(error["index"], error["code"]) for error in reply.json["errors"]]
    assert found == [(3, "invalid"), (4, "conflict"), (5, "invalid")]
    assert {name.message_id for name in api.store.rows} == {"a", "b", "d"}


def test_bulk_reports_act_in_order(api: Api) -> None:
    """A, B, A of intermediate states are three receipts; after the final state another one is an item error."""
    states = ["enroute", "accepted", "enroute", "enroute", "delivered", "rejected", "delivered"]
    items = [{"message_id": "1", "message_state": state} for state in states]
    reply = api.call("POST", "/v1/receipts", items, socket="client")
    assert (reply.json["queued"], reply.json["duplicates"]) == (4, 2)
    assert [(error["index"], error["code"]) for error in reply.json["errors"]] == [(5, "message-final")]


def test_an_empty_array_is_a_success(api: Api) -> None:
    """Nothing to do is done."""
    reply = api.call("POST", "/v1/messages", [], socket="client")
    assert (reply.status, reply.json) == (200, {"registered": 0, "duplicates": 0, "errors": []})


def test_one_bad_ndjson_line_is_an_item_error(api: Api) -> None:
    """A bad line fails alone; blank lines neither count nor fail; two objects on a line are one bad line."""
    lines = [
        b'{"message_id":"a"}',
        b"",
        b'{"message_id":',
        b"   ",
        b'{"message_id":7}\r',
        b'{"message_id":"x"} {"message_id":"y"}',
        b'{"message_id":"\xff"}',
        b'{"message_id":"b"}',
    ]
    reply = api.call("POST", "/v1/messages", b"\n".join(lines), socket="client", content_type=NDJSON)
    assert (reply.status, reply.json["registered"]) == (200, 2)
    found = [(error["index"], error["code"]) for error in reply.json["errors"]]
    assert found == [(1, "malformed"), (2, "invalid"), (3, "malformed"), (4, "malformed")]
    assert {name.message_id for name in api.store.rows} == {"a", "b"}


def test_ndjson_that_is_all_bad_is_still_200(api: Api) -> None:
    """Even where no line is good the request was understood."""
    reply = api.call("POST", "/v1/messages", b"x\ny", socket="client", content_type="Application/X-NDJSON")
    assert (reply.status, reply.json["registered"], len(reply.json["errors"])) == (200, 0, 2)


def test_one_ndjson_line_answers_as_bulk(api: Api) -> None:
    """The content type decides, not the number of lines."""
    reply = api.call("POST", "/v1/messages", b'{"message_id":"a"}', content_type=NDJSON)
    assert (reply.status, reply.json["registered"]) == (200, 1)


def test_an_empty_ndjson_body_is_400(api: Api) -> None:
    """A body with nothing in it is a mistake, whatever its type."""
    reply = api.call("POST", "/v1/messages", b"\n\n", content_type=NDJSON)
    assert (reply.status, reply.json["code"]) == (400, "malformed")


@pytest.mark.parametrize("ndjson", [False, True])
def test_too_many_items_are_413_and_none_is_stored(api: Api, ndjson: bool) -> None:  # noqa: FBT001 - a parameter
    """One item over the limit refuses the whole request; the limit itself is taken."""
    limit = api.room.limits.items
    items = [json.dumps({"message_id": str(number)}) for number in range(limit + 1)]
    content_type = NDJSON if ndjson else "application/json"

    def body(lines: list[str]) -> bytes:
        return ("\n".join(lines) if ndjson else f"[{','.join(lines)}]").encode()

    over = api.call("POST", "/v1/messages", body(items), content_type=content_type)
    assert (over.status, over.json["code"]) == (413, "too-large")
    assert not api.store.rows
    full = api.call("POST", "/v1/messages", body(items[:-1]), content_type=content_type)
    assert (full.status, full.json["registered"]) == (200, limit)


@pytest.mark.parametrize("bad", [b"7", b"{}"])
def test_too_many_bad_items_are_413(api: Api, bad: bytes) -> None:
    """An array of many tiny wrong items is refused by its length, not answered with as many errors."""
    body = b"[" + b",".join([bad] * (api.room.limits.items + 1)) + b"]"
    assert api.call("POST", "/v1/messages", body).status == 413


@pytest.mark.parametrize(
    ("fault", "status", "code", "retry_after"),
    [
        (Overloaded("too much waits", 3), 503, "overloaded", "3"),
        (StorageFull("the disk is full", 30), 507, "storage-full", "30"),
        (StoreUnavailable("the database is locked"), 503, "overloaded", "5"),
    ],
)
def test_a_store_that_fails(
    api: Api, fault: DlrBufferError, status: int, code: str, retry_after: str
) -> None:
    """A failing store is an honest 503 or 507 with Retry-After, singly and in bulk with the counts so far."""
    api.store.faults = [fault]
    registration = api.call("POST", "/v1/messages", {"message_id": "1"})
    assert (registration.status, registration.json["code"]) == (status, code)
    api.store.faults = [fault]
    single = api.call("POST", "/v1/receipts", {"message_id": "1", "message_state": "delivered"})
    assert (single.status, single.json["code"]) == (status, code)
    assert single.headers["retry-after"] == retry_after
    assert str(fault) in single.json["detail"]
    assert "queued" not in single.json
    api.store.faults = [None, fault]
    items = [{"message_id": f"{n}", "message_state": "delivered"} for n in range(CHUNK + 500)]
    items[1] = {"message_id": "0", "message_state": "delivered"}
    items[2]["message_state"] = "lost"
    many = api.call("POST", "/v1/receipts", items)
    assert (many.status, many.json["queued"], many.json["duplicates"]) == (status, CHUNK - 2, 1)
    assert [error["index"] for error in many.json["errors"]] == [2]
    assert many.headers["retry-after"] == retry_after
    assert len(api.store.receipts) == CHUNK - 2


def test_a_bulk_registration_that_breaks_off_says_how_far_it_came(api: Api) -> None:
    """The counts so far are called `registered` there."""
    api.store.faults = [None, Overloaded("too much waits")]
    reply = api.call("POST", "/v1/messages", [{"message_id": str(n)} for n in range(CHUNK + 1)])
    assert (reply.status, reply.json["registered"], reply.json["errors"]) == (503, CHUNK, [])


def test_a_defect_is_a_500_problem_without_its_text(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is logged with its traceback and answered as `internal`, without telling its text."""
    api.store.faults = [ZeroDivisionError("a detail of ours")]
    reply = api.call("POST", "/v1/messages", {"message_id": "1"})
    assert (reply.status, reply.json["code"]) == (500, "internal")
    assert b"a detail of ours" not in reply.raw
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_body_over_the_limit_is_413_before_it_is_read(api: Api) -> None:
    """Content-Length alone is enough to refuse: the answer comes before any byte of the body, and is the last one."""
    raw = connect(api.paths["client"])
    length = api.room.limits.body_bytes + 1
    raw.sendall(f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    answer = b"".join(iter(lambda: raw.recv(65536), b""))
    raw.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_refused_client_that_waits_for_leave_is_disconnected(api: Api) -> None:
    """With Expect: 100-continue the body may never come, so the connection ends with the refusal."""
    raw = connect(api.paths["client"])
    length = api.room.limits.body_bytes + 1
    raw.sendall(
        f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    answer = b"".join(iter(lambda: raw.recv(65536), b""))
    raw.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_chunked_bodies_are_taken_and_counted(api: Api) -> None:
    """A chunked body works, and one that grows over the limit is 413 though no length was announced."""
    raw = connect(api.paths["client"])
    head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw.sendall(head + b'8\r\n{"messag\r\n')
    raw.sendall(b'a\r\ne_id":"a"}\r\n0\r\n\r\n')
    assert raw.recv(65536).startswith(b"HTTP/1.1 201 ")
    raw.close()
    raw = connect(api.paths["client"])
    piece = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
    raw.sendall(head + piece * 4)
    assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
    raw.close()
    assert api.call("GET", "/v1/messages").json["items"][0]["message_id"] == "a"
    assert api.room.held_bytes == 0


def test_a_cut_body_commits_nothing(api: Api) -> None:
    """A client that goes away in mid-body has registered nothing, and its room is given back."""
    body = b"\n".join(b'{"message_id":"%d"}' % n for n in range(2000))
    head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: {NDJSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    for cut in (0, 1, len(body) // 2, len(body) - 1):
        raw = connect(api.paths["client"])
        raw.sendall(head.encode() + body[:cut])
        raw.shutdown(1)
        assert raw.recv(65536) == b""
        raw.close()
    assert api.call("GET", "/v1/messages").json["items"] == []
    assert api.room.held_bytes == 0


def test_bodies_in_flight_are_bounded_together(api: Api) -> None:
    """When the bodies of slow clients fill the room, the next one is 503 with Retry-After, and theirs still count."""
    size = 131_000
    body = (b'{"message_id":"a"}').ljust(size)
    slow = slow_bodies(api, body, 2)
    refused = api.call("POST", "/v1/messages", b'{"message_id":"b"}'.ljust(2000))
    assert (refused.status, refused.json["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
    for raw in slow:
        raw.sendall(body[-1:])
        assert raw.recv(65536)[:12] in {b"HTTP/1.1 201", b"HTTP/1.1 200"}
        raw.close()
    assert api.call("POST", "/v1/messages", b'{"message_id":"b"}'.ljust(2000)).status == 201
    assert api.room.held_bytes == 0


def test_large_bodies_leave_room_for_small_ones(api: Api) -> None:
    """Slow clients with large bodies cannot take all the room: what apps send all day still gets in."""
    size = 131_000
    slow = slow_bodies(api, (b'{"message_id":"a"}').ljust(size), 2)
    last = connect(api.paths["client"])
    last.sendall(b"POST /v1/messages HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
    last.sendall(b" " * (api.room.limits.bodies_bytes - api.room.held_bytes))
    assert last.recv(65536).startswith(b"HTTP/1.1 503 ")
    for number in range(20):
        assert api.call("POST", "/v1/messages", {"message_id": f"b{number}"}).status == 201
    for raw in (*slow, last):
        raw.close()


def slow_bodies(api: Api, body: bytes, count: int) -> list[socket.socket]:
    """Send a body but for its last byte so many times; returns once the server has it all."""
    head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    slow = [connect(api.paths["client"]) for _ in range(count)]
    for raw in slow:
        raw.sendall(head + body[:-1])
    while api.room.held_bytes < count * (len(body) - 1):
        api.call("GET", "/healthz")
    return slow


def test_a_body_that_stops_coming_is_given_up(folder: Path) -> None:
    """A client that falls silent in mid-body is answered 400 and disconnected: it would keep others out."""
    with Api(folder, accounts=frozenset({"default"}), limits=BodyLimits(silence_s=0.05)) as api:
        raw = connect(api.paths["client"])
        raw.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
        raw.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"silence" in answer
        assert api.room.held_bytes == 0


def test_ids_are_kept_character_for_character(api: Api) -> None:
    """Leading zeros, case, and NFC beside NFD are different ids, and come back as they were sent."""
    ids = ["007", "7", "0xAb", "0xab", "caf\u00e9", "cafe\u0301", "😀", "a b", "%41", "A"]
    assert api.call("POST", "/v1/messages", [{"message_id": name} for name in ids]).json["registered"] == len(
        ids
    )
    found = [item["message_id"] for item in api.call("GET", "/v1/messages").json["items"]]
    assert found == ids


def test_every_state_can_be_reported(api: Api) -> None:
    """All seven states of the seed are taken."""
    for state in MessageState:
        reply = api.call("POST", "/v1/receipts", {"message_id": state, "message_state": state})
        assert (reply.status, reply.json["message_state"]) == (202, state)
