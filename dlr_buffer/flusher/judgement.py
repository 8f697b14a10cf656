"""What an answer means: for the receipts of a request, and for the account. Memory only, no I/O.

A `Judge` belongs to one account. It holds account health and the suspicion against receipts, and turns each
answer into one `Conclusion` to settle, by the rows of DESIGN §4's table. Receipts that it keeps apart are not
claimed as fresh ones; whoever leaves its memory without being settled goes through `acquitted`, so that the
queue offers it again (the claim cursor has passed it). What is sent next is `account`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from dlr_buffer.clock import Clock
from dlr_buffer.flusher.ports import FlushSettings
from dlr_buffer.flusher.suspicion import (
    MAX_BLAMED,
    MAX_SUSPECTS,
    STRIKES_TO_REFUSE,
    Asides,
    Evidence,
    Halving,
    Suspects,
)
from dlr_buffer.health import AccountHealth, HealthState
from dlr_buffer.logs import Event
from dlr_buffer.receipts import Acknowledged, Claimed, ReceiptError, Refused
from dlr_buffer.smartswitch.answers import (
    Answer,
    Answered,
    AuthenticationFailed,
    Outage,
    RequestRefused,
    TooLarge,
)


@dataclass(frozen=True, slots=True)
class Work:
    """Receipts for one request, all claimed, and why they go together."""

    claimed: tuple[Claimed, ...]
    probe: bool = False
    halving: Halving | None = None
    behind: bool = False
    """It was left behind: it has drawn an outage alone, or was refused, before."""

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
    behind: set[int] = field(default_factory=set)
    """Those of the returned ones that ought to be kept apart, but that there was no room for."""


class Say(Protocol):
    """Logs a line about the account, at most once a minute for each cause."""

    def __call__(
        self,
        cause: str,
        text: str,
        *,
        level: int = logging.WARNING,
        event: Event | None = None,
        receipt: int | None = None,
    ) -> object:
        """Log ``text``, as being of that kind, and about that receipt."""
        ...


class Judge:
    """Judges the answers that one account draws."""

    def __init__(
        self, settings: FlushSettings, clock: Clock, *, say: Say, count: Callable[[str, int], None]
    ) -> None:
        """Hold nothing against anybody; ``count`` adds to a total of the account's metrics."""
        self.settings = settings
        self._clock = clock
        self._say = say
        self._count = count
        self.health = AccountHealth(since_ms=clock.now_ms())
        self.suspects = Suspects()
        self.asides = Asides()
        self.acquitted: list[int] = []
        """Receipts that may be claimed as fresh ones again; the account tells the queue."""
        self.left_behind = False
        """Whether there are receipts that nobody remembers, and that the queue does not offer before it starts over."""
        self._evidence = Evidence()
        self._accused_at = -1
        self._blamed: set[int] = set()
        """Receipts refused since something was acknowledged."""
        self._blamed_last_ms = 0
        self._convicted: dict[int, None] = {}

    def __contains__(self, request_id: object) -> bool:
        """Whether this receipt is kept apart from the fresh ones."""
        return request_id in self.suspects or request_id in self.asides

    def kept_apart(self) -> set[int]:
        """The ids of all that are kept apart."""
        return {*self.suspects.ids(), *self.asides.ids()}

    def __len__(self) -> int:
        """How many receipts are kept apart."""
        return len(self.suspects) + len(self.asides)

    @property
    def holds_back(self) -> bool:
        """Whether new batches have to wait.

        Until a suspicion is confirmed by something that works, more of the same would only add to it.
        """
        unconfirmed = len(self.suspects) and self._evidence.acknowledged == self._accused_at
        return bool(unconfirmed) or len(self.suspects) >= MAX_SUSPECTS

    @property
    def acknowledged(self) -> int:
        """How many receipts were acknowledged so far."""
        return self._evidence.acknowledged

    @property
    def refusals_wait_until_ms(self) -> int | None:
        """Monotonic time until which receipts that were refused before are not tried, None if they may be.

        Where nothing goes through between, another one would put the account in question.
        """
        if len(self._blamed) < MAX_BLAMED:
            return None
        until_ms = self._blamed_last_ms + self.settings.health.retry_max_ms
        return until_ms if self._clock.monotonic_ms() < until_ms else None

    def nudge(self) -> None:
        """Something was changed that may mend the account: it may be probed at once."""
        self.health = self.health.nudged(self._clock.now_ms())

    def attempt(self, work: Work) -> None:
        """These go on the wire now."""
        for request_id in self._evidence.attempt(work.claimed):
            # An admin replays it: nothing is held against it any more.
            self._convicted.pop(request_id, None)
            self.asides.remove([request_id])

    def forget(self, request_ids: Sequence[int]) -> None:
        """An admin replays these, which are not in flight: those that are kept apart may go as fresh ones.

        Whoever replays has mended something: what was refused lately need not wait for others to go through.
        """
        for request_id in request_ids:
            self._convicted.pop(request_id, None)
        if request_ids:
            self._blamed.clear()
        self.acquitted += self.asides.release(request_ids)

    def put_back(self, work: Work) -> None:
        """These were picked, but are not sent after all."""
        self.asides.land(work.request_ids)
        self._close_halving(work)
        self._suspend_judgement(work)

    def conclude(self, work: Work, answer: Answer) -> Conclusion:
        """Draw the conclusion of an answer, for the receipts (returned) and for the account (remembered)."""
        self._close_halving(work)
        conclusion = self._conclude(work, answer)
        if self.health.state in (HealthState.BACKING_OFF, HealthState.SUSPENDED):
            self._evidence.begin_era()
        return conclusion

    def unforeseen(self, work: Work) -> Conclusion:
        """A fault of ours must neither keep receipts in flight for ever nor send them over and over at once."""
        self._close_halving(work)
        if work.halving is not None:
            self.acquitted += (*work.halving.left, *work.halving.right)
        self.health = self.health.outage(
            self.settings.health,
            cause="internal",
            sent=len(work.claimed),
            probe=work.probe,
            retry_after_ms=None,
            now_ms=self._clock.now_ms(),
        )
        return Conclusion(returned=work.request_ids)

    def _conclude(self, work: Work, answer: Answer) -> Conclusion:
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
                    f"a request with {len(work.claimed)} receipts was too large: batches are halved, and grow back. If"
                    " that happens often, lower max_receipts or max_url_bytes of its batch",
                    event=Event.BATCH_TOO_LARGE,
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
        if acknowledged:
            self._blamed.clear()
        self.asides.remove(acknowledged)
        for each in acknowledged:
            self._convicted.pop(each, None)
        if answer.violations:
            self._count("violations", answer.violations)
            self._say(
                "protocol",
                f"an answer held {answer.violations} entries that break the protocol; they were ignored, and what is"
                " not confirmed is sent again. Tell those who run Smartswitch",
                event=Event.PROTOCOL_VIOLATION,
            )
        # One that was under way when the account fell says nothing about how it is now; only a probe does.
        if acknowledged and (work.probe or self.health.state is HealthState.OPEN):
            if self.health.state is not HealthState.OPEN:
                self._say(
                    "open",
                    "Smartswitch acknowledges again; it is open",
                    level=logging.INFO,
                    event=Event.ACCOUNT_OPEN,
                )
                self.acquitted += self.asides.acquit()
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
        self._count("bisections", 1)
        self._say(
            "refused",
            f"a batch of {len(work.claimed)} was refused ({error.code}: {error.title}); looking for the bad receipt",
            event=Event.BATCH_REFUSED,
        )
        self._follow_halving(work, found_bad=True)
        self.suspects.accuse(work.request_ids)
        self._accused_at = self._evidence.acknowledged
        return conclusion

    def _blame(self, conclusion: Conclusion, faults: Sequence[Refused], *, alone: bool) -> None:
        """Count refusals where there is evidence and the account is not in question.

        Else the account is rejecting: one failure, however many receipts the answer faults.
        """
        in_question = self.health.state is HealthState.REJECTING
        unproven: list[Refused] = []
        for fault in faults:
            if not in_question and self._evidence.against(fault.request_id) and self._may_blame(fault):
                conclusion.refused.append(fault)
                if not conclusion.acknowledged:
                    self._blamed.add(fault.request_id)
                    self._blamed_last_ms = self._clock.monotonic_ms()
                self.asides.remove([fault.request_id])
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
            "rejecting",
            f"Smartswitch refuses what nothing proves to be bad ({error.code}: {error.title}: {error.detail});"
            " sending stops but for probes. Check the account's url and Smartswitch",
            event=Event.ACCOUNT_REJECTING,
            receipt=unproven[0].request_id if alone else None,
        )
        for fault in unproven:
            conclusion.returned.append(fault.request_id)
            self._set_aside(conclusion, fault.request_id, strike=False, refused=alone)

    def _may_blame(self, fault: Refused) -> bool:
        """Whether it is believable that the receipt is bad.

        Not if one after another is refused and none goes through.
        """
        return fault.request_id in self._blamed or len(self._blamed) < MAX_BLAMED

    def _authentication_failed(self, work: Work, error: ReceiptError, *, coded: bool) -> Conclusion:
        if not coded and work.alone is not None and self._is_suspect(work, work.alone):
            return self._outage_of_suspect(work, work.alone, error)
        self._suspend_judgement(work)
        conclusion = Conclusion(returned=work.request_ids)
        if work.alone is not None:
            self._set_aside(conclusion, work.alone, strike=not coded and self._others_succeeded(work.alone))
        self.health = self.health.authentication_failed(
            self.settings.health, cause=f"{error.code}: {error.title}", now_ms=self._clock.now_ms()
        )
        self._say(
            "authentication",
            f"Smartswitch refuses the login or password ({error.code}: {error.title}); nothing is lost,"
            " sending stops but for probes. Correct the credentials and reload",
            event=Event.ACCOUNT_SUSPENDED,
        )
        return conclusion

    def _outage(self, work: Work, error: ReceiptError, retry_after_ms: int | None) -> Conclusion:
        alone = work.alone
        suspect = alone is not None and self._is_suspect(work, alone)
        if not suspect:
            self.health = self.health.outage(
                self.settings.health,
                cause=error.code,
                sent=len(work.claimed),
                probe=work.probe,
                retry_after_ms=retry_after_ms,
                now_ms=self._clock.now_ms(),
            )
        open_still = self.health.state is HealthState.OPEN
        if alone is not None and suspect:
            wait_ms = min(retry_after_ms or 0, self.settings.health.retry_max_ms)
            return self._outage_of_suspect(work, alone, error, wait_ms=wait_ms)
        self._say(
            error.code,
            f"no usable answer: {error.detail}; nothing is lost, and it is tried again",
            event=Event.ACCOUNT_OUTAGE,
            receipt=alone,
        )
        conclusion = Conclusion(returned=work.request_ids)
        if alone is not None:
            succeeded = self._others_succeeded(alone)
            if succeeded or work.probe or alone in self.asides:
                self._follow_halving(work, found_bad=True)
                self._set_aside(conclusion, alone, strike=succeeded)
            else:
                self._suspend_judgement(work)
        elif open_still and any(self._evidence.others_succeeded(each) for each in work.request_ids):
            # Others go through, so one of these may draw it. Together they would keep each other from going.
            self._follow_halving(work, found_bad=True)
            self.suspects.split(work.request_ids)
        else:
            self._suspend_judgement(work)
        return conclusion

    # Suspicion

    def _others_succeeded(self, request_id: int) -> bool:
        """Whether others were acknowledged since this receipt last drew an outage alone (or was first tried)."""
        aside = self.asides.get(request_id)
        if aside is None:
            return self._evidence.others_succeeded(request_id)
        return self._evidence.acknowledged > aside.acknowledged_before

    def _is_suspect(self, work: Work, request_id: int) -> bool:
        """Whether an outage that this receipt drew alone says nothing about the account.

        It has done so before, while others went through.
        """
        if self.health.state is not HealthState.OPEN:
            return False
        aside = self.asides.get(request_id)
        return work.behind or request_id in self._convicted or (aside is not None and aside.strikes > 0)

    def _outage_of_suspect(
        self, work: Work, request_id: int, error: ReceiptError, *, wait_ms: int = 0
    ) -> Conclusion:
        self._follow_halving(work, found_bad=True)
        if self._others_succeeded(request_id):
            return self._strike(request_id, error, wait_ms=wait_ms)
        # Nothing went through since it was tried last: it proves nothing against the receipt either.
        conclusion = Conclusion(returned=[request_id])
        self._set_aside(conclusion, request_id, strike=False, wait_ms=wait_ms)
        return conclusion

    def _strike(self, request_id: int, error: ReceiptError, *, wait_ms: int = 0) -> Conclusion:
        """Hold an outage against the receipt itself; from the tenth on it counts as a refusal."""
        conclusion = Conclusion(returned=[request_id])
        strikes = (
            STRIKES_TO_REFUSE
            if request_id in self._convicted
            else self._set_aside(conclusion, request_id, strike=True, wait_ms=wait_ms)
        )
        if strikes < STRIKES_TO_REFUSE:
            return conclusion
        self._convicted[request_id] = None
        while len(self._convicted) > MAX_SUSPECTS:
            self._convicted.pop(next(iter(self._convicted)))
        self.asides.remove([request_id])
        blamed = ReceiptError(
            "upstream-error",
            "Alone, this receipt draws errors while others go through",
            f"{error.code}: {error.detail}",
        )
        return Conclusion(refused=[Refused(request_id, blamed)])

    def _set_aside(
        self,
        conclusion: Conclusion,
        request_id: int,
        *,
        strike: bool,
        refused: bool = False,
        wait_ms: int = 0,
    ) -> int:
        """Keep a receipt that ``conclusion`` returns apart; returns its strikes."""
        aside = self.asides.get(request_id)
        strikes = (aside.strikes if aside is not None else 0) + strike
        wait_ms = max(wait_ms, self.settings.policy.backoff_ms(max(1, strikes)))
        kept = self.asides.put(
            request_id,
            strike=strike,
            refused=refused,
            due_ms=self._clock.now_ms() + wait_ms,
            acknowledged=self._evidence.acknowledged,
        )
        if kept is None:
            # Offered at once as the oldest fresh one, it would be in the way of all others.
            conclusion.behind.add(request_id)
            self.left_behind = True
        return strikes

    def _follow_halving(self, work: Work, *, found_bad: bool) -> None:
        """The left half was answered: if it was good, the bad one must be in the right half."""
        if work.halving is None or not work.halving.right:
            return
        right = work.halving.right
        if found_bad:
            self.acquitted += right
        elif len(right) == 1:
            self.suspects.resume(Halving(right, ()))
        else:
            self.suspects.accuse(right)

    def _close_halving(self, work: Work) -> None:
        if work.halving is not None:
            self.suspects.close(work.halving)
            # Who was taken away (held, for one) when the rest of the half was claimed may have come back.
            claimed = set(work.request_ids)
            self.acquitted += [each for each in work.halving.left if each not in claimed]

    def _suspend_judgement(self, work: Work) -> None:
        """The account, not the group, is in question: a bisection goes on later where it was."""
        if work.halving is not None:
            self.suspects.resume(work.halving)


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
