"""One account's flusher between a real queue on disk and a Smartswitch that a test scripts.

Time stands still but for `Bench.until` and `Bench.pass_time`, which first let everything happen that can
happen without it, and then move the clock to the next moment that somebody waits for. So an hour of simulated
time takes as long as what happens in it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from dlr_buffer.flusher.account import AccountFlusher
from dlr_buffer.flusher.ports import FlushSettings
from dlr_buffer.health import HealthSettings, HealthState
from dlr_buffer.messages import MessageState
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import (
    Acknowledged,
    Receipt,
    ReceiptError,
    ReceiptStatus,
    RefusalPolicy,
    Refused,
)
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    Outage,
    RequestRefused,
)
from tests.clocks import FakeClock
from tests.integration.storage.harness import Queue, opened

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
BAD = ReceiptError("bad-message", "No such message", "Please check the message_id")

Answerer = Callable[[Sequence[Receipt]], Answer]


def ok(receipts: Sequence[Receipt]) -> Answer:
    """Acknowledge everything."""
    return Answered(tuple(Acknowledged(each.request_id, f"r{each.request_id}") for each in receipts), (), 0)


def refused(error: ReceiptError = BAD) -> Answer:
    """Refuse the request as a whole."""
    return RequestRefused(error)


def outage(cause: str = "http-503", retry_after_ms: int | None = None) -> Answer:
    """Give no usable answer."""
    return Outage(cause, "HTTP 503", retry_after_ms)


def wrong_password(*, coded: bool = True) -> Answer:
    """Refuse the login; with Smartswitch's own code, or only by HTTP's 403."""
    return AuthenticationFailed(
        ReceiptError("authentication" if coded else "http-403", "Authentication error", "x"), coded
    )


def entries(receipts: Sequence[Receipt], faults: Callable[[Receipt], ReceiptError | None]) -> Answer:
    """Acknowledge each receipt, but those that ``faults`` gives a reason for."""
    good = [each for each in receipts if faults(each) is None]
    bad = [(each, error) for each in receipts if (error := faults(each)) is not None]
    return Answered(
        tuple(Acknowledged(each.request_id, None) for each in good),
        tuple(Refused(each.request_id, error) for each, error in bad),
        0,
    )


def bad_ones(*message_ids: str, answer: Answerer = lambda _: refused()) -> Answerer:
    """Acknowledge every request but those that carry one of these messages."""
    wanted = set(message_ids)
    return lambda receipts: (
        answer(receipts) if any(each.message_id in wanted for each in receipts) else ok(receipts)
    )


@dataclass(slots=True)
class ScriptedUpstream:
    """Answers as told and remembers what it was asked; ``gate`` holds every request while it is shut."""

    clock: FakeClock
    answer: Answerer = ok
    requests: list[list[Receipt]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    """Monotonic milliseconds of each request."""
    in_flight: int = 0
    most_in_flight: int = 0
    most_of_a_message: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    shut_after: int | None = None
    """Shut the gate with this request."""
    closed: bool = False
    _messages: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Let everything through."""
        self.gate.set()

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        """Take a request."""
        assert not self.closed, "a request on a closed connection"
        self.requests.append(list(receipts))
        self.times.append(self.clock.monotonic_ms())
        if len(self.requests) == self.shut_after:
            self.gate.clear()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        names = [each.message_id for each in receipts]
        self._messages.update(names)
        self.most_of_a_message = max(self.most_of_a_message, *self._messages.values())
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            return self.answer(receipts)
        finally:
            self.in_flight -= 1
            self._messages.subtract(names)

    def is_closed(self) -> bool:
        """Whether the flusher closed this connection."""
        return self.closed

    async def aclose(self) -> None:
        """Close."""
        assert not self.in_flight, "closed with requests under way"
        self.closed = True

    @property
    def sizes(self) -> list[int]:
        """How many receipts each request carried."""
        return [len(each) for each in self.requests]

    @property
    def names(self) -> list[list[str]]:
        """The messages of each request."""
        return [[each.message_id for each in request] for request in self.requests]


def backoff(failures: int) -> int:
    """The account's backoff without jitter: 1 s doubled, at most 10 min."""
    return min(10 * MINUTE, SECOND << min(failures - 1, 20))


def flush_settings(
    *,
    concurrency: int = 4,
    max_receipts: int = 100,
    max_refusals: int = 5,
    lifetime_ms: int = 7 * 24 * HOUR,
    linger_ms: int = 0,
    budget_bytes: int = 1_000_000,
    rate_limit: float = 0,
    paused: bool = False,
    auth_probe_ms: int = 5 * MINUTE,
) -> FlushSettings:
    """An account's settings, with no waiting for more receipts."""
    return FlushSettings(
        name="default",
        health=HealthSettings(concurrency, max_receipts, 10 * MINUTE, auth_probe_ms, backoff),
        policy=RefusalPolicy(max_refusals, lifetime_ms, backoff),
        linger_ms=linger_ms,
        budget_bytes=budget_bytes,
        rate_limit=rate_limit,
        paused=paused,
    )


class Bench:
    """A flusher at work; see the module."""

    def __init__(self, queue: Queue, settings: FlushSettings) -> None:
        """Start nothing yet."""
        self.queue = queue
        self.clock = queue.clock
        self.upstream = ScriptedUpstream(queue.clock)
        self.metrics = Metrics(counts=queue.store.counts, accounts=list, gauges=dict)
        self.flusher = self.new_flusher(settings)
        self._names = count()

    def new_flusher(self, settings: FlushSettings) -> AccountFlusher:
        """A flusher with no memory, as after a restart."""
        return AccountFlusher(settings, self.upstream, self.queue.store, self.clock, self.metrics)

    def state(self) -> HealthState:
        """What `status` shows of the account."""
        return self.flusher.view().health

    def change(self, **changes: Any) -> None:  # noqa: ANN401 - fields of FlushSettings
        """Reload with other settings."""
        self.flusher.replace(replace(self.flusher.settings, **changes), None)

    async def report(
        self, *message_ids: str, state: MessageState = MessageState.DELIVERED, wake: bool = True
    ) -> list[int]:
        """Report a state of messages in one call; returns the request_ids."""
        outcomes = await self.queue.report(*((each, state) for each in message_ids))
        if wake:
            self.flusher.arrived(len(message_ids))
        return [each.receipt.request_id for each in outcomes if getattr(each, "receipt", None) is not None]  # type: ignore[union-attr]

    async def fill(self, rows: int, prefix: str = "m") -> list[int]:
        """Report so many new messages (``m0``, ``m1``, …)."""
        return await self.report(*(f"{prefix}{number}" for number in range(rows)))

    def pending(self) -> int:
        """Receipts that wait."""
        return self.counted(ReceiptStatus.PENDING)

    def counted(self, status: ReceiptStatus) -> int:
        """Receipts of this status, by the counters."""
        return self.queue.store.counts().receipts["default"].get(status.value, 0)

    async def idle(self) -> None:
        """Let everything happen that can happen while time stands still; fails if that never ends."""
        calm, bound = 0, len(self.upstream.requests) + 5_000
        turns = self.flusher.turns + 20_000
        while calm < 20:
            awake = self.flusher._wake.is_set() and not self.flusher._stopping
            busy = self.queue.store._writer.waiting_commands or awake
            calm = 0 if busy else calm + 1
            assert len(self.upstream.requests) < bound, f"requests without end: {self.upstream.sizes[-20:]}"
            assert self.flusher.turns < turns, "the loop turns without end"
            await asyncio.sleep(0)

    async def until(self, reached: Callable[[], object], *, within_ms: int = 24 * HOUR) -> None:
        """Let things happen, and time pass, until something is reached; fails if nobody waits for anything."""
        end = self.clock.monotonic_ms() + within_ms
        while True:
            await self.idle()
            if reached():
                return
            step = self._next_step()
            assert step is not None, (
                f"nothing more happens: {self.flusher.view()}, {self.upstream.sizes[-20:]}"
            )
            assert self.clock.monotonic_ms() + step <= end, (
                f"not within {within_ms} ms: {self.flusher.view()}"
            )
            self.clock.advance(step)

    async def pass_time(self, duration_ms: int) -> None:
        """Let so much time pass, with everything that happens in it."""
        end = self.clock.monotonic_ms() + duration_ms
        await self.idle()
        while (left := end - self.clock.monotonic_ms()) > 0:
            step = self._next_step()
            self.clock.advance(left if step is None else min(left, step))
            await self.idle()

    async def drained(self, *, within_ms: int = 24 * HOUR) -> None:
        """Let things happen until nothing is pending."""
        await self.until(lambda: not self.pending(), within_ms=within_ms)

    def _next_step(self) -> int | None:
        times = [at for at, _, woken in self.clock._sleepers if not woken.done()]
        return max(0, min(times) - self.clock.monotonic_ms()) if times else None


@asynccontextmanager
async def flushing(
    path: Path, settings: FlushSettings | None = None, *, start: bool = True, clock: FakeClock | None = None
) -> AsyncIterator[Bench]:
    """A bench on the queue at ``path``; its flusher stops at the end, and the queue is recounted."""
    async with opened(path, clock) as queue:
        bench = Bench(queue, settings or flush_settings())
        if start:
            bench.flusher.start()
        try:
            yield bench
            assert bench.flusher.failed is None
            assert bench.upstream.most_of_a_message <= 1, "two receipts of one message were in flight"
        finally:
            bench.upstream.gate.set()
            await bench.flusher.stop(5_000)


def dump(path: Path) -> list[str]:
    """Every table of the database, row by row."""
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())
