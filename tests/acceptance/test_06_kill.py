"""``kill -9`` in the middle of the load: what was answered is there, and what is sent again keeps its request_id."""

from __future__ import annotations

import itertools
import threading

from dlr_buffer.client import DaemonUnreachable
from dlr_buffer.simulator import Record, SimulatorSettings
from tests.acceptance.harness import Site, StandIn, threads

CLIENTS = 8
ROUNDS = 3


class Answered:
    """What the apps were told is durable, and what they asked for at all."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.registered: set[str] = set()
        self.receipts: dict[str, tuple[str, str]] = {}
        self.bulk_reported: set[tuple[str, str]] = set()
        self.asked: set[tuple[str, str]] = set()
        self.cut_off = 0


def load(site: Site, answered: Answered, lock: threading.Lock, prefix: str) -> None:
    """Register and report, singly and in bulk, until the daemon is gone."""
    with site.client() as app:
        for number in itertools.count():
            message_id = f"{prefix}-{number}"
            many = [f"{message_id}-{each}" for each in range(20)]
            states = [(each, "delivered") for each in many]
            with lock:
                answered.asked |= {(message_id, "enroute"), (message_id, "delivered"), *states}
            try:
                app.register(message_id)
                answered.registered.add(message_id)
                for state in ("enroute", "delivered"):
                    receipt = app.report(message_id, state)
                    answered.receipts[receipt["request_id"]] = (message_id, state)
                if number % 10 == 0:
                    summary = app.register_many(many)
                    answered.registered.update(many)
                    assert (summary.stored, summary.errors) == (len(many), ())
                    app.report_many(states)
                    answered.bulk_reported.update(states)
            except DaemonUnreachable:
                answered.cut_off += 1
                return


def check_nothing_lost(site: Site, answered: Answered) -> None:
    """Everything answered is in the queue, under the request_id that was told."""
    messages = {message["message_id"] for message in site.pages("/v1/messages")}
    assert answered.registered <= messages
    receipts = {
        receipt["request_id"]: (receipt["message_id"], receipt["message_state"])
        for receipt in site.pages("/v1/receipts")
    }
    assert {request_id: receipts.get(request_id) for request_id in answered.receipts} == answered.receipts
    assert answered.bulk_reported <= set(receipts.values())
    assert len(receipts) == len(set(receipts.values()))


def seen_states(record: Record, message_id: str) -> tuple[set[str], set[tuple[str, str | None]]]:
    """The states seen of a message, and the states with the request_ids that they came under."""
    sightings = record.sightings(message_id)
    return {each.state for each in sightings}, {(each.state, each.request_id) for each in sightings}


def test_kill_in_the_middle_of_the_load(site: Site) -> None:
    """Three times over: killed under load, started again, nothing answered is lost and no id changes."""
    answered = Answered()
    lock = threading.Lock()
    with StandIn(SimulatorSettings(latency=0.05, max_targets=1)) as stand_in:
        site.configure(stand_in.url)
        for number in range(ROUNDS):
            daemon = site.start()
            check_nothing_lost(site, answered)
            asked_before = stand_in.look(lambda record: record.requests)
            with threads(CLIENTS, lambda each, number=number: load(site, answered, lock, f"{number}-{each}")):  # type: ignore[misc]
                stand_in.wait_for(
                    lambda record, before=asked_before: (  # type: ignore[misc]
                        record.requests > before + 25 and record.concurrent_requests > 1
                    )
                )
                daemon.kill()
            assert answered.cut_off == CLIENTS * (number + 1)
        assert len(answered.registered) > 500

        daemon = site.start()
        check_nothing_lost(site, answered)
        # An app repeats what was not answered; nothing of it can count twice.
        with site.client() as app:
            app.register_many(sorted({message_id for message_id, _ in answered.asked}))
            app.report_many(sorted(each for each in answered.asked if each[1] == "delivered"))
        account = site.wait_until_sent()
        finals = stand_in.look(lambda record: record.final_states())
        record = stand_in.look(lambda record: record.summary())
        seen = stand_in.look(
            lambda record: [seen_states(record, message_id) for message_id, _ in answered.asked]
        )
    assert account["receipts"]["dead"] == 0
    assert {message_id: [state for state, _ in states] for message_id, states in finals.items()} == {
        message_id: ["delivered"] for message_id, _ in answered.asked
    }
    assert record["resends"] > 0
    assert record["reused_request_ids"] == 0
    assert record["after_final"] == 0
    assert all(len(states) == len(pairs) for states, pairs in seen)
    upstream = {(message_id, state, request_id) for message_id, ((state, request_id),) in finals.items()}
    told = {(*pair, request_id) for request_id, pair in answered.receipts.items() if pair[1] == "delivered"}
    assert told <= upstream
    assert daemon.terminate() == 0
    check_nothing_lost_on_disk(site)


def check_nothing_lost_on_disk(site: Site) -> None:
    """The counters of the last run were right."""
    recount = site.recount()
    assert recount["messages"].keys() == {"delivered"}
    assert recount["receipts"].keys() <= {"acknowledged", "superseded"}
