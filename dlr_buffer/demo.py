"""``dlr-buffer demo``: the whole job in a few seconds, on a queue that is thrown away.

A stand-in for Smartswitch runs in a thread, the real daemon as a child process, and this module plays the
app: it registers messages, reports states, lets some expire, and at the end holds what the daemon says
against what the stand-in saw. It knows the daemon only through its command line and its sockets.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from tenacity import RetryError, Retrying, retry_if_exception_type, retry_if_result, wait_fixed
from tenacity.stop import stop_after_delay

from dlr_buffer.client import Client, DaemonUnreachable
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.simulator import Exchange, FaultKind, Simulator, SimulatorSettings

_SINGLES = 50
_FIRST_ID = 1_561_370_632_513
"""The seed's first message id."""
_VALIDITY_S = (2, 3)
_BATCH = 20
_START_S = 20.0
_SETTLE_S = 45.0
_SETTLED_EACH_S = 0.01
"""How much longer each message may take, for somebody who asks for very many."""
_STOP_S = 15.0
_LOOK_EVERY_S = 0.2
_LOG_LINES = 20
_FAULTS = {FaultKind.ERROR_503: 0.03, FaultKind.PARTIAL: 0.02}
_RANDOM_SEED = 45
"""Draws faults of both kinds among the first few requests."""
_WAITING = ("waiting", "enroute", "accepted", "unknown")

_CONFIGURATION = """\
[api]
client_socket = {client}
admin_socket = {admin}

[database]
url = {database}
min_free = "1MiB"

[accounts.default]
url = {url}
login = "demo"
password_file = {password}
timeout = "5s"

[accounts.default.batch]
max_receipts = {batch}
linger = "50ms"

[accounts.default.retry]
initial = "200ms"
max = "2s"
"""


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
    with _sigterm_interrupts(), _folder(screen, keep=keep) as folder, _StandIn(faults=faults) as stand_in:
        daemon = _Daemon(folder, stand_in)
        try:
            with daemon, screen:
                status = _play(Plan.of(messages), daemon, stand_in, screen)
        except DlrBufferError as error:
            screen.say(f"The demo broke off: {error}")
            screen.say(daemon.last_words())
            return 1
        sums = _sums(status, stand_in)
        differences = compare(Plan.of(messages), status, stand_in.finals(), stand_in.summary())
        screen.show(sums)
        if differences:
            screen.say("The daemon and the stand-in differ:")
            for difference in differences[:_LOG_LINES]:
                screen.say(f"  {difference}")
            screen.say(daemon.last_words())
            return 1
        screen.say(
            f"Every one of the {messages:,} messages reached the stand-in with exactly one final state, "
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


def _play(plan: Plan, daemon: _Daemon, stand_in: _StandIn, screen: _Screen) -> Mapping[str, Any]:
    """Play the app until everything is settled; return the daemon's last status."""
    registrations = plan.registrations()
    expiring = sum(state == "expired" for state in plan.finals.values())
    screen.say(f"A stand-in for Smartswitch listens at {stand_in.url}, the daemon at {daemon.client_socket}.")
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


def _wait_until_told(daemon: _Daemon, admin: Client, receipts: int, screen: _Screen) -> None:
    def told() -> bool:
        account = _look(daemon, admin)["accounts"][0]
        done = account["receipts"]["acknowledged"]
        screen.progress(done, receipts, "confirmed as en route")
        return bool(account["receipts"]["pending"] == 0)

    _until(told, receipts, "the stand-in has not confirmed the intermediate states")


def _wait_until_settled(daemon: _Daemon, admin: Client, messages: int, screen: _Screen) -> Mapping[str, Any]:
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


def _look(daemon: _Daemon, admin: Client) -> Mapping[str, Any]:
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


def _sums(status: Mapping[str, Any], stand_in: _StandIn) -> dict[str, int]:
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


class _StandIn:
    """The stand-in on an event loop in a thread of its own, as a context manager."""

    def __init__(self, *, faults: bool) -> None:
        self.password = secrets.token_hex(8)
        self.batches = 0
        """Requests with more than one receipt."""
        settings = SimulatorSettings(
            login="demo",
            password=self.password,
            latency=0.02,
            random_seed=_RANDOM_SEED,
            faults=_FAULTS if faults else {},
        )
        self._simulator = Simulator(settings, on_exchange=self._count)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-in", daemon=True)

    @property
    def url(self) -> str:
        return self._simulator.url

    def summary(self) -> dict[str, Any]:
        return self._simulator.record.summary()

    def finals(self) -> dict[str, list[tuple[str, str | None]]]:
        return self._simulator.record.final_states()

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._simulator.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._simulator.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _count(self, exchange: Exchange) -> None:
        self.batches += len(exchange.receipts) > 1


class _Daemon:
    """The real daemon as a child process on a queue in ``folder``, as a context manager."""

    def __init__(self, folder: Path, stand_in: _StandIn) -> None:
        self.client_socket = folder / "client.sock"
        self.admin_socket = folder / "admin.sock"
        self._log = folder / "daemon.log"
        self._config = folder / "config.toml"
        password = folder / "default.password"
        password.touch(0o600)
        password.write_text(stand_in.password + "\n", encoding="utf-8")
        self._config.write_text(
            _CONFIGURATION.format(
                client=json.dumps(str(self.client_socket)),
                admin=json.dumps(str(self.admin_socket)),
                database=json.dumps(f"sqlite:///{folder / 'queue.db'}"),
                url=json.dumps(stand_in.url),
                password=json.dumps(str(password)),
                batch=_BATCH,
            ),
            encoding="utf-8",
        )
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "dlr_buffer", "run", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the daemon in order
            )
        try:
            self._wait_for_answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._stop()
        if error is None and code != 0:
            raise DemoFailed(f"the daemon ended with exit code {code} when it was told to stop")

    def client(self) -> Client:
        return Client(self.client_socket)

    def admin(self) -> Client:
        return Client(self.admin_socket, retry_for_s=2)

    def expect_alive(self) -> None:
        if self._child is not None and (code := self._child.poll()) is not None:
            raise DemoFailed(f"the daemon ended on its own with exit code {code}")

    def last_words(self) -> str:
        """Return the end of the daemon's log."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        except OSError:
            lines = []
        return "\n".join(["The daemon's last log lines:", *(f"  {line}" for line in lines or ["(none)"])])

    def _wait_for_answer(self) -> None:
        def answered() -> None:
            self.expect_alive()
            with Client(self.client_socket, retry_for_s=0) as client:
                client.request("GET", "/healthz")

        Retrying(
            retry=retry_if_exception_type(DaemonUnreachable),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(_START_S),
            reraise=True,
        )(answered)

    def _stop(self) -> int:
        if self._child is None:
            return 0
        self._child.terminate()
        try:
            return self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


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


@contextmanager
def _folder(screen: _Screen, *, keep: bool) -> Iterator[Path]:
    """Give a new folder with a path short enough for sockets; it is removed afterwards unless ``keep``."""
    longest_for_sockets = 80
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > longest_for_sockets:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    path = Path(tempfile.mkdtemp(prefix="dlr-buffer-demo-", dir=parent))
    try:
        yield path
    finally:
        if keep:
            screen.say(f"The queue, its configuration and the daemon's log are kept in {path}.")
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that the daemon is stopped and the folder removed then too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
