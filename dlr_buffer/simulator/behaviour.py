"""What the stand-in does with a request: one decision, from the settings, the time and one random draw.

No I/O and no clock; the random source is given. The order of the decisions is: outage window,
`always_status`, path and method, faults that ignore the request, arguments, credentials, message ids, and
last the faults that spoil the answer to a request that was acted on.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import assert_never

from dlr_buffer.simulator.answers import Answer, Drop, Hang, Raw, Scripted
from dlr_buffer.simulator.protocol import MEDIA_TYPE, PATH, Arguments, Entry, Receipt, data_body, errors_body
from dlr_buffer.simulator.settings import FaultKind, Outage, OutageKind, SimulatorSettings, outage_at

_HTML = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works</h1></body></html>\n"


class Outcome(StrEnum):
    """What became of a request, where it was no `FaultKind`."""

    OK = "ok"
    SCRIPTED = "scripted"
    OUTAGE = "outage"
    ALWAYS_STATUS = "always-status"
    NOT_FOUND = "not-found"
    METHOD = "method"
    ARGUMENT = "argument"
    AUTHENTICATION = "authentication"
    UNKNOWN_MESSAGE = "unknown-message"
    FAILED_MESSAGE = "failed-message"
    TOO_LONG = "request-line-too-long"
    TOO_LARGE = "body-too-large"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one request.

    ``accepted`` has one flag for each receipt of the request (or is empty: none is); ``acknowledged`` is the
    number of ok entries in the answer.
    """

    answer: Answer
    outcome: Outcome | FaultKind
    accepted: tuple[bool, ...] = ()
    acknowledged: int = 0


def draw_fault(rates: Mapping[FaultKind, float], random: Random) -> FaultKind | None:
    """Draw at most one fault; always takes one number from ``random``, so that a run can be repeated."""
    position = random.random()
    for kind in FaultKind:
        position -= rates.get(kind, 0.0)
        if position < 0:
            return kind
    return None


def decide(  # noqa: PLR0913 - the parts of one request
    method: str,
    path: str,
    arguments: Arguments,
    settings: SimulatorSettings,
    elapsed: float,
    random: Random,
    next_id: Callable[[], int],
) -> Decision:
    """Decide on one request, ``elapsed`` seconds after the start; ``next_id`` gives ids for the answer."""
    fault = draw_fault(settings.faults, random)
    outage = outage_at(settings.outages, elapsed)
    if outage is not None:
        return Decision(_outage_answer(outage, settings), Outcome.OUTAGE)
    if settings.always_status is not None:
        return Decision(_html(settings.always_status, settings.always_body), Outcome.ALWAYS_STATUS)
    if path != PATH:
        return Decision(
            errors_answer(404, "not-found", "Not found", f"There is only {PATH}"), Outcome.NOT_FOUND
        )
    if method != "POST":
        answer = errors_answer(405, "method", "Method not allowed", f"{PATH} takes POST", ("Allow", "POST"))
        return Decision(answer, Outcome.METHOD)
    if fault is not None and (instead := _ignoring(fault, settings)) is not None:
        return Decision(instead, fault)
    return _refusal(arguments, settings) or _accept(arguments.receipts, fault, random, next_id)


def errors_answer(status: int, code: str, title: str, detail: str, *headers: tuple[str, str]) -> Scripted:
    """Answer a request as a whole with one JSON:API error."""
    return Scripted(status, (("Content-Type", MEDIA_TYPE), *headers), errors_body(code, title, detail))


def _html(status: int, body: bytes, *headers: tuple[str, str]) -> Scripted:
    return Scripted(status, (("Content-Type", "text/html"), *headers), body)


def _outage_answer(outage: Outage, settings: SimulatorSettings) -> Answer:
    match outage.kind:
        case OutageKind.ERROR_503:
            return _html(503, b"", ("Retry-After", settings.retry_after))
        case OutageKind.RESET | OutageKind.REFUSE:
            return Drop()
        case _ as unreachable:
            assert_never(unreachable)


def _ignoring(fault: FaultKind, settings: SimulatorSettings) -> Answer | None:
    """Return the answer of a fault that ignores the request; None for the faults that act on it first."""
    match fault:
        case FaultKind.TIMEOUT:
            return Hang()
        case FaultKind.ERROR_500:
            return _html(500, b"<h1>Internal Server Error</h1>\n")
        case FaultKind.ERROR_503:
            return _html(503, b"<h1>Service Unavailable</h1>\n", ("Retry-After", settings.retry_after))
        case FaultKind.RESET:
            return Drop()
        case FaultKind.HTML:
            return _html(200, _HTML)
        case FaultKind.NOT_JSON:
            return Scripted(200, (("Content-Type", MEDIA_TYPE),), b'{"data": oops')
        case FaultKind.ERRORS_INTERNAL:
            return errors_answer(200, "internal", "Internal error", "Please try again later")
        case FaultKind.REDIRECT:
            return _html(302, b"", ("Location", settings.redirect_to))
        case (
            FaultKind.RESET_AFTER
            | FaultKind.TRUNCATED
            | FaultKind.PARTIAL
            | FaultKind.WRONG_STATUS
            | FaultKind.SOMEONE_ELSES
        ):
            return None
        case _ as unreachable:
            assert_never(unreachable)


def _refusal(arguments: Arguments, settings: SimulatorSettings) -> Decision | None:
    if arguments.problem is not None:
        answer = errors_answer(settings.argument_status, "argument", "Wrong argument", arguments.problem)
        return Decision(answer, Outcome.ARGUMENT)
    if not (_same(arguments.login, settings.login) and _same(arguments.password, settings.password)):
        answer = errors_answer(
            settings.authentication_status,
            "authentication",
            "Authentication error",
            "Please check your login and password",
        )
        return Decision(answer, Outcome.AUTHENTICATION)
    message_ids = {receipt.message_id for receipt in arguments.receipts}
    if message_ids & settings.fail_message_ids:
        return Decision(_html(500, b"<h1>Internal Server Error</h1>\n"), Outcome.FAILED_MESSAGE)
    unknown = message_ids & settings.refuse_message_ids
    if settings.known_ids is not None and settings.unknown_ids == "refuse":
        unknown |= message_ids - settings.known_ids
    if unknown:
        detail = f"There is no message {min(unknown)}"
        answer = errors_answer(settings.unknown_message_status, "unknown-message", "Unknown message", detail)
        return Decision(answer, Outcome.UNKNOWN_MESSAGE)
    return None


def _same(given: str | None, wanted: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def _accept(
    receipts: tuple[Receipt, ...], fault: FaultKind | None, random: Random, next_id: Callable[[], int]
) -> Decision:
    entries = [Entry(str(next_id()), receipt.request_id) for receipt in receipts]
    accepted = [True] * len(receipts)
    array = len(receipts) > 1
    match fault:
        case FaultKind.RESET_AFTER:
            return Decision(Drop(accepts=True), fault, tuple(accepted))
        case FaultKind.TRUNCATED:
            return Decision(_truncated(data_body(entries, array=array)), fault, tuple(accepted))
        case FaultKind.PARTIAL:
            kept = set(random.sample(range(len(entries)), random.randrange(len(entries))))
            accepted = [index in kept for index in range(len(entries))]
            entries = [entry for index, entry in enumerate(entries) if index in kept]
            array = array or not entries
        case FaultKind.WRONG_STATUS:
            index = random.randrange(len(entries))
            entries[index] = entries[index]._replace(status="error")
            accepted[index] = False
        case FaultKind.SOMEONE_ELSES:
            index = random.randrange(len(entries))
            foreign = f"foreign-{random.randrange(10**9)}"
            entries[index] = entries[index]._replace(request_id=foreign)
            accepted[index] = False
        case (
            None
            | FaultKind.TIMEOUT
            | FaultKind.ERROR_500
            | FaultKind.ERROR_503
            | FaultKind.RESET
            | FaultKind.HTML
            | FaultKind.NOT_JSON
            | FaultKind.ERRORS_INTERNAL
            | FaultKind.REDIRECT
        ):
            # `_ignoring` has dealt with the named ones already.
            pass
        case _ as unreachable:
            assert_never(unreachable)
    answer = Scripted(200, (("Content-Type", MEDIA_TYPE),), data_body(entries, array=array))
    return Decision(answer, fault or Outcome.OK, tuple(accepted), sum(accepted))


def _truncated(body: bytes) -> Raw:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Raw((head.encode() + body[: len(body) // 2],), accepts=True)
