"""Flushing one account: what to send next, and what an answer means for the receipts and the account.

The loop of an account is one task. It asks account health for a permit, picks work from five lanes, and
starts a task for each exchange, at most ``concurrency`` of them:

- *fresh*: the oldest receipts that nothing is held against, as a batch;
- *suspects*: groups of a bisection, to find the bad receipt in a refused batch;
- *asides*: receipts that alone drew outages, one by one;
- *due*: receipts that were refused and waited out their own backoff, one by one, and those that an admin
  replays, as a batch;
- *left behind*: receipts like the asides, of which there are more than are remembered, one by one.

Fresh batches get at least every second turn. When an exchange ends, a `Judge`
turns the answer into one conclusion, which is settled; then the loop is woken. An
outage gives receipts back and writes nothing. What was picked is given back unsent if an answer that came
meanwhile forbids it. The reading of answers is `dlr_buffer.smartswitch`'s, claims
and settlements are storage's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, assert_never

from dlr_buffer.clock import Clock
from dlr_buffer.errors import DlrBufferError, StoreUnavailable
from dlr_buffer.flusher.batching import cut_batch
from dlr_buffer.flusher.judgement import Conclusion, Judge, Work, outcome_of
from dlr_buffer.flusher.ports import FlushSettings, Outbox, Upstream
from dlr_buffer.health import AccountHealth, AccountView, HealthState, Permit, Probe, Send, Wait
from dlr_buffer.logs import Event, about, place_of
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import Cut, DueClaim, Receipt, Refused

_log = logging.getLogger(__name__)

STORE_RETRY_MS: Final = 1_000
PROBED_REMEMBERED: Final = 100
LOOK_AGAIN_MS: Final = 60_000
"""The longest that the loop waits at once where it waits for a time."""
SAY_EVERY_MS: Final = 60_000


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
        self._paused = settings.paused
        self._judge = Judge(settings, clock, say=self._say, count=partial(metrics.account, settings.name))
        self._wake = asyncio.Event()
        self._exchanges: dict[asyncio.Task[None], Upstream] = {}
        self._writing: set[asyncio.Task[None]] = set()
        """Exchanges that are over, all acknowledged, and being written: the next request need not wait for that."""
        self._concluded: set[asyncio.Task[None]] = set()
        """Exchanges whose answer is known; a leaving account's are written to the end."""
        self.successor: AccountFlusher | None = None
        """Who flushes this account by now; it is told when an answer is written here."""
        self._in_flight: Counter[int] = Counter()
        """Receipts, and how many exchanges have each: one may be sent again before its last exchange has ended."""
        self._loop_task: asyncio.Task[None] | None = None
        self._started_over = False
        self._fresh_turn = True
        self._behind = 0
        """The receipt that was tried last of those left behind; 0 between two rounds."""
        self._next_round_ms = 0
        self._probe_behind = False
        self._nothing_to_probe = False
        """Whether a probe is due, but there is no receipt for it."""
        self._probe_newest = True
        self._probed: deque[int] = deque(maxlen=PROBED_REMEMBERED)
        """The newest ones that were probes lately: there may be no room to set them aside."""
        self._open_batch: tuple[int, int] | None = None
        """How many receipts wait in a batch that lingers, and how many it takes."""
        self._last_request_ms: float | None = None
        """When the last one went that a rate limit held for; not when the next one may go, for limits change."""
        self._stopping = False
        self._said: dict[str, int] = {}
        self._dead_unsaid = 0
        self._unwritten: dict[int, str] = {}
        self.turns = 0
        """Turns of the loop, and steps within them, for the watchdog."""

    # For the daemon

    @property
    def health(self) -> AccountHealth:
        """How the account is doing."""
        return self._judge.health

    def start(self) -> None:
        """Begin to send."""
        self._loop_task = asyncio.create_task(self._loop(), name=f"flush {self.settings.name}")
        self._loop_task.add_done_callback(self._loop_done)

    @property
    def failed(self) -> str | None:
        """Why the loop ended, if it did on its own."""
        task = self._loop_task
        if task is None or not task.done() or task.cancelled() or self._stopping:
            return None
        kind = type(task.exception()).__name__
        return f"flushing of account {self.settings.name} ended by an error that nobody foresaw ({kind}); see the log"

    @property
    def unwritten(self) -> str | None:
        """Why answers of Smartswitch are not in the database yet, if some could not be written; they are kept."""
        if not self._unwritten:
            return None
        *_, why = self._unwritten.values()
        return (
            f"account {self.settings.name}: {len(self._unwritten)} answers of Smartswitch can't be written, and are"
            f" tried again every second: {why}"
        )

    def wake(self) -> None:
        """Something may have become sendable."""
        self._wake.set()

    def start_over(self) -> None:
        """Look for receipts from the oldest on: whoever flushed this account before keeps none apart any more."""
        self._started_over = False
        self._wake.set()

    def arrived(self, receipts: int) -> None:
        """So many fresh receipts came; a batch that lingers is only looked at again once it may be full."""
        if self._open_batch is not None:
            waiting, limit = self._open_batch
            if waiting + receipts < limit:
                self._open_batch = (waiting + receipts, limit)
                return
        self._wake.set()

    def forget(self, request_ids: Sequence[int]) -> None:
        """An admin made these due now: nothing is held against them any more."""
        self._judge.forget(request_ids)
        self._wake.set()

    def replace(self, settings: FlushSettings, upstream: Upstream | None) -> None:
        """Take on new settings, and a new connection if it changed.

        A probe follows at once if the account was not open.
        """
        self.settings = self._judge.settings = settings
        if upstream is not None:
            self._retired.append(self._upstream)
            self._upstream = upstream
            self._judge.nudge()
        self._wake.set()

    def pause(self) -> None:
        """Start no more requests; those under way finish."""
        self._paused = True

    def resume(self) -> None:
        """Go on; an account that is not open is probed at once."""
        self._paused = False
        self._judge.nudge()
        self._wake.set()

    @property
    def writes(self) -> bool:
        """Whether answers of Smartswitch are still to be written."""
        return bool(self._concluded)

    async def stop(self, grace_ms: int, *, keep_writing: bool = False) -> None:
        """Start no more requests, give those under way ``grace_ms`` to finish, give the rest back.

        With ``keep_writing`` answers that are known go on being written until they are: the daemon stays, so no receipt
        has to be sent again for them, nor to stay in flight for ever.
        """
        # The loop ends by itself: cancelled in the middle of a claim, it would leave receipts in flight.
        self._stopping = True
        self._wake.set()
        tasks = {*self._exchanges, *self._writing}
        if self._loop_task is not None:
            tasks.add(self._loop_task)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_ms / 1000)
            if keep_writing:
                late -= self._concluded
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for upstream in (*self._retired, self._upstream):
            await upstream.aclose()

    def view(self) -> AccountView:
        """What `status` shows."""
        health, settings = self.health, self.settings
        now = self._clock.now_ms()
        probes = health.probe_at_ms is not None and health.state is not HealthState.OPEN and not self._paused
        waits = probes and not self._nothing_to_probe
        cause = health.cause
        if probes and self._nothing_to_probe:
            cause = f"{cause}; nothing waits to be sent, the next receipt will show whether it is over"
        return AccountView(
            name=settings.name,
            configured=True,
            health=HealthState.PAUSED if self._paused else health.state,
            since_ms=health.since_ms,
            cause=cause,
            next_probe_at_ms=health.probe_at_ms if waits else None,
            backoff_ms=max(0, health.probe_at_ms - now) if waits and health.probe_at_ms is not None else None,
            failures=health.failures,
            batch_limit=health.batch_limit(settings.health),
            concurrency=settings.health.concurrency,
            rate_limit=settings.rate_limit,
            max_receipts=settings.health.max_receipts,
            in_flight_requests=len(self._exchanges),
            in_flight_receipts=len(self._in_flight),
            set_aside=len(self._judge),
        )

    # The loop

    async def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._open_batch = None
            self.turns += 1
            await self._close_retired()
            try:
                if not self._started_over:
                    await self._start_over()
                await self._release_acquitted()
                until = await self._start_exchanges()
                if not all(each in self._in_flight for each in self._judge.acquitted):
                    self._wake.set()
            except DlrBufferError as error:
                self._say("store", f"cannot read the queue, trying again: {error}", event=Event.COMMIT_FAILED)
                until = self._clock.now_ms() + STORE_RETRY_MS
            await self._wait(until)

    def _loop_done(self, loop_task: asyncio.Task[None]) -> None:
        if not loop_task.cancelled() and (error := loop_task.exception()) is not None:
            self._say_fault(error, "flushing ended", "and nothing more is sent until the daemon starts anew")

    async def _start_over(self) -> None:
        # Whoever flushed this account before (until a reload) kept some apart in its own memory.
        self._started_over = True
        try:
            await self._outbox.start_over(self.settings.name)
        except DlrBufferError:
            self._started_over = False
            raise

    async def _wait(self, until_ms: int | None) -> None:
        """Wait until something happens, or until wall time ``until_ms``."""
        if until_ms is None:
            await self._wake.wait()
            return
        # The wall clock may leap meanwhile.
        wait_ms = min(max(1, until_ms - self._clock.now_ms()), LOOK_AGAIN_MS)
        await first_of(self._wake.wait(), self._clock.sleep(wait_ms))

    async def _start_exchanges(self) -> int | None:
        """Start as many requests as may go now; returns when to look again (None: when something happens)."""
        while True:
            self.turns += 1
            now = self._clock.now_ms()
            if self._paused or self._stopping:
                return None
            if (paced_ms := self._next_request_ms() - self._clock.monotonic_ms()) > 0:
                return now + math.ceil(paced_ms)
            permit = self._permit(now)
            match permit:
                case Wait(until):
                    return until
                case Probe():
                    work, again = await self._pick_probe(now)
                    self._nothing_to_probe = work is None and again is None
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
            self._last_request_ms = max(self._next_request_ms(), self._clock.monotonic_ms() - 1)
        self._judge.attempt(work)
        self._in_flight.update(work.request_ids)
        exchange = asyncio.create_task(
            self._exchange(work, self._upstream), name=f"send {self.settings.name}"
        )
        self._exchanges[exchange] = self._upstream
        exchange.add_done_callback(partial(self._exchange_done, work))

    def _next_request_ms(self) -> float:
        """When the rate limit lets the next request go, in monotonic time."""
        if not self.settings.rate_limit or self._last_request_ms is None:
            return 0.0
        return self._last_request_ms + 1000 / self.settings.rate_limit

    def _permit(self, now: int) -> Permit:
        return self.health.permit(self.settings.health, in_flight=len(self._exchanges), now_ms=now)

    def _still_permitted(self, permit: Permit, work: Work) -> bool:
        """Whether work may go that was picked under ``permit``.

        Answers may have come while it was claimed.
        """
        if self._paused or self._stopping:
            return False
        present = self._permit(self._clock.now_ms())
        if isinstance(present, Send):
            return len(work.claimed) <= present.limit
        return isinstance(present, Probe) and isinstance(permit, Probe)

    async def _give_back(self, work: Work) -> None:
        """Let work that was picked be picked again later; it was not sent."""
        self._judge.put_back(work)
        try:
            await self._settle(Conclusion(returned=work.request_ids), sent=False)
        except asyncio.CancelledError:
            self._outbox.give_back(self.settings.name, work.request_ids, sent=False)
            raise

    def _exchange_done(self, work: Work, exchange: asyncio.Task[None]) -> None:
        self._exchanges.pop(exchange, None)
        self._writing.discard(exchange)
        self._concluded.discard(exchange)
        for each in work.request_ids:
            self._in_flight[each] -= 1
            if not self._in_flight[each]:
                del self._in_flight[each]
        self._judge.asides.land(each for each in work.request_ids if each not in self._in_flight)
        self._wake.set()
        if self.successor is not None:
            self.successor.start_over()
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
        if self._judge.holds_back:
            return None, None
        waits = 0

        def cut(waiting: Sequence[Receipt]) -> Cut:
            nonlocal waits
            decision = cut_batch(
                waiting,
                limit=limit,
                budget_bytes=self.settings.budget_bytes,
                linger_ms=self.settings.linger_ms,
                now_ms=now,
            )
            waits = 0 if decision.take else len(waiting)
            return decision

        claim = await self._outbox.claim(self.settings.name, limit=limit, excluding=self._judge, cut=cut)
        if claim.claimed:
            return Work(claim.claimed), None
        if waits:
            self._open_batch = (waits, limit)
        return None, claim.ready_at_ms

    async def _troubled(self, limit: int, now: int) -> tuple[Work | None, int | None]:
        while (halving := self._judge.suspects.next(limit)) is not None:
            claim = await self._outbox.claim_these(self.settings.name, halving.left)
            if claim.claimed:
                return Work(claim.claimed, halving=halving), None
            self._judge.suspects.close(halving)
            # All of that half were taken away meanwhile (held, deleted, superseded), perhaps to come back:
            # the other half is as good as any.
            self._judge.acquitted += (*halving.left, *halving.right)
        judge, longest_ms = self._judge, self.settings.health.retry_max_ms
        while (aside := judge.asides.due(now, longest_ms, judge.acknowledged)) is not None:
            if (work := await self._take_aside(aside)) is not None:
                return work, None
        times: list[int | None] = [judge.asides.next_due_ms(longest_ms, judge.acknowledged)]
        if (until_ms := judge.refusals_wait_until_ms) is not None:
            times.append(now + max(0, until_ms - self._clock.monotonic_ms()))
        else:
            due = await self._claim_due(now, limit)
            if due.claimed is not None:
                return Work((due.claimed, *due.company)), None
            times.append(due.next_due_at_ms)
        if self._round_is_due() and (work := await self._left_behind()) is not None:
            return work, None
        if judge.left_behind:
            times.append(now + max(0, self._next_round_ms - self._clock.monotonic_ms()))
        return None, min((each for each in times if each is not None), default=None)

    def _round_is_due(self) -> bool:
        """Whether those that nobody remembers may be tried again.

        Each once in the longest backoff, or as soon as they can be remembered.
        """
        if not self._judge.left_behind and not self._behind:
            return False
        return self._judge.asides.has_room or self._clock.monotonic_ms() >= self._next_round_ms

    async def _left_behind(self, *, probe: bool = False) -> Work | None:
        """The next one that was left behind; None at the end of the round."""
        if not self._behind:
            # Whoever is left behind from now on waits for the next round.
            self._judge.left_behind = False
        claim = await self._outbox.claim_behind(self.settings.name, after=self._behind, excluding=self._judge)
        if claim.claimed:
            self._behind = claim.claimed[0].receipt.request_id
            return Work(claim.claimed, probe=probe, behind=True)
        self._behind = 0
        self._next_round_ms = self._clock.monotonic_ms() + self.settings.health.retry_max_ms
        return None

    async def _take_aside(self, request_id: int, *, probe: bool = False) -> Work | None:
        claim = await self._outbox.claim_these(self.settings.name, [request_id])
        if claim.claimed:
            self._judge.asides.depart(request_id)
            return Work(claim.claimed, probe=probe)
        self._judge.asides.remove([request_id])
        # It may have been held and released while it was passed over here.
        self._judge.acquitted.append(request_id)
        return None

    async def _pick_probe(self, now: int) -> tuple[Work | None, int | None]:
        """One receipt, each time another one: fresh ones first, then the one that was tried longest ago."""
        # The oldest and the newest in turn: bad ones are found side by side, where a batch was taken apart.
        self._probe_newest = not self._probe_newest
        if self._probe_newest:
            claim = await self._outbox.claim_newest(
                self.settings.name, excluding={*self._probed, *self._judge.kept_apart()}
            )
            self._probed += (each.receipt.request_id for each in claim.claimed)
        else:
            claim = await self._outbox.claim(
                self.settings.name, limit=1, excluding=self._judge, cut=lambda _waiting: Cut(1)
            )
        if claim.claimed:
            return Work(claim.claimed, probe=True), None
        if (halving := self._judge.suspects.next(limit=1)) is not None:
            self._judge.suspects.close(halving)
            self._judge.acquitted += (*halving.left, *halving.right)
            await self._release_acquitted()
            return await self._pick_probe(now)
        due = await self._claim_due(now, 1)
        if due.claimed is not None:
            return Work((due.claimed,), probe=True), None
        self._probe_behind = not self._probe_behind and (self._judge.left_behind or self._behind > 0)
        if self._probe_behind and (work := await self._left_behind(probe=True)) is not None:
            return work, None
        while (aside := self._judge.asides.longest_untried()) is not None:
            if (work := await self._take_aside(aside, probe=True)) is not None:
                return work, None
        return None, due.next_due_at_ms

    async def _claim_due(self, now: int, limit: int) -> DueClaim:
        return await self._outbox.claim_due(
            self.settings.name,
            now_ms=now,
            horizon_ms=self.settings.health.retry_max_ms,
            excluding=self._judge,
            limit=1 if self._judge.holds_back else limit,
            # Replays wait for no others.
            cut=partial(
                cut_batch, limit=limit, budget_bytes=self.settings.budget_bytes, linger_ms=0, now_ms=now
            ),
        )

    async def _release_acquitted(self) -> None:
        # One that is in flight has to come back first: its exchange may have said already that it is kept apart.
        acquitted = list(self._judge.acquitted)
        waiting = [each for each in acquitted if each in self._in_flight]
        released = [each for each in acquitted if each not in self._in_flight]
        if released:
            await self._outbox.settle(
                self.settings.name,
                returned=released,
                sent=False,
                policy=self.settings.policy,
                now_ms=self._clock.now_ms(),
            )
        # Only now: they would be forgotten if the database failed. More may have come meanwhile.
        self._judge.acquitted[: len(acquitted)] = waiting

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
            conclusion = self._judge.conclude(work, answer)
        except asyncio.CancelledError:
            # The daemon stops, or the account leaves: what became of it is unknown, so it waits again, under its id.
            if not await self._settle(Conclusion(returned=work.request_ids), once=True):
                # Nobody tries again; if the account comes back, none of its receipts may be in flight.
                self._outbox.give_back(self.settings.name, work.request_ids, sent=True)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the receipts must not stay in flight
            self._say_fault(error)
            conclusion = self._judge.unforeseen(work)
        if (exchange := asyncio.current_task()) is not None:
            self._concluded.add(exchange)
        if upstream is not self._upstream:
            # What the old connection met says nothing about the new one, which is to be tried at once.
            self._judge.nudge()
        if not conclusion.refused and not conclusion.returned:
            self._make_way()
        await self._settle(conclusion, unwaited=_left_behind_while_due(work, conclusion))

    def _make_way(self) -> None:
        """Let another request start while this one's acknowledgements are written, if the database keeps up."""
        exchange = asyncio.current_task()
        if (
            exchange is not None
            and exchange in self._exchanges
            and len(self._writing) < self.settings.health.concurrency
        ):
            del self._exchanges[exchange]
            self._writing.add(exchange)
            self._wake.set()

    async def _close_retired(self) -> None:
        """Close connections that were replaced, once their last request has ended."""
        used = list(self._exchanges.values())
        for upstream in [each for each in self._retired if each not in used]:
            self._retired.remove(upstream)
            try:
                await upstream.aclose()
            except Exception as error:  # noqa: BLE001 - a connection that is given up must not end the loop
                self._say_fault(error)

    async def _settle(
        self,
        conclusion: Conclusion,
        *,
        unwaited: Sequence[int] = (),
        sent: bool = True,
        once: bool = False,
    ) -> bool:
        """Write a conclusion; if the database has a moment of weakness, keep trying unless ``once``.

        Returns whether it is written.

        The answer is known only here, and its receipts stay in flight meanwhile: nothing is sent again for it.
        """
        while True:
            try:
                settled = await self._outbox.settle(
                    self.settings.name,
                    acknowledged=conclusion.acknowledged,
                    refused=conclusion.refused,
                    returned=conclusion.returned,
                    apart=conclusion.behind.union(
                        each for each in conclusion.returned if each in self._judge
                    ),
                    unwaited=unwaited,
                    sent=sent,
                    policy=self.settings.policy,
                    now_ms=self._clock.now_ms(),
                )
            except DlrBufferError as error:
                self._metrics.events({"store_failures": 1})
                self._say(
                    "store",
                    f"cannot write what Smartswitch answered, trying again: {error}",
                    event=Event.COMMIT_FAILED,
                )
                # For good: the daemon ends, and need not wait for this.
                if once or (isinstance(error, StoreUnavailable) and error.fatal):
                    return False
                self._unwritten[id(conclusion)] = str(error)
                try:
                    await self._clock.sleep(STORE_RETRY_MS)
                except asyncio.CancelledError:
                    del self._unwritten[id(conclusion)]
                    raise
            else:
                self._unwritten.pop(id(conclusion), None)
                if settled.dead:
                    self._say_dead(settled.dead, conclusion.refused[-1])
                return True

    def _say_dead(self, number: int, last: Refused) -> None:
        """Log that receipts were given up: how many since that was logged before, and why the last one."""
        self._dead_unsaid += number
        name, error = self.settings.name, last.error
        if self._say(
            "dead",
            f"{self._dead_unsaid} given up as dead letters, the last receipt {last.request_id}: Smartswitch refuses it"
            f" ({error.code}: {error.title}). See 'dlr-buffer list receipts --account {name} --status dead', mend the"
            " cause, then 'dlr-buffer retry'",
            event=Event.DEAD_LETTER,
            receipt=last.request_id,
            error_code=error.code,
        ):
            self._dead_unsaid = 0

    def _say(  # noqa: PLR0913 - a line, and what it is about by name
        self,
        cause: str,
        text: str,
        *,
        level: int = logging.WARNING,
        event: Event | None = None,
        receipt: int | None = None,
        error_code: str | None = None,
    ) -> bool:
        """Log a line, at most once a minute for each cause; returns whether it was logged."""
        now = self._clock.monotonic_ms()
        last = self._said.get(cause)
        due = last is None or now - last >= SAY_EVERY_MS
        if due:
            self._said[cause] = now
            extra = about(
                event, account=self.settings.name, cause=cause, receipt=receipt, error_code=error_code
            )
            _log.log(level, "account %s: %s", self.settings.name, text, extra=extra)
        if len(self._said) > 1000:  # noqa: PLR2004 - far more causes than there are; a bound all the same
            self._said.clear()
        return due

    def _say_fault(
        self, error: BaseException, what: str = "an exchange failed", then: str = "and is tried again"
    ) -> None:
        kind = type(error).__name__
        self._say(
            f"{what}: {kind}",
            f"{what} in a way that nobody foresaw ({kind}), {then}; please report it\n{place_of(error)}",
            level=logging.ERROR,
            event=Event.DEFECT,
        )


def _left_behind_while_due(work: Work, conclusion: Conclusion) -> list[int]:
    """Those that nobody remembers, and that would be due again at once: without end, and before all others."""
    return [
        each.receipt.request_id
        for each in work.claimed
        if each.receipt.request_id in conclusion.behind and each.receipt.next_attempt_at_ms is not None
    ]


async def first_of(*awaitables: Awaitable[object]) -> None:
    """Return when the first is done; end the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
