"""The oracle itself: told of a fault, it finds it; told of what must be allowed, it is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.crash.known import Rules, Said, Sent, Shown, Told
from tests.crash.oracle import Oracle
from tests.crash.snapshot import MessageOnDisk, ReceiptOnDisk, Snapshot

VALIDITY = 4_000
RETENTION = 12_000
DEAD_RETENTION = 8_000
MAX_REFUSALS = 3
ACCOUNT = "default"
OK = Told(acted=True, said=Said.OK)
LOST = Told(acted=True, said=Said.NOTHING)
IGNORED = Told(acted=False, said=Said.NOTHING)


class World:
    """An oracle, and a disk that does what it is told; time stands at ``now``."""

    def __init__(self) -> None:
        """Begin with an empty disk before run 1."""
        self.oracle = Oracle(
            Rules(VALIDITY, RETENTION, DEAD_RETENTION, 2, max_refusals=MAX_REFUSALS, patience_ms=2_500)
        )
        self.now = 1_000_000
        self.run = 1
        self.messages: dict[str, MessageOnDisk] = {}
        self.receipts: dict[int, ReceiptOnDisk] = {}
        self.next_request_id = 1
        self.requests = 0

    def register(
        self,
        message_id: str = "a",
        *,
        answered: bool = True,
        validity: int | None = None,
        deadline: int | None = None,
    ) -> None:
        """An app registers a message, which is stored; the answer may show a ``deadline``."""
        self.oracle.asks_to_register(ACCOUNT, [(message_id, validity)], at_ms=self.now)
        self.put_message(message_id, "waiting", validity or VALIDITY)
        if answered:
            self.oracle.registered(ACCOUNT, {message_id: deadline}, validity_ms=validity, at_ms=self.now)

    def put_message(self, message_id: str, state: str, validity: int = VALIDITY) -> None:
        """A message comes to lie on the disk, or takes a state on."""
        old = self.messages.get(message_id)
        registered, expires = (
            (self.now, self.now + validity) if old is None else (old.registered_at, old.expires_at)
        )
        self.messages[message_id] = MessageOnDisk(ACCOUNT, message_id, state, registered, expires)

    def report(self, state: str, message_id: str = "a", *, answered: bool = True, told: bool = True) -> int:
        """An app reports a state, which is stored; returns the request_id, which the app may have been told."""
        self.oracle.asks_to_report(ACCOUNT, [(message_id, state)], at_ms=self.now)
        request_id = self.store(state, message_id)
        if answered:
            self.answer(state, message_id, request_id if told else None)
        return request_id

    def answer(self, state: str, message_id: str = "a", request_id: int | None = None) -> None:
        """An app is answered to a report."""
        self.oracle.reported(ACCOUNT, message_id, state, request_id, at_ms=self.now)

    def shown(self, *request_ids: int) -> list[Shown]:
        """Receipts as a list shows them."""
        return [
            Shown(row.request_id, ACCOUNT, row.message_id, row.state)
            for row in map(self.receipts.__getitem__, request_ids)
        ]

    def delete(self, message_id: str = "a", *, found: bool = False, in_flight: int = 0) -> None:
        """An admin deletes a message, which goes from the disk, is answered and looks for it."""
        deletion = self.oracle.asks_to_delete(ACCOUNT, [message_id])
        if not found:
            self.lose(message_id)
        self.oracle.deleted(deletion, message_id, found=found, in_flight=in_flight)

    def hold(self, request_id: int) -> None:
        """An admin holds a receipt, is answered and sees it held."""
        self.oracle.asks_to_hold()
        self.put(request_id, status="held")
        self.oracle.shows_held(self.shown(request_id))

    def refuse(self, request_id: int, times: int = MAX_REFUSALS) -> None:
        """The upstream refuses a receipt so often."""
        for _ in range(times):
            self.send(request_id, told=IGNORED)

    def store(self, state: str, message_id: str = "a") -> int:
        """The daemon gives a message a state, whoever asked for it."""
        request_id, self.next_request_id = self.next_request_id, self.next_request_id + 1
        for each in [row for row in self.receipts.values() if row.message_id == message_id]:
            status = "superseded" if each.status == "pending" else each.status
            self.receipts[each.request_id] = replace(each, newest=False, status=status)
        self.put_message(message_id, state)
        self.receipts[request_id] = ReceiptOnDisk(
            request_id, ACCOUNT, message_id, state, "pending", self.now, None, newest=True
        )
        return request_id

    def send(self, *request_ids: int, told: Told = OK, settle: bool = True, run: int | None = None) -> None:
        """The daemon sends receipts in one request, and settles them as it was told."""
        rows = [self.receipts[each] for each in request_ids]
        sent = [Sent(row.message_id, row.state, str(row.request_id)) for row in rows]
        run = self.run if run is None else run
        number = self.oracle.sends(run, ACCOUNT, sent, at_ms=self.now)
        self.oracle.answers(run, number, sent, [told] * len(sent), outcome="ok", at_ms=self.now)
        if settle and told.said is Said.OK:
            for each in request_ids:
                self.put(each, status="acknowledged")

    def put(self, request_id: int, **changes: str) -> None:
        """Change a receipt on the disk."""
        self.receipts[request_id] = replace(self.receipts[request_id], **changes)  # type: ignore[arg-type]

    def lose(self, message_id: str = "a") -> None:
        """A message with its receipts is gone from the disk."""
        del self.messages[message_id]
        self.receipts = {number: row for number, row in self.receipts.items() if row.message_id != message_id}

    def snapshot(self) -> Snapshot:
        """What lies on the disk."""
        rows = tuple(self.messages.values()), tuple(self.receipts.values())
        return Snapshot(self.now, *rows, self.next_request_id)

    def kill(self) -> list[str]:
        """Kill the daemon, look at the disk, start the next; returns what the oracle has found so far."""
        self.oracle.check(self.run, self.snapshot())
        self.run += 1
        return self.oracle.violations


@pytest.fixture
def world() -> World:
    """Nothing has happened yet."""
    return World()


def test_a_quiet_life_is_no_violation(world: World) -> None:
    """Registered, reported, sent, acknowledged, purged: the oracle has nothing to say and forgets it."""
    world.register()
    world.send(world.report("enroute"))
    assert world.kill() == []
    world.send(world.report("delivered"))
    assert world.kill() == []
    world.now += RETENTION
    world.lose()
    assert world.kill() == []
    world.oracle.finish(world.snapshot())
    assert world.oracle.violations == []
    assert world.oracle.figures.forgotten == 1


def lost_message(world: World) -> None:
    """A message that was registered is not there."""
    world.register()
    world.lose()


def lost_bulk_report(world: World) -> None:
    """A report that was answered without an id has left no receipt."""
    world.register()
    world.oracle.asks_to_report(ACCOUNT, [("a", "enroute")], at_ms=world.now)
    world.answer("enroute")
    world.messages["a"] = replace(world.messages["a"], state="enroute")


def lost_state(world: World) -> None:
    """A message waits though its state was answered."""
    lost_bulk_report(world)
    world.messages["a"] = replace(world.messages["a"], state="waiting")


def lost_receipt(world: World) -> None:
    """A receipt that was answered with its id is not there."""
    world.register()
    world.receipts.pop(world.report("enroute"))


def purged_too_early(world: World) -> None:
    """Everything was sent, but retention took it a moment too early."""
    world.register()
    world.send(world.report("delivered"))
    world.now += RETENTION - 1
    world.lose()


def purged_while_unsent(world: World) -> None:
    """Retention took what was never acknowledged."""
    world.register()
    world.report("delivered")
    world.now += 2 * RETENTION
    world.lose()


def invented_message(world: World) -> None:
    """A message that nobody asked for."""
    world.put_message("x", "waiting")


def invented_receipt(world: World) -> None:
    """A state that nobody reported."""
    world.register()
    world.store("undeliverable")


def invented_upstream(world: World) -> None:
    """A receipt that only the upstream sees."""
    world.register()
    number = world.store("rejected")
    world.send(number)
    del world.receipts[number]
    world.messages["a"] = replace(world.messages["a"], state="waiting")


def expired_too_early(world: World) -> None:
    """A message expires before its time."""
    world.register()
    world.now += VALIDITY - 1
    world.store("expired")


def id_with_two_meanings(world: World) -> None:
    """The same request_id for another state."""
    world.register()
    number = world.report("enroute")
    world.oracle.asks_to_report(ACCOUNT, [("a", "accepted")], at_ms=world.now)
    world.put(number, state="accepted")


def id_used_again(world: World) -> None:
    """An id of a message that is long gone comes back."""
    world.register()
    number = world.report("delivered")
    world.send(number)
    world.kill()
    world.now += RETENTION
    world.lose()
    world.kill()
    world.register("b")
    world.next_request_id = number
    world.report("enroute", "b")


def no_id(world: World) -> None:
    """A request without a request_id."""
    world.register()
    world.oracle.sends(world.run, ACCOUNT, [Sent("a", "delivered", None)], at_ms=world.now)


def two_finals(world: World) -> None:
    """Two final states of one message go upstream."""
    world.register()
    world.send(world.report("delivered"))
    world.send(world.report("rejected", answered=False))


def final_changes(world: World) -> None:
    """Another final state than the one that was answered is on the disk."""
    world.register()
    world.report("delivered")
    world.report("rejected", answered=False)


def final_forgotten(world: World) -> None:
    """After a final state was answered, the message goes on."""
    world.register()
    world.report("delivered")
    world.report("enroute", answered=False)


def sent_after_final(world: World) -> None:
    """An older state is sent after the final one."""
    world.register()
    older, newer = world.report("enroute"), world.report("delivered")
    world.send(newer)
    world.send(older, told=IGNORED)


def sent_behind_newer(world: World) -> None:
    """An intermediate state is overtaken by a newer one, and sent all the same."""
    world.register()
    older, newer = world.report("enroute"), world.report("accepted")
    world.send(newer, told=IGNORED)
    world.send(older, told=IGNORED)


def two_on_the_wire(world: World) -> None:
    """A newer state does not wait for the older one to come back."""
    world.register()
    for number in (world.report("enroute"), world.report("accepted")):
        row = world.receipts[number]
        world.oracle.sends(world.run, ACCOUNT, [Sent("a", row.state, str(number))], at_ms=world.now)


def two_in_one_request(world: World) -> None:
    """Two states of a message travel together."""
    world.register()
    world.send(world.report("enroute"), world.report("delivered"))


def pointless_sent(world: World) -> None:
    """What a newer state had overtaken when the daemon was killed is sent by the next one."""
    world.register()
    older = world.report("enroute")
    world.report("delivered")
    world.put(older, status="pending")
    world.kill()
    world.send(older)


def sent_after_acknowledged(world: World) -> None:
    """The disk said acknowledged, and it is sent again."""
    world.register()
    number = world.report("delivered")
    world.send(number)
    world.kill()
    world.send(number)


def sent_twice_by_one_run(world: World) -> None:
    """The same daemon sends again what it was told ok for."""
    world.register()
    number = world.report("delivered")
    world.send(number)
    world.send(number)


def acknowledged_by_nobody(world: World) -> None:
    """Acknowledged on the disk, but all that the upstream gave was an error."""
    world.register()
    number = world.report("delivered")
    world.send(number, told=LOST)
    world.put(number, status="acknowledged")


def acknowledgement_undone(world: World) -> None:
    """Acknowledged before, pending now."""
    world.register()
    number = world.report("delivered")
    world.send(number)
    world.kill()
    world.put(number, status="pending")


def too_much_in_flight(world: World) -> None:
    """More requests were answered ok and not settled than can be in flight."""
    for message_id in ("a", "b", "c"):
        world.register(message_id)
        world.send(world.report("delivered", message_id), settle=False)


def newest_contradicts(world: World) -> None:
    """A message and its newest receipt disagree."""
    world.register()
    world.report("enroute")
    world.oracle.asks_to_report(ACCOUNT, [("a", "accepted")], at_ms=world.now)
    world.messages["a"] = replace(world.messages["a"], state="accepted")


def refused_without_reason(world: World) -> None:
    """409 for a message that nothing can have ended."""
    world.register()
    world.oracle.asks_to_report(ACCOUNT, [("a", "delivered")], at_ms=world.now)
    world.oracle.conflicted(ACCOUNT, "a", "delivered", at_ms=world.now)


def pause_forgotten(world: World) -> None:
    """An account that was paused is not, after the restart."""
    world.oracle.asks_to_pause(ACCOUNT)
    world.oracle.paused(ACCOUNT, paused=True)
    world.oracle.sees_account(ACCOUNT, paused=False)


def looked_up_in_vain(world: World) -> None:
    """The API does not find what was answered."""
    world.register()
    world.oracle.sees_message(ACCOUNT, "a", found=False, at_ms=world.now)


def second_final_receipt(world: World) -> None:
    """A final state gets another receipt with an id of its own."""
    world.register()
    world.send(world.report("delivered"))
    world.send(world.store("delivered"))


def second_expired_receipt(world: World) -> None:
    """A message expires twice."""
    world.register()
    world.now += VALIDITY
    world.send(world.store("expired"))
    world.send(world.store("expired"))


def more_receipts_than_reports(world: World) -> None:
    """A state that was reported once is told twice."""
    world.register()
    for state in ("enroute", "accepted"):
        world.report(state)
    world.store("enroute")


def lost_repetition(world: World) -> None:
    """Of A, B, A in bulk the last has left no receipt."""
    world.register()
    first = world.report("enroute", told=False)
    world.report("unknown", told=False)
    del world.receipts[world.report("enroute", told=False)]
    world.put_message("a", "enroute")
    world.put(first, status="superseded")


def another_validity_period(world: World) -> None:
    """A message has another validity period than was asked for."""
    world.register()
    world.messages["a"] = replace(world.messages["a"], expires_at=world.now + VALIDITY + 1)


def default_instead_of_the_registered(world: World) -> None:
    """What was registered with a period of its own has that of a report."""
    world.register(validity=1_000)
    world.report("enroute")
    world.messages["a"] = replace(world.messages["a"], expires_at=world.now + VALIDITY)


def another_deadline(world: World) -> None:
    """A message expires at another time than was answered."""
    world.register(deadline=world.now + VALIDITY + 1)


def registered_at_another_time(world: World) -> None:
    """The validity period is right, but counts from a time before anyone asked."""
    world.register()
    row = world.messages["a"]
    world.messages["a"] = replace(row, registered_at=row.registered_at - 1, expires_at=row.expires_at - 1)


def expired_before_its_deadline(world: World) -> None:
    """A shorter period was asked for once, but it is the longer one that counts."""
    world.register(validity=1_000, answered=False)
    world.messages["a"] = replace(world.messages["a"], expires_at=world.now + VALIDITY)
    world.report("enroute")
    world.now += 2_000
    world.store("expired")


def deleted_comes_back(world: World) -> None:
    """A message whose deletion was answered is there after a kill."""
    world.register()
    row = world.messages["a"]
    world.delete()
    world.messages["a"] = row


def deleted_is_not(world: World) -> None:
    """A deletion was answered, nothing was in flight, and the message is found."""
    world.register()
    world.delete(found=True)


def deleted_is_found_later(world: World) -> None:
    """A message whose deletion was answered is found by the next daemon."""
    world.register()
    world.delete()
    world.oracle.sees_message(ACCOUNT, "a", found=True, at_ms=world.now)


def deleted_is_sent(world: World) -> None:
    """A receipt of a message whose deletion was answered is sent."""
    world.register()
    number = world.report("delivered")
    world.delete()
    world.oracle.sends(world.run, ACCOUNT, [Sent("a", "delivered", str(number))], at_ms=world.now)


def deleted_receipt_of_a_new_message(world: World) -> None:
    """A message begun anew after its deletion has a receipt of the old one."""
    world.register()
    number = world.report("enroute")
    row = world.receipts[number]
    world.delete()
    world.report("enroute")
    world.receipts[number] = replace(row, newest=False, status="superseded")


def deleted_receipt_comes_back(world: World) -> None:
    """A receipt whose deletion was answered is there."""
    world.register()
    doomed = world.shown(world.report("enroute"))
    world.oracle.asks_to_delete_receipts(doomed)
    world.oracle.deleted_receipts(doomed)


def held_is_sent(world: World) -> None:
    """What is held is sent."""
    world.register()
    number = world.report("delivered")
    world.hold(number)
    world.send(number, told=IGNORED)


def hold_undone(world: World) -> None:
    """A hold was answered, and after the kill the receipt is pending."""
    world.register()
    number = world.report("delivered")
    world.hold(number)
    world.put(number, status="pending")


def release_undone(world: World) -> None:
    """A release was answered, and after the kill the receipt is held."""
    world.register()
    number = world.report("delivered")
    world.hold(number)
    world.oracle.asks_to_release()
    world.oracle.released()


def expiry_undone(world: World) -> None:
    """That a message was expired was answered, and it goes on."""
    world.register()
    there = world.oracle.asks_to_expire(ACCOUNT, ["a"])
    world.oracle.expired(ACCOUNT, ["a"], there)


def two_finals_beside_a_deletion(world: World) -> None:
    """A deletion that was not answered excuses no second final state that was asked for before it."""
    world.register()
    world.send(world.report("delivered"))
    number = world.report("rejected", answered=False)
    world.kill()
    world.oracle.asks_to_delete(ACCOUNT, ["a"])
    world.send(number)


def dead_without_refusals(world: World) -> None:
    """A good receipt is dead that the upstream refused too seldom."""
    world.register()
    number = world.report("delivered")
    world.refuse(number, MAX_REFUSALS - 1)
    world.put(number, status="dead", error_code="x")


def retry_undone(world: World) -> None:
    """A retry was answered, and the receipt is as dead as before."""
    world.register()
    number = world.report("delivered")
    world.refuse(number)
    world.put(number, status="dead", error_code="x")
    assert world.kill() == []
    world.oracle.retried(world.oracle.asks_to_retry(world.shown(number)))


def dead_purged_too_early(world: World) -> None:
    """Retention took a dead letter a moment too early."""
    world.register()
    world.refuse(world.report("delivered"))
    world.now += DEAD_RETENTION - 1
    world.lose()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lost_message, "and is lost"),
        (lost_bulk_report, "answered 1 times, but has 0 receipts"),
        (lost_repetition, "answered 2 times, but has 1 receipts"),
        (second_final_receipt, "one too many"),
        (second_expired_receipt, "one too many"),
        (more_receipts_than_reports, "one too many"),
        (another_validity_period, "its validity period is 4001 ms"),
        (default_instead_of_the_registered, "asked for was [1000]"),
        (another_deadline, "was answered"),
        (registered_at_another_time, "done by"),
        (expired_before_its_deadline, "2000 ms before the deadline"),
        (deleted_comes_back, "is on the disk, but its deletion was answered"),
        (deleted_is_not, "but a look-up finds it"),
        (deleted_is_found_later, "but a look-up finds it"),
        (deleted_is_sent, "a request shows receipt 1 (delivered), whose deletion was answered"),
        (deleted_receipt_of_a_new_message, "the disk shows receipt 1 (enroute), whose deletion was answered"),
        (deleted_receipt_comes_back, "whose deletion was answered"),
        (held_is_sent, "though it is held"),
        (hold_undone, "was held and is pending now"),
        (release_undone, "is held, but all was released"),
        (expiry_undone, "that it was expired was answered"),
        (two_finals_beside_a_deletion, "is delivered, but a request says rejected"),
        (dead_without_refusals, "was refused 2 times at most"),
        (retry_undone, "was refused 0 times at most"),
        (dead_purged_too_early, "is lost"),
        (lost_state, "waits, though"),
        (lost_receipt, "is lost"),
        (purged_too_early, "is lost"),
        (purged_while_unsent, "is lost"),
        (invented_message, "nobody named it"),
        (invented_receipt, "nobody reported"),
        (invented_upstream, "nobody reported"),
        (expired_too_early, "before the validity period could end"),
        (id_with_two_meanings, "which was default/a (enroute)"),
        (id_used_again, "used up before"),
        (no_id, "without a request_id"),
        (two_finals, "is delivered, but a request says rejected"),
        (final_changes, "is delivered, but the disk says rejected"),
        (final_forgotten, "is enroute, though delivered"),
        (sent_after_final, "a newer one"),
        (sent_behind_newer, "a newer one"),
        (two_on_the_wire, "on the wire at once"),
        (two_in_one_request, "on the wire at once"),
        (pointless_sent, "made it pointless"),
        (sent_after_acknowledged, "after it was acknowledged"),
        (sent_twice_by_one_run, "by the run that was told ok"),
        (acknowledged_by_nobody, "never said ok"),
        (acknowledgement_undone, "was acknowledged and is pending"),
        (too_much_in_flight, "at most 2 can be in flight"),
        (newest_contradicts, "newest receipt"),
        (refused_without_reason, "nothing else could have ended it"),
        (pause_forgotten, "paused is False after the restart"),
        (looked_up_in_vain, "does not find it"),
    ],
)
def test_a_planted_fault_is_found(world: World, fault: Callable[[World], None], words: str) -> None:
    """Each fault draws the sentence that names it."""
    fault(world)
    assert any(words in sentence for sentence in world.kill()), world.oracle.violations


def test_what_is_stuck_at_the_end_is_found(world: World) -> None:
    """A message without a final state, a receipt that waits, one dead without a reason, one never acknowledged."""
    world.register("waits")
    world.register("pending")
    world.report("delivered", "pending")
    world.register("dead")
    number = world.report("delivered", "dead")
    world.refuse(number)
    world.put(number, status="dead")
    assert world.kill() == []
    world.oracle.finish(world.snapshot())
    words = "\n".join(world.oracle.violations)
    assert "default/waits: stays waiting" in words
    assert "(delivered) is stuck" in words
    assert "is dead without a reason" in words
    assert "default/pending: its final state was never acknowledged" in words


def test_faults_of_the_file_are_passed_on(world: World) -> None:
    """What the look at the file found is a violation as it stands."""
    world.oracle.check(1, replace(world.snapshot(), faults=("integrity_check: row 7 missing",)))
    assert world.oracle.violations == ["integrity_check: row 7 missing"]


def test_what_was_not_answered_may_be_there_or_not(world: World) -> None:
    """An unanswered registration that is gone, and one that is stored, are both right."""
    world.register("stored", answered=False)
    world.register("not", answered=False)
    world.lose("not")
    assert world.kill() == []


def test_a_resend_after_a_kill_is_counted_and_allowed(world: World) -> None:
    """An ok in flight at the kill is sent again by the next daemon: one duplicate, and one that was allowed."""
    world.register()
    number = world.report("delivered")
    world.send(number, settle=False)
    assert world.kill() == []
    world.send(number)
    assert world.kill() == []
    figures = world.oracle.figures
    assert (figures.resends, figures.duplicates, figures.bound, figures.in_flight_at_kills) == (1, 1, 1, 1)


def test_a_resend_after_a_lost_answer_is_counted_and_allowed(world: World) -> None:
    """The upstream acted, but its answer was torn: sent again by the same daemon, a duplicate within the bound."""
    world.register()
    number = world.report("delivered")
    world.send(number, told=LOST)
    world.send(number)
    assert world.kill() == []
    assert (world.oracle.figures.duplicates, world.oracle.figures.bound) == (1, 1)


def test_more_duplicates_than_can_be_justified_are_found(world: World) -> None:
    """A duplicate without a kill or a lost answer breaks the bound at the end."""
    world.register()
    world.oracle.figures.duplicates = 1
    world.oracle.finish(world.snapshot())
    assert "1 duplicates, 0 at most can be justified" in world.oracle.violations


def test_an_admin_may_delete_and_expire(world: World) -> None:
    """What an admin was asked to delete may be gone, what to expire may be expired before its time."""
    world.register("deleted")
    world.report("enroute", "deleted")
    world.oracle.asks_to_delete(ACCOUNT, ["deleted"])
    world.lose("deleted")
    world.register("in flight")
    world.delete("in flight", found=True, in_flight=1)
    world.register("expired")
    world.oracle.asks_to_expire(ACCOUNT, ["expired"])
    world.store("expired", "expired")
    assert world.kill() == []


def test_an_admin_may_be_quicker_than_the_app(world: World) -> None:
    """What an admin asks to expire before its app has said its name may be expired as well: both are under way."""
    world.oracle.asks_to_expire(ACCOUNT, ["expired"])
    world.register("expired")
    world.store("expired", "expired")
    assert world.kill() == []


def test_the_last_words_of_a_dead_daemon_accuse_nobody(world: World) -> None:
    """A request that the upstream reads after its sender's death, and after what the next one sent, is no disorder."""
    world.register()
    older = world.report("enroute")
    assert world.kill() == []
    newer = world.report("delivered")
    world.send(newer)
    world.send(older, run=1, settle=False)
    assert world.kill() == []


def test_retention_may_take_what_was_superseded(world: World) -> None:
    """An intermediate receipt that was never sent, made pointless by a newer one, is purged in its time."""
    world.register()
    older = world.report("enroute")
    world.send(world.report("delivered"))
    assert world.kill() == []
    world.now += RETENTION
    del world.receipts[older]
    assert world.kill() == []


def test_a_deleted_message_may_begin_anew(world: World) -> None:
    """After a deletion, answered or not, the same name may come to another final state."""
    for message_id in ("certain", "unanswered"):
        world.register(message_id)
        world.send(world.report("delivered", message_id))
    world.delete("certain")
    world.oracle.asks_to_delete(ACCOUNT, ["unanswered"])
    world.lose("unanswered")
    for message_id in ("certain", "unanswered"):
        world.send(world.report("rejected", message_id))
    assert world.kill() == []
    assert (world.oracle.figures.named, world.oracle.figures.exempt) == (3, 1)


def test_what_is_held_is_sent_after_a_release(world: World) -> None:
    """Held over a kill, released, sent: as it should be; so is what a newer state makes pointless while it is held."""
    world.register()
    held, overtaken = world.report("delivered"), world.report("enroute", "b")
    world.hold(held)
    world.hold(overtaken)
    assert world.kill() == []
    world.put(overtaken, status="superseded")
    world.report("accepted", "b")
    assert world.kill() == []
    world.oracle.asks_to_release()
    world.put(held, status="pending")
    world.oracle.released()
    world.send(held)
    assert world.kill() == []


def test_a_dead_letter_may_be_replayed_and_purged(world: World) -> None:
    """Refused often enough it is dead, replayed it is not; dead once more it goes in its own time."""
    world.register()
    number = world.report("delivered")
    world.refuse(number)
    world.put(number, status="dead", error_code="x")
    assert world.kill() == []
    before = world.oracle.asks_to_retry(world.shown(number))
    world.put(number, status="pending")
    world.refuse(number)
    world.oracle.retried(before)
    world.put(number, status="dead")
    assert world.kill() == []
    world.now += DEAD_RETENTION
    world.lose()
    assert world.kill() == []


def test_a_validity_period_of_ones_own_is_adopted_after_a_report(world: World) -> None:
    """Known by a report first, registered then: its period counts from the report."""
    world.report("enroute")
    world.now += 100
    world.oracle.asks_to_register(ACCOUNT, [("a", 1_000)], at_ms=world.now)
    row = world.messages["a"]
    world.messages["a"] = replace(row, expires_at=row.registered_at + 1_000)
    world.oracle.registered(ACCOUNT, {"a": None}, validity_ms=1_000, at_ms=world.now)
    assert world.kill() == []
    world.now += 900
    world.store("expired")
    assert world.kill() == []


def test_a_deleted_final_receipt_lets_its_message_go_in_time(world: World) -> None:
    """An admin deletes the receipt of a final state: the message stays for its retention, then it may go."""
    world.register()
    doomed = world.shown(world.report("delivered"))
    world.oracle.asks_to_delete_receipts(doomed)
    world.oracle.deleted_receipts(doomed)
    world.receipts.clear()
    assert world.kill() == []
    world.now += RETENTION
    world.lose()
    assert world.kill() == []
