"""The upstream of the crash tests: the stand-in, misbehaving by profile, which tells the oracle everything.

Each run of the daemon has a URL of its own, so that the last words of a dead one are not taken for the next one's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import Final, Self

from dlr_buffer.simulator import FaultKind, Outage, SimulatorSettings
from dlr_buffer.simulator.answers import Answer
from dlr_buffer.simulator.behaviour import Decision, Outcome, decide
from dlr_buffer.simulator.protocol import PATH
from dlr_buffer.simulator.server import Request
from tests.acceptance.harness import StandIn
from tests.crash.known import Said, Sent, Told
from tests.crash.oracle import Oracle

TIMEOUT_S: Final = 5.0
"""The accounts' timeout."""
POISON: Final = "-poison"
"""How the ids end that the upstream refuses for ever."""
_READABLE: Final = frozenset({Outcome.OK, FaultKind.PARTIAL, FaultKind.WRONG_STATUS, FaultKind.SOMEONE_ELSES})


def now_ms() -> int:
    """Wall time."""
    return time.time_ns() // 1_000_000


class Mood(StrEnum):
    """How the upstream is today."""

    WELL = "well"
    FLAKY = "flaky"
    SLOW = "slow"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class _Profile:
    latency_s: float
    jitter_s: float
    faults: dict[FaultKind, float] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()


_SOME_OF_EACH: Final = {
    FaultKind.TIMEOUT: 0.005,
    FaultKind.ERROR_500: 0.02,
    FaultKind.ERROR_503: 0.005,
    FaultKind.RESET: 0.02,
    FaultKind.HTML: 0.01,
    FaultKind.NOT_JSON: 0.01,
    FaultKind.ERRORS_INTERNAL: 0.01,
    FaultKind.REDIRECT: 0.005,
    FaultKind.RESET_AFTER: 0.03,
    FaultKind.TRUNCATED: 0.03,
    FaultKind.PARTIAL: 0.03,
    FaultKind.WRONG_STATUS: 0.02,
    FaultKind.SOMEONE_ELSES: 0.02,
}
_PROFILES: Final = {
    Mood.WELL: _Profile(0.0, 0.005),
    Mood.FLAKY: _Profile(0.002, 0.01, _SOME_OF_EACH),
    Mood.SLOW: _Profile(0.05, 0.2, {FaultKind.RESET_AFTER: 0.05}),
    Mood.AWAY: _Profile(0.0, 0.002, {}, (Outage(0.0, 1.0),)),
}


class Upstream:
    """The stand-in in a thread, as a context manager."""

    def __init__(self, oracle: Oracle, seed: int) -> None:
        """Bind nothing yet."""
        self._oracle = oracle
        self._random = Random(seed)
        self._next_id = 1
        self._settings = SimulatorSettings(retry_after="0")
        self._profile = _PROFILES[Mood.WELL]
        self._awaited = 0
        self._arrived = threading.Event()
        self._stand_in = StandIn(SimulatorSettings(max_messages=1000, max_targets=1), script=self._answer)

    def __enter__(self) -> Self:
        """Listen."""
        self._stand_in.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._stand_in.__exit__(kind, error, trace)

    def url(self, account: str, run: int) -> str:
        """The URL of an account for one run of the daemon."""
        return f"{self._stand_in.url}/{account}/{run}"

    def be(self, mood: Mood) -> None:
        """Behave so from the next request on."""
        self._profile = _PROFILES[mood]

    def wait_for_request(self, number: int, timeout_s: float) -> None:
        """Return when the ``number``-th request from now on was read, and is not answered yet, or in the end."""
        self._arrived.clear()
        self._awaited = number
        self._arrived.wait(timeout_s)

    def answers_owed(self) -> int:
        """How many requests are not answered yet."""
        return self._stand_in.look(lambda record: record.concurrent_requests)

    def wait_until_quiet(self) -> None:
        """Return once nobody waits for an answer: whoever asked is dead."""
        self._stand_in.wait_for(lambda record: not record.concurrent_requests)

    async def _answer(self, request: Request) -> Answer:
        account, run = request.path.split("/")[-2:]
        sent = [Sent(*receipt) for receipt in request.receipts]
        began = time.monotonic()
        number = self._oracle.sends(int(run), account, sent, at_ms=now_ms())
        self._awaited -= 1
        if self._awaited == 0:
            self._arrived.set()
        profile = self._profile
        await asyncio.sleep(profile.latency_s + self._random.uniform(0, profile.jitter_s))
        poison = frozenset(each.message_id for each in sent if each.message_id.endswith(POISON))
        settings = replace(
            self._settings, faults=profile.faults, outages=profile.outages, refuse_message_ids=poison
        )
        decision = decide(request.method, PATH, request.arguments, settings, 0.0, self._random, self._take_id)
        late = time.monotonic() - began > TIMEOUT_S / 2
        self._oracle.answers(
            int(run),
            number,
            sent,
            _told(decision, len(sent), late=late),
            outcome=str(decision.outcome),
            at_ms=now_ms(),
        )
        return decision.answer

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id


def _told(decision: Decision, receipts: int, *, late: bool) -> list[Told]:
    acted = decision.accepted or (False,) * receipts
    readable = decision.outcome in _READABLE
    ok = Said.PERHAPS if late else Said.OK
    return [Told(each, ok if each and readable else Said.NOTHING) for each in acted]
