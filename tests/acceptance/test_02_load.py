"""Ten thousand messages from sixteen apps at once, over a line that fails in every way."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterable

from dlr_buffer.client import ApiError, BulkSummary, Client
from dlr_buffer.simulator import FaultKind, Record, SimulatorSettings
from tests.acceptance.harness import Site, StandIn, threads

MESSAGES = 10_000
CLIENTS = 16
BULK = 50
FAULTS = {
    FaultKind.TIMEOUT: 0.05,
    FaultKind.ERROR_500: 0.05,
    FaultKind.RESET: 0.01,
    FaultKind.RESET_AFTER: 0.01,
    FaultKind.PARTIAL: 0.01,
    FaultKind.HTML: 0.01,
}
FINALS = ("delivered", "undeliverable", "rejected")
INTERMEDIATES = ("enroute", "accepted", "unknown")


class Plan:
    """What is registered and reported: who says what in which order, from one seed."""

    def __init__(self) -> None:
        """Draw it."""
        draw = random.Random(20261123)
        ids = [str(1_561_370_632_513 + number) for number in range(MESSAGES)]
        self.finals: dict[str, frozenset[str]] = {}
        registrations: list[str] = []
        reports: list[tuple[str, str]] = []
        for message_id in ids:
            registrations += [message_id] * draw.choice((1, 1, 1, 1, 2))
            # Of two final states the first to come wins: which one that is, only the daemon can say.
            finals = draw.sample(FINALS, draw.choices((1, 2), (19, 1))[0])
            self.finals[message_id] = frozenset(finals)
            reports += [(message_id, state) for state in finals for _ in range(draw.choice((1, 1, 1, 2)))]
            reports += [(message_id, draw.choice(INTERMEDIATES)) for _ in range(draw.choice((0, 0, 1)))]
        draw.shuffle(registrations)
        draw.shuffle(reports)
        self.registrations = [registrations[number::CLIENTS] for number in range(CLIENTS)]
        self.reports = [reports[number::CLIENTS] for number in range(CLIENTS)]


class Answers:
    """What the daemon answered, summed over all clients."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._lock = threading.Lock()
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, **counts: int) -> None:
        """Add to the sums."""
        with self._lock:
            for name, count in counts.items():
                self.counts[name] += count

    def add_summary(self, stored: str, summary: BulkSummary) -> None:
        """Add a bulk answer; the only error allowed is that another final state was first."""
        assert {error.code for error in summary.errors} <= {"message-final"}
        self.add(
            **{stored: summary.stored, f"{stored}_again": summary.duplicates, "late": len(summary.errors)}
        )


def register_all(app: Client, ids: list[str], answers: Answers) -> None:
    """Register a quarter singly, the rest in bulk."""
    alone = len(ids) // 4
    for message_id in ids[:alone]:
        app.register(message_id)
    answers.add(single=alone)
    for start in range(alone, len(ids), BULK):
        answers.add_summary("registered", app.register_many(ids[start : start + BULK]))


def report_all(app: Client, reports: list[tuple[str, str]], answers: Answers) -> None:
    """Report a quarter singly, the rest in bulk."""
    alone = len(reports) // 4
    for message_id, state in reports[:alone]:
        try:
            app.report(message_id, state)
        except ApiError as error:
            if (error.status, error.code) != (409, "message-final"):
                raise
            answers.add(late=1)
    for start in range(alone, len(reports), BULK):
        answers.add_summary("queued", app.report_many(reports[start : start + BULK]))


def accepted_ids(record: Record, message_ids: Iterable[str]) -> set[str]:
    """The request_ids of the receipts that the stand-in acted on."""
    return {
        each.request_id
        for message_id in message_ids
        for each in record.sightings(message_id)
        if each.accepted and each.request_id is not None
    }


def test_nothing_is_lost_doubled_or_left(site: Site) -> None:
    """Every message ends in exactly one final state upstream, nothing is left, and the counts are right."""
    plan = Plan()
    answers = Answers()
    settings = SimulatorSettings(faults=FAULTS, random_seed=7, max_targets=1)
    with StandIn(settings) as stand_in:
        site.configure(
            stand_in.url,
            account={"timeout": "300ms", "concurrency": 8},
            batch={"max_receipts": 20},
            retry={"initial": "20ms", "max": "200ms"},
        )
        daemon = site.start()

        def work(number: int) -> None:
            with site.client() as app:
                register_all(app, plan.registrations[number], answers)
                report_all(app, plan.reports[number], answers)

        with threads(CLIENTS, work):
            pass
        status = site.wait_until_sent()
        finals = stand_in.look(lambda record: record.final_states())
        record = stand_in.look(lambda record: record.summary())
        accepted = stand_in.look(lambda record: accepted_ids(record, plan.finals))
        recount = site.recount()

    assert finals.keys() == plan.finals.keys()
    upstream = {message_id: [state for state, _ in states] for message_id, states in finals.items()}
    assert all(len(states) == 1 for states in upstream.values())
    assert all(upstream[message_id][0] in wanted for message_id, wanted in plan.finals.items())
    assert upstream == {message["message_id"]: [message["state"]] for message in site.pages("/v1/messages")}
    assert (record["reused_request_ids"], record["after_final"]) == (0, 0)
    # Every kind of fault struck, so that what was promised was tested.
    assert all(record["outcomes"].get(kind, 0) for kind in FAULTS), record["outcomes"]
    assert record["resends"] > 0

    assert (status["receipts"]["pending"], status["receipts"]["dead"], status["receipts"]["held"]) == (
        0,
        0,
        0,
    )
    assert {name: rows for name, rows in status["messages"].items() if rows} == recount["messages"]
    assert {name: rows for name, rows in status["receipts"].items() if rows} == recount["receipts"]
    assert sum(recount["messages"].values()) == MESSAGES
    receipts = {receipt["request_id"]: receipt["status"] for receipt in site.pages("/v1/receipts")}
    acknowledged = {request_id for request_id, state in receipts.items() if state == "acknowledged"}
    assert acknowledged <= accepted
    # Accepted, but the answer was lost, and a newer state came meanwhile: nothing else may differ.
    assert {receipts[request_id] for request_id in accepted - acknowledged} <= {"superseded"}
    assert answers.counts["late"] > 0
    assert daemon.terminate() == 0
    assert site.recount() == recount
