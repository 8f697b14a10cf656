"""The campaign: load, kill, look, start again, so many times; and at the end everything has to come to an end.

`Campaign.run` does it; the kinds of death are dealt like cards, so that each comes before any comes again; one that
was missed is dealt once more. Now and then there is rest: nothing is asked, the upstream is well, and what is owed has
to come to its end. What must hold is the oracle's, how to die inside the daemon is `starter`'s.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, Final, assert_never

from dlr_buffer.client import ApiError, Client, DaemonUnreachable
from tests.acceptance.harness import Site, eventually
from tests.crash.known import Figures, Rules
from tests.crash.load import ACCOUNTS, Load, Memory
from tests.crash.oracle import Oracle
from tests.crash.snapshot import Snapshot, take_snapshot
from tests.crash.starter import Point
from tests.crash.upstream import TIMEOUT_S, Mood, Upstream, now_ms
from tests.crash.victim import NotReady, Victim
from tests.integration.storage.harness import recount

VALIDITY_S: Final = 4
RETENTION_S: Final = 12
DEAD_RETENTION_S: Final = 8
MAX_REFUSALS: Final = 3
CONCURRENCY: Final = 4
MOST_LOAD_S: Final = 1.5
"""How long a round waits at most for the daemon to come to the point where it is to die."""
MOST_STOP_S: Final = 0.1
"""How long it has at most between being asked to stop and being killed."""
REST_EVERY: Final = 13
"""After so many kills everything has to come to its end, as after the last one."""
LOOK_UPS: Final = 20
LOG_BYTES: Final = 4 << 20


class Death(StrEnum):
    """When the daemon is killed."""

    ANY_TIME = "any time"
    START_UP = "start-up"
    MIGRATION = "migration"
    REQUEST = "request upstream unanswered"
    STOPPING = "after SIGTERM"
    BEFORE_COMMIT = "before a commit"
    AFTER_COMMIT = "committed, not answered"
    CHECKPOINT = "checkpoint"
    RETENTION = "retention"
    EXPIRY = "expiry"
    ADMIN = "admin action on many"
    BULK = "bulk request"
    SETTLING = "settling"


@dataclass(frozen=True, slots=True)
class _Trap:
    """Where in the daemon, at which time out of how many, how long after at most."""

    point: Point
    times: int
    delay_s: float = 0.0


_TRAPS: Final = {
    Death.START_UP: _Trap(Point.OPENING, 7, 0.003),
    Death.BEFORE_COMMIT: _Trap(Point.BEFORE_COMMIT, 100),
    Death.AFTER_COMMIT: _Trap(Point.AFTER_COMMIT, 100),
    Death.CHECKPOINT: _Trap(Point.CHECKPOINT, 4, 0.012),
    Death.RETENTION: _Trap(Point.RETENTION, 2, 0.03),
    Death.EXPIRY: _Trap(Point.EXPIRY, 2, 0.02),
    Death.ADMIN: _Trap(Point.ADMIN, 2, 0.01),
    Death.BULK: _Trap(Point.BULK, 6, 0.02),
    Death.SETTLING: _Trap(Point.SETTLING, 15, 0.005),
}


@dataclass(slots=True)
class Outcome:
    """What a campaign comes to; the oracle's figures are beside it."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    """Deaths that were planned so, but the daemon did not come to that point in time: killed all the same."""
    rests: int = 0
    """How often everything had to come to its end."""
    start_s: list[float] = field(default_factory=list)
    wal_bytes: list[int] = field(default_factory=list)
    database_bytes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    @property
    def total(self) -> int:
        """How often it was killed."""
        return sum(self.kills.values())

    @property
    def hit(self) -> set[str]:
        """The kinds of death that it has really died."""
        return {death for death, kills in self.kills.items() if kills > self.missed[death]}


class Campaign:
    """Kills a daemon that works in ``folder`` (whose path has to be short, for the sockets)."""

    def __init__(self, folder: Path, *, seed: int, say: Callable[[str], None] = lambda _line: None) -> None:
        """Start nothing yet; ``say`` is told a line a round."""
        self._folder = folder
        self._site = Site(folder)
        self._rng = Random(seed)
        self._seed = seed
        self._say = say
        self._memory = Memory()
        self._run = 0
        self._began = 0.0
        self._deck: list[Death] = []
        self.oracle = Oracle(
            Rules(
                default_validity_ms=VALIDITY_S * 1000,
                retention_ms=RETENTION_S * 1000,
                dead_retention_ms=DEAD_RETENTION_S * 1000,
                concurrency=CONCURRENCY,
                max_refusals=MAX_REFUSALS,
                patience_ms=int(TIMEOUT_S * 500),
            )
        )
        self.outcome = Outcome(seed, figures=self.oracle.figures)

    def run(self, kills: int) -> Outcome:
        """Kill so many times, then let everything come to an end; stops early at the first violation.

        If a kind of death was missed until then, which should have been among so many, up to twice as many times.
        """
        self._began = time.monotonic()
        with Upstream(self.oracle, self._seed) as upstream:
            while not self.oracle.violations and (
                self.outcome.total < kills or (len(Death) <= kills and self._missing(2 * kills))
            ):
                self._guarded(lambda: self._round(upstream))
                if self.outcome.total % REST_EVERY == 0 and not self.oracle.violations:
                    self._guarded(lambda: self._rest(upstream))
            if not self.oracle.violations:
                self._guarded(lambda: self._rest(upstream))
        self.outcome.violations = list(self.oracle.violations)
        self.outcome.seconds = time.monotonic() - self._began
        return self.outcome

    def _missing(self, most: int) -> bool:
        return self.outcome.total < most and self.outcome.hit != set(Death)

    def _guarded(self, part: Callable[[], None]) -> None:
        """What a part of the campaign falls over is a violation too."""
        try:
            part()
        except Exception as error:  # noqa: BLE001 - said in the end, with the seed
            self.oracle.violations.append(f"run {self._run}: {type(error).__name__}: {error}")

    # One round

    def _round(self, upstream: Upstream) -> None:
        self._run += 1
        began = time.monotonic()
        death = self._deal()
        mood = self._mood(death)
        upstream.be(mood)
        hit = True
        match death:
            case Death.MIGRATION:
                hit = self._migration()
            case _:
                hit = self._life(upstream, death)
        self.outcome.kills[death] += 1
        if not hit:
            self.outcome.missed[death] += 1
            self._deck.insert(self._rng.randint(0, len(self._deck)), death)
        figures = self.oracle.figures
        self._say(
            f"{self.outcome.total:5} {death:28} {'' if hit else 'missed':7} upstream {mood:6}"
            f" {time.monotonic() - began:5.2f} s {figures.registrations:8} registrations {figures.reports:8} reports"
            f" {figures.duplicates:5}/{figures.bound} duplicates, {len(self.oracle.violations)} violations"
        )

    def _deal(self) -> Death:
        if not self._deck:
            self._deck = list(Death)
            self._rng.shuffle(self._deck)
        death = self._deck.pop()
        if death is Death.RETENTION and self._deck and time.monotonic() - self._began < RETENTION_S + 1:
            # There is nothing to purge yet: it comes last.
            self._deck.insert(0, death)
            death = self._deck.pop()
        return death

    def _mood(self, death: Death) -> Mood:
        match death:
            case Death.REQUEST:
                # While a request hangs, newer states overtake what it carries.
                return Mood.SLOW
            case Death.SETTLING | Death.RETENTION:
                # Something has to go through.
                return self._rng.choice([Mood.WELL, Mood.FLAKY])
            case _:
                return self._rng.choices(list(Mood), (4, 4, 2, 1))[0]

    def _life(self, upstream: Upstream, death: Death) -> bool:
        """One daemon under load; returns whether it died as it was meant to."""
        trap = _TRAPS.get(death)
        crash_at = None
        if trap is not None:
            times, delay_s = self._rng.randint(1, trap.times), self._rng.uniform(0, trap.delay_s)
            crash_at = f"{trap.point}:{times}:{delay_s:.6f}"
        with ExitStack() as stack:
            victim = self._start(upstream, crash_at)
            stack.callback(victim.close)
            hit = True
            if victim.wait_ready():
                self._note_start(victim)
                # First, so that what an admin does now is not taken for what was so at the start.
                self._look_around()
                load = Load(self._site, self.oracle, self._memory, run=self._run, seed=str(self._seed))
                stack.callback(load.stop)
                hit = self._die(upstream, victim, death)
                self._bury(upstream, victim)
                load.stop()
            self._bury(upstream, victim)
        self._check()
        return hit

    def _die(self, upstream: Upstream, victim: Victim, death: Death) -> bool:
        match death:
            case Death.REQUEST:
                upstream.wait_for_request(self._rng.randint(10, 30), MOST_LOAD_S)
                victim.wait_gone(self._rng.uniform(0, 0.1))
                victim.kill()
                return upstream.answers_owed() > 0
            case Death.STOPPING:
                victim.wait_gone(self._rng.uniform(0.2, MOST_LOAD_S))
                victim.terminate()
                victim.wait_gone(self._rng.uniform(0, MOST_STOP_S))
                return victim.kill() == -signal.SIGKILL
            case Death.ANY_TIME:
                victim.wait_gone(self._rng.uniform(0.1, MOST_LOAD_S))
                return True
            case Death.MIGRATION:
                raise AssertionError(death)
            case Death.START_UP:
                return False
            case (
                Death.BEFORE_COMMIT
                | Death.AFTER_COMMIT
                | Death.CHECKPOINT
                | Death.RETENTION
                | Death.EXPIRY
                | Death.ADMIN
                | Death.BULK
                | Death.SETTLING
            ):
                return victim.wait_gone(2 * MOST_LOAD_S)
            case _:
                assert_never(death)

    def _migration(self) -> bool:
        """On a fresh database: kill it while a migration runs, alone or with its child; the next one must do.

        With data in it, and before and after its commit: tests/integration/storage/test_released.py.
        """
        folder = self._folder / "fresh"
        folder.mkdir()
        site = Site(folder)
        site.configure(account={"timeout": f"{TIMEOUT_S:g}s"})
        with closing(Victim(site)) as victim:
            victim.wait_for_child(10.0)
            victim.wait_gone(self._rng.uniform(0, 0.6 * self._usual_start_s()))
            migrating = victim.has_child()
            victim.kill(children=self._rng.random() < 0.5)
        with closing(Victim(site)) as victim:
            if not victim.wait_ready():
                raise NotReady("killed by nobody")
            with site.client() as app:
                app.register("first")
                app.report("first", "enroute")
            victim.kill()
        snapshot = take_snapshot(site.database, self._folder / "copy", at_ms=now_ms())
        found = [(row.message_id, row.state) for row in snapshot.messages]
        if found != [("first", "enroute")] or len(snapshot.receipts) != 1 or snapshot.faults:
            self.oracle.violations.append(f"after a kill during migration: {found}, {snapshot.faults}")
        else:
            shutil.rmtree(folder)
        return migrating

    # Steps

    def _start(self, upstream: Upstream, crash_at: str | None) -> Victim:
        if self._site.log.exists() and self._site.log.stat().st_size > LOG_BYTES:
            self._site.log.unlink()
        account = {"timeout": f"{TIMEOUT_S:g}s", "concurrency": CONCURRENCY}
        self._site.configure(
            upstream.url("default", self._run),
            account=account,
            others={"second": {"url": upstream.url("second", self._run), **account}},
            batch={"max_receipts": 25},
            retry={"max_refusals": MAX_REFUSALS},
            tables={
                "messages": {"validity_period": f"{VALIDITY_S}s"},
                "retention": {"acknowledged": f"{RETENTION_S}s", "dead": f"{DEAD_RETENTION_S}s"},
            },
        )
        return Victim(self._site, crash_at=crash_at)

    def _note_start(self, victim: Victim) -> None:
        if victim.ready_after_s is not None:
            self.outcome.start_s.append(victim.ready_after_s)

    def _usual_start_s(self) -> float:
        return statistics.median(self.outcome.start_s[-9:]) if self.outcome.start_s else 0.7

    def _look_around(self) -> None:
        """Ask a daemon that has just started what it knows; it may be gone already."""
        names = self.oracle.some_answered(LOOK_UPS, [self._rng.random() for _ in range(LOOK_UPS)])
        try:
            for account in self._accounts():
                self.oracle.sees_account(account["name"], paused=account["health"] == "paused")
            with self._site.admin() as admin:
                for name in names:
                    self._look_up(admin, name)
        except DaemonUnreachable:
            return

    def _look_up(self, admin: Client, name: tuple[str, str]) -> None:
        account, message_id = name
        found = True
        try:
            admin.message(message_id, account)
        except ApiError as error:
            if error.code != "not-found":
                raise
            found = False
        self.oracle.sees_message(account, message_id, found=found, at_ms=now_ms())

    def _bury(self, upstream: Upstream, victim: Victim) -> None:
        victim.kill()
        upstream.wait_until_quiet()

    def _check(self) -> Snapshot | None:
        """Show the oracle what lies on the disk."""
        if not self._site.database.exists() or not self._site.database.stat().st_size:
            return None
        snapshot = take_snapshot(self._site.database, self._folder / "copy", at_ms=now_ms())
        self.oracle.check(self._run, snapshot)
        self.outcome.wal_bytes.append(snapshot.wal_bytes)
        self.outcome.database_bytes = max(self.outcome.database_bytes, self._site.database.stat().st_size)
        return snapshot

    # Rest

    def _rest(self, upstream: Upstream) -> None:
        """The upstream is well, nothing is asked any more, all is released: everything must come to its end."""
        self._run += 1
        self.outcome.rests += 1
        began = time.monotonic()
        upstream.be(Mood.WELL)
        victim = self._start(upstream, None)
        with closing(victim):
            if not victim.wait_ready():
                raise NotReady("killed by nobody")
            self._note_start(victim)
            with self._site.admin() as admin:
                for account in ACCOUNTS:
                    self.oracle.asks_to_pause(account)
                    admin.request("POST", f"/v1/accounts/{account}/resume")
                    self.oracle.paused(account, paused=False)
                self.oracle.asks_to_release()
                admin.request("POST", "/v1/receipts/release", {"filter": {"status": "held"}})
                self.oracle.released()
            # A long campaign leaves a long backlog: what counts is that it grows shorter, until nothing is left.
            left = self._unfinished()
            while left:
                left = eventually(self._unfinished, lambda rows, before=left: rows < before)  # type: ignore[misc]
            eventually(self._compare_counts, lambda difference: not difference)
            victim.terminate()
            if victim.process.wait(10) != 0:
                self.oracle.violations.append("the daemon did not stop in order")
            upstream.wait_until_quiet()
        snapshot = self._check()
        if snapshot is None:
            raise AssertionError("no database is there")
        self.oracle.finish(snapshot)
        self._say(f"{self.outcome.total:5} rest: all came to its end {time.monotonic() - began:5.2f} s")

    def _accounts(self) -> list[dict[str, Any]]:
        with self._site.admin() as admin:
            accounts: list[dict[str, Any]] = admin.request("GET", "/v1/status")["accounts"]
            return accounts

    def _unfinished(self) -> int:
        rows = 0
        for account in self._accounts():
            rows += account["receipts"]["pending"] + account["receipts"]["held"]
            rows += sum(account["messages"][state] for state in ("waiting", "enroute", "accepted", "unknown"))
        return rows

    def _compare_counts(self) -> str:
        """How the counters that the API shows differ from a recount; retention may come in between."""
        shown = {}
        for account in self._accounts():
            for kind in ("messages", "receipts"):
                counts = {name: rows for name, rows in account[kind].items() if rows}
                shown[account["name"], kind] = counts
        counted: dict[tuple[str, str], dict[str, int]] = {key: {} for key in shown}
        messages, receipts = recount(self._site.database)
        for (account_name, state), rows in messages.items():
            counted[account_name, "messages"][state] = rows
        for (account_name, status), rows in receipts.items():
            counted[account_name, "receipts"][status] = rows
        return "" if shown == counted else f"shown {shown}, counted {counted}"
