"""``dlr-buffer demo``: the whole job in a few seconds, on a queue that is thrown away.

This module plays the app: it registers messages, reports states, lets some expire, and at the end holds what the
daemon says against what the stand-in saw. Both are run by `throwaway`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from tenacity import RetryError, Retrying, retry_if_result, wait_fixed
from tenacity.stop import stop_after_delay

from dlr_buffer.client import Client
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.simulator import FaultKind, SimulatorSettings
from dlr_buffer.throwaway import Daemon, Place, StandIn, folder, sigterm_interrupts

_SINGLES = 50
_FIRST_ID = 1_561_370_632_513
"""The seed's first message id."""
_VALIDITY_S = (2, 3)
_BATCH = 20
_TIMEOUT = "5s"
_SETTLE_S = 45.0
_SETTLED_EACH_S = 0.01
"""How much longer each message may take, for somebody who asks for very many."""
_LOOK_EVERY_S = 0.2
_LOG_LINES = 20
_FAULTS = {FaultKind.ERROR_503: 0.03, FaultKind.PARTIAL: 0.02}
_RANDOM_SEED = 45
"""Draws faults of both kinds among the first few requests."""
_WAITING = ("waiting", "enroute", "accepted", "unknown")


class DemoFailed(DlrBufferError):
    """The demo could not be brought to its end; the text says why."""


def run_demo(*, messages: int = 1000, faults: bool = True, keep: bool = False, as_json: bool = False) -> int:
    """Show the whole job with so many ``messages``; return 0 if every one ended as it should, else 1.

    ``faults`` lets the stand-in fail now and then, ``keep`` leaves the folder with the queue and the log,
    ``as_json`` prints the sums as one line of JSON and all else on standard error. Raises KeyboardInterrupt
    on SIGINT or SIGTERM, after everything is stopped and removed.
    """
    screen = _Screen(as_json=as_json)
    screen.say("Starting a daemon and a stand-in for Smartswitch on a queue that is thrown away.")
    settings = SimulatorSettings(latency=0.02, random_seed=_RANDOM_SEED, faults=_FAULTS if faults else {})
    with sigterm_interrupts(), folder("demo", keep=keep) as path, StandIn(settings) as stand_in:
        try:
            return _show(Plan.of(messages), path, stand_in, screen)
        finally:
            if keep:
                screen.say(f"The queue, its configuration and the daemon's log are kept in {path}.")


def _show(plan: Plan, path: Path, stand_in: StandIn, screen: _Screen) -> int:
    daemon = Daemon(Place(path, path / "queue.db"), stand_in, max_receipts=_BATCH, timeout=_TIMEOUT)
    try:
        with daemon, screen:
            status = _play(plan, daemon, stand_in, screen)
    except DlrBufferError as error:
        screen.say(f"The demo broke off: {error}")
        screen.say(daemon.last_words())
        return 1
    screen.show(_sums(status, stand_in))
    differences = compare(plan, status, stand_in.finals(), stand_in.summary())
    if differences:
        screen.say("The daemon and the stand-in differ:")
        for difference in differences[:_LOG_LINES]:
            screen.say(f"  {difference}")
        screen.say(daemon.last_words())
        return 1
    screen.say(
        f"Every one of the {len(plan.finals):,} messages reached the stand-in with exactly one final state, "
        "and its own record agrees with the daemon's counts."
    )
    return 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to happen to each message.

    The final state by id, and which are told to be on their way first.
    """

    finals: Mapping[str, str]
    intermediates: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, messages: int) -> Self:
        """Plan so many messages: a tenth expires, a twentieth is undeliverable, a tenth is en route first."""
        finals: dict[str, str] = {}
        intermediates: list[tuple[str, str]] = []
        for number in range(messages):
            message_id = str(_FIRST_ID + number)
            match number % 20:
                case 3 | 13:
                    finals[message_id] = "expired"
                case 7:
                    finals[message_id] = "undeliverable"
                case 5 | 15:
                    finals[message_id] = "delivered"
                    intermediates.append((message_id, "enroute"))
                case _:
                    finals[message_id] = "delivered"
        return cls(finals, tuple(intermediates))

    def registrations(self) -> list[dict[str, Any]]:
        """Return what is registered; the messages that are to expire have a short validity period."""
        return [
            {"message_id": message_id}
            | ({"validity_period": _VALIDITY_S[number % 2]} if state == "expired" else {})
            for number, (message_id, state) in enumerate(self.finals.items())
        ]

    def reports(self) -> list[tuple[str, str]]:
        """Return the final states that the app reports; about the expired ones it stays silent."""
        return [(message_id, state) for message_id, state in self.finals.items() if state != "expired"]


def compare(
    plan: Plan,
    status: Mapping[str, Any],
    seen: Mapping[str, list[tuple[str, str | None]]],
    record: Mapping[str, Any],
) -> list[str]:
    """Say, a sentence each, where the plan.

    The daemon's ``status`` and what the stand-in has ``seen`` differ.

    ``seen`` are the accepted final states of each message with their request_ids, ``record`` the stand-in's
    counters.
    """
    differences: list[str] = []
    for message_id, state in plan.finals.items():
        states = [name for name, _ in seen.get(message_id, [])]
        if states != [state]:
            told = ", ".join(states) or "no final state"
            differences.append(
                f"message {message_id} should have ended as {state}; the stand-in was told {told}"
            )
    differences += [
        f"message {message_id} was never registered" for message_id in seen if message_id not in plan.finals
    ]
    differences += _count_differences(plan, status, record)
    return differences


def _count_differences(plan: Plan, status: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    account = status["accounts"][0]
    totals = status["totals"]
    planned = Counter(plan.finals.values())
    pairs = [
        ("messages registered", totals["registered"], len(plan.finals)),
        *((f"messages {state}", account["messages"][state], count) for state, count in planned.items()),
        *(
            (f"receipts {status_name}", account["receipts"][status_name], 0)
            for status_name in ("pending", "held", "dead")
        ),
        ("receipts acknowledged", account["receipts"]["acknowledged"], record["accepted"]),
    ]
    differences = [
        f"{name}: the daemon counts {counted:,}, and {expected:,} are right"
        for name, counted, expected in pairs
        if counted != expected
    ]
    # A request may be lost on its way (its time is up, or the connection ends, before it has come whole), so more of
    # them are sent than arrive, but never fewer.
    differences += [
        f"{name}: the daemon counts {counted:,}, and {arrived:,} arrived"
        for name, counted, arrived in (
            ("requests", totals["requests"], record["requests"]),
            ("receipts sent again", totals["resent"], record["resends"]),
        )
        if counted < arrived
    ]
    for name, words in (
        ("after_final", "receipts came after a final state"),
        ("reused_request_ids", "request_ids came with two meanings"),
    ):
        if record[name]:
            differences.append(f"{record[name]:,} {words}")
    return differences


def _play(plan: Plan, daemon: Daemon, stand_in: StandIn, screen: _Screen) -> Mapping[str, Any]:
    """Play the app until everything is settled; return the daemon's last status."""
    registrations = plan.registrations()
    expiring = sum(state == "expired" for state in plan.finals.values())
    screen.say(
        f"A stand-in for Smartswitch listens at {stand_in.url}, the daemon at {daemon.place.client_socket}."
    )
    with daemon.client() as app, daemon.admin() as admin:
        screen.say(
            f"Registering {len(registrations):,} messages: {min(_SINGLES, len(registrations))} one by one, "
            "the rest in bulk."
        )
        for item in registrations[:_SINGLES]:
            app.register(item["message_id"], validity_period=item.get("validity_period"))
        _expect_no_errors(app.register_many(registrations[_SINGLES:]).errors)
        if plan.intermediates:
            screen.say(f"Reporting {len(plan.intermediates):,} messages as en route; their three days go on.")
            _expect_no_errors(app.report_many(plan.intermediates).errors)
            _wait_until_told(daemon, admin, len(plan.intermediates), screen)
        reports = plan.reports()
        screen.say(
            f"Reporting final states for {len(reports):,} messages; about {expiring:,} nobody says anything, "
            f"and after {_VALIDITY_S[0]} to {_VALIDITY_S[1]} seconds they expire."
        )
        _expect_no_errors(app.report_many(reports).errors)
        return _wait_until_settled(daemon, admin, len(plan.finals), screen)


def _expect_no_errors(errors: tuple[Any, ...]) -> None:
    if errors:
        raise DemoFailed(f"the daemon did not take {len(errors)} items; the first: {errors[0].detail}")


def _wait_until_told(daemon: Daemon, admin: Client, receipts: int, screen: _Screen) -> None:
    def told() -> bool:
        account = _look(daemon, admin)["accounts"][0]
        done = account["receipts"]["acknowledged"]
        screen.progress(done, receipts, "confirmed as en route")
        return bool(account["receipts"]["pending"] == 0)

    _until(told, receipts, "the stand-in has not confirmed the intermediate states")


def _wait_until_settled(daemon: Daemon, admin: Client, messages: int, screen: _Screen) -> Mapping[str, Any]:
    last: Mapping[str, Any] = {}

    def settled() -> bool:
        nonlocal last
        last = _look(daemon, admin)
        account = last["accounts"][0]
        waiting = sum(account["messages"][state] for state in _WAITING)
        pending = account["receipts"]["pending"]
        trouble = "" if account["health"] == "open" else f", {account['health']} ({account['cause']})"
        left = min(messages, waiting + pending)
        screen.progress(
            messages - left, messages, f"settled; {waiting:,} wait, {pending:,} to be sent{trouble}"
        )
        return not waiting and not pending and not account["in_flight_receipts"]

    _until(settled, messages, "not everything is settled")
    return last


def _look(daemon: Daemon, admin: Client) -> Mapping[str, Any]:
    daemon.expect_alive()
    status: Mapping[str, Any] = admin.request("GET", "/v1/status")
    return status


def _until(condition: Callable[[], bool], rows: int, failure: str) -> None:
    """Look again and again until ``condition`` holds.

    Raises DemoFailed when the time for so many rows is over.
    """
    seconds = _SETTLE_S + rows * _SETTLED_EACH_S
    try:
        Retrying(
            retry=retry_if_result(lambda held: not held),
            wait=wait_fixed(_LOOK_EVERY_S),
            stop=stop_after_delay(seconds),
        )(condition)
    except RetryError:
        raise DemoFailed(f"{failure} after {seconds:.0f} seconds") from None


def _sums(status: Mapping[str, Any], stand_in: StandIn) -> dict[str, int]:
    account = status["accounts"][0]
    record = stand_in.summary()
    return {
        "registered": status["totals"]["registered"],
        **{state: account["messages"][state] for state in ("delivered", "expired", "undeliverable")},
        "batches": stand_in.batches,
        "requests": record["requests"],
        "resends": record["resends"],
        "acknowledged": account["receipts"]["acknowledged"],
        "superseded": account["receipts"]["superseded"],
        "dead": account["receipts"]["dead"],
    }


class _Screen:
    """What the user sees: sentences.

    And while something is waited for a bar (lines where there is no terminal).
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        stream = sys.stderr if as_json else sys.stdout
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._said_at = 0.0
        self._said = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, visible=False)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        self._console.print(sentence)

    def progress(self, done: int, total: int, words: str) -> None:
        """Show how far a wait has come; without a terminal once a second at most, and only what is new."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=words, visible=True)
            return
        line = f"  {done:,} of {total:,} {words}"
        if line != self._said and time.monotonic() - self._said_at >= 1:
            self._said_at, self._said = time.monotonic(), line
            self.say(line)

    def show(self, sums: Mapping[str, int]) -> None:
        """Show the sums as a table, or as one line of JSON on standard output."""
        if self._as_json:
            print(json.dumps(sums), flush=True)
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", justify="left")
        table.add_column("count", justify="right")
        for name, count in sums.items():
            table.add_row(name, f"{count:,}", style="red" if name == "dead" and count else None)
        self._console.print(table)
