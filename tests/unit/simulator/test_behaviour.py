"""Decisions of the stand-in: their order, the draw of faults, and what the settings refuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from random import Random

import pytest

from dlr_buffer.simulator.answers import Drop, Hang, Raw, Scripted
from dlr_buffer.simulator.behaviour import Decision, decide, draw_fault
from dlr_buffer.simulator.protocol import Arguments, Receipt
from dlr_buffer.simulator.settings import (
    FaultKind,
    Outage,
    OutageKind,
    SimulatorSettings,
    next_edge,
    outage_at,
)

RECEIPTS = tuple(Receipt(f"m{number}", "delivered", str(number)) for number in range(5))
GOOD = Arguments(RECEIPTS, "LOGIN", "PASSWORD")


def _decide(
    settings: SimulatorSettings,
    arguments: Arguments = GOOD,
    *,
    method: str = "POST",
    path: str = "/api/dlr",
    elapsed: float = 0.0,
) -> Decision:
    return decide(method, path, arguments, settings, elapsed, Random(1), count(100).__next__)


def _with(kind: FaultKind) -> SimulatorSettings:
    return SimulatorSettings(faults={kind: 1.0})


def _answer(decision: Decision) -> Scripted:
    assert isinstance(decision.answer, Scripted)
    return decision.answer


def _entries(decision: Decision) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads(_answer(decision).body)["data"]
    return entries


def _request_ids(decision: Decision) -> list[str]:
    metas = [entry["meta"] for entry in _entries(decision)]
    return [meta["request_id"] for meta in metas if isinstance(meta, Mapping)]


def test_a_good_request_is_accepted_whole() -> None:
    """Without faults all receipts are accepted, each with an id of its own."""
    decision = _decide(SimulatorSettings())
    assert decision.outcome == "ok"
    assert decision.accepted == (True,) * 5
    assert decision.acknowledged == 5
    assert [entry["id"] for entry in _entries(decision)] == ["100", "101", "102", "103", "104"]
    assert _request_ids(decision) == ["0", "1", "2", "3", "4"]


def test_draws_follow_the_rates_and_can_be_repeated() -> None:
    """The same seed draws the same faults, about as often as asked; no rates draw none."""
    rates = {FaultKind.TIMEOUT: 0.1, FaultKind.PARTIAL: 0.2}
    draws = [[draw_fault(rates, random) for _ in range(10_000)] for random in (Random(7), Random(7))]
    assert draws[0] == draws[1]
    counted = Counter(draws[0])
    assert counted.keys() == {None, FaultKind.TIMEOUT, FaultKind.PARTIAL}
    assert 900 < counted[FaultKind.TIMEOUT] < 1100
    assert 1800 < counted[FaultKind.PARTIAL] < 2200
    assert {draw_fault({}, Random(number)) for number in range(100)} == {None}


def test_a_decision_draws_once() -> None:
    """Settings that need no fault draw a number too, so that a seed means the same run."""
    random, other = Random(3), Random(3)
    decide("POST", "/api/dlr", GOOD, SimulatorSettings(), 0.0, random, count().__next__)
    other.random()
    assert random.getstate() == other.getstate()


@pytest.mark.parametrize("kind", list(FaultKind))
def test_each_fault_says_truly_what_it_accepted(kind: FaultKind) -> None:
    """A fault that ignores the request accepts nothing; one that acts, what the answer bears out."""
    decision = _decide(_with(kind))
    assert decision.outcome == kind
    match kind:
        case FaultKind.RESET_AFTER | FaultKind.TRUNCATED:
            assert decision.accepted == (True,) * 5
            assert decision.acknowledged == 0
        case FaultKind.PARTIAL | FaultKind.WRONG_STATUS | FaultKind.SOMEONE_ELSES:
            ok = [entry for entry in _entries(decision) if entry["attributes"] == {"status": "ok"}]
            named = {entry["meta"]["request_id"] for entry in ok if isinstance(entry["meta"], Mapping)}
            expected = {
                receipt.request_id for receipt, yes in zip(RECEIPTS, decision.accepted, strict=True) if yes
            }
            assert named & {receipt.request_id for receipt in RECEIPTS} == expected
            assert decision.acknowledged == len(expected) < 5
        case _:
            assert not any(decision.accepted)


def test_spoilt_entries() -> None:
    """One entry is called failed, or named by a request_id that nobody asked for."""
    statuses = [entry["attributes"] for entry in _entries(_decide(_with(FaultKind.WRONG_STATUS)))]
    assert sorted(map(str, statuses)) == ["{'status': 'error'}"] + ["{'status': 'ok'}"] * 4
    foreign = [name for name in _request_ids(_decide(_with(FaultKind.SOMEONE_ELSES))) if not name.isdecimal()]
    assert len(foreign) == 1


def test_partial_answer_to_one_receipt_is_empty() -> None:
    """A partial answer leaves out at least one receipt, so for a single one nothing stays."""
    decision = _decide(_with(FaultKind.PARTIAL), replace(GOOD, receipts=RECEIPTS[:1]))
    assert _entries(decision) == []
    assert decision.accepted == (False,)


def test_fault_answers() -> None:
    """The faults that ignore the request have the status and headers that a client has to cope with."""
    assert _answer(_decide(_with(FaultKind.ERROR_500))).status == 500
    unavailable = _answer(_decide(replace(_with(FaultKind.ERROR_503), retry_after="17")))
    assert unavailable.status == 503
    assert ("Retry-After", "17") in unavailable.headers
    redirect = _answer(_decide(_with(FaultKind.REDIRECT)))
    assert redirect.status == 302
    assert "Location" in dict(redirect.headers)
    page = _answer(_decide(_with(FaultKind.HTML)))
    assert page.status == 200
    assert page.body.startswith(b"<!DOCTYPE html>")
    with pytest.raises(json.JSONDecodeError):
        json.loads(_answer(_decide(_with(FaultKind.NOT_JSON))).body)
    assert (
        json.loads(_answer(_decide(_with(FaultKind.ERRORS_INTERNAL))).body)["errors"][0]["code"] == "internal"
    )
    assert isinstance(_decide(_with(FaultKind.TIMEOUT)).answer, Hang)
    assert _decide(_with(FaultKind.RESET)).answer == Drop()
    assert _decide(_with(FaultKind.RESET_AFTER)).answer == Drop(accepts=True)
    assert isinstance(_decide(_with(FaultKind.TRUNCATED)).answer, Raw)


def test_paths_and_methods() -> None:
    """There is one path with one method; everything else is 404 or 405 with JSON:API errors."""
    missing = _answer(_decide(SimulatorSettings(), path="/api/dlr/"))
    assert (missing.status, json.loads(missing.body)["errors"][0]["code"]) == (404, "not-found")
    wrong = _answer(_decide(SimulatorSettings(), method="GET"))
    assert wrong.status == 405
    assert ("Allow", "POST") in wrong.headers


@pytest.mark.parametrize(
    ("login", "password"),
    [("LOGIN", "wrong"), ("wrong", "PASSWORD"), (None, "PASSWORD"), ("LOGIN", None), ("", "")],
)
def test_wrong_credentials(login: str | None, password: str | None) -> None:
    """Wrong or missing credentials give the seed's error, 401 unless another status is set."""
    arguments = Arguments(RECEIPTS, login, password)
    answer = _answer(_decide(SimulatorSettings(), arguments))
    assert answer.status == 401
    assert json.loads(answer.body) == {
        "errors": [
            {
                "code": "authentication",
                "detail": "Please check your login and password",
                "title": "Authentication error",
            }
        ]
    }
    assert _answer(_decide(SimulatorSettings(authentication_status=200), arguments)).status == 200


def test_refused_and_failing_messages() -> None:
    """One listed message spoils the whole request: errors for a refused one, 500 for a failing one."""
    refusing = SimulatorSettings(refuse_message_ids=frozenset({"m3"}), unknown_message_status=200)
    decision = _decide(refusing)
    assert _answer(decision).status == 200
    (error,) = json.loads(_answer(decision).body)["errors"]
    assert (error["code"], error["title"]) == ("unknown-message", "Unknown message")
    assert "m3" in error["detail"]
    assert not any(decision.accepted)
    assert _answer(_decide(SimulatorSettings(fail_message_ids=frozenset({"m3"})))).status == 500
    assert _decide(refusing, replace(GOOD, receipts=RECEIPTS[:3])).outcome == "ok"


def test_unknown_messages() -> None:
    """Against a known set, other messages are refused or accepted as told."""
    settings = SimulatorSettings(known_ids=frozenset({"m0", "m1"}), unknown_ids="refuse")
    assert _decide(settings).outcome == "unknown-message"
    assert _decide(settings, replace(GOOD, receipts=RECEIPTS[:2])).outcome == "ok"
    assert _decide(replace(settings, unknown_ids="accept")).outcome == "ok"


def test_bad_arguments_win_over_bad_credentials() -> None:
    """A request that cannot be read is an argument error with the reason as its detail."""
    answer = _answer(
        _decide(SimulatorSettings(argument_status=422), Arguments(problem="message_id is missing"))
    )
    assert answer.status == 422
    assert json.loads(answer.body)["errors"][0]["code"] == "argument"
    assert json.loads(answer.body)["errors"][0]["detail"] == "message_id is missing"


def test_always_status() -> None:
    """Every request gets the one status, whatever it asks for."""
    settings = SimulatorSettings(always_status=404, always_body=b"<h1>no</h1>")
    for path in ("/api/dlr", "/elsewhere"):
        answer = _answer(_decide(settings, path=path))
        assert (answer.status, answer.body) == (404, b"<h1>no</h1>")


def test_outage_windows() -> None:
    """A window holds from its start up to its end, and the next edge is known."""
    outages = (Outage(10, 20), Outage(15, 30, OutageKind.RESET))
    inside = [(at, outage_at(outages, at)) for at in (9.9, 10, 19.9, 20, 29.9, 30)]
    assert [outage and outage.kind for _, outage in inside] == [
        None,
        OutageKind.ERROR_503,
        OutageKind.ERROR_503,
        OutageKind.RESET,
        OutageKind.RESET,
        None,
    ]
    assert [next_edge(outages, at) for at in (0, 10, 15, 20, 30)] == [10, 15, 20, 30, None]
    settings = SimulatorSettings(outages=outages)
    assert _answer(_decide(settings, elapsed=12)).status == 503
    assert _decide(settings, elapsed=25).answer == Drop()
    assert _decide(settings, elapsed=31).outcome == "ok"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"faults": {FaultKind.HTML: 1.5}}, "between 0 and 1"),
        ({"faults": {FaultKind.HTML: 0.6, FaultKind.RESET: 0.6}}, "add up to 120%"),
        ({"faults": {"no-such-fault": 0.5}}, "no-such-fault"),
        ({"latency": -1.0}, "negative"),
        ({"always_status": 100}, "200 to 599"),
        ({"max_request_line": 0}, "max_request_line"),
        ({"max_messages": 0}, "max_messages"),
    ],
)
def test_impossible_settings(settings: dict[str, object], reason: str) -> None:
    """Settings that cannot be carried out are refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        SimulatorSettings(**settings)  # type: ignore[arg-type]


def test_settings_never_show_credentials() -> None:
    """The repr of settings holds neither login nor password."""
    assert "topsecret" not in repr(SimulatorSettings(login="topsecret1", password="topsecret2"))


def test_an_outage_ends_after_it_starts() -> None:
    """A window without length is a mistake, not an outage."""
    with pytest.raises(ValueError, match="end after it starts"):
        Outage(5, 5)
