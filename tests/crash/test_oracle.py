"""The oracle itself: told of a fault, it finds it; told of what must be allowed, it is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.crash.oracle import Oracle, Rules, Said, Sent, Told
from tests.crash.snapshot import MessageOnDisk, ReceiptOnDisk, Snapshot

VALIDITY = 4_000
RETENTION = 12_000
ACCOUNT = "default"
OK = Told(acted=True, said=Said.OK)
LOST = Told(acted=True, said=Said.NOTHING)
IGNORED = Told(acted=False, said=Said.NOTHING)


class World:
    """An oracle, and a disk that does what it is told; time stands at ``now``."""

    def __init__(self) -> None:
        """Begin with an empty disk before run 1."""
        self.oracle = Oracle(Rules(VALIDITY, RETENTION, concurrency=2, patience_ms=2_500))
        self.now = 1_000_000
        self.run = 1
        self.messages: dict[str, MessageOnDisk] = {}
        self.receipts: dict[int, ReceiptOnDisk] = {}
        self.next_request_id = 1
        self.requests = 0

    def register(self, message_id: str = "a", *, answered: bool = True) -> None:
        """An app registers a message, which is stored."""
        self.oracle.asks_to_register(ACCOUNT, [(message_id, None)], at_ms=self.now)
        self.messages[message_id] = MessageOnDisk(ACCOUNT, message_id, "waiting", self.now + VALIDITY)
        if answered:
            self.oracle.registered(ACCOUNT, [message_id])

    def report(self, state: str, message_id: str = "a", *, answered: bool = True) -> int:
        """An app reports a state, which is stored; returns the request_id."""
        self.oracle.asks_to_report(ACCOUNT, [(message_id, state)], at_ms=self.now)
        request_id = self.store(state, message_id)
        if answered:
            self.oracle.reported(ACCOUNT, message_id, state, request_id)
        return request_id

    def store(self, state: str, message_id: str = "a") -> int:
        """The daemon gives a message a state, whoever asked for it."""
        request_id, self.next_request_id = self.next_request_id, self.next_request_id + 1
        for each in [row for row in self.receipts.values() if row.message_id == message_id]:
            status = "superseded" if each.status == "pending" else each.status
            self.receipts[each.request_id] = replace(each, newest=False, status=status)
        self.messages[message_id] = MessageOnDisk(ACCOUNT, message_id, state, self.now + VALIDITY)
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
    world.oracle.reported(ACCOUNT, "a", "enroute")
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
    world.messages["x"] = MessageOnDisk(ACCOUNT, "x", "waiting", world.now)


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


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lost_message, "and is lost"),
        (lost_bulk_report, "has no receipt"),
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
    world.put(world.report("delivered", "dead"), status="dead")
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
