"""The oracle: what the world outside knows of a daemon that is killed again and again, and what must follow.

It is told of everything that apps and admins ask and are answered, of every request that the upstream reads
and what it answers, of every kill, and it is shown what lies on the disk after each (`Snapshot`). Whatever
contradicts a promise of DESIGN §3 becomes a sentence in `Oracle.violations`:

- an answered registration or report that is not there, unless retention may have taken it (`Rules`) or an
  admin was asked to delete it;
- a message, receipt or state that nobody asked for, and a request_id with two meanings;
- a message with two final states, anything sent after the final one or behind a newer one, two receipts of a
  message on the wire at once, and one sent that a newer one had made pointless when the daemon started;
- a receipt acknowledged on the disk that the upstream never said ok to, and one sent again that was said ok
  to, unless that answer was in flight at a kill; at a kill at most ``concurrency`` requests of an account are;
- at the end (`finish`), a message without final state and a receipt that still waits.

What is not answered is ambiguous: it may have happened or not. A message that is gone by right is forgotten, so
that memory is bounded by retention; its request_ids stay known as used, because ids only grow. All calls may
come from any thread. No clock is read here: whoever tells says when (wall milliseconds).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tests.crash.snapshot import WAITING, MessageOnDisk, ReceiptOnDisk, Snapshot

FINAL = frozenset({"delivered", "expired", "undeliverable", "rejected"})
EXPIRED = "expired"
_SETTLED = frozenset({"acknowledged", "superseded"})
_MANY = 200


@dataclass(frozen=True, slots=True)
class Rules:
    """What the daemons under test are configured to do."""

    default_validity_ms: int
    retention_ms: int
    concurrency: int
    patience_ms: int
    """An answer that comes within this time is still waited for."""


class Said(StrEnum):
    """What the upstream let a client know of one receipt of a request."""

    OK = "ok"
    """An entry with its request_id and status ok, in an answer that could be read."""
    PERHAPS = "perhaps"
    """As ok, but so late that the client may have given up."""
    NOTHING = "nothing"
    """No entry that could be believed: an error, a refusal, or no answer at all."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One receipt in a request that the upstream read."""

    message_id: str
    state: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one receipt upstream: ``acted`` if the upstream took it to heart, ``said`` what it said."""

    acted: bool
    said: Said


@dataclass(slots=True)
class _Message:
    account: str
    message_id: str
    first_asked_ms: int
    shortest_ms: int
    registered: bool = False
    asked: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    """States for which a receipt with a request_id was seen anywhere."""
    request_ids: set[int] = field(default_factory=set)
    final: str | None = None
    """The final state that an answer, the disk or the upstream has shown."""
    final_ok_ms: int | None = None
    deletable: bool = False
    expirable: bool = False
    sent_run: int = -1
    sent_id: int = 0
    on_wire: tuple[int, int, int] | None = None
    """The run, the request_id and the time of a request that is not answered yet."""

    @property
    def name(self) -> str:
        return f"{self.account}/{self.message_id}"

    def may_be_expired(self, at_ms: int) -> bool:
        return self.expirable or at_ms >= self.first_asked_ms + self.shortest_ms

    @property
    def answered_anything(self) -> bool:
        return self.registered or bool(self.answered) or bool(self.shown)


@dataclass(slots=True)
class _Receipt:
    message: _Message
    state: str
    answered: bool = False
    sightings: int = 0
    acted: int = 0
    said_ok_ms: int | None = None
    """When the upstream first said ok to it in an answer that could be read."""
    unsettled: tuple[int, int] | None = None
    """The run and the request of an ok that the disk has not confirmed yet."""
    acknowledged: bool = False
    pointless: bool = False
    """A kill left it pending though a newer state of its message exists."""


@dataclass(slots=True)
class Figures:
    """What was counted; ``bound`` is how many duplicates the kills and the lost answers allow."""

    registrations: int = 0
    reports: int = 0
    unanswered: int = 0
    requests: int = 0
    receipts: int = 0
    resends: int = 0
    duplicates: int = 0
    bound: int = 0
    in_flight_at_kills: int = 0
    answers_lost: int = 0
    forgotten: int = 0
    most_known: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Oracle:
    """Knows what must be; tell it everything, then look at `violations`."""

    def __init__(self, rules: Rules) -> None:
        """Know nothing yet."""
        self.rules = rules
        self.figures = Figures()
        self.violations: list[str] = []
        self._messages: dict[tuple[str, str], _Message] = {}
        self._receipts: dict[int, _Receipt] = {}
        # Names of an admin that an app is only about to ask for: both requests may be under way at once.
        self._deleted_early: set[tuple[str, str]] = set()
        self._expired_early: set[tuple[str, str]] = set()
        self._high = 0
        self._checked_run = -1
        self._paused: dict[str, bool | None] = {}
        self._lock = threading.RLock()

    # What apps and admins ask, before they ask it

    def asks_to_register(self, account: str, items: Iterable[tuple[str, int | None]], *, at_ms: int) -> None:
        """Somebody asks to register messages, with a validity period in milliseconds or the default."""
        with self._lock:
            for message_id, validity_ms in items:
                asked = validity_ms if validity_ms is not None else self.rules.default_validity_ms
                message = self._ask(account, message_id, at_ms, asked)
                message.shortest_ms = min(message.shortest_ms, asked)

    def asks_to_report(self, account: str, items: Iterable[tuple[str, str]], *, at_ms: int) -> None:
        """Somebody asks to report states."""
        with self._lock:
            for message_id, state in items:
                message = self._ask(account, message_id, at_ms, self.rules.default_validity_ms)
                message.asked.add(state)
                if not message.registered:
                    # What it was to be registered with may never have been stored.
                    message.shortest_ms = min(message.shortest_ms, self.rules.default_validity_ms)

    def asks_to_delete(self, account: str, message_ids: Iterable[str]) -> None:
        """An admin is about to delete messages, or receipts of them."""
        with self._lock:
            for message_id in message_ids:
                if (message := self._messages.get((account, message_id))) is not None:
                    message.deletable = True
                else:
                    self._deleted_early.add((account, message_id))

    def asks_to_expire(self, account: str, message_ids: Iterable[str]) -> None:
        """An admin is about to expire messages."""
        with self._lock:
            for message_id in message_ids:
                if (message := self._messages.get((account, message_id))) is not None:
                    message.expirable = True
                else:
                    self._expired_early.add((account, message_id))

    def asks_to_pause(self, account: str) -> None:
        """An admin is about to pause or resume an account: until that is answered either may be."""
        with self._lock:
            self._paused[account] = None

    # What they are answered

    def registered(self, account: str, message_ids: Iterable[str]) -> None:
        """The daemon answered 2xx."""
        with self._lock:
            for message_id in message_ids:
                self._messages[account, message_id].registered = True
                self.figures.registrations += 1

    def reported(self, account: str, message_id: str, state: str, request_id: int | None = None) -> None:
        """The daemon answered 2xx to a report, with the receipt's request_id if it queued a new one."""
        with self._lock:
            message = self._messages[account, message_id]
            self.figures.reports += 1
            message.answered.add(state)
            if state in FINAL:
                self._end(message, state, "an answer")
            if request_id is not None:
                receipt = self._meet(request_id, account, message_id, state, "an answer")
                if receipt is not None:
                    receipt.answered = True

    def conflicted(self, account: str, message_id: str, state: str, *, at_ms: int) -> None:
        """The daemon answered that the message has another final state already."""
        with self._lock:
            message = self._messages[account, message_id]
            others = (message.asked & FINAL) - {state}
            if not others and not message.may_be_expired(at_ms):
                self._violate(f"{message.name}: {state} was refused, but nothing else could have ended it")

    def unanswered(self) -> None:
        """A request got no answer, or broke off in the middle."""
        with self._lock:
            self.figures.unanswered += 1

    def paused(self, account: str, *, paused: bool) -> None:
        """The daemon answered that the account is paused, or is not."""
        with self._lock:
            self._paused[account] = paused

    def sees_account(self, account: str, *, paused: bool) -> None:
        """A daemon that has just started shows the account so."""
        with self._lock:
            known = self._paused.get(account, False)
            if known is not None and known is not paused:
                self._violate(
                    f"account {account}: paused is {paused} after the restart, answered was {known}"
                )

    def sees_message(self, account: str, message_id: str, *, found: bool, at_ms: int) -> None:
        """A look-up over the API found the message, or did not."""
        with self._lock:
            message = self._messages.get((account, message_id))
            if (
                not found
                and message is not None
                and message.answered_anything
                and not self._may_be_gone(message, at_ms)
            ):
                self._violate(f"{message.name}: was answered, but a look-up does not find it")

    def some_answered(self, count: int, choose: Sequence[float]) -> list[tuple[str, str]]:
        """Names of up to ``count`` answered messages, picked by the numbers of ``choose`` in [0, 1)."""
        with self._lock:
            known = [key for key, message in self._messages.items() if message.answered_anything]
        return [known[int(each * len(known))] for each in choose[:count]] if known else []

    # What the upstream sees

    def sends(self, run: int, account: str, receipts: Sequence[Sent], *, at_ms: int) -> int:
        """The upstream read a request of the daemon's ``run``; returns its number for `answers`."""
        with self._lock:
            self.figures.requests += 1
            self.figures.receipts += len(receipts)
            for sent in receipts:
                if sent.request_id is None or not sent.request_id.isdecimal():
                    self._violate(f"{account}/{sent.message_id}: sent without a request_id of ours")
                    continue
                request_id = int(sent.request_id)
                if run <= self._checked_run and request_id not in self._receipts:
                    # The last words of a dead daemon about something that is gone by now.
                    continue
                receipt = self._meet(request_id, account, sent.message_id, sent.state, "a request")
                if receipt is not None:
                    self._on_the_wire(run, request_id, receipt, at_ms)
            return self.figures.requests

    def answers(
        self,
        run: int,
        request: int,
        receipts: Sequence[Sent],
        told: Sequence[Told],
        *,
        outcome: str,
        at_ms: int,
    ) -> None:
        """The upstream decided on a request of ``run``: what became of each of its receipts."""
        with self._lock:
            self.figures.outcomes[outcome] += 1
            for sent, each in zip(receipts, told, strict=True):
                receipt = self._receipts.get(int(sent.request_id or 0))
                if receipt is not None:
                    receipt.message.on_wire = None
                    self._told(run, request, receipt, each, at_ms)

    # What the disk shows

    def check(self, run: int, snapshot: Snapshot) -> None:
        """Daemon ``run`` was killed, nothing is asked meanwhile, and this lies on the disk."""
        with self._lock:
            self.violations += snapshot.faults
            self.figures.most_known = max(self.figures.most_known, len(self._messages))
            here = {(row.account, row.message_id): row for row in snapshot.messages}
            rows = {row.request_id: row for row in snapshot.receipts}
            for row in snapshot.receipts:
                self._check_receipt_row(row)
            for message_row in snapshot.messages:
                self._check_message_row(message_row, snapshot.at_ms)
            self._check_newest(here, snapshot)
            self._check_unsettled(run, rows)
            self._check_missing_receipts(rows, snapshot.at_ms)
            self._check_missing_messages(here, snapshot.at_ms)
            self._high = max(self._high, snapshot.next_request_id - 1)
            self._checked_run = run

    def finish(self, snapshot: Snapshot) -> None:
        """Nothing is asked any more, the upstream is well, all was released and had its time."""
        with self._lock:
            for message in snapshot.messages:
                if message.state not in FINAL:
                    self._violate(
                        f"{message.account}/{message.message_id}: stays {message.state}, it never ended"
                    )
            for row in snapshot.receipts:
                name = f"{row.account}/{row.message_id}: receipt {row.request_id} ({row.state})"
                if row.status in {"pending", "held"}:
                    self._violate(f"{name} is stuck, it stays {row.status}")
                if row.status == "dead" and not row.error_code:
                    self._violate(f"{name} is dead without a reason")
            dead = {(row.account, row.message_id) for row in snapshot.receipts if row.status == "dead"}
            for key, known in self._messages.items():
                if (
                    known.answered_anything
                    and not known.deletable
                    and known.final_ok_ms is None
                    and key not in dead
                ):
                    self._violate(f"{known.name}: its final state was never acknowledged")
            if self.figures.duplicates > self.figures.bound:
                self._violate(
                    f"{self.figures.duplicates} duplicates, {self.figures.bound} at most can be justified"
                )

    # Inside

    def _violate(self, sentence: str) -> None:
        if len(self.violations) < _MANY:
            self.violations.append(sentence)

    def _ask(self, account: str, message_id: str, at_ms: int, validity_ms: int) -> _Message:
        key = account, message_id
        if (message := self._messages.get(key)) is None:
            message = self._messages[key] = _Message(account, message_id, at_ms, validity_ms)
            message.deletable = key in self._deleted_early
            message.expirable = key in self._expired_early
            self._deleted_early.discard(key)
            self._expired_early.discard(key)
        return message

    def _end(self, message: _Message, state: str, where: str) -> None:
        """A final state was shown; there may be only one, unless an admin deleted the message in between."""
        if message.final is None or message.deletable:
            message.final = state
        elif message.final != state:
            self._violate(f"{message.name}: is {message.final}, but {where} says {state}")

    def _meet(
        self, request_id: int, account: str, message_id: str, state: str, where: str
    ) -> _Receipt | None:
        """A receipt shows itself: either it is known as just that, or it must be new and asked for."""
        known = self._receipts.get(request_id)
        name = f"{account}/{message_id}: {where} shows receipt {request_id} ({state})"
        if known is not None:
            meant = known.message.account, known.message.message_id, known.state
            if meant != (account, message_id, state):
                self._violate(f"{name}, which was {known.message.name} ({known.state})")
                return None
            return known
        message = self._messages.get((account, message_id))
        if message is None:
            self._violate(f"{name} of a message that nobody named, or that is gone")
            return None
        if request_id <= self._high:
            self._violate(f"{name}, an id that was used up before (up to {self._high})")
            return None
        if state not in message.asked and state != EXPIRED:
            self._violate(f"{name}, a state that nobody reported")
        known = self._receipts[request_id] = _Receipt(message, state)
        message.request_ids.add(request_id)
        message.shown.add(state)
        return known

    def _on_the_wire(self, run: int, request_id: int, receipt: _Receipt, at_ms: int) -> None:
        message = receipt.message
        receipt.sightings += 1
        self.figures.resends += receipt.sightings > 1
        if receipt.acknowledged:
            self._violate(f"{message.name}: receipt {request_id} is sent again after it was acknowledged")
        if receipt.unsettled is not None and receipt.unsettled[0] == run:
            self._violate(f"{message.name}: receipt {request_id} is sent again by the run that was told ok")
        if receipt.pointless and run > self._checked_run and not message.deletable:
            self._violate(
                f"{message.name}: receipt {request_id} is sent, though a newer one made it pointless"
            )
        if message.on_wire is not None:
            other_run, other, since_ms = message.on_wire
            if other_run == run and at_ms - since_ms < self.rules.patience_ms:
                self._violate(f"{message.name}: receipts {other} and {request_id} are on the wire at once")
        message.on_wire = run, request_id, at_ms
        if run < message.sent_run:
            # Sent by a daemon that is dead by now, and read only after what its successor sent.
            return
        if request_id < message.sent_id and not message.deletable:
            self._violate(
                f"{message.name}: receipt {request_id} is sent after {message.sent_id}, a newer one"
            )
        message.sent_run, message.sent_id = run, max(message.sent_id, request_id)
        if receipt.state in FINAL:
            self._end(message, receipt.state, "a request")

    def _told(self, run: int, request: int, receipt: _Receipt, told: Told, at_ms: int) -> None:
        if told.acted:
            self.figures.duplicates += receipt.acted > 0
            receipt.acted += 1
            if told.said is not Said.OK:
                self.figures.answers_lost += 1
                self.figures.bound += 1
        if told.said is Said.NOTHING:
            return
        if receipt.said_ok_ms is None:
            receipt.said_ok_ms = at_ms
        if receipt.state in FINAL and receipt.message.final_ok_ms is None:
            receipt.message.final_ok_ms = at_ms
        if told.said is Said.PERHAPS:
            return
        if run <= self._checked_run:
            # Said to a daemon that was dead already.
            self.figures.in_flight_at_kills += 1
            self.figures.bound += 1
        else:
            receipt.unsettled = run, request

    def _check_receipt_row(self, row: ReceiptOnDisk) -> None:
        receipt = self._meet(row.request_id, row.account, row.message_id, row.state, "the disk")
        if receipt is None:
            return
        name = f"{receipt.message.name}: receipt {row.request_id} ({row.state})"
        if row.state not in receipt.message.asked and not receipt.message.may_be_expired(row.created_at):
            self._violate(f"{name} was made before the validity period could end")
        receipt.pointless = row.status == "pending" and row.state not in FINAL and not row.newest
        if row.status == "acknowledged":
            if receipt.said_ok_ms is None:
                self._violate(f"{name} is acknowledged, but the upstream never said ok")
            receipt.acknowledged = True
        elif receipt.acknowledged:
            self._violate(f"{name} was acknowledged and is {row.status} now")

    def _check_message_row(self, row: MessageOnDisk, at_ms: int) -> None:
        message = self._messages.get((row.account, row.message_id))
        if message is None:
            self._violate(
                f"{row.account}/{row.message_id}: is on the disk, but nobody named it or it was gone"
            )
            return
        if row.state == WAITING:
            if message.answered and not message.deletable:
                self._violate(f"{message.name}: waits, though {sorted(message.answered)} was answered")
            return
        if row.state not in message.asked and not (row.state == EXPIRED and message.may_be_expired(at_ms)):
            self._violate(f"{message.name}: is {row.state}, which nobody reported")
        if row.state in FINAL:
            self._end(message, row.state, "the disk")
        elif message.final is not None and not message.deletable:
            self._violate(f"{message.name}: is {row.state}, though {message.final} was answered or sent")
        if (missing := message.answered - message.shown) and not message.deletable:
            self._violate(f"{message.name}: {sorted(missing)} was answered, but has no receipt")

    def _check_newest(self, here: dict[tuple[str, str], MessageOnDisk], snapshot: Snapshot) -> None:
        for row in snapshot.receipts:
            key = row.account, row.message_id
            message = self._messages.get(key)
            if row.newest and message is not None and not message.deletable and here[key].state != row.state:
                self._violate(
                    f"{message.name}: is {here[key].state}, but its newest receipt {row.request_id} says {row.state}"
                )

    def _check_unsettled(self, run: int, rows: dict[int, ReceiptOnDisk]) -> None:
        """An ok that the disk does not know was in flight at the kill; there is room for few requests there."""
        requests: dict[str, set[int]] = {}
        for request_id, receipt in self._receipts.items():
            if receipt.unsettled is None:
                continue
            row = rows.get(request_id)
            if row is not None and row.status != "acknowledged":
                requests.setdefault(receipt.message.account, set()).add(receipt.unsettled[1])
                self.figures.in_flight_at_kills += 1
                self.figures.bound += 1
            receipt.unsettled = None
        for account, unsettled in requests.items():
            if len(unsettled) > self.rules.concurrency:
                self._violate(
                    f"account {account}: run {run} was told ok in {len(unsettled)} requests that the disk does"
                    f" not know; at most {self.rules.concurrency} can be in flight"
                )

    def _check_missing_receipts(self, rows: dict[int, ReceiptOnDisk], at_ms: int) -> None:
        for request_id in [each for each in self._receipts if each not in rows]:
            receipt = self._receipts[request_id]
            message = receipt.message
            if not self._receipt_may_be_gone(receipt, at_ms):
                self._violate(f"{message.name}: receipt {request_id} ({receipt.state}) is lost")
            del self._receipts[request_id]
            message.request_ids.discard(request_id)

    def _receipt_may_be_gone(self, receipt: _Receipt, at_ms: int) -> bool:
        if receipt.message.deletable:
            return True
        over = at_ms - self.rules.retention_ms
        if receipt.said_ok_ms is not None and receipt.said_ok_ms <= over:
            return True
        # Superseded, by a newer state that came at the earliest with the message itself.
        newer = len(receipt.message.shown) > 1 or len(receipt.message.asked) > 1
        return receipt.state not in FINAL and newer and receipt.message.first_asked_ms <= over

    def _check_missing_messages(self, here: dict[tuple[str, str], MessageOnDisk], at_ms: int) -> None:
        for key in [each for each in self._messages if each not in here]:
            message = self._messages[key]
            if message.answered_anything and not self._may_be_gone(message, at_ms):
                self._violate(f"{message.name}: was answered (or sent), and is lost")
            for request_id in message.request_ids:
                self._receipts.pop(request_id, None)
            del self._messages[key]
            self.figures.forgotten += 1

    def _may_be_gone(self, message: _Message, at_ms: int) -> bool:
        if message.deletable:
            return True
        return message.final_ok_ms is not None and message.final_ok_ms <= at_ms - self.rules.retention_ms
