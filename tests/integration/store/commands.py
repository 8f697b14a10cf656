"""What can be asked of a queue, and which answers the model allows.

A command is asked of the real queue with `ask`; `judge` checks its answer against a model and does to the
model what was done to the queue. Commands are plain records, so several can be asked at once and then tried
against the model in every order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from dlr_buffer.errors import MessageFinal, NotFound, UnknownAccount
from dlr_buffer.messages import MessageState, Registration, Report
from dlr_buffer.receipt_queue.queue import ReceiptQueue
from dlr_buffer.receipts import (
    Acknowledged,
    Claim,
    Claimed,
    Cut,
    DueClaim,
    Receipt,
    ReceiptAction,
    ReceiptError,
    ReceiptStatus,
    RefusalPolicy,
    Refused,
    Registered,
    Reported,
    Settled,
)
from dlr_buffer.selection import MessageAction, MessageFilter, MessageName, Page, ReceiptFilter
from tests.integration.store.database import WholeStore
from tests.integration.store.model import (
    DEAD,
    PENDING,
    SUPERSEDED,
    KeptReceipt,
    Model,
    Name,
    Outcome,
    over,
)

T = TypeVar("T")

READY_AT: Final = 1_234_567
"""What a cut of nothing says; it comes back as it is."""
ERRORS: Final = (
    ReceiptError("no-such-message", "No such message", "Please check the id"),
    ReceiptError("internal", "", "”ü\u2028 ' --"),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where commands are asked, and what they take from there."""

    queue: ReceiptQueue
    store: WholeStore
    now: int


async def pages(turn: Callable[..., Awaitable[Page[T]]], narrow: object, *, limit: int) -> list[T]:
    """Every item of a list, page by page."""
    items: list[T] = []
    after: int | None = 0
    while after is not None:
        page = await turn(narrow, after=after, limit=limit)
        assert len(page.items) <= limit
        items += page.items
        after = page.next_after
    return items


class Command(Protocol):
    """Something to ask."""

    async def ask(self, ground: Ground) -> object:
        """Ask it of the real queue."""
        ...

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Raise AssertionError unless the model allows this answer; bring the model up to it."""
        ...


@dataclass(frozen=True, slots=True)
class Register:
    """An app registers messages; validity in seconds."""

    items: tuple[tuple[Name, int | None], ...]

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        items = [Registration(name[1], name[0], validity) for name, validity in self.items]
        return await ground.queue.register(items)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Every item has the outcome it would have alone."""
        settings = ground.queue.settings
        expected: list[Outcome] = []
        for name, validity in self.items:
            if name[0] not in settings.accounts:
                expected.append(UnknownAccount(name[0], ()))
                continue
            expected.append(
                model.register(
                    name,
                    validity_ms=None if validity is None else validity * 1000,
                    default_validity_ms=settings.default_validity_ms,
                    now=ground.now,
                )
            )
        _compare_outcomes(answer, expected)


@dataclass(frozen=True, slots=True)
class ReportStates:
    """An app reports states."""

    items: tuple[tuple[Name, MessageState], ...]

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        return await ground.queue.report([Report(name[1], state, name[0]) for name, state in self.items])

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Every item has the outcome it would have alone."""
        settings = ground.queue.settings
        expected: list[Outcome] = [
            model.report(
                name,
                state,
                default_validity_ms=settings.default_validity_ms,
                may_register=settings.register_unknown and name[0] in settings.accounts,
                now=ground.now,
            )
            for name, state in self.items
        ]
        _compare_outcomes(answer, expected)


def _compare_outcomes(answer: object, expected: Sequence[Outcome]) -> None:
    assert isinstance(answer, list)
    assert len(answer) == len(expected)
    for got, due in zip(answer, expected, strict=True):
        match due:
            case Registered() | Reported():
                assert got == due
            case MessageFinal():
                assert isinstance(got, MessageFinal)
                assert got.state == due.state
            case _:
                assert type(got) is type(due)


@dataclass(frozen=True, slots=True)
class ClaimFresh:
    """The flusher asks for a batch; its cut takes ``take`` of what it is shown."""

    account: str
    limit: int
    take: int
    excluding: frozenset[int]

    async def ask(self, ground: Ground) -> object:
        """As the flusher does; answers with what the cut was shown, too."""
        offered: list[int] = []

        def cut(receipts: Sequence[Receipt]) -> Cut:
            offered.extend(each.request_id for each in receipts)
            return Cut(min(self.take, len(receipts)), READY_AT)

        claim = await ground.store.claim(self.account, limit=self.limit, excluding=self.excluding, cut=cut)
        return offered, claim

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """The oldest that may be sent, in order, none left out but those that were passed over on demand."""
        assert isinstance(answer, tuple)
        offered, claim = answer
        assert isinstance(claim, Claim)
        fresh = [each for each in model.sendable(self.account) if each.next_attempt_at is None]
        possible = [each.request_id for each in fresh if each.request_id not in self.excluding]
        certain = [each for each in possible if each not in model.passed]
        assert offered == sorted(set(offered) & set(possible))
        assert len(offered) <= self.limit
        missing = set(certain) - set(offered)
        if missing:
            assert len(offered) == self.limit
            assert min(missing) > max(offered)
        assert [each.receipt.request_id for each in claim.claimed] == offered[: self.take]
        assert claim.ready_at_ms == (READY_AT if offered else None)
        model.passed |= {each.request_id for each in fresh} & self.excluding
        for each in claim.claimed:
            _take(model, each)


@dataclass(frozen=True, slots=True)
class ClaimNewest:
    """The flusher asks for the newest fresh one."""

    account: str
    excluding: frozenset[int]

    async def ask(self, ground: Ground) -> object:
        """As the flusher does."""
        return await ground.store.claim_newest(self.account, excluding=self.excluding)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """The newest that may be sent, even if a claim in order would pass it over."""
        assert isinstance(answer, Claim)
        fresh = [each.request_id for each in model.sendable(self.account) if each.next_attempt_at is None]
        possible = [each for each in fresh if each not in self.excluding]
        assert [each.receipt.request_id for each in answer.claimed] == possible[-1:]
        for each in answer.claimed:
            _take(model, each)


@dataclass(frozen=True, slots=True)
class ClaimBehind:
    """The flusher asks for the next of those that a claim in order passed."""

    account: str
    after: int
    excluding: frozenset[int]

    async def ask(self, ground: Ground) -> object:
        """As the flusher does."""
        return await ground.store.claim_behind(self.account, after=self.after, excluding=self.excluding)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """The first that may be sent behind there, or none: where a claim in order stands is not shown."""
        assert isinstance(answer, Claim)
        fresh = [each.request_id for each in model.sendable(self.account) if each.next_attempt_at is None]
        possible = [each for each in fresh if each not in self.excluding and each > self.after]
        assert [each.receipt.request_id for each in answer.claimed] in ([], possible[:1])
        for each in answer.claimed:
            _take(model, each)


@dataclass(frozen=True, slots=True)
class ClaimDue:
    """The flusher asks for one that waited out a refusal."""

    account: str
    horizon_ms: int
    excluding: frozenset[int]

    async def ask(self, ground: Ground) -> object:
        """As the flusher does."""
        return await ground.store.claim_due(
            self.account,
            now_ms=ground.now,
            horizon_ms=self.horizon_ms,
            excluding=self.excluding,
            limit=1,
            cut=lambda due: Cut(len(due)),
        )

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """The one due longest, else one too far ahead; if there is none, no later than the next one's time."""
        assert isinstance(answer, DueClaim)
        waiting: dict[int, tuple[int, KeptReceipt]] = {
            each.request_id: (each.next_attempt_at, each)
            for each in model.sendable(self.account)
            if each.next_attempt_at is not None and each.request_id not in self.excluding
        }
        due = [at for at, _ in waiting.values() if at <= ground.now]
        ahead = [at for at, _ in waiting.values() if ground.now < at <= ground.now + self.horizon_ms]
        far = [at for at, _ in waiting.values() if at > ground.now + self.horizon_ms]
        if answer.claimed is None:
            assert not due
            assert not far
            if ahead:
                assert answer.next_due_at_ms is not None
                assert ground.now < answer.next_due_at_ms <= min(ahead)
            return
        at, _ = waiting[answer.claimed.receipt.request_id]
        assert at == min(due) if due else at in far
        _take(model, answer.claimed)


@dataclass(frozen=True, slots=True)
class ClaimThese:
    """The flusher asks for some by name."""

    account: str
    request_ids: tuple[int, ...]

    async def ask(self, ground: Ground) -> object:
        """As the flusher does."""
        return await ground.store.claim_these(self.account, self.request_ids)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """All of them that may be sent, whether due or not."""
        assert isinstance(answer, Claim)
        expected = [
            each.request_id for each in model.sendable(self.account) if each.request_id in self.request_ids
        ]
        assert [each.receipt.request_id for each in answer.claimed] == expected
        for each in answer.claimed:
            _take(model, each)


def _take(model: Model, claimed: Claimed) -> None:
    kept = model.receipts[claimed.receipt.request_id]
    shown, got = kept.shown(), claimed.receipt
    assert (
        got.account,
        got.message_id,
        got.message_state,
        got.status,
        got.attempts,
        got.refusals,
        got.created_at_ms,
        got.next_attempt_at_ms,
        claimed.counted_since_ms,
    ) == (
        shown.account,
        shown.message_id,
        shown.message_state,
        shown.status,
        shown.attempts,
        shown.refusals,
        shown.created_at_ms,
        shown.next_attempt_at_ms,
        kept.counted_since,
    )
    assert not kept.in_flight
    kept.in_flight = True


@dataclass(frozen=True, slots=True)
class Settle:
    """A request was answered, or its receipts are given back.

    What is in flight no more was settled before, or its claim was lost: it stays as it is, and its neighbours go on.
    """

    account: str
    acknowledged: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    apart: frozenset[int] = frozenset()
    sent: bool = True
    max_refusals: int = 3
    lifetime_ms: int = 7 * 86_400_000
    backoff_ms: int = 1_000
    error: ReceiptError = ERRORS[0]
    response_id: str | None = "answer"

    def _backoff(self, refusals: int) -> int:
        return self.backoff_ms * refusals

    async def ask(self, ground: Ground) -> object:
        """As the flusher does."""
        return await ground.store.settle(
            self.account,
            acknowledged=[Acknowledged(each, self.response_id) for each in self.acknowledged],
            refused=[Refused(each, self.error) for each in self.refused],
            returned=self.returned,
            apart=self.apart,
            sent=self.sent,
            policy=RefusalPolicy(self.max_refusals, self.lifetime_ms, self._backoff),
            now_ms=ground.now,
        )

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """What became of each, and the counts of it."""
        came_to: list[ReceiptStatus] = []
        acknowledged = [each for each in self.acknowledged if model.is_in_flight(each)]
        refused = [each for each in self.refused if model.is_in_flight(each)]
        returned = [each for each in self.returned if model.is_in_flight(each)]
        for request_id in acknowledged:
            model.acknowledge(request_id, self.response_id, ground.now)
        came_to += [
            model.refuse(
                request_id,
                self.error,
                max_refusals=self.max_refusals,
                lifetime_ms=self.lifetime_ms,
                backoff_ms=self._backoff,
                now=ground.now,
            )
            for request_id in refused
        ]
        dead, again = came_to.count(DEAD), came_to.count(PENDING)
        came_to += [
            model.give_back(each, sent=self.sent, apart=each in self.apart, now=ground.now)
            for each in returned
        ]
        # Whoever returns what it does not have wants it to be offered again.
        model.passed -= {*self.returned} - {*returned} - self.apart
        assert isinstance(answer, Settled)
        assert answer.acknowledged == len(acknowledged)
        assert answer.refused == again
        assert answer.dead == dead
        assert answer.superseded == came_to.count(SUPERSEDED)


@dataclass(frozen=True, slots=True)
class SteerReceipts:
    """An admin acts on receipts by id."""

    action: ReceiptAction
    request_ids: tuple[int, ...]
    dry_run: bool = False

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        return await ground.queue.steer_receipts(
            self.action, self.request_ids, by="ada", dry_run=self.dry_run
        )

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Changed, skipped and in flight, each id counted once; a dry run says the same and does nothing."""
        ids = tuple(dict.fromkeys(self.request_ids))
        assert answer == model.steer_receipts(self.action, ids, ground.now, dry_run=self.dry_run)


@dataclass(frozen=True, slots=True)
class SteerFilteredReceipts:
    """An admin acts on receipts by filter; not in one moment, so never at once with others."""

    action: ReceiptAction
    narrow: ReceiptFilter
    dry_run: bool = False

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        return await ground.queue.steer_receipts(self.action, self.narrow, by="ada", dry_run=self.dry_run)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """As if all that the filter takes had been named."""
        ids = [each.request_id for each in model.shown_receipts(self.narrow)]
        assert answer == model.steer_receipts(self.action, ids, ground.now, dry_run=self.dry_run)


@dataclass(frozen=True, slots=True)
class SteerMessages:
    """An admin acts on messages by name."""

    action: MessageAction
    names: tuple[Name, ...]
    dry_run: bool = False

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        names = [MessageName(*name) for name in self.names]
        count = await ground.queue.steer_messages(self.action, names, by="ada", dry_run=self.dry_run)
        return count, await _expired_as(ground)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Changed, skipped and in flight, each name counted once; a dry run says the same and does nothing."""
        names = list(dict.fromkeys(self.names))
        _judge_messages(model, ground, answer, self.action, names, dry_run=self.dry_run)


@dataclass(frozen=True, slots=True)
class SteerFilteredMessages:
    """An admin acts on messages by filter; not in one moment, so never at once with others."""

    action: MessageAction
    narrow: MessageFilter
    dry_run: bool = False

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        count = await ground.queue.steer_messages(self.action, self.narrow, by="ada", dry_run=self.dry_run)
        return count, await _expired_as(ground)

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """As if all that the filter takes had been named."""
        names = [(each.account, each.message_id) for each in model.shown_messages(self.narrow)]
        _judge_messages(model, ground, answer, self.action, names, dry_run=self.dry_run)


async def _expired_as(ground: Ground) -> dict[Name, int]:
    """Which receipt tells that a message expired: the contract leaves the order of several to the store."""
    listed = await pages(ground.queue.list_receipts, ReceiptFilter(state=MessageState.EXPIRED), limit=1000)
    return {(each.account, each.message_id): each.request_id for each in listed}


def _judge_messages(
    model: Model,
    ground: Ground,
    answer: object,
    action: MessageAction,
    names: Sequence[Name],
    *,
    dry_run: bool,
) -> None:
    assert isinstance(answer, tuple)
    count, told_by = answer
    ordered = sorted(names, key=lambda name: told_by.get(name, 0))
    assert count == model.steer_messages(action, ordered, ground.now, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class ExpireChunk:
    """Expiry looks once."""

    look_first: bool = True

    async def ask(self, ground: Ground) -> object:
        """As expiry does."""
        chunk = await ground.store.expire_chunk(ground.now, look_first=self.look_first)
        return chunk.expired, chunk.more

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """The ones overdue longest expire; all of them, unless it says that there are more."""
        assert isinstance(answer, tuple)
        expired, more = answer
        due = model.overdue(ground.now)
        assert expired <= len(due)
        assert more or expired == len(due)
        for message in due[:expired]:
            model.expire(message, ground.now)


@dataclass(frozen=True, slots=True)
class Redate:
    """The clock was wrong while the newest messages were registered: their time counts from now on."""

    at_least: int
    at_most: int
    passing_over_since: int
    right_since: int

    async def ask(self, ground: Ground) -> object:
        """As expiry does when it goes on."""
        first: int | None = await ground.store.first_in_question(
            at_least_ms=self.at_least,
            at_most_ms=self.at_most,
            passing_over_since_ms=self.passing_over_since,
        )
        while first is not None:
            first = await ground.store.redate_chunk(first, right_since_ms=self.right_since, now_ms=ground.now)
        return None

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Exactly these; what is shown then says it."""
        assert answer is None
        messages = model.in_question(
            at_least=self.at_least, at_most=self.at_most, passing_over_since=self.passing_over_since
        )
        model.redate(messages, right_since=self.right_since, now=ground.now)


@dataclass(frozen=True, slots=True)
class Purge:
    """Retention removes these, if their time is over."""

    request_ids: tuple[int, ...]
    settled_before: int
    dead_before: int

    async def ask(self, ground: Ground) -> object:
        """As retention does with a chunk of what it found."""
        purged = await ground.store.purge(
            self.request_ids, settled_before_ms=self.settled_before, dead_before_ms=self.dead_before
        )
        return purged.acknowledged, purged.dead, purged.messages

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """Those that may go, and no other."""
        bounds = {"settled_before": self.settled_before, "dead_before": self.dead_before}
        assert answer == model.purge(self.request_ids, **bounds, now=ground.now)


@dataclass(frozen=True, slots=True)
class PurgeAll:
    """Retention walks the whole queue; not in one moment, so never at once with others."""

    settled_before: int
    dead_before: int
    orderly: bool
    """Whether the clock has never gone back: else what lies behind a young receipt may have to wait for it."""

    async def ask(self, ground: Ground) -> object:
        """As retention does; answers with the ids that it found."""
        bounds = {"settled_before_ms": self.settled_before, "dead_before_ms": self.dead_before}
        after: int | None = 0
        walked: list[int] = []
        counted = [0, 0, 0]
        while after is not None:
            found, after = await ground.store.purge_candidates(after=after, **bounds)
            walked += found
            if found:
                purged = await ground.store.purge(found, **bounds)
                for index, rows in enumerate((purged.acknowledged, purged.dead, purged.messages)):
                    counted[index] += rows
        bereft = 0
        while (chunk := await ground.store.purge_bereft(before_ms=self.settled_before)).messages:
            bereft += chunk.messages
        return walked, tuple(counted), bereft

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """It finds nothing whose time is not over, and all of the others."""
        assert isinstance(answer, tuple)
        walked, counted, bereft = answer
        time_over = [
            request_id
            for request_id, each in model.receipts.items()
            if over(each, self.settled_before, self.dead_before)
        ]
        assert (
            walked == time_over if self.orderly else walked == [each for each in time_over if each in walked]
        )
        bounds = {"settled_before": self.settled_before, "dead_before": self.dead_before}
        assert counted == model.purge(walked, **bounds, now=ground.now)
        assert bereft == model.purge_bereft(self.settled_before)


@dataclass(frozen=True, slots=True)
class LookUp:
    """Someone looks a message up, and each of its receipts."""

    name: Name

    async def ask(self, ground: Ground) -> object:
        """As the local API does."""
        try:
            view = await ground.queue.message(self.name[1], self.name[0])
        except NotFound:
            return None
        for each in view.receipts:
            assert await ground.queue.receipt(each.receipt.request_id) == each
        return view.message, [
            (each.receipt, tuple(entry.event for entry in each.history)) for each in view.receipts
        ]

    def judge(self, model: Model, ground: Ground, answer: object) -> None:
        """All of it, oldest receipt first, with what happened to each; or nothing is known of it."""
        message = model.messages.get(self.name)
        if message is None:
            assert answer is None
            return
        receipts = model.of(self.name)
        assert answer == (message.shown(), [(each.shown(), each.history()) for each in receipts])
