"""Flushing one account: what to send next, and what an answer means for the receipts and the account.

The loop of an account is one task. It asks account health for a permit, picks work from four lanes, and
starts a task for each exchange, at most ``concurrency`` of them:

- *fresh*: the oldest receipts that nothing is held against, as a batch;
- *suspects*: groups of a bisection, to find the bad receipt in a refused batch;
- *asides*: receipts that alone drew outages, one by one;
- *due*: receipts that were refused and waited out their own backoff, one by one.

Fresh batches get at least every second turn. When an exchange ends, `_conclude` turns the answer into one
settlement and one event of account health, by the rows of DESIGN §4's table; then the loop is woken. An
outage gives receipts back and writes nothing. What was picked is given back unsent if an answer that came
meanwhile forbids it. The reading of answers is `dlr_buffer.smartswitch`'s, claims
and settlements are storage's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from dlr_buffer.clock import Clock
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.flusher.batching import cut_batch
from dlr_buffer.flusher.ports import FlushSettings, Outbox, Upstream
from dlr_buffer.flusher.suspicion import (
    MAX_SUSPECTS,
    STRIKES_TO_REFUSE,
    Asides,
    Evidence,
    Halving,
    Suspects,
)
from dlr_buffer.health import AccountHealth, AccountView, HealthState, Permit, Probe, Send, Wait
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import Acknowledged, Claimed, DueClaim, ReceiptError, Refused
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    Outage,
    RequestRefused,
    TooLarge,
)

_log = logging.getLogger(__name__)

STORE_RETRY_MS: Final = 1_000
SAY_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Work:
    """Receipts for one request, all claimed, and why they go together."""

    claimed: tuple[Claimed, ...]
    probe: bool = False
    halving: Halving | None = None

    @property
    def request_ids(self) -> list[int]:
        """Ids of the receipts, in order."""
        return [each.receipt.request_id for each in self.claimed]

    @property
    def alone(self) -> int | None:
        """The id of the receipt if there is just one."""
        return self.claimed[0].receipt.request_id if len(self.claimed) == 1 else None


@dataclass(slots=True)
class Conclusion:
    """What to settle; every claimed receipt is in exactly one of the three."""

    acknowledged: Sequence[Acknowledged] = ()
    refused: list[Refused] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)


class AccountFlusher:
    """Sends the receipts of one account until it is stopped."""

    def __init__(
        self, settings: FlushSettings, upstream: Upstream, outbox: Outbox, clock: Clock, metrics: Metrics
    ) -> None:
        """Start nothing yet."""
        self.settings = settings
        self._upstream = upstream
        self._retired: list[Upstream] = []
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self.health = AccountHealth(since_ms=clock.now_ms())
        self._paused = settings.paused
        self._evidence = Evidence()
        self._suspects = Suspects()
        self._asides = Asides()
        self._acquittals: list[int] = []
        self._accused_at = -1
        self._convicted: dict[int, None] = {}
        self._wake = asyncio.Event()
        self._exchanges: dict[asyncio.Task[None], Upstream] = {}
        self._in_flight: set[int] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._fresh_turn = True
        self._next_request_ms = 0.0
        self._stopping = False
        self._said: dict[str, int] = {}
        self.turns = 0
        """Turns of the loop, for the watchdog."""

    # For the daemon

    def start(self) -> None:
        """Begin to send."""
        self._loop_task = asyncio.create_task(self._loop(), name=f"flush {self.settings.name}")

    @property
    def failed(self) -> str | None:
        """Why the loop ended, if it did on its own."""
        task = self._loop_task
        if task is None or not task.done() or task.cancelled() or self._stopping:
            return None
        return f"flushing of account {self.settings.name} ended: {task.exception()!r}"

    def wake(self) -> None:
        """Something may have become sendable."""
        self._wake.set()

    def replace(self, settings: FlushSettings, upstream: Upstream | None) -> None:
        """Take on new settings, and a new connection if it changed.

        A probe follows at once if the account was not open.
        """
        self.settings = settings
        if upstream is not None:
            self._retired.append(self._upstream)
            self._upstream = upstream
            self.health = self.health.nudged(self._clock.now_ms())
        self._wake.set()

    def pause(self) -> None:
        """Start no more requests; those under way finish."""
        self._paused = True

    def resume(self) -> None:
        """Go on; an account that is not open is probed at once."""
        self._paused = False
        self.health = self.health.nudged(self._clock.now_ms())
        self._wake.set()

    async def stop(self, grace_ms: int) -> None:
        """Start no more requests, give those under way ``grace_ms`` to finish, give the rest back."""
        # The loop ends by itself: cancelled in the middle of a claim, it would leave receipts in flight.
        self._stopping = True
        self._wake.set()
        tasks = {*self._exchanges} if self._loop_task is None else {self._loop_task, *self._exchanges}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_ms / 1000)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for upstream in (*self._retired, self._upstream):
            await upstream.aclose()

    def view(self) -> AccountView:
        """What `status` shows."""
        health, settings = self.health, self.settings
        now = self._clock.now_ms()
        waits = health.probe_at_ms is not None and health.state is not HealthState.OPEN and not self._paused
        return AccountView(
            name=settings.name,
            configured=True,
            health=HealthState.PAUSED if self._paused else health.state,
            since_ms=health.since_ms,
            cause=health.cause,
            next_probe_at_ms=health.probe_at_ms if waits else None,
            backoff_ms=max(0, health.probe_at_ms - now) if waits and health.probe_at_ms is not None else None,
            failures=health.failures,
            batch_limit=health.batch_limit(settings.health),
            concurrency=settings.health.concurrency,
            rate_limit=settings.rate_limit,
            max_receipts=settings.health.max_receipts,
            in_flight_requests=len(self._exchanges),
            in_flight_receipts=len(self._in_flight),
            set_aside=len(self._suspects) + len(self._asides),
        )

    # The loop

    async def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self.turns += 1
            await self._close_retired()
            try:
                await self._release_acquitted()
                until = await self._start_exchanges()
                if self._acquittals:
                    self._wake.set()
            except DlrBufferError as error:
                self._say("store", f"cannot read the queue, trying again: {error}")
                until = self._clock.now_ms() + STORE_RETRY_MS
            await self._wait(until)

    async def _wait(self, until_ms: int | None) -> None:
        """Wait until something happens, or until wall time ``until_ms``."""
        if until_ms is None:
            await self._wake.wait()
            return
        # At most a minute at once: the wall clock may leap meanwhile.
        wait_ms = min(max(1, until_ms - self._clock.now_ms()), 60_000)
        await first_of(self._wake.wait(), self._clock.sleep(wait_ms))

    async def _start_exchanges(self) -> int | None:
        """Start as many requests as may go now; returns when to look again (None: when something happens)."""
        while True:
            now = self._clock.now_ms()
            if self._paused or self._stopping:
                return None
            if (paced_ms := self._next_request_ms - self._clock.monotonic_ms()) > 0:
                return now + math.ceil(paced_ms)
            permit = self._permit(now)
            match permit:
                case Wait(until):
                    return until
                case Probe():
                    work, again = await self._pick_probe(now)
                case Send(limit):
                    work, again = await self._pick(limit, now)
                case _:
                    assert_never(permit)
            if work is None:
                return again
            if not self._still_permitted(permit, work):
                await self._give_back(work)
                continue
            self._launch(work)

    def _launch(self, work: Work) -> None:
        if self.settings.rate_limit:
            # Up to a millisecond late is no delay that has to be waited again: the clock shows no less.
            began_ms = max(self._next_request_ms, self._clock.monotonic_ms() - 1)
            self._next_request_ms = began_ms + 1000 / self.settings.rate_limit
        for request_id in self._evidence.attempt(work.claimed):
            self._convicted.pop(request_id, None)
            self._asides.remove([request_id])
        self._in_flight.update(work.request_ids)
        exchange = asyncio.create_task(
            self._exchange(work, self._upstream), name=f"send {self.settings.name}"
        )
        self._exchanges[exchange] = self._upstream
        exchange.add_done_callback(partial(self._exchange_done, work))

    def _permit(self, now: int) -> Permit:
        return self.health.permit(self.settings.health, in_flight=len(self._exchanges), now_ms=now)

    def _still_permitted(self, permit: Permit, work: Work) -> bool:
        """Whether work may go that was picked under ``permit``: answers may have come while it was claimed."""
        if self._paused or self._stopping:
            return False
        present = self._permit(self._clock.now_ms())
        if isinstance(present, Send):
            return len(work.claimed) <= present.limit
        return isinstance(present, Probe) and isinstance(permit, Probe)

    async def _give_back(self, work: Work) -> None:
        """Let work that was picked be picked again later; it was not sent."""
        self._asides.land(work.request_ids)
        self._close_halving(work)
        self._suspend_judgement(work)
        await self._outbox.settle(
            self.settings.name,
            returned=work.request_ids,
            sent=False,
            policy=self.settings.policy,
            now_ms=self._clock.now_ms(),
        )

    def _exchange_done(self, work: Work, exchange: asyncio.Task[None]) -> None:
        self._exchanges.pop(exchange, None)
        self._in_flight.difference_update(work.request_ids)
        self._asides.land(work.request_ids)
        self._wake.set()
        if not exchange.cancelled() and (error := exchange.exception()) is not None:
            self._say_fault(error)

    # Picking work

    async def _pick(self, limit: int, now: int) -> tuple[Work | None, int | None]:
        """The next work of an open account, or when there may be some."""
        lanes: list[Callable[[], Awaitable[tuple[Work | None, int | None]]]]
        lanes = [lambda: self._fresh(limit, now), lambda: self._troubled(limit, now)]
        if not self._fresh_turn:
            lanes.reverse()
        times: list[int] = []
        for index, lane in enumerate(lanes):
            work, again = await lane()
            if work is not None:
                # Whoever had its turn comes second next time.
                fresh = (index == 0) == self._fresh_turn
                self._fresh_turn = not fresh
                return work, None
            if again is not None:
                times.append(again)
        return None, min(times, default=None)

    async def _fresh(self, limit: int, now: int) -> tuple[Work | None, int | None]:
        stuck = len(self._suspects) and self._evidence.acknowledged == self._accused_at
        if stuck or len(self._suspects) >= MAX_SUSPECTS:
            # Until the suspicion is confirmed by something that works, more of the same would only add to it.
            return None, None
        claim = await self._outbox.claim(
            self.settings.name,
            limit=limit,
            excluding=_Excluded(self._suspects, self._asides),
            cut=lambda waiting: cut_batch(
                waiting,
                limit=limit,
                budget_bytes=self.settings.budget_bytes,
                linger_ms=self.settings.linger_ms,
                now_ms=now,
            ),
        )
        return (Work(claim.claimed), None) if claim.claimed else (None, claim.ready_at_ms)

    async def _troubled(self, limit: int, now: int) -> tuple[Work | None, int | None]:
        while (halving := self._suspects.next(limit)) is not None:
            claim = await self._outbox.claim_these(self.settings.name, halving.left)
            if claim.claimed:
                return Work(claim.claimed, halving=halving), None
            self._suspects.close(halving)
            # All of that half were taken away meanwhile (held, deleted, superseded): the other half is as
            # good as any.
            self._acquittals += halving.right
        while (aside := self._asides.due(now, self.settings.health.retry_max_ms)) is not None:
            if (work := await self._take_aside(aside)) is not None:
                return work, None
        due = await self._claim_due(now)
        if due.claimed is not None:
            return Work((due.claimed,)), None
        times = [each for each in (due.next_due_at_ms, self._asides.next_due_ms()) if each is not None]
        return None, min(times, default=None)

    async def _take_aside(self, request_id: int, *, probe: bool = False) -> Work | None:
        claim = await self._outbox.claim_these(self.settings.name, [request_id])
        if claim.claimed:
            self._asides.depart(request_id)
            return Work(claim.claimed, probe=probe)
        self._asides.remove([request_id])
        return None

    async def _pick_probe(self, now: int) -> tuple[Work | None, int | None]:
        """One receipt, each time another one: fresh ones first, then the one that was tried longest ago."""
        claim = await self._outbox.claim(
            self.settings.name,
            limit=1,
            excluding=_Excluded(self._suspects, self._asides),
            cut=lambda waiting: cut_batch(
                waiting, limit=1, budget_bytes=self.settings.budget_bytes, linger_ms=0, now_ms=now
            ),
        )
        if claim.claimed:
            return Work(claim.claimed, probe=True), None
        if (halving := self._suspects.next(limit=1)) is not None:
            self._suspects.close(halving)
            self._acquittals += (*halving.left, *halving.right)
            await self._release_acquitted()
            return await self._pick_probe(now)
        due = await self._claim_due(now)
        if due.claimed is not None:
            return Work((due.claimed,), probe=True), None
        while (aside := self._asides.longest_untried()) is not None:
            if (work := await self._take_aside(aside, probe=True)) is not None:
                return work, None
        return None, due.next_due_at_ms

    async def _claim_due(self, now: int) -> DueClaim:
        return await self._outbox.claim_due(
            self.settings.name,
            now_ms=now,
            horizon_ms=self.settings.health.retry_max_ms,
            excluding=self._asides,
        )

    async def _release_acquitted(self) -> None:
        # One that is in flight again is given back by its own exchange.
        released = [each for each in self._acquittals if each not in self._in_flight]
        taken = len(self._acquittals)
        if released:
            await self._outbox.settle(
                self.settings.name,
                returned=released,
                sent=False,
                policy=self.settings.policy,
                now_ms=self._clock.now_ms(),
            )
        # Only now: they would be forgotten if the database failed. More may have come meanwhile.
        del self._acquittals[:taken]

    # Exchanges

    async def _exchange(self, work: Work, upstream: Upstream) -> None:
        began = self._clock.monotonic_ms()
        receipts = [each.receipt for each in work.claimed]
        try:
            answer = await upstream.send(receipts)
            self._metrics.request(
                self.settings.name,
                outcome_of(answer),
                receipts=len(receipts),
                resent=sum(receipt.attempts > 0 for receipt in receipts),
                duration_ms=self._clock.monotonic_ms() - began,
            )
            self._close_halving(work)
            conclusion = self._conclude(work, answer)
        except asyncio.CancelledError:
            # The daemon stops: what became of it is unknown, so it waits again under the same id.
            await self._settle(Conclusion(returned=work.request_ids), once=True)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the receipts must not stay in flight
            self._say_fault(error)
            conclusion = self._unforeseen(work)
        if upstream is not self._upstream:
            # What the old connection met says nothing about the new one, which is to be tried at once.
            self.health = self.health.nudged(self._clock.now_ms())
        await self._settle(conclusion)

    def _unforeseen(self, work: Work) -> Conclusion:
        """A fault of ours must neither keep receipts in flight for ever nor send them over and over at once."""
        self._close_halving(work)
        if work.halving is not None:
            self._acquittals += (*work.halving.left, *work.halving.right)
        self.health = self.health.outage(
            self.settings.health,
            cause="internal",
            sent=len(work.claimed),
            probe=work.probe,
            retry_after_ms=None,
            now_ms=self._clock.now_ms(),
        )
        return Conclusion(returned=work.request_ids)

    async def _close_retired(self) -> None:
        """Close connections that were replaced, once their last request has ended."""
        used = list(self._exchanges.values())
        for upstream in [each for each in self._retired if each not in used]:
            self._retired.remove(upstream)
            await upstream.aclose()

    async def _settle(self, conclusion: Conclusion, *, once: bool = False) -> None:
        """Write a conclusion; if the database has a moment of weakness, keep trying.

        The answer is known only here.
        """
        while True:
            try:
                await self._outbox.settle(
                    self.settings.name,
                    acknowledged=conclusion.acknowledged,
                    refused=conclusion.refused,
                    returned=conclusion.returned,
                    policy=self.settings.policy,
                    now_ms=self._clock.now_ms(),
                )
            except DlrBufferError as error:
                self._metrics.events({"store_failures": 1})
                self._say("store", f"cannot write what Smartswitch answered, trying again: {error}")
                if once:
                    return
                await self._clock.sleep(STORE_RETRY_MS)
            else:
                return

    # What an answer means

    def _conclude(self, work: Work, answer: Answer) -> Conclusion:
        """Draw the conclusion of an answer.

        For the receipts (returned) and for account health (changed here).
        """
        match answer:
            case Answered():
                return self._answered(work, answer)
            case RequestRefused(error):
                return self._refused(work, error)
            case TooLarge(status):
                if work.alone is not None:
                    error = ReceiptError(
                        f"http-{status}",
                        "Request too large",
                        "Smartswitch refuses the request even with this receipt alone",
                    )
                    return self._refused(work, error)
                self._suspend_judgement(work)
                self.health = self.health.too_large(len(work.claimed))
                self._say(
                    f"http-{status}",
                    f"a request with {len(work.claimed)} receipts was too large: batches are halved",
                )
                return Conclusion(returned=work.request_ids)
            case AuthenticationFailed(error, coded):
                return self._authentication_failed(work, error, coded=coded)
            case Outage(cause, detail, retry_after_ms):
                return self._outage(work, ReceiptError(cause, "Outage", detail), retry_after_ms)
            case _:
                assert_never(answer)

    def _answered(self, work: Work, answer: Answered) -> Conclusion:
        now = self._clock.now_ms()
        acknowledged = [each.request_id for each in answer.acknowledged]
        self._evidence.acknowledge(acknowledged)
        self._asides.remove(acknowledged)
        for each in acknowledged:
            self._convicted.pop(each, None)
        if answer.violations:
            self._metrics.account(self.settings.name, "violations", answer.violations)
            self._say(
                "protocol",
                f"an answer held {answer.violations} entries that break the protocol; they were ignored",
            )
        if acknowledged:
            if self.health.state is not HealthState.OPEN:
                self._say("open", "it is open again", level=logging.INFO)
                self._acquittals += self._asides.acquit()
            self.health = self.health.acknowledged(self.settings.health, now)
        self._follow_halving(work, found_bad=bool(answer.faulted))
        conclusion = Conclusion(acknowledged=answer.acknowledged)
        if answer.faulted:
            self._blame(conclusion, answer.faulted, alone=work.alone is not None)
        return conclusion

    def _refused(self, work: Work, error: ReceiptError) -> Conclusion:
        conclusion = Conclusion()
        if work.alone is not None:
            self._follow_halving(work, found_bad=True)
            self._blame(conclusion, [Refused(work.alone, error)], alone=True)
            return conclusion
        conclusion.returned = work.request_ids
        if self.health.state is not HealthState.OPEN:
            self._suspend_judgement(work)
            return conclusion
        self._metrics.account(self.settings.name, "bisections")
        self._say(
            error.code,
            f"a batch of {len(work.claimed)} was refused ({error.code}: {error.title}); looking for the bad receipt",
        )
        self._follow_halving(work, found_bad=True)
        self._suspects.accuse(work.request_ids)
        self._accused_at = self._evidence.acknowledged
        return conclusion

    def _blame(self, conclusion: Conclusion, faults: Sequence[Refused], *, alone: bool) -> None:
        """Count refusals where there is evidence and the account is not in question.

        Else the account is rejecting: one failure, however many receipts the answer faults.
        """
        in_question = self.health.state is HealthState.REJECTING
        unproven: list[Refused] = []
        for fault in faults:
            if not in_question and self._evidence.against(fault.request_id):
                conclusion.refused.append(fault)
                self._asides.remove([fault.request_id])
            else:
                unproven.append(fault)
        now = self._clock.now_ms()
        if not unproven:
            self.health = self.health.nudged(now)
            return
        error = unproven[0].error
        self.health = self.health.rejected(
            self.settings.health, cause=f"{error.code}: {error.title}", now_ms=now
        )
        self._say(
            error.code,
            f"Smartswitch refuses what nothing proves to be bad ({error.code}: {error.title}: {error.detail});"
            " sending stops but for probes. Check the account's url and Smartswitch",
        )
        for fault in unproven:
            self._set_aside(fault.request_id, strike=False, refused=alone)
            conclusion.returned.append(fault.request_id)

    def _authentication_failed(self, work: Work, error: ReceiptError, *, coded: bool) -> Conclusion:
        if not coded and work.alone is not None and self._own_fault(work.alone):
            return self._strike(work.alone, error)
        self._suspend_judgement(work)
        if work.alone is not None:
            self._set_aside(work.alone, strike=not coded and self._others_succeeded(work.alone))
        self.health = self.health.authentication_failed(
            self.settings.health, cause=f"{error.code}: {error.title}", now_ms=self._clock.now_ms()
        )
        self._say(
            error.code,
            f"Smartswitch refuses the login or password ({error.code}: {error.title}); nothing is lost,"
            " sending stops but for probes. Correct the credentials and reload",
        )
        return Conclusion(returned=work.request_ids)

    def _outage(self, work: Work, error: ReceiptError, retry_after_ms: int | None) -> Conclusion:
        alone = work.alone
        own_fault = alone is not None and self._own_fault(alone)
        if not own_fault or retry_after_ms:
            self.health = self.health.outage(
                self.settings.health,
                cause=error.code,
                sent=len(work.claimed),
                probe=work.probe,
                retry_after_ms=retry_after_ms,
                now_ms=self._clock.now_ms(),
            )
        open_still = self.health.state is HealthState.OPEN
        if alone is not None and own_fault:
            self._follow_halving(work, found_bad=True)
            return self._strike(alone, error)
        self._say(error.code, f"no usable answer: {error.detail}")
        if alone is not None:
            succeeded = self._others_succeeded(alone)
            if succeeded or work.probe or alone in self._asides:
                self._follow_halving(work, found_bad=True)
                self._set_aside(alone, strike=succeeded)
            else:
                self._suspend_judgement(work)
        elif open_still and any(self._evidence.against(each) for each in work.request_ids):
            # Others go through, so one of these may draw it. Together they would keep each other from going.
            self._follow_halving(work, found_bad=True)
            self._suspects.split(work.request_ids)
        else:
            self._suspend_judgement(work)
        return Conclusion(returned=work.request_ids)

    # Suspicion

    def _others_succeeded(self, request_id: int) -> bool:
        """Whether others were acknowledged since this receipt last drew an outage alone (or was first tried)."""
        aside = self._asides.get(request_id)
        if aside is None:
            return self._evidence.against(request_id)
        return self._evidence.acknowledged > aside.acknowledged_before

    def _own_fault(self, request_id: int) -> bool:
        """Whether an outage that this receipt drew alone says nothing about the account.

        It has done so before, and others go through.
        """
        if self.health.state is not HealthState.OPEN or not self._others_succeeded(request_id):
            return False
        aside = self._asides.get(request_id)
        return request_id in self._convicted or (aside is not None and aside.strikes > 0)

    def _strike(self, request_id: int, error: ReceiptError) -> Conclusion:
        """Hold an outage against the receipt itself; from the tenth on it counts as a refusal."""
        strikes = (
            STRIKES_TO_REFUSE if request_id in self._convicted else self._set_aside(request_id, strike=True)
        )
        if strikes < STRIKES_TO_REFUSE:
            return Conclusion(returned=[request_id])
        self._convicted[request_id] = None
        while len(self._convicted) > MAX_SUSPECTS:
            self._convicted.pop(next(iter(self._convicted)))
        self._asides.remove([request_id])
        blamed = ReceiptError(
            "upstream-error",
            "Alone, this receipt draws errors while others go through",
            f"{error.code}: {error.detail}",
        )
        return Conclusion(refused=[Refused(request_id, blamed)])

    def _set_aside(self, request_id: int, *, strike: bool, refused: bool = False) -> int:
        aside = self._asides.get(request_id)
        strikes = (aside.strikes if aside is not None else 0) + strike
        wait_ms = self.settings.policy.backoff_ms(max(1, strikes))
        strikes, dropped = self._asides.put(
            request_id,
            strike=strike,
            refused=refused,
            due_ms=self._clock.now_ms() + wait_ms,
            acknowledged=self._evidence.acknowledged,
        )
        self._acquittals += dropped
        return strikes

    def _follow_halving(self, work: Work, *, found_bad: bool) -> None:
        """The left half was answered: if it was good, the bad one must be in the right half."""
        if work.halving is None or not work.halving.right:
            return
        right = work.halving.right
        if found_bad:
            self._acquittals += right
        elif len(right) == 1:
            self._suspects.resume(Halving(right, ()))
        else:
            self._suspects.accuse(right)

    def _close_halving(self, work: Work) -> None:
        if work.halving is not None:
            self._suspects.close(work.halving)

    def _suspend_judgement(self, work: Work) -> None:
        """The account, not the group, is in question: a bisection goes on later where it was."""
        if work.halving is not None:
            self._suspects.resume(work.halving)

    def _say(self, cause: str, text: str, *, level: int = logging.WARNING) -> None:
        """Log a line, at most once a minute for each cause."""
        now = self._clock.monotonic_ms()
        last = self._said.get(cause)
        if last is None or now - last >= SAY_EVERY_MS:
            self._said[cause] = now
            _log.log(level, "account %s: %s", self.settings.name, text)
        if len(self._said) > 1000:  # noqa: PLR2004 - far more causes than there are; a bound all the same
            self._said.clear()

    def _say_fault(self, error: BaseException) -> None:
        # Where it happened, but not its text, which nobody has cleared of credentials.
        where = "".join(traceback.format_tb(error.__traceback__))
        kind = type(error).__name__
        self._say(
            f"fault {kind}", f"an exchange failed in an unforeseen way: {kind}\n{where}", level=logging.ERROR
        )


class _Excluded:
    """Suspects and asides, seen as one collection."""

    def __init__(self, suspects: Suspects, asides: Asides) -> None:
        self._parts = (suspects, asides)

    def __contains__(self, request_id: object) -> bool:
        return any(request_id in part for part in self._parts)


def outcome_of(answer: Answer) -> str:
    """A short stable word for metrics."""
    match answer:
        case Answered(_, faulted, _):
            return "partial" if faulted else "acknowledged"
        case RequestRefused():
            return "refused"
        case TooLarge():
            return "too-large"
        case AuthenticationFailed():
            return "authentication"
        case Outage(cause):
            return cause
        case _:
            assert_never(answer)


async def first_of(*awaitables: Awaitable[object]) -> None:
    """Return when the first is done; end the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
