"""The oracle: what the world outside knows of a daemon that is killed again and again, and what must follow.

It is told of everything that apps and admins ask and are answered, of every request that the upstream reads
and what it answers, of every kill, and it is shown what lies on the disk after each (`Snapshot`). Whatever
contradicts a promise of DESIGN §3 becomes a sentence in `Oracle.violations`:

- an answered registration or report that is not there, unless retention may have taken it (`Rules`) or an
  admin was asked to delete it; each answered change of state has a receipt of its own;
- a message, receipt or state that nobody asked for (so often), and a request_id with two meanings;
- a validity period or a deadline that nobody asked for, and an expiry before it;
- a message with two final states or two receipts of one, anything sent after the final one or behind a newer one,
  two receipts of a message on the wire at once, and one sent that a newer one had made pointless when the daemon
  started;
- a receipt acknowledged on the disk that the upstream never said ok to, and one sent again that was said ok
  to, unless that answer was in flight at a kill; at a kill at most ``concurrency`` requests of an account are;
- a dead letter that the upstream has not refused often enough;
- an admin's action that was answered and is undone: what was deleted comes back, what was held is sent or not held
  any more, what was released is held, what was expired goes on;
- at the end (`finish`), a message without final state and a receipt that still waits.

What is not answered is ambiguous: it may have happened or not. So is a deletion that crossed with a client; what it
lets a message off is told at `KnownMessage.since_delete`, and such messages are counted (`Figures.exempt`). A message
that is gone by right is forgotten, so that memory is bounded by retention; its request_ids stay known as used, because
ids only grow. All calls may come from any thread. No clock is read here: whoever tells says when (wall milliseconds).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from tests.crash.known import (
    EXPIRED,
    FINAL,
    REGISTERED,
    Deletion,
    Figures,
    KnownMessage,
    KnownReceipt,
    Rules,
    Said,
    Sent,
    Shown,
    Told,
)
from tests.crash.snapshot import WAITING, MessageOnDisk, ReceiptOnDisk, Snapshot

_MANY = 200


class Oracle:
    """Knows what must be; tell it everything, then look at `violations`."""

    def __init__(self, rules: Rules) -> None:
        """Know nothing yet."""
        self.rules = rules
        self.figures = Figures()
        self.violations: list[str] = []
        self._messages: dict[tuple[str, str], KnownMessage] = {}
        self._receipts: dict[int, KnownReceipt] = {}
        # Names of an admin that an app is only about to ask for: both requests may be under way at once.
        self._deleted_early: set[tuple[str, str]] = set()
        self._expired_early: set[tuple[str, str]] = set()
        self._may_be_held = False
        self._high = 0
        self._checked_run = -1
        self._paused: dict[str, bool | None] = {}
        self._lock = threading.RLock()

    # What apps ask, before they ask it, and what they are answered

    def asks_to_register(self, account: str, items: Iterable[tuple[str, int | None]], *, at_ms: int) -> None:
        """Somebody asks to register messages, with a validity period in milliseconds or the default."""
        with self._lock:
            for message_id, validity_ms in items:
                asked = validity_ms if validity_ms is not None else self.rules.default_validity_ms
                self._ask(account, message_id, at_ms, asked).ask(REGISTERED)

    def asks_to_report(self, account: str, items: Iterable[tuple[str, str]], *, at_ms: int) -> None:
        """Somebody asks to report states."""
        with self._lock:
            for message_id, state in items:
                message = self._ask(account, message_id, at_ms, self.rules.default_validity_ms)
                message.ask(state)
                message.asked[state] += 1

    def registered(
        self, account: str, deadlines: Mapping[str, int | None], *, validity_ms: int | None, at_ms: int
    ) -> None:
        """The daemon answered 2xx: by message_id, the deadline that the answer shows, if it shows one."""
        with self._lock:
            for message_id, deadline_ms in deadlines.items():
                message = self._messages[account, message_id]
                message.answer(REGISTERED)
                if message.first_answered_ms is None:
                    message.first_answered_ms = at_ms
                if deadline_ms is not None:
                    message.deadline_ms = deadline_ms
                if validity_ms is not None and not message.registered and not message.may_be_final(at_ms):
                    # So it has what was asked for now, whatever a report would have given it.
                    message.periods = {validity_ms}
                message.registered = True
                self.figures.registrations += 1

    def reported(
        self, account: str, message_id: str, state: str, request_id: int | None = None, *, at_ms: int
    ) -> None:
        """The daemon answered 2xx to a report, with the receipt's request_id if it queued a new one."""
        with self._lock:
            message = self._messages[account, message_id]
            message.answer(state)
            self.figures.reports += 1
            if message.first_answered_ms is None:
                message.first_answered_ms = at_ms
            if state != message.last_answered:
                # It was in another state when that was answered: so it came to this one since.
                message.answered[state] += 1
                message.last_answered = state
            if state in FINAL:
                self._end(message, state, "an answer")
            if request_id is not None:
                self._meet(request_id, account, message_id, state, "an answer")

    def conflicted(self, account: str, message_id: str, state: str, *, at_ms: int) -> None:
        """The daemon answered that the message has another final state already."""
        with self._lock:
            message = self._messages[account, message_id]
            message.answer(state)
            others = (set(message.asked) & FINAL) - {state}
            if not others and not message.may_be_expired(at_ms):
                self._violate(f"{message.name}: {state} was refused, but nothing else could have ended it")

    def unanswered(self) -> None:
        """A request got no answer, or broke off in the middle."""
        with self._lock:
            self.figures.unanswered += 1

    # What admins ask, before they ask it, and what they are answered

    def asks_to_delete(self, account: str, message_ids: Iterable[str]) -> Deletion:
        """An admin is about to delete messages."""
        with self._lock:
            before: dict[str, tuple[KnownMessage, int, set[str] | None] | None] = {}
            for message_id in message_ids:
                if (message := self._messages.get((account, message_id))) is None:
                    self._deleted_early.add((account, message_id))
                    before[message_id] = None
                    continue
                before[message_id] = message, message.asks, message.since_delete
                outstanding = {what for what, count in message.outstanding.items() if count > 0}
                message.since_delete = outstanding | (message.since_delete or set())
            return Deletion(account, before)

    def deleted(self, deletion: Deletion, message_id: str, *, found: bool, in_flight: int) -> None:
        """The deletion was answered, with so many left out as in flight; looked up after that, this was ``found``.

        Certain is what nobody has asked for since a moment before.
        """
        with self._lock:
            before = deletion.before[message_id]
            if before is None:
                self._deleted_early.discard((deletion.account, message_id))
                return
            message, asks, since_delete = before
            if message.asks != asks or +message.outstanding:
                return
            if not found:
                message.gone = True
                self.figures.actions["deleted messages"] += 1
            elif in_flight:
                message.since_delete = since_delete
            else:
                self._violate(f"{message.name}: its deletion was answered, but a look-up finds it")

    def asks_to_delete_receipts(self, receipts: Iterable[Shown]) -> None:
        """An admin is about to delete receipts that a list has shown."""
        with self._lock:
            for shown in receipts:
                if (receipt := self._meet_shown(shown)) is not None:
                    receipt.deletable = receipt.message.picked = True

    def deleted_receipts(self, receipts: Iterable[Shown]) -> None:
        """The daemon answered that it has deleted all of these."""
        with self._lock:
            for shown in receipts:
                if (receipt := self._receipts.get(shown.request_id)) is not None:
                    receipt.gone = True
                    self.figures.actions["deleted receipts"] += 1

    def asks_to_hold(self) -> None:
        """An admin is about to hold some receipts."""
        with self._lock:
            self._may_be_held = True

    def shows_held(self, receipts: Iterable[Shown]) -> None:
        """After a hold was answered, a list shows these as held."""
        with self._lock:
            for shown in receipts:
                if (receipt := self._meet_shown(shown)) is not None and not receipt.held:
                    receipt.held = True
                    self.figures.actions["held receipts"] += 1

    def asks_to_release(self) -> None:
        """An admin is about to release all that is held."""
        with self._lock:
            for receipt in self._receipts.values():
                receipt.held = False

    def released(self) -> None:
        """That was answered, and nobody has asked to hold anything meanwhile."""
        with self._lock:
            self._may_be_held = False

    def asks_to_retry(self, receipts: Iterable[Shown]) -> dict[int, int]:
        """An admin is about to replay receipts that a list has shown; returns what `retried` has to be told."""
        with self._lock:
            met = ((shown.request_id, self._meet_shown(shown)) for shown in receipts)
            return {request_id: receipt.refused for request_id, receipt in met if receipt is not None}

    def retried(self, before: Mapping[int, int]) -> None:
        """The daemon answered that it has replayed all of these: what was refused before counts no more."""
        with self._lock:
            for request_id, refused in before.items():
                receipt = self._receipts.get(request_id)
                if receipt is None:
                    continue
                receipt.refused -= refused
                if receipt.refused < self.rules.max_refusals:
                    receipt.dead_ms = None
                    if receipt.state in FINAL:
                        receipt.message.final_dead_ms = None
                self.figures.actions["retried receipts"] += 1

    def asks_to_expire(self, account: str, message_ids: Iterable[str]) -> list[KnownMessage]:
        """An admin is about to expire messages; returns what `expired` has to be told."""
        with self._lock:
            there = []
            for message_id in message_ids:
                if (message := self._messages.get((account, message_id))) is None:
                    self._expired_early.add((account, message_id))
                    continue
                message.expirable = True
                if message.answered_anything:
                    there.append(message)
            return there

    def expired(self, account: str, message_ids: Iterable[str], there: Iterable[KnownMessage]) -> None:
        """That was answered: these were there, and must have come to their end."""
        with self._lock:
            self._expired_early.difference_update((account, message_id) for message_id in message_ids)
            for message in there:
                message.must_be_final = True
                self.figures.actions["expired messages"] += 1

    def asks_to_pause(self, account: str) -> None:
        """An admin is about to pause or resume an account: until that is answered either may be."""
        with self._lock:
            self._paused[account] = None

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
            if message is None:
                return
            if found and message.gone:
                self._violate(f"{message.name}: its deletion was answered, but a look-up finds it")
            if not found and message.answered_anything and not self._may_be_gone(message, at_ms):
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
                self._check_receipt_row(row, here[row.account, row.message_id])
            for message_row in snapshot.messages:
                self._check_message_row(message_row, snapshot.at_ms)
            self._check_newest(here, snapshot)
            self._check_unsettled(run, rows)
            self._check_missing_receipts(rows, snapshot.at_ms)
            self._check_missing_messages(here, snapshot.at_ms)
            for message in self._messages.values():
                # Whoever waited for an answer knows by now that none will come.
                message.outstanding.clear()
                if (message.deletable or message.picked) and not message.exempted:
                    message.exempted = True
                    self.figures.exempt += 1
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
                    and not known.picked
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

    def _ask(self, account: str, message_id: str, at_ms: int, validity_ms: int) -> KnownMessage:
        key = account, message_id
        message = self._messages.get(key)
        if message is None or message.gone:
            # After a deletion that is certain another message begins; what is known of the receipts of the old one
            # stays until the disk has shown that they are not there.
            message = self._messages[key] = KnownMessage(account, message_id, at_ms, {validity_ms})
            message.since_delete = set() if key in self._deleted_early else None
            message.expirable = key in self._expired_early
            self.figures.named += 1
        elif not message.registered or message.deletable:
            message.periods.add(validity_ms)
        return message

    def _end(self, message: KnownMessage, state: str, where: str) -> None:
        """A final state was shown; there may be only one, unless the message was deleted and begun anew."""
        if message.final is None or (message.final != state and message.may_be_anew(state)):
            message.final = state
        elif message.final != state:
            self._violate(f"{message.name}: is {message.final}, but {where} says {state}")

    def _meet_shown(self, shown: Shown) -> KnownReceipt | None:
        return self._meet(shown.request_id, shown.account, shown.message_id, shown.state, "a list")

    def _meet(
        self, request_id: int, account: str, message_id: str, state: str, where: str
    ) -> KnownReceipt | None:
        """A receipt shows itself: either it is known as just that, or it must be new and asked for."""
        known = self._receipts.get(request_id)
        name = f"{account}/{message_id}: {where} shows receipt {request_id} ({state})"
        if known is not None:
            meant = known.message.account, known.message.message_id, known.state
            if meant != (account, message_id, state):
                self._violate(f"{name}, which was {known.message.name} ({known.state})")
                return None
            if (
                known.gone
                or known.message.gone
                or self._messages.get((account, message_id)) is not known.message
            ):
                self._violate(f"{name}, whose deletion was answered")
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
        most = 1 if state in FINAL else message.asked[state]
        if message.shown[state] >= most and not message.may_be_anew(state):
            self._violate(f"{name}, though it had {message.shown[state]} of that state: one too many")
        known = self._receipts[request_id] = KnownReceipt(message, state)
        message.request_ids.add(request_id)
        message.shown[state] += 1
        return known

    def _on_the_wire(self, run: int, request_id: int, receipt: KnownReceipt, at_ms: int) -> None:
        message = receipt.message
        receipt.sightings += 1
        self.figures.resends += receipt.sightings > 1
        if receipt.acknowledged:
            self._violate(f"{message.name}: receipt {request_id} is sent again after it was acknowledged")
        if receipt.unsettled is not None and receipt.unsettled[0] == run:
            self._violate(f"{message.name}: receipt {request_id} is sent again by the run that was told ok")
        if receipt.held:
            self._violate(f"{message.name}: receipt {request_id} is sent, though it is held")
        if receipt.pointless and run > self._checked_run and not message.picked:
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
        if request_id < message.sent_id:
            self._violate(
                f"{message.name}: receipt {request_id} is sent after {message.sent_id}, a newer one"
            )
        message.sent_run, message.sent_id = run, max(message.sent_id, request_id)
        if receipt.state in FINAL:
            self._end(message, receipt.state, "a request")

    def _told(self, run: int, request: int, receipt: KnownReceipt, told: Told, at_ms: int) -> None:
        if told.acted:
            self.figures.duplicates += receipt.acted > 0
            receipt.acted += 1
            if told.said is not Said.OK:
                self.figures.answers_lost += 1
                self.figures.bound += 1
        if told.said is Said.NOTHING:
            receipt.refused += 1
            if receipt.refused >= self.rules.max_refusals and receipt.dead_ms is None:
                receipt.dead_ms = at_ms
                if receipt.state in FINAL:
                    receipt.message.final_dead_ms = at_ms
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

    def _check_receipt_row(self, row: ReceiptOnDisk, of: MessageOnDisk) -> None:
        receipt = self._meet(row.request_id, row.account, row.message_id, row.state, "the disk")
        if receipt is None:
            return
        message = receipt.message
        name = f"{message.name}: receipt {row.request_id} ({row.state})"
        if row.state not in message.asked and not message.may_be_expired(row.created_at):
            self._violate(f"{name} was made before the validity period could end")
        elif row.state not in message.asked and not message.expirable and row.created_at < of.expires_at:
            self._violate(f"{name} was made {of.expires_at - row.created_at} ms before the deadline")
        receipt.pointless = row.status == "pending" and row.state not in FINAL and not row.newest
        self._check_status(receipt, row, name)

    def _check_status(self, receipt: KnownReceipt, row: ReceiptOnDisk, name: str) -> None:
        if row.status == "acknowledged":
            if receipt.said_ok_ms is None:
                self._violate(f"{name} is acknowledged, but the upstream never said ok")
            receipt.acknowledged = True
        elif receipt.acknowledged:
            self._violate(f"{name} was acknowledged and is {row.status} now")
        if row.status == "dead":
            self.figures.dead += 1
            if receipt.refused < self.rules.max_refusals:
                self._violate(f"{name} is dead, but was refused {receipt.refused} times at most")
        if row.status == "held" and not self._may_be_held:
            self._violate(f"{name} is held, but all was released")
        if receipt.held and row.status != "held" and (row.status != "superseded" or row.state in FINAL):
            self._violate(f"{name} was held and is {row.status} now")

    def _check_message_row(self, row: MessageOnDisk, at_ms: int) -> None:
        message = self._messages.get((row.account, row.message_id))
        if message is None:
            self._violate(
                f"{row.account}/{row.message_id}: is on the disk, but nobody named it or it was gone"
            )
            return
        if message.gone:
            self._violate(f"{message.name}: is on the disk, but its deletion was answered")
        if row.state != WAITING:
            if row.state not in message.asked and not (
                row.state == EXPIRED and message.may_be_expired(at_ms)
            ):
                self._violate(f"{message.name}: is {row.state}, which nobody reported")
            if row.state in FINAL:
                self._end(message, row.state, "the disk")
            elif message.final is not None and not message.may_be_anew(row.state):
                self._violate(f"{message.name}: is {row.state}, though {message.final} was answered or sent")
        if not message.deletable:
            self._check_deadline(message, row, at_ms)
            self._check_answered(message, row, at_ms)

    def _check_answered(self, message: KnownMessage, row: MessageOnDisk, at_ms: int) -> None:
        if row.state not in FINAL and message.must_be_final:
            self._violate(f"{message.name}: is {row.state}, but that it was expired was answered")
        if row.state == WAITING and message.answered:
            self._violate(f"{message.name}: waits, though {sorted(message.answered)} was answered")
        elif at_ms < message.first_asked_ms + self.rules.retention_ms:
            for state, times in message.answered.items():
                if (shown := message.shown[state]) < times:
                    self._violate(
                        f"{message.name}: {state} was answered {times} times, but has {shown} receipts"
                    )

    def _check_deadline(self, message: KnownMessage, row: MessageOnDisk, at_ms: int) -> None:
        period = row.expires_at - row.registered_at
        if period not in message.periods:
            self._violate(
                f"{message.name}: its validity period is {period} ms, asked for was {sorted(message.periods)}"
            )
        if message.deadline_ms not in (None, row.expires_at):
            self._violate(
                f"{message.name}: expires at {row.expires_at}, but {message.deadline_ms} was answered"
            )
        last = at_ms if message.first_answered_ms is None else message.first_answered_ms
        if not message.first_asked_ms <= row.registered_at <= last:
            self._violate(
                f"{message.name}: registered at {row.registered_at}, but that was asked for at"
                f" {message.first_asked_ms}, and done by {last}"
            )

    def _check_newest(self, here: dict[tuple[str, str], MessageOnDisk], snapshot: Snapshot) -> None:
        for row in snapshot.receipts:
            key = row.account, row.message_id
            message = self._messages.get(key)
            if row.newest and message is not None and not message.picked and here[key].state != row.state:
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

    def _receipt_may_be_gone(self, receipt: KnownReceipt, at_ms: int) -> bool:
        if receipt.message.deletable or receipt.deletable or receipt.gone:
            return True
        over = at_ms - self.rules.retention_ms
        if receipt.said_ok_ms is not None and receipt.said_ok_ms <= over:
            return True
        if receipt.dead_ms is not None and receipt.dead_ms <= at_ms - self.rules.dead_retention_ms:
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

    def _may_be_gone(self, message: KnownMessage, at_ms: int) -> bool:
        if message.deletable:
            return True
        over = at_ms - self.rules.retention_ms
        dead_over = at_ms - self.rules.dead_retention_ms
        if message.final_ok_ms is not None and message.final_ok_ms <= over:
            return True
        if message.final_dead_ms is not None and message.final_dead_ms <= dead_over:
            return True
        # The receipt of its final state may have been deleted: then its own time counts.
        return message.picked and message.first_asked_ms <= over
