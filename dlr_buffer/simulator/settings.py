"""How the stand-in behaves: credentials, faults and their rates, outage windows, limits.

Settings are values: a running stand-in is changed by giving it another one (`server.Simulator.settings`).
Reading them from a command line is `command`'s; acting on them is `behaviour`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

MAX_REQUEST_LINE = 1_000_000
"""The largest ``max_request_line`` in bytes: a head is never read beyond about this size."""


_FIRST_FINAL = 200
_LAST = 599


class FaultKind(StrEnum):
    """One way to misbehave; at most one is drawn for each request.

    The first nine ignore the request. `RESET_AFTER` and `TRUNCATED` act on all of it and then spoil the
    answer. `PARTIAL`, `WRONG_STATUS` and `SOMEONE_ELSES` act on it but for the receipts that the answer
    leaves out, calls failed, or names by a foreign request_id.
    """

    TIMEOUT = "timeout"
    ERROR_500 = "error-500"
    ERROR_503 = "error-503"
    RESET = "reset"
    HTML = "html"
    NOT_JSON = "not-json"
    ERRORS_INTERNAL = "errors-internal"
    REDIRECT = "redirect"
    RESET_AFTER = "reset-after"
    TRUNCATED = "truncated"
    PARTIAL = "partial"
    WRONG_STATUS = "wrong-status"
    SOMEONE_ELSES = "someone-elses"


class OutageKind(StrEnum):
    """What a client meets during an outage window: a 503, a reset, or a refused connection."""

    ERROR_503 = "error-503"
    RESET = "reset"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Outage:
    """A window ``[start, end)`` in seconds since the stand-in's start during which nothing is accepted."""

    start: float
    end: float
    kind: OutageKind = OutageKind.ERROR_503

    def __post_init__(self) -> None:
        """Refuse a window that ends before it begins (ValueError)."""
        if not 0 <= self.start < self.end:
            raise ValueError(f"an outage has to end after it starts: {self.start:g} s to {self.end:g} s")


def outage_at(outages: Iterable[Outage], elapsed: float) -> Outage | None:
    """Return the first window that covers ``elapsed`` seconds since the start."""
    return next((outage for outage in outages if outage.start <= elapsed < outage.end), None)


def next_edge(outages: Iterable[Outage], elapsed: float) -> float | None:
    """Return when, in seconds since the start, the next window begins or ends after ``elapsed``."""
    edges = (edge for outage in outages for edge in (outage.start, outage.end) if edge > elapsed)
    return min(edges, default=None)


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Everything that can be told to the stand-in; the defaults are a healthy, strict server.

    Sizes are in bytes, times in seconds, rates between 0 and 1 (their sum at most 1; ValueError otherwise).
    ``latency`` is waited before every answer, plus up to ``latency_jitter``. ``always_status`` answers every
    request with that status and ``always_body`` as HTML. A message id that is not in ``known_ids`` (None: all
    are known) is treated as ``unknown_ids`` says. ``first_response_id`` is the first ``id`` given in answers
    (None: the wall clock in milliseconds, as the seed's look like). ``max_messages`` and ``max_targets``
    bound the record.
    """

    login: str = field(default="LOGIN", repr=False)
    password: str = field(default="PASSWORD", repr=False)
    random_seed: int = 0
    latency: float = 0.0
    latency_jitter: float = 0.0
    faults: Mapping[FaultKind, float] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()
    retry_after: str = "1"
    redirect_to: str = "http://127.0.0.1:9/elsewhere"
    refuse_message_ids: frozenset[str] = frozenset()
    fail_message_ids: frozenset[str] = frozenset()
    known_ids: frozenset[str] | None = None
    unknown_ids: Literal["accept", "refuse"] = "accept"
    always_status: int | None = None
    always_body: bytes = b""
    authentication_status: int = 401
    argument_status: int = 400
    unknown_message_status: int = 400
    first_response_id: int | None = None
    max_request_line: int = 8192
    max_body: int = 1 << 20
    max_messages: int = 1_000_000
    max_targets: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out (ValueError)."""
        for name, rate in self.faults.items():
            kind = FaultKind(name)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of {kind} has to be between 0 and 1, not {rate:g}")
        total = sum(self.faults.values())
        if total > 1 + 1e-9:
            raise ValueError(
                f"the fault rates add up to {total:.0%}; one request has one fault, so at most 100%"
            )
        if self.latency < 0 or self.latency_jitter < 0:
            raise ValueError("latency and its jitter cannot be negative")
        if self.always_status is not None and not _FIRST_FINAL <= self.always_status <= _LAST:
            raise ValueError(
                f"always_status has to be a final HTTP status, 200 to 599, not {self.always_status}"
            )
        if not 0 < self.max_request_line <= MAX_REQUEST_LINE:
            raise ValueError(f"max_request_line has to be between 1 and {MAX_REQUEST_LINE} bytes")
        if min(self.max_messages, self.max_targets) < 1:
            raise ValueError("max_messages and max_targets have to be at least 1")
