"""Two Hypothesis machines that drive a queue and the model of it side by side.

`QueueLife` asks one thing at a time and compares everything after every step; at the end it drains the queue:
all that was owed comes to its end, and retention leaves nothing behind. `QueueCrowd` asks several things at one
moment: what came of it must be what some order of them, one by one, brings about. They know nothing of any
particular database (see `database`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from itertools import combinations, cycle
from typing import Any, Final, TypeVar
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import dlr_buffer.receipt_queue.queue as queue_module
from dlr_buffer.expiry import Mark
from dlr_buffer.messages import MAX_MESSAGE_ID_BYTES, MessageState
from dlr_buffer.receipt_queue.queue import QueueSettings, ReceiptQueue
from dlr_buffer.receipts import Claim, DueClaim, ReceiptAction, ReceiptStatus
from dlr_buffer.selection import MessageAction, MessageFilter, Page, ReceiptFilter
from tests.clocks import START_MS, FakeClock
from tests.integration.store.commands import (
    ERRORS,
    ClaimBehind,
    ClaimDue,
    ClaimFresh,
    ClaimNewest,
    ClaimThese,
    Command,
    ExpireChunk,
    Ground,
    LookUp,
    Purge,
    PurgeAll,
    Redate,
    Register,
    ReportStates,
    Settle,
    SteerFilteredMessages,
    SteerFilteredReceipts,
    SteerMessages,
    SteerReceipts,
    pages,
)
from tests.integration.store.database import Database
from tests.integration.store.ledger import Doing, Ledger
from tests.integration.store.model import HELD, PENDING, Model, Name

SECOND: Final = 1_000
HOUR: Final = 3_600 * SECOND
DAY: Final = 24 * HOUR
VALIDITY: Final = 3 * DAY
KEEP_SETTLED: Final = 7 * DAY
KEEP_DEAD: Final = 30 * DAY
ABOVE_ALL: Final = 2**62
BEFORE_2000: Final = 915_148_800_000
ACCOUNTS: Final = ("default", "ünlü", "spare")

T = TypeVar("T")

# Each pair or triple would be one id to whoever normalises, folds case, strips or counts.
ODD_IDS: Final = (
    "7", "007", "0xAb", "0xab", "é", "e\u0301", " 7", "7 ", "m'\"%_\\", "\u200b", "\uffff", "\U0001f4e8",
    "[1]", "a" * MAX_MESSAGE_ID_BYTES, "ü" * 127 + "a",
)  # fmt: skip


def _fits(text: str) -> bool:
    return 0 < len(text.encode()) <= MAX_MESSAGE_ID_BYTES


ids: Final = st.sampled_from(ODD_IDS) | st.text(
    st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8
).filter(_fits)
picks: Final = st.lists(st.integers(0, 40), max_size=4)
"""Which of what is there: counted round and round."""
spans: Final = st.sampled_from([1, 999, SECOND, 2 * SECOND, HOUR, DAY, VALIDITY, KEEP_SETTLED + 1, 31 * DAY])
leaps: Final = st.sampled_from([HOUR, 4 * DAY, 40 * DAY])
validities: Final = st.sampled_from([None, None, 1, 3_600, VALIDITY // SECOND, 30 * 86_400])
intermediate: Final = (MessageState.ENROUTE, MessageState.ACCEPTED, MessageState.UNKNOWN)
states: Final = st.sampled_from([*intermediate * 2, *MessageState])
fates: Final = st.lists(
    st.sampled_from(["acknowledged", "refused", "returned", "kept"]), min_size=1, max_size=5
)
receipt_actions: Final = st.sampled_from(ReceiptAction)
message_actions: Final = st.sampled_from(MessageAction)
message_fields: Final = st.fixed_dictionaries(
    {
        "state": st.none() | st.sampled_from(MessageState),
        "waiting": st.sampled_from([None, True, False]),
        "age_ms": st.sampled_from([None, 0, HOUR, -HOUR]),
    }
)
receipt_fields: Final = st.fixed_dictionaries(
    {
        "state": st.none() | st.sampled_from(MessageState),
        "status": st.none() | st.sampled_from(ReceiptStatus),
        "waiting": st.sampled_from([None, True, False]),
        "age_ms": st.sampled_from([None, 0, HOUR, -HOUR]),
        "error_code": st.sampled_from([None, None, ERRORS[0].code]),
    }
)


class QueueMachine(RuleBasedStateMachine):
    """A database, the model of it, and one event loop for all steps."""

    def __init__(self, make: Callable[[], Database]) -> None:
        """Open nothing yet; ``make`` gives an empty queue."""
        super().__init__()
        self._runner = asyncio.Runner()
        self.database = make()
        self.model = Model()
        self.ledger = Ledger()
        self.names: list[Name] = []
        self.mark = Mark()
        self.late: dict[str, list[int]] = {}
        """What each account has claimed and settled, or lost: an answer of it may still come, for the second time."""
        self.orderly = True
        self.sound = True
        """Whether the last step went well: what follows a failure would only hide it."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have something done on the machine's loop."""
        return self._runner.run(coroutine)

    def begin(self, message_ids: Sequence[str], now_ms: int, accounts: Sequence[str]) -> None:
        """Open the queue."""
        self.clock = FakeClock(now_ms)
        self.accounts = list(accounts)
        self.paused: set[str] = set()
        self.settings = QueueSettings(frozenset(accounts), VALIDITY, register_unknown=True)
        self.names = [(account, each) for each in message_ids for account in accounts]
        self.run(self.database.open(self.clock, accounts))

    @property
    def ground(self) -> Ground:
        """Where commands are asked now."""
        queue = ReceiptQueue(self.database.store, self.clock, self.settings)
        return Ground(queue, self.database.store, self.clock.now_ms())

    def name(self, index: int) -> Name:
        """One of the names."""
        return self.names[index % len(self.names)]

    def account(self, index: int) -> str:
        """One of the accounts."""
        return self.accounts[index % len(self.accounts)]

    def request_ids(self, indexes: Sequence[int]) -> tuple[int, ...]:
        """Some of the receipts, and one that is not there yet."""
        there = [*self.model.receipts, self.model.next_request_id]
        return tuple(there[index % len(there)] for index in indexes)

    def teardown(self) -> None:
        """Close the queue, whatever came before."""
        try:
            if self.names:
                self.run(self.database.close())
        finally:
            self._runner.close()

    async def shown(self, model: Model) -> tuple[list[Any], list[Any]]:
        """Compare all that the queue shows with a model; returns the lists of messages and receipts."""
        ground = self.ground
        messages = await pages(ground.queue.list_messages, MessageFilter(), limit=1_000)
        receipts = await pages(ground.queue.list_receipts, ReceiptFilter(), limit=1_000)
        for each in receipts:
            kept = model.receipts.get(each.request_id)
            if kept is not None and kept.lapsed and each.status is ReceiptStatus.SUPERSEDED:
                model.lapse(each.request_id, ground.now)
        agree(receipts, model.shown_receipts(ReceiptFilter()))
        agree(messages, model.shown_messages(MessageFilter()))
        self._compare_counts(model)
        return messages, receipts

    def _compare_counts(self, model: Model) -> None:
        counts = self.ground.queue.counts()
        messages: dict[str, dict[str, int]] = {}
        for message in model.messages.values():
            row = messages.setdefault(message.name[0], {})
            key = message.state.value if message.state is not None else "waiting"
            row[key] = row.get(key, 0) + 1
        receipts: dict[str, dict[str, int]] = {}
        for receipt in model.receipts.values():
            row = receipts.setdefault(receipt.name[0], {})
            row[receipt.status.value] = row.get(receipt.status.value, 0) + 1
        for said, counted in ((counts.messages, messages), (counts.receipts, receipts)):
            plain = {name: {key: n for key, n in row.items() if n} for name, row in said.items()}
            assert {name: row for name, row in plain.items() if row} == counted

    async def _step(self, command: Command, doing: Doing) -> object:
        self.sound = False
        ground = self.ground
        answer = await command.ask(ground)
        self.ledger.claimed(claimed_ids(answer))
        command.judge(self.model, ground, answer)
        messages, receipts = await self.shown(self.model)
        self.ledger.observe(messages, receipts, doing)
        self.sound = True
        return answer

    def do(self, command: Command, doing: Doing = Doing.NOTHING_SPECIAL) -> object:
        """Ask one thing, and compare everything."""
        return self.run(self._step(command, doing))

    def settle(
        self,
        account: str,
        chosen: Sequence[str],
        late: Sequence[int] = (),
        **how: Any,  # noqa: ANN401 - fields of Settle
    ) -> Settle | None:
        """An answer to what is in flight, and to what is not any more; None if there is nothing to say of it."""
        parts: dict[str, tuple[int, ...]] = dict.fromkeys(("acknowledged", "refused", "returned", "kept"), ())
        turns: Iterator[str] = cycle(chosen)
        for request_id in (*self.model.in_flight(account), *late):
            parts[next(turns)] += (request_id,)
        del parts["kept"]
        acknowledged, refused, returned = parts.values()
        # Not those that never were: they may come to be another account's.
        settled = {*acknowledged, *refused, *returned} & set(self.model.in_flight(account))
        self.late.setdefault(account, []).extend(sorted(settled))
        return Settle(account, acknowledged, refused, returned, **how) if any(parts.values()) else None


def agree(shown: Sequence[T], expected: Sequence[T]) -> None:
    """Two lists are the same; else it is said where they differ."""
    unexpected = [each for each in shown if each not in expected]
    missing = [each for each in expected if each not in shown]
    assert unexpected == missing == [], f"the queue shows {unexpected}, the model {missing}"
    assert list(shown) == list(expected), f"another order: {shown}"


def claimed_ids(answer: object) -> list[int]:
    """What an answer put in flight."""
    match answer:
        case (_, Claim() as claim):
            return [each.receipt.request_id for each in claim.claimed]
        case Claim():
            return [each.receipt.request_id for each in answer.claimed]
        case DueClaim(claimed=None):
            return []
        case DueClaim(claimed=claimed):
            assert claimed is not None
            return [claimed.receipt.request_id]
        case _:
            return []


class QueueLife(QueueMachine):
    """Apps, flusher, admins, time and trouble, one after another."""

    @initialize(
        message_ids=st.lists(ids, min_size=2, max_size=5, unique=True),
        now_ms=st.sampled_from([START_MS, START_MS, BEFORE_2000]),
    )
    def opening(self, message_ids: list[str], now_ms: int) -> None:
        """Two accounts know the same ids."""
        self.begin(message_ids, now_ms, ACCOUNTS[:2])

    # Apps

    @rule(items=st.lists(st.tuples(st.integers(0, 9), validities), min_size=1, max_size=4))
    def register(self, items: list[tuple[int, int | None]]) -> None:
        """One or many, duplicates included, with a validity period or without."""
        self.do(Register(tuple((self.name(index), validity) for index, validity in items)))

    @rule(items=st.lists(st.tuples(st.integers(0, 9), states), min_size=1, max_size=4))
    def report(self, items: list[tuple[int, MessageState]]) -> None:
        """One or many, in any state."""
        self.do(ReportStates(tuple((self.name(index), state) for index, state in items)))

    @rule(index=st.integers(0, 9), state=st.sampled_from(intermediate), next_=states, again=st.booleans())
    def report_on_the_wire(self, index: int, state: MessageState, next_: MessageState, again: bool) -> None:  # noqa: FBT001
        """A state is overtaken while it is on the wire; it may be asked meanwhile what else there is to send."""
        name = self.name(index)
        everything = ClaimFresh(name[0], 100, 100, frozenset())
        self.do(ReportStates(((name, state),)))
        self.do(everything)
        self.do(ReportStates(((name, next_),)))
        if again:
            self.do(everything)

    @rule(unknown=st.booleans(), configured=st.sets(st.sampled_from(ACCOUNTS)))
    def reload(self, unknown: bool, configured: set[str]) -> None:  # noqa: FBT001 - drawn by name
        """Another configuration: who is configured, and what becomes of unknown messages."""
        known = frozenset(configured & set(self.accounts)) or frozenset(self.accounts)
        self.settings = QueueSettings(known, VALIDITY, register_unknown=unknown)

    # The flusher

    @rule(account=st.integers(0, 2), limit=st.integers(1, 5), take=st.integers(0, 5), without=picks)
    def claim(self, account: int, limit: int, take: int, without: list[int]) -> None:
        """A batch, of which the cut takes some."""
        self.do(ClaimFresh(self.account(account), limit, take, frozenset(self.request_ids(without))))

    @rule(account=st.integers(0, 2), horizon_ms=st.sampled_from([SECOND, HOUR]), without=picks)
    def claim_due(self, account: int, horizon_ms: int, without: list[int]) -> None:
        """One that waited out a refusal."""
        self.do(ClaimDue(self.account(account), horizon_ms, frozenset(self.request_ids(without))))

    @rule(account=st.integers(0, 2), newest=st.booleans(), some=picks)
    def claim_one(self, account: int, newest: bool, some: list[int]) -> None:  # noqa: FBT001 - drawn by name
        """The newest, or one that claims in order have passed."""
        name, named = self.account(account), self.request_ids(some)
        if newest:
            self.do(ClaimNewest(name, frozenset(named)))
        else:
            self.do(ClaimBehind(name, sum(named[:1]), frozenset(named[1:])))

    @rule(account=st.integers(0, 2), some=picks)
    def claim_these(self, account: int, some: list[int]) -> None:
        """Some by name, whatever they are."""
        self.do(ClaimThese(self.account(account), self.request_ids(some)))

    @rule(
        account=st.integers(0, 2),
        chosen=fates,
        some=picks,
        sent=st.booleans(),
        max_refusals=st.sampled_from([1, 3, 100]),
        lifetime_ms=st.sampled_from([DAY, 7 * DAY]),
        backoff_ms=st.sampled_from([SECOND, HOUR, DAY]),
        error=st.sampled_from(ERRORS),
        response_id=st.sampled_from([None, "answer", "é"]),
    )
    def answer(self, account: int, chosen: list[str], some: list[int], **how: Any) -> None:  # noqa: ANN401
        """Smartswitch answers, or does not: each of what is in flight meets its fate, or stays there."""
        settle = self.settle(self.account(account), chosen, apart=frozenset(self.request_ids(some)), **how)
        if settle is not None:
            self.do(settle)

    @rule(account=st.integers(0, 2), some=picks, late=picks, chosen=fates, again=st.booleans())
    def lose_claims(
        self,
        account: int,
        some: list[int],
        late: list[int],
        chosen: list[str],
        again: bool,  # noqa: FBT001 - drawn by name
    ) -> None:
        """Claims are lost; whoever had them settles them all the same, together with what it still has."""
        name = self.account(account)
        in_flight = self.model.in_flight(name)
        lost = tuple(sorted({in_flight[each % len(in_flight)] for each in some})) if in_flight else ()
        self.run(self._lose_claims(name, lost))
        self.late.setdefault(name, []).extend(lost)
        if again:
            self.do(ClaimFresh(name, 100, 100, frozenset()))
        self.settle_late(account, late, chosen, sent=True)

    async def _lose_claims(self, account: str, lost: Sequence[int]) -> None:
        self.sound = False
        await self.database.lose_claims(account, lost)
        self.model.lose_claims(lost)
        self.ledger.observe(*await self.shown(self.model), Doing.NOTHING_SPECIAL)
        self.sound = True

    @rule(account=st.integers(0, 2), late=picks, chosen=fates, sent=st.booleans())
    def settle_late(self, account: int, late: list[int], chosen: list[str], sent: bool) -> None:  # noqa: FBT001
        """A second answer for what was settled or lost, or an id that never was: nothing changes falsely."""
        name = self.account(account)
        there = [*self.late.get(name, []), self.model.next_request_id]
        # What is in flight again has one claim, whoever took it.
        twice = {there[each % len(there)] for each in late} - set(self.model.in_flight(name))
        settle = self.settle(name, chosen, tuple(sorted(twice)), sent=sent)
        if settle is not None:
            self.do(settle)

    @rule(
        index=st.integers(0, 9),
        state=st.sampled_from(intermediate),
        next_=states,
        action=receipt_actions,
        fate=st.sampled_from(["killed", "acknowledged", "refused", "returned"]),
    )
    def act_on_the_overtaken(
        self, index: int, state: MessageState, next_: MessageState, action: ReceiptAction, fate: str
    ) -> None:
        """An admin acts on a message whose older receipt is on the wire, or was when the daemon was killed."""
        name = self.name(index)
        self.report_on_the_wire(index, state, next_, again=False)
        if fate == "killed":
            self.restart(kill=True)
        named = tuple(each.request_id for each in self.model.of(name))
        self.do(SteerReceipts(action, named), doing_receipts(action))
        if fate != "killed":
            self._end_flights(name[0], fate)

    @rule(index=st.integers(0, 9), state=states, fate=st.sampled_from(["refused", "returned"]))
    def round_trip(self, index: int, state: MessageState, fate: str) -> None:
        """Sent, not acknowledged, and asked for again."""
        name = self.name(index)
        everything = ClaimFresh(name[0], 100, 100, frozenset())
        self.do(ReportStates(((name, state),)))
        self.do(everything)
        self._end_flights(name[0], fate)
        self.do(everything)

    @rule(account=st.integers(0, 2))
    def start_over(self, account: int) -> None:
        """The account's flusher begins anew: what was passed over comes again, what is in flight does not."""
        name = self.account(account)
        self.run(self.database.store.start_over(name))
        self.model.start_over(name)

    # Admins

    @rule(action=receipt_actions, some=picks, dry_first=st.booleans())
    def steer(self, action: ReceiptAction, some: list[int], dry_first: bool) -> None:  # noqa: FBT001
        """Retry, hold, release or delete by id; a dry run before it says the same."""
        named = self.request_ids(some)
        if dry_first:
            self.do(SteerReceipts(action, named, dry_run=True))
        self.do(SteerReceipts(action, named), doing_receipts(action))

    @rule(
        action=receipt_actions,
        some=st.lists(st.integers(0, 9), max_size=2),
        fields=receipt_fields,
        then=st.sampled_from(["list", "dry run", "act"]),
    )
    def steer_filtered(
        self, action: ReceiptAction, some: list[int], fields: dict[str, Any], then: str
    ) -> None:
        """Receipts by filter: listed in pages, counted by a dry run, acted upon."""
        narrow = ReceiptFilter(**self._narrowed(some, fields))
        if then == "list":
            self._list(self.ground.queue.list_receipts, narrow, self.model.shown_receipts(narrow))
            return
        dry_run = then == "dry run"
        self.do(SteerFilteredReceipts(action, narrow, dry_run=dry_run), doing_receipts(action))

    @rule(
        action=message_actions,
        some=st.lists(st.integers(0, 9), min_size=1, max_size=3),
        dry_run=st.booleans(),
    )
    def steer_messages(self, action: MessageAction, some: list[int], dry_run: bool) -> None:  # noqa: FBT001
        """Expire or delete by name; unknown ones are skipped."""
        names = tuple(self.name(each) for each in some)
        self.do(SteerMessages(action, names, dry_run=dry_run), doing_messages(action))

    @rule(
        action=message_actions,
        some=st.lists(st.integers(0, 9), max_size=2),
        fields=message_fields,
        then=st.sampled_from(["list", "dry run", "act"]),
    )
    def steer_filtered_messages(
        self, action: MessageAction, some: list[int], fields: dict[str, Any], then: str
    ) -> None:
        """Messages by filter: listed in pages, counted by a dry run, acted upon."""
        narrow = MessageFilter(**self._narrowed(some, fields))
        if then == "list":
            self._list(self.ground.queue.list_messages, narrow, self.model.shown_messages(narrow))
            return
        dry_run = then == "dry run"
        self.do(SteerFilteredMessages(action, narrow, dry_run=dry_run), doing_messages(action))

    @rule(index=st.integers(0, 9), state=states, span=spans, held=st.booleans())
    def refuse_again(self, index: int, state: MessageState, span: int, held: bool) -> None:  # noqa: FBT001
        """Refused, and again after a while: its lifetime may be over, but counts anew if it was held meanwhile."""
        name = self.name(index)
        self.round_trip(index, state, "refused")
        named = tuple(each.request_id for each in self.model.of(name))
        if held:
            self.do(SteerReceipts(ReceiptAction.HOLD, named))
        self.clock.advance(span)
        if held:
            self.do(SteerReceipts(ReceiptAction.RELEASE, named), Doing.REPLAYING)
        self.do(ClaimThese(name[0], named))
        self._end_flights(name[0], "refused")

    @rule(index=st.integers(0, 9), state=states)
    def delete_piece_by_piece(self, index: int, state: MessageState) -> None:
        """The receipts of a message are deleted, then the message itself."""
        name = self.name(index)
        self.do(ReportStates(((name, state),)))
        named = tuple(each.request_id for each in self.model.of(name))
        self.do(SteerReceipts(ReceiptAction.DELETE, named), Doing.DELETING_RECEIPTS)
        self.do(SteerMessages(MessageAction.DELETE, (name,)), Doing.DELETING_MESSAGES)

    @rule(account=st.integers(0, 2), paused=st.booleans())
    def pause(self, account: int, paused: bool) -> None:  # noqa: FBT001 - drawn by name
        """Remembered over every restart; what is queued is not touched."""
        name = self.account(account)
        self.run(self.database.store.set_paused(name, paused=paused))
        (self.paused.add if paused else self.paused.discard)(name)

    @precondition(lambda self: len(self.accounts) < len(ACCOUNTS))
    @rule()
    def add_account(self) -> None:
        """A reload brings another account."""
        self.run(self.database.store.add_accounts(ACCOUNTS))
        self.accounts = list(ACCOUNTS)
        self.names += [(ACCOUNTS[-1], each) for each in dict.fromkeys(name[1] for name in self.names)]

    # Time and trouble

    @rule(span=spans, sweep=st.booleans())
    def pass_time(self, span: int, sweep: bool) -> None:  # noqa: FBT001 - drawn by name
        """Time passes, and expiry looks (or has not come to it yet)."""
        self.clock.advance(span)
        if sweep:
            self.expire()

    @rule(span=leaps, back=st.booleans())
    def leap(self, span: int, back: bool) -> None:  # noqa: FBT001 - drawn by name
        """The wall clock is set."""
        self.clock.leap(-span if back else span)
        self.orderly = self.orderly and not back

    @rule(index=st.integers(0, 9), span=leaps)
    def leap_back_after_expiry(self, index: int, span: int) -> None:
        """The clock is set back behind what has expired already: what comes next expires in its own time."""
        self.do(Register(((self.name(index), 1),)))
        self.clock.advance(span)
        self.expire()
        self.leap(span, back=True)

    @rule(
        boot=st.none() | st.tuples(st.sampled_from(["boot-1", "ü"]), st.sampled_from([0, -DAY, START_MS])),
        now_ms=st.none() | st.sampled_from([0, BEFORE_2000, START_MS]),
        stop=st.none()
        | st.tuples(st.sampled_from([0, START_MS]), st.sampled_from(["the wall clock leapt", "é'"])),
    )
    def keep_clock_mark(
        self, boot: tuple[str, int] | None, now_ms: int | None, stop: tuple[int, str] | None
    ) -> None:
        """How the clock looked is remembered over every restart."""
        boot_id, offset_ms = boot or (None, None)
        stopped_since_ms, stop_reason = stop or (None, None)
        mark = Mark(boot_id, offset_ms, now_ms, stopped_since_ms, stop_reason)
        self.run(
            self.database.store.keep_clock_mark(
                boot_id=mark.boot_id,
                offset_ms=mark.offset_ms,
                now_ms=mark.now_ms,
                stopped_since_ms=mark.stopped_since_ms,
                stop_reason=mark.stop_reason,
            )
        )
        self.mark = mark

    @rule(
        before=spans,
        after=st.sampled_from([0, 0, HOUR, 40 * DAY]),
        passing_over=st.sampled_from([None, None, SECOND, DAY]),
        right=st.sampled_from([0, SECOND, DAY]),
        index=st.integers(0, 9),
        span=leaps,
        leap=st.sampled_from([-1, 0, 0, 1]),
    )
    def redate(
        self, before: int, after: int, passing_over: int | None, right: int, index: int, span: int, leap: int
    ) -> None:
        """The clock is set, and what the wrong one has registered begins anew; then all expires in its time."""
        self.do(Register(((self.name(index), None),)))
        if leap:
            self.leap(span, back=leap < 0)
        now = self.clock.now_ms()
        since = ABOVE_ALL if passing_over is None else now - passing_over
        self.do(Redate(now - before, now + after, since, now - right), Doing.REDATING)
        self.expire()

    @rule(index=st.integers(0, 9), state=states, span=leaps)
    def leap_back_after_refusal(self, index: int, state: MessageState, span: int) -> None:
        """The clock is set back: nothing waits for a time that is days ahead now."""
        self.round_trip(index, state, "refused")
        self.leap(span, back=True)
        self.do(ClaimDue(self.name(index)[0], HOUR - 1, frozenset()))

    @rule()
    def expire(self) -> None:
        """All that is overdue expires, in chunks."""
        look_first, more = True, True
        while more:
            answer = self.do(ExpireChunk(look_first))
            assert isinstance(answer, tuple)
            more = answer[1]
            look_first = False

    @rule()
    def purge(self) -> None:
        """Retention walks."""
        now = self.clock.now_ms()
        self.do(PurgeAll(now - KEEP_SETTLED, now - KEEP_DEAD, self.orderly), Doing.PURGING)

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:  # noqa: FBT001 - drawn by name
        """The daemon is told to stop, or is killed; whatever was in flight was never answered."""
        self.run(self._restart(kill=kill))
        self.look_around()

    async def _restart(self, *, kill: bool) -> None:
        self.sound = False
        await (self.database.crash() if kill else self.database.close())
        self.database.check()
        await self.database.open(self.clock, self.accounts)
        self.model.restart()
        self.ledger.observe(*await self.shown(self.model), Doing.RESTARTING)
        self.sound = True

    # Looking

    @rule(index=st.integers(0, 9))
    def look_up(self, index: int) -> None:
        """One message with its receipts and their history."""
        self.do(LookUp(self.name(index)))

    @rule()
    def look_around(self) -> None:
        """Accounts, pauses, oldest rows."""
        store = self.database.store
        assert sorted(store.accounts()) == sorted(self.accounts)
        assert {name for name in self.accounts if store.paused(name)} == self.paused
        mark = self.run(store.clock_mark())
        assert self.mark == Mark(
            mark.boot_id, mark.offset_ms, mark.now_ms, mark.stopped_since_ms, mark.stop_reason
        )
        oldest = self.run(self.ground.queue.oldest())
        pending: dict[str, list[int]] = {}
        for each in self.model.receipts.values():
            if each.status is PENDING:
                pending.setdefault(each.name[0], []).append(each.created_at)
        assert set(oldest.pending_ms) == set(pending)
        for account, created in pending.items():
            assert oldest.pending_ms[account] in ([min(created)] if self.orderly else created)

    def _list(self, turn: Callable[..., Awaitable[Page[T]]], narrow: object, expected: list[T]) -> None:
        for limit in (1, 2, 100):
            agree(self.run(pages(turn, narrow, limit=limit)), expected)

    def _narrowed(self, some: Sequence[int], fields: dict[str, Any]) -> dict[str, Any]:
        """One index narrows to an account, two to a message; a negative age is at the most, a positive at least."""
        narrowed = dict(fields)
        if some:
            narrowed["account"] = self.name(some[0])[0]
        if len(some) > 1:
            narrowed["message_id"] = self.name(some[1])[1]
        if (age_ms := narrowed.pop("age_ms")) is not None:
            narrowed["before_ms" if age_ms >= 0 else "after_ms"] = self.clock.now_ms() - abs(age_ms)
        return narrowed

    # The end

    def teardown(self) -> None:
        """All that is owed comes to its end, and retention leaves nothing behind."""
        try:
            if self.names and self.sound:
                self._drain()
        finally:
            super().teardown()
        if self.names and self.sound:
            self.database.check()

    def _drain(self) -> None:
        for account in self.accounts:
            self._end_flights(account, "returned")
        self.do(SteerFilteredReceipts(ReceiptAction.RELEASE, ReceiptFilter()), Doing.REPLAYING)
        times = [START_MS, self.clock.now_ms(), *(each.expires_at for each in self.model.messages.values())]
        times += [each.next_attempt_at or 0 for each in self.model.receipts.values()]
        self.clock.leap(max(times) - self.clock.now_ms())
        self.expire()
        for account in self.accounts:
            self._send_all(account)
            if self.model.passed:
                self.start_over(self.accounts.index(account))
                self._send_all(account)
        assert all(each.final for each in self.model.messages.values())
        assert not any(each.status in (PENDING, HELD) for each in self.model.receipts.values())
        # What was settled by a clock that stood ahead waits until that time has really come.
        times = [each.settled_at or 0 for each in self.model.receipts.values()]
        times += [
            max(each.finalized_at or 0, each.bereft_since or 0) for each in self.model.messages.values()
        ]
        self.clock.leap(max([self.clock.now_ms(), *times]) - self.clock.now_ms() + KEEP_DEAD + 1)
        self.orderly = True
        # At the first look the retention of what was settled by a wrong clock begins.
        for _ in range(2):
            self.purge()
            self.clock.leap(KEEP_DEAD + 1)
        self.purge()
        assert not self.model.receipts
        assert not self.model.messages

    def _send_all(self, account: str) -> None:
        fresh = ClaimFresh(account, 100, 100, frozenset())
        due = ClaimDue(account, HOUR, frozenset())
        while claimed_ids(self.do(fresh)) or claimed_ids(self.do(due)):
            self._end_flights(account, "acknowledged")

    def _end_flights(self, account: str, fate: str) -> None:
        settle = self.settle(account, [fate])
        if settle is not None:
            self.do(settle)


WRITING_WISHES: Final = (
    *("register", "report", "report", "settle", "settle"),
    *("steer receipts", "steer messages", "expire", "purge"),
)
WISHES: Final = (*WRITING_WISHES, "claim", "claim due", "claim these")
SMALL_CHUNK: Final = 2


class QueueCrowd(QueueLife):
    """The same life, in which now and then several come at one moment."""

    @precondition(lambda self: not any(each.lapsed for each in self.model.receipts.values()))
    @rule(
        wishes=st.lists(
            st.tuples(
                st.sampled_from(WISHES),
                st.integers(0, 9),
                st.lists(st.integers(0, 40), min_size=1, max_size=3),
                states,
                receipt_actions,
                fates,
            ),
            min_size=2,
            max_size=4,
        )
    )
    def at_once(
        self, wishes: list[tuple[str, int, list[int], MessageState, ReceiptAction, list[str]]]
    ) -> None:
        """What came of several is what some order of them, one by one, brings about."""
        commands: list[Command] = []
        for kind, index, some, state, action, chosen in wishes:
            account = self.account(index)
            if kind == "settle":
                # Several of one account: the first that comes settles a claim, the others come too late.
                settle = self.settle(account, chosen)
                commands += [settle] if settle is not None else []
                continue
            commands.append(self._wish(kind, index, some, state, action))
        if commands:
            self.run(self._at_once(commands))

    @precondition(lambda self: not any(each.lapsed for each in self.model.receipts.values()))
    @rule(
        index=st.integers(0, 9),
        state=st.sampled_from(intermediate),
        next_=states,
        fate=st.sampled_from(["acknowledged", "refused", "returned", "returned"]),
        expire=st.booleans(),
    )
    def crossing(
        self,
        index: int,
        state: MessageState,
        next_: MessageState,
        fate: str,
        expire: bool,  # noqa: FBT001 - drawn by name
    ) -> None:
        """An answer and the next state of a message (or its expiry) meet; others of the batch are acknowledged."""
        name = self.name(index)
        others = [each for each in self.names if each[0] == name[0] and each != name]
        self.do(ReportStates(((name, state), *((each, state) for each in others[:2]))))
        self.do(ClaimFresh(name[0], 100, 100, frozenset()))
        in_flight = self.model.in_flight(name[0])
        own = tuple(each for each in in_flight if self.model.receipts[each].name == name)
        parts = {"acknowledged": tuple(each for each in in_flight if each not in own)}
        parts[fate] = parts.get(fate, ()) + own
        settle = Settle(name[0], parts["acknowledged"], parts.get("refused", ()), parts.get("returned", ()))
        news = SteerMessages(MessageAction.EXPIRE, (name,)) if expire else ReportStates(((name, next_),))
        self.run(self._at_once([news, settle] if in_flight else [news]))

    def _wish(
        self, kind: str, index: int, some: list[int], state: MessageState, action: ReceiptAction
    ) -> Command:
        account, now = self.account(index), self.clock.now_ms()
        match kind:
            case "register":
                return Register(tuple((self.name(each), None if each % 2 else 3_600) for each in some))
            case "report":
                return ReportStates(tuple((self.name(each), state) for each in some))
            case "steer receipts":
                return SteerReceipts(action, self.request_ids(some))
            case "steer messages":
                # One: in which order several expire is the store's.
                which = MessageAction.EXPIRE if index % 2 else MessageAction.DELETE
                return SteerMessages(which, (self.name(some[0]),))
            case "expire":
                return ExpireChunk(look_first=bool(index % 2))
            case "purge":
                return Purge(tuple(self.model.receipts), now, now)
            case "claim":
                return ClaimFresh(account, 1 + index, len(some), frozenset(self.request_ids(some[2:])))
            case "claim due":
                return ClaimDue(account, HOUR, frozenset())
            case "claim these":
                return ClaimThese(account, self.request_ids(some))
            case _:
                raise AssertionError(kind)

    @precondition(lambda self: not any(each.lapsed for each in self.model.receipts.values()))
    @rule(
        wishes=st.lists(
            st.tuples(
                st.sampled_from(WRITING_WISHES),
                st.integers(0, 9),
                st.lists(st.integers(0, 40), min_size=1, max_size=3),
                states,
                receipt_actions,
                fates,
            ),
            min_size=1,
            max_size=3,
        ),
        commits=st.integers(0, 3),
    )
    def killed_amid(
        self,
        wishes: list[tuple[str, int, list[int], MessageState, ReceiptAction, list[str]]],
        commits: int,
    ) -> None:
        """Killed while several are carried out: each has happened as a whole or not at all, the first ones first."""
        commands: list[Command] = []
        for kind, index, some, state, action, chosen in wishes:
            settle = self.settle(self.account(index), chosen) if kind == "settle" else None
            if kind != "settle":
                commands.append(self._wish(kind, index, some, state, action))
            elif settle is not None:
                commands.append(settle)
        if commands:
            self.run(self._killed_amid(commands, commits))

    async def _killed_amid(self, commands: Sequence[Command], commits: int) -> None:
        self.sound = False
        ground = self.ground
        answers = await self.database.crash_amid(self._ask_all(ground, commands), commits)
        both = list(zip(commands, answers, strict=True))
        await self._restart_as(
            [
                model
                for number in range(len(both) + 1)
                for some in combinations(both, number)
                for model in explained(self.model, ground, some)
            ],
            f"no part of {both}",
        )

    @precondition(lambda self: not any(each.lapsed for each in self.model.receipts.values()))
    @rule(action=receipt_actions, fields=receipt_fields, commits=st.integers(0, 3))
    def killed_amid_many(self, action: ReceiptAction, fields: dict[str, Any], commits: int) -> None:
        """Killed in an admin's action on a filter: what was done is the beginning of it, in chunks that are whole."""
        narrow = ReceiptFilter(**self._narrowed([], fields))
        self.run(self._killed_amid_many(action, narrow, commits))

    async def _killed_amid_many(self, action: ReceiptAction, narrow: ReceiptFilter, commits: int) -> None:
        self.sound = False
        ground = self.ground
        request_ids = [each.request_id for each in self.model.shown_receipts(narrow)]
        possible = []
        for end in (*range(0, len(request_ids), SMALL_CHUNK), len(request_ids)):
            model = self.model.copy()
            model.steer_receipts(action, request_ids[:end], ground.now)
            possible.append(model)
        with patch.object(queue_module, "CHUNK", SMALL_CHUNK):
            work = ground.queue.steer_receipts(action, narrow, by="ada", dry_run=False)
            await self.database.crash_amid(work, commits)
        await self._restart_as(possible, f"no beginning of {action} {narrow}")

    @precondition(lambda self: not any(each.lapsed for each in self.model.receipts.values()))
    @rule(commits=st.integers(0, 3))
    def killed_amid_retention(self, commits: int) -> None:
        """Killed while retention walks: what is gone is the beginning of what had to go."""
        self.run(self._killed_amid_retention(commits))

    async def _killed_amid_retention(self, commits: int) -> None:
        self.sound = False
        now = self.clock.now_ms()
        bounds = {"settled_before": now - KEEP_SETTLED, "dead_before": now - KEEP_DEAD}
        walk = PurgeAll(**bounds, orderly=self.orderly)
        answer = await self.database.crash_amid(walk.ask(self.ground), commits)
        assert isinstance(answer, tuple)
        walked = answer[0]
        possible = []
        for end in range(len(walked) + 1):
            model = self.model.copy()
            model.purge(walked[:end], **bounds, now=now)
            possible.append(model)
        # Those that an admin has bereft go last, some at a time.
        bereft = sorted(
            (
                each
                for each in possible[-1].messages.values()
                if each.bereft_since is not None and each.bereft_since < bounds["settled_before"]
            ),
            key=lambda each: each.number,
        )
        for some in range(1, len(bereft) + 1):
            for gone in combinations(bereft, some):
                model = possible[len(walked)].copy()
                for each in gone:
                    del model.messages[each.name]
                possible.append(model)
        await self._restart_as(possible, "no beginning of retention")

    async def _restart_as(self, possible: Sequence[Model], what: str) -> None:
        """Open what a kill has left, which must be one of these models."""
        self.database.check()
        await self.database.open(self.clock, self.accounts)
        for model in possible:
            model.restart()
        await self._become(possible, what, Doing.SEVERAL | Doing.RESTARTING)

    async def _at_once(self, commands: Sequence[Command]) -> None:
        self.sound = False
        ground = self.ground
        answers = await self._ask_all(ground, commands)
        orders = list(explained(self.model, ground, list(zip(commands, answers, strict=True))))
        await self._become(orders, f"no order of {commands}, which answered {answers}")

    async def _ask_all(self, ground: Ground, commands: Sequence[Command]) -> list[object]:
        async with self.database.together():
            asked = [asyncio.create_task(command.ask(ground)) for command in commands]
        return await asyncio.gather(*asked)

    async def _become(self, orders: Sequence[Model], what: str, doing: Doing = Doing.SEVERAL) -> None:
        """Go on with that one of some models which the queue shows; there must be one."""
        assert orders, what
        shown = []
        for model in orders:
            try:
                messages, receipts = await self.shown(model)
            except AssertionError as error:
                differs = error
            else:
                shown.append(model)
        if not shown:
            raise AssertionError(what) from differs
        for name, message in self.model.messages.items():
            after = shown[0].messages.get(name)
            if after is not None and after.number != message.number:
                self.ledger.forget(name)
        self.model = shown[0]
        # Where one order leaves a claim free to pass something over, it is free to.
        self.model.passed = set().union(*(each.passed for each in shown))
        everything = Doing.DELETING_RECEIPTS | Doing.DELETING_MESSAGES | Doing.PURGING | Doing.REPLAYING
        self.ledger.observe(messages, receipts, everything | doing)
        self.sound = True


def explained(model: Model, ground: Ground, left: Sequence[tuple[Command, object]]) -> Iterator[Model]:
    """The models that come of every order in which these answers are what each command has to answer."""
    if not left:
        yield model
    for index, (command, answer) in enumerate(left):
        after = model.copy()
        try:
            command.judge(after, ground, answer)
        except (AssertionError, KeyError):
            continue  # KeyError: about a receipt that is not there yet, or not any more
        yield from explained(after, ground, [*left[:index], *left[index + 1 :]])


def doing_receipts(action: ReceiptAction) -> Doing:
    """What an admin's action on receipts may do that others may not."""
    return {
        ReceiptAction.HOLD: Doing.NOTHING_SPECIAL,
        ReceiptAction.RELEASE: Doing.REPLAYING,
        ReceiptAction.RETRY: Doing.REPLAYING,
        ReceiptAction.DELETE: Doing.DELETING_RECEIPTS,
    }[action]


def doing_messages(action: MessageAction) -> Doing:
    """What an admin's action on messages may do that others may not."""
    return {
        MessageAction.EXPIRE: Doing.NOTHING_SPECIAL,
        MessageAction.DELETE: Doing.DELETING_MESSAGES,
    }[action]
