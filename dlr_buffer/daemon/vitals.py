"""How the daemon is doing, as `status`, `/metrics`, `/healthz`, systemd and the log show it.

Everything is read from the parts and from counts that are kept; no look costs a scan of the queue. Which figures are
counted is `metrics`'; how they are shown, the local API's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Final

from dlr_buffer import __version__
from dlr_buffer.clock import Clock, rfc3339
from dlr_buffer.config import (
    Configuration,
    Problem,
    RetrySettings,
    certificate_warnings,
    next_expiry_ms,
)
from dlr_buffer.daemon.provision import max_waiting
from dlr_buffer.expiry import LATE_MS, Expiry
from dlr_buffer.flusher.flusher import Flusher
from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.local_api.ports import ConfigurationFacts, DaemonFacts, DatabaseFacts
from dlr_buffer.local_api.server import ApiServer
from dlr_buffer.logs import Event, Log, Sparing, about
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipts import QueueCounts, QueueOldest, ReceiptStatus
from dlr_buffer.storage.store import SqliteStore

_WAITING: Final = ("waiting", "enroute", "accepted", "unknown")
_UNSENT: Final = (ReceiptStatus.PENDING.value, ReceiptStatus.HELD.value)

_log = logging.getLogger(__name__)


class Vitals:
    """Fulfils the local API's port of this name; the daemon says what to look at, and what became of reloads."""

    store: SqliteStore
    flusher: Flusher
    expiry: Expiry

    def __init__(self, configuration: Configuration, *, clock: Clock, log: Log | None) -> None:
        """``store``, ``flusher`` and ``expiry`` are set before anybody looks; ``log`` is where this process logs to."""
        self.configuration = configuration
        """The one that holds; replaced at a reload."""
        self.log = log
        self.servers: list[ApiServer] = []
        """The client socket's, then the admin socket's."""
        self.reloads = 0
        self.reload_error: str | None = None
        """Why the last reload failed, in one line."""
        self.metrics = Metrics(
            counts=self._counts,
            accounts=self._views,
            gauges=self._gauges,
            calls=self._calls,
            limits=lambda: max_waiting(self.configuration),
        )
        self._clock = clock
        self._sparing = Sparing()
        self._started_at_ms = self.configured_at_ms = clock.now_ms()
        self._progress: tuple[int, int] = (0, 0)
        self._stalled = False
        self._oldest = QueueOldest({}, {})
        self._certificates_said: set[Problem] = set()

    async def look(self) -> None:
        """Look at what is not told by itself, every few seconds, and log what there is to say of it."""
        self.metrics.sample(self._clock.monotonic_ms())
        await self.store.look_for_oldest()
        self._oldest = await self.store.oldest()
        facts = self.store.facts()
        progress = (self.store.deliveries, facts.waiting_commands)
        self._stalled = progress[1] > 0 and self._progress[1] > 0 and progress[0] == self._progress[0]
        self._progress = progress
        self.say_certificates()
        self._say_full_accounts()

    def reloaded(self) -> None:
        """The configuration is taken over."""
        self.reload_error, self.configured_at_ms = None, self._clock.now_ms()
        self._certificates_said.clear()

    def say_certificates(self) -> None:
        """Log what there is to say of certificates, each once until the next reload."""
        found = set(certificate_warnings(self.configuration, self._clock.now_ms()))
        for problem in sorted(found - self._certificates_said):
            _log.warning("%s: %s", problem.path, problem.detail)
        self._certificates_said = found

    def status_line(self) -> str:
        """One line for ``systemctl status``."""
        counts = self.store.counts()
        waiting = sum(_waiting(counts, name) for name in counts.messages)
        pending = sum(statuses["pending"] for statuses in counts.receipts.values())
        dead = sum(statuses["dead"] for statuses in counts.receipts.values())
        oldest_ms = min(self._oldest.pending_ms.values(), default=None)
        age = ""
        if pending and oldest_ms is not None:
            age = f" (oldest {_age(self._clock.now_ms() - oldest_ms)})"
        line = (
            f"{_count(waiting, 'message')} waiting, {_count(pending, 'receipt')} pending{age}, {dead:,} dead"
        )
        troubled = [f"{view.name} {view.health.value}" for view in self._not_open(counts)]
        if self.expiry.stop_reason is not None:
            troubled.append("expiry stopped")
        if self.expiry.silent_ms > LATE_MS:
            troubled.append("expiry late")
        if self.reload_error is not None:
            troubled.append("last reload failed")
        return line + (f"; {', '.join(troubled)}" if troubled else "")

    def problems(self) -> tuple[str, ...]:
        """Why the daemon is not healthy; empty while commits succeed and flushers run."""
        found = list(self.flusher.problems())
        if (failure := self.store.failure) is not None:
            found.append(f"the database failed: {failure}")
        elif (trouble := self.store.trouble) is not None:
            found.append(f"the last commit failed: {trouble}")
        if self._stalled:
            found.append("the database has not finished anything for five seconds while commands wait")
        return tuple(found)

    def facts(self) -> DaemonFacts:
        """What `/v1/status` shows."""
        database = self.store.facts()
        return DaemonFacts(
            version=__version__,
            pid=os.getpid(),
            started_at_ms=self._started_at_ms,
            database=DatabaseFacts(
                path=str(database.path),
                size_bytes=database.size_bytes,
                wal_bytes=database.wal_bytes,
                free_bytes=database.free_bytes,
                sqlite_version=database.sqlite_version,
            ),
            rates=self.metrics.rates(self._clock.monotonic_ms()),
            totals=self.metrics.totals(),
            alarms=self._alarms(database.free_bytes),
            configuration=ConfigurationFacts(self.configured_at_ms, self.reloads, self.reload_error),
        )

    def exposition(self) -> tuple[bytes, str]:
        """The body of `/metrics`."""
        return self.metrics.exposition()

    def _counts(self) -> QueueCounts:
        return self.store.counts()

    def _views(self) -> tuple[AccountView, ...]:
        return self.flusher.views()

    def _not_open(self, counts: QueueCounts) -> Iterator[AccountView]:
        """Accounts that do not send as they should; without those that left the configuration and owe nothing."""
        for view in self.flusher.views():
            owes = _waiting(counts, view.name) or any(counts.receipts[view.name][each] for each in _UNSENT)
            if view.health is not HealthState.OPEN and (view.configured or owes):
                yield view

    def _alarms(self, free_bytes: int) -> tuple[str, ...]:
        alarms = list(self.problems())
        if self.store.registration_stopped(free_bytes):
            alarms.append(
                "the disk is nearly full: registration answers 507 until there is more space than min_free"
            )
        if self.reload_error is not None:
            alarms.append(
                f"the last reload failed, and the configuration before it holds: {self.reload_error}"
            )
        if self.expiry.stop_reason is not None:
            alarms.append(
                f"expiry is stopped: {self.expiry.stop_reason}; check the clock, then 'dlr-buffer expiry resume'"
            )
        if (silent_ms := self.expiry.silent_ms) > LATE_MS:
            alarms.append(
                f"nothing has come of expiry for {_age(silent_ms)}, so messages expire late: the log tells if it fails;"
                " if not, it hangs, and a restart of the daemon makes it go on"
            )
        alarms += [
            f"account {view.name} is {view.health.value}: {view.cause}"
            for view in self._not_open(self.store.counts())
            if view.health is not HealthState.PAUSED
        ]
        alarms += [alarm for server in self.servers if (alarm := server.alarm) is not None]
        alarms += [
            f"{path}: {detail}"
            for path, detail in certificate_warnings(self.configuration, self._clock.now_ms())
        ]
        alarms += [
            f"account {name}: {limit} messages wait for their final state, as many as its max_waiting: registration"
            " answers 503"
            for name, limit in self._full_accounts().items()
        ]
        if self.log is not None and (trouble := self.log.trouble) is not None:
            alarms.append(trouble)
        alarms += self._age_alarms()
        return tuple(alarms)

    def _age_alarms(self) -> list[str]:
        """Receipts that wait for longer than a refused one would live: age kills nothing, but must be seen."""
        now = self._clock.now_ms()
        alarms = []
        for name, created_ms in self._oldest.pending_ms.items():
            account = self.configuration.accounts.get(name)
            lifetime_ms = account.retry.lifetime_ms if account is not None else RetrySettings().lifetime_ms
            if now - created_ms > lifetime_ms:
                alarms.append(
                    f"account {name}: its oldest receipt has waited to be sent since {rfc3339(created_ms)}; see"
                    f" 'dlr-buffer list receipts --account {name} --status pending'"
                )
        return alarms

    def _calls(self) -> dict[tuple[str, str], int]:
        return {
            (name, uid): calls
            for server, name in zip(self.servers, ("client", "admin"), strict=False)
            for uid, calls in server.calls().items()
        }

    def _gauges(self) -> Mapping[str, tuple[str, float]]:
        facts = self.store.facts()
        connections: dict[str, tuple[str, float]] = {}
        for server, name in zip(self.servers, ("client", "admin"), strict=False):
            connections[f"{name}_connections"] = (
                f"Open connections to the {name} socket.",
                server.connections,
            )
            connections[f"{name}_connections_refused"] = (
                f"Connections to the {name} socket answered 503 since the start: there were too many.",
                server.refused,
            )
            connections[f"{name}_connections_forbidden"] = (
                f"Connections to the {name} socket answered 403 since the start: {name}_allow does not name the user.",
                server.forbidden,
            )
        certificates: dict[str, tuple[str, float]] = {}
        if (expiry_ms := next_expiry_ms(self.configuration)) is not None:
            certificates["client_certificate_expiry_timestamp_seconds"] = (
                "When the first of the client certificates ends, in Unix time.",
                expiry_ms / 1000,
            )
        return (
            connections
            | certificates
            | {
                "database_size_bytes": ("Size of the database file.", facts.size_bytes),
                "database_wal_bytes": ("Size of its write-ahead log.", facts.wal_bytes),
                "database_free_bytes": ("Free space beside it.", facts.free_bytes),
                "database_commits": ("Commits since the start.", facts.commits),
                "database_checkpoints": ("Checkpoints since the start.", facts.checkpoints),
                "log_lines_lost": (
                    "Lines of the log that could not be written since the start.",
                    0 if self.log is None else self.log.lost,
                ),
                "waiting_rows": ("Rows that wait to be committed.", facts.waiting_rows),
                "registration_stopped": (
                    "1 while there is less free space than min_free, so that registration answers 507.",
                    float(self.store.registration_stopped(facts.free_bytes)),
                ),
                "expiry_stopped": (
                    "1 while a clock alarm stops expiry.",
                    float(self.expiry.stop_reason is not None),
                ),
                "expiry_silent_seconds": (
                    "For how long nothing has come of expiry, which runs every second; 0 while a clock alarm stops it.",
                    self.expiry.silent_ms / 1000,
                ),
                "reload_failed": (
                    "1 while the configuration before the last reload holds, because that failed.",
                    float(self.reload_error is not None),
                ),
                "unhealthy": ("1 while /healthz would answer 503.", float(bool(self.problems()))),
            }
        )

    def _full_accounts(self) -> dict[str, int]:
        """Accounts whose messages wait up to their max_waiting, with that."""
        limits = max_waiting(self.configuration)
        if not limits:
            return {}
        counts = self.store.counts()
        return {name: limit for name, limit in limits.items() if _waiting(counts, name) >= limit}

    def _say_full_accounts(self) -> None:
        for name, limit in self._full_accounts().items():
            if self._sparing.lets(name, self._clock.monotonic_ms() / 1000) is not None:
                _log.warning(
                    "account %s: %d messages wait for their final state, as many as its max_waiting: registration"
                    " answers 503. Look why no states are reported, or raise max_waiting and reload",
                    name,
                    limit,
                    extra=about(Event.ACCOUNT_FULL, account=name, count=limit),
                )


def _waiting(counts: QueueCounts, account: str) -> int:
    """How many of an account's messages wait for their final state."""
    messages = counts.messages.get(account, {})
    return sum(messages.get(state, 0) for state in _WAITING)


def _count(rows: int, word: str) -> str:
    return f"{rows:,} {word}{'' if rows == 1 else 's'}"


def _age(ms: int) -> str:
    """A time that has passed in one word and one number, as is enough at a glance."""
    seconds = max(0, ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
