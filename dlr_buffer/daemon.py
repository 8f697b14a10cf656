"""The daemon: the one place that knows every part and wires them (the composition root), and its life.

Start: configuration, the queue's lock, migrations, writer and readers, then the flushers, the sockets, the
ticks, and last READY to systemd. Stop: the sockets first (requests in work are answered; where systemd holds the
sockets, others wait for the next daemon), then the ticks, the flushers (requests under way finish or are given back),
and last the database. SIGHUP reloads accounts,
message rules, retention and the log level. Tests start this same object, with a clock of their own. Nothing
is decided here that belongs to a part.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from dlr_buffer import __version__
from dlr_buffer.backoff import backoff_ms
from dlr_buffer.clock import BootClock, Clock, SystemBootClock, rfc3339
from dlr_buffer.config import (
    AccountSettings,
    Configuration,
    ConfigurationError,
    Problem,
    RetrySettings,
    SystemTrust,
    certificate_warnings,
    left_to_socket_units,
    load,
    next_expiry_ms,
    restart_needed,
)
from dlr_buffer.errors import DlrBufferError, StoreUnavailable
from dlr_buffer.expiry import Expiry
from dlr_buffer.flusher.flusher import AccountPlan, Flusher
from dlr_buffer.flusher.ports import FlushSettings, Upstream
from dlr_buffer.health import AccountView, HealthSettings, HealthState
from dlr_buffer.local_api.app import create_app
from dlr_buffer.local_api.bodies import BodyLimits, BodyRoom
from dlr_buffer.local_api.connections import (
    ConnectionLimits,
    Shares,
    raise_descriptor_limit,
    share_descriptors,
)
from dlr_buffer.local_api.peers import AllowList
from dlr_buffer.local_api.ports import ConfigurationFacts, DaemonFacts, DatabaseFacts, ExpiryView
from dlr_buffer.local_api.server import ApiServer
from dlr_buffer.local_api.sockets import bind
from dlr_buffer.logs import Event, Log, Sparing, about, set_level
from dlr_buffer.metrics import Metrics
from dlr_buffer.receipt_queue.queue import QueueSettings, ReceiptQueue
from dlr_buffer.receipts import QueueCounts, QueueOldest, RefusalPolicy
from dlr_buffer.retention import Retention, RetentionSettings
from dlr_buffer.smartswitch.client import SmartswitchClient, UpstreamSettings
from dlr_buffer.smartswitch.transport import Proxy
from dlr_buffer.storage.store import SqliteStore, StoreListeners
from dlr_buffer.systemd import Notifier, listen_sockets
from dlr_buffer.watchdog import Part, Watchdog

_log = logging.getLogger(__name__)

EXPIRY_EVERY_S: Final = 1
HOUSEKEEPING_EVERY_S: Final = 5
SAY_AGAIN_EVERY: Final = 12
"""Ticks of housekeeping after which a trouble that lasts is logged again: a minute."""
RETENTION_EVERY_S: Final = 600
SAY_EVERY_MS: Final = 60_000
ANSWER_GRACE_MS: Final = 2_000
FLUSH_GRACE_MS: Final = 6_000
"""Together with the answers' grace under the ten seconds that a stop may take."""
STOP_S: Final = 15
"""So long a stop takes at most until the database is closed, with room to spare."""
EXTEND_EVERY_S: Final = 5
EXTEND_BY_S: Final = 20
"""What systemd is asked for again and again while opening or closing the queue goes on."""

ADMIN_BODIES_BYTES: Final = 32 * 1024 * 1024
"""Two of the largest; what apps may have in flight is the default of `BodyLimits`."""

SOCKET_NAMES: Final = frozenset({"client", "admin"})
"""What systemd's socket units may call the sockets that they hand over (FileDescriptorName=)."""

Connect = Callable[[UpstreamSettings], Upstream]


class Daemon:
    """One running dlr-buffer. `start` returns when it serves; `stop` when everything is closed."""

    def __init__(  # noqa: PLR0913 - all but the first by name; most are a test's to bring
        self,
        configuration: Configuration,
        *,
        clock: BootClock | None = None,
        rng: random.Random | None = None,
        environ: Mapping[str, str] | None = None,
        sockets: Mapping[str, socket.socket] | None = None,
        log: Log | None = None,
    ) -> None:
        """Open nothing yet; a test brings its own clock and random numbers.

        ``sockets`` listen already, as ``client`` and ``admin``; what is not among them is bound as configured. ``log``
        is where this process logs to.
        """
        self.configuration = configuration
        self._log = log
        self._sparing = Sparing()
        self._clock: BootClock = clock if clock is not None else SystemBootClock()
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, not a secret
        self._notifier = Notifier(environ if environ is not None else os.environ)
        self._handed_over = dict(sockets or {})
        self._started_at_ms = self._clock.now_ms()
        self._configured_at_ms = self._started_at_ms
        self._reload_error: str | None = None
        self._watchdog: Watchdog | None = None
        self._stopping = False
        self._reloads = 0
        self._in_reload = False
        self._written: tuple[int, ...] = (-1,)
        """How far the writer was when the watchdog looked last."""
        self._seen_busy = 0
        """How often it was in the middle of something then."""
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        self._servers: list[ApiServer] = []
        self._progress: tuple[int, int] = (0, 0)
        self._stalled = False
        self._housekeepings = 0
        self._oldest = QueueOldest({}, {})
        self._certificates_said: set[Problem] = set()
        self.failed = asyncio.Event()
        """Set when the database failed for good: the daemon has to end."""
        self.metrics = Metrics(
            counts=self._counts,
            accounts=self._views,
            gauges=self._gauges,
            calls=self._calls,
            limits=lambda: _max_waiting(self.configuration),
        )
        self.store: SqliteStore
        self.queue: ReceiptQueue
        self.flusher: Flusher
        self.expiry: Expiry
        self.retention: Retention

    # Life

    async def start(self) -> None:
        """Open the queue, begin to flush, expire and serve.

        Raises DlrBufferError with what to do, having closed everything again.
        """
        configuration = self.configuration
        shares = _shares(configuration)
        listeners = StoreListeners(
            fresh=self._on_fresh,
            events=self.metrics.events,
            failed=self._on_store_failure,
            replayed=self._on_replayed,
        )
        self._notifier.status(f"Opening the queue {configuration.database.path}")
        async with self._patience(lambda: True):
            self.store = await SqliteStore.open(
                configuration.database.path,
                accounts=sorted(configuration.accounts),
                min_free_bytes=configuration.database.min_free_bytes,
                first_request_id=configuration.database.first_request_id,
                listeners=listeners,
                now_ms=self._clock.now_ms,
            )
        self.queue = ReceiptQueue(self.store, self._clock, _queue_settings(configuration))
        self.flusher = Flusher(self.store, self.store, self._clock, self.metrics)
        self.expiry = Expiry(self.store, self._clock)
        self.retention = Retention(self.store, self.expiry.believed_now, _retention_settings(configuration))
        try:
            await self._serve(shares)
            await self.flusher.apply(self._plans(configuration), grace_ms=FLUSH_GRACE_MS)
            self.metrics.sample(self._clock.monotonic_ms())
            self._tick("expiry", self.expiry.sweep, EXPIRY_EVERY_S)
            self._tick("housekeeping", self._housekeeping, HOUSEKEEPING_EVERY_S)
            self._tick("retention", self.retention.sweep, RETENTION_EVERY_S)
            self._scheduler.start()
            self._watch()

            self._look_at_certificates()
        except BaseException:
            await self.stop()
            raise
        _log.info(
            "dlr-buffer %s serves %s and %s, queue %s, accounts %s",
            __version__,
            configuration.api.client_socket,
            configuration.api.admin_socket,
            configuration.database.path,
            ", ".join(sorted(configuration.accounts)),
            extra=about(Event.STARTED),
        )
        self._notifier.status(self._status_line())
        self._notifier.ready()

    async def stop(self) -> None:
        """Answer what is in work, finish or give back what is under way upstream, close the queue."""
        self._stopping = True
        self._notifier.stopping()
        self._notifier.extend_timeout(STOP_S)
        self._notifier.status("Stopping: requests under way are answered")
        await asyncio.gather(*(server.stop(ANSWER_GRACE_MS) for server in self._servers))
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        self._notifier.status("Stopping: requests to Smartswitch finish or are given back")
        await self.flusher.stop(FLUSH_GRACE_MS)
        self._notifier.status("Stopping: closing the queue")
        seen: list[object] = []

        def closing_goes_on() -> bool:
            before, seen[:] = seen[:], [self.store.working()]
            return before != seen

        async with self._patience(closing_goes_on):
            await self.store.close()
        for handed_over in self._handed_over.values():
            handed_over.close()
        if self._watchdog is not None:
            self._watchdog.stop()
        _log.info("stopped: the queue is closed", extra=about(Event.STOPPED))

    async def reload_from(self, read: Callable[[], Configuration]) -> None:
        """Reload what ``read`` returns. If that or the reload fails, it is logged, and an alarm until one succeeds."""
        with self._reloading():
            try:
                await self.reload(read())
            except DlrBufferError as error:
                self._reload_error = _in_one_line(error)
                _log.error(
                    "not reloaded, the old configuration stays: %s", error, extra=about(Event.RELOAD_REFUSED)
                )

    async def reload(self, configuration: Configuration) -> None:
        """Take on what can change while running; says what needs a restart."""
        shares = _shares(configuration)
        with self._reloading():
            old, self.configuration = self.configuration, configuration
            if keys := restart_needed(old, configuration):
                _log.warning(
                    "these changes need a restart of the daemon: %s",
                    ", ".join(keys),
                    extra=about(Event.RESTART_NEEDED, keys=", ".join(keys)),
                )
            await self.store.add_accounts(sorted(configuration.accounts))
            self.queue.settings = _queue_settings(configuration)
            self.retention.settings = _retention_settings(configuration)
            for server, connections, allowed in zip(
                self._servers, (shares.client, shares.admin), _allow_lists(configuration), strict=True
            ):
                server.allow(ConnectionLimits(connections))
                server.admit(allowed)
            if self._log is None:
                set_level(configuration.log.level)
            else:
                self._log.apply(configuration.log.level, configuration.log.format)
            await self.flusher.apply(self._plans(configuration), grace_ms=FLUSH_GRACE_MS)
            self._reload_error, self._configured_at_ms = None, self._clock.now_ms()
            _log.info(
                "configuration reloaded: accounts %s",
                ", ".join(sorted(configuration.accounts)),
                extra=about(Event.RELOADED),
            )
            self._certificates_said.clear()
            self._look_at_certificates()

    @contextmanager
    def _reloading(self) -> Iterator[None]:
        """Tell systemd of a reload, from the outermost of these to its end."""
        if self._in_reload:
            yield
            return
        self._in_reload = True
        self._notifier.reloading()
        try:
            yield
        finally:
            self._in_reload = False
            self._reloads += 1
            self._notifier.ready()

    @asynccontextmanager
    async def _patience(self, goes_on: Callable[[], bool]) -> AsyncIterator[None]:
        """Have systemd's limits on start and stop wait for something long, as long as ``goes_on`` says so."""

        async def extend() -> None:
            while goes_on():
                self._notifier.extend_timeout(EXTEND_BY_S)
                await asyncio.sleep(EXTEND_EVERY_S)

        extending = asyncio.create_task(extend())
        try:
            yield
        finally:
            extending.cancel()
            await asyncio.gather(extending, return_exceptions=True)

    def _watch(self) -> None:
        if self._notifier.watchdog_s is not None:
            self._watchdog = Watchdog(
                self._notifier.watchdog_s,
                look_at=self._parts,
                ping=self._notifier.ping,
                monotonic_ms=self._clock.monotonic_ms,
            )
            self._watchdog.start()

    def _parts(self) -> Iterator[Part]:
        """What has to get on beside the event loop; nothing while the daemon stops, when each part ends in its turn."""
        if self._stopping:
            return
        written = self.store.progress()
        yield Part("the writer", written, thread=self.store.writer_thread)
        # In the middle of something long, the writer lets the accounts' loops wait for what they asked it for.
        if written[0] == self._written[0] and written != self._written:
            self._seen_busy += 1
        self._written = written
        for name, turns in self.flusher.progress().items():
            yield Part(f"flushing of account {name}", (turns, self._seen_busy), waits_for="the writer")

    async def _serve(self, shares: Shares) -> None:
        api = self.configuration.api
        clients, admins = _allow_lists(self.configuration)
        for name, path, mode, group, admin, connections, allowed in (
            ("client", api.client_socket, api.client_mode, api.client_group, False, shares.client, clients),
            ("admin", api.admin_socket, api.admin_mode, api.admin_group, True, shares.admin, admins),
        ):
            handed_over = self._handed_over.get(name)
            if handed_over is not None:
                self._say_handed_over(name, handed_over, path)
            app = create_app(
                self.queue,
                accounts=self.flusher,
                expiry=_ExpiryPort(self.expiry),
                vitals=self,
                clock=self._clock,
                admin=admin,
                # Each its own: apps that fill theirs do not keep admins out.
                room=BodyRoom(BodyLimits(bodies_bytes=ADMIN_BODIES_BYTES) if admin else None),
            )
            server = ApiServer(
                app,
                handed_over if handed_over is not None else bind(path, mode, group),
                name=f"{name} socket",
                limits=ConnectionLimits(connections),
                express=app.express,
                allowed=allowed,
            )
            self._servers.append(server)
            await server.start()

    def _say_handed_over(self, name: str, handed_over: socket.socket, configured: Path) -> None:
        """What differs from the configuration, and who decides it."""
        unit = f"dlr-buffer-{name}.socket"
        where = handed_over.getsockname()
        _log.info("the %s socket %s is systemd's (%s)", name, where, unit)
        if where != str(configured):
            _log.warning(
                "systemd listens on %s, but api.%s_socket is %s, where the command line and apps will look: write the"
                " same path into both (ListenStream= in %s)",
                *(where, name, configured, unit),
            )
        if keys := left_to_socket_units(self.configuration.api, name):
            _log.warning(
                "%s: without effect, for the socket is systemd's; set SocketMode= and SocketGroup= in %s instead",
                *(", ".join(keys), unit),
            )

    def _tick(self, what: str, job: Callable[[], object], every_s: int) -> None:
        self._scheduler.add_job(
            _Tick(what, job, self._clock).run,
            "interval",
            seconds=every_s,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )

    def _look_at_certificates(self) -> None:
        """Log what there is to say of certificates, each once until the next reload."""
        found = set(certificate_warnings(self.configuration, self._clock.now_ms()))
        for problem in sorted(found - self._certificates_said):
            _log.warning("%s: %s", problem.path, problem.detail)
        self._certificates_said = found

    async def _housekeeping(self) -> None:
        self.metrics.sample(self._clock.monotonic_ms())
        self._housekeepings += 1
        self.store.look_after(say_again=self._housekeepings % SAY_AGAIN_EVERY == 0)
        await self.store.look_for_oldest()
        self._oldest = await self.store.oldest()
        facts = self.store.facts()
        progress = (self.store.deliveries, facts.waiting_commands)
        self._stalled = progress[1] > 0 and self._progress[1] > 0 and progress[0] == self._progress[0]
        self._progress = progress
        self._look_at_certificates()
        self._say_full_accounts()
        self._notifier.status(self._status_line())

    def _status_line(self) -> str:
        counts = self.store.counts()
        waiting = sum(
            rows for states in counts.messages.values() for state, rows in states.items() if state in _WAITING
        )
        pending = sum(statuses["pending"] for statuses in counts.receipts.values())
        dead = sum(statuses["dead"] for statuses in counts.receipts.values())
        oldest_ms = min(self._oldest.pending_ms.values(), default=None)
        age = ""
        if pending and oldest_ms is not None:
            age = f" (oldest {_age(self._clock.now_ms() - oldest_ms)})"
        line = (
            f"{_count(waiting, 'message')} waiting, {_count(pending, 'receipt')} pending{age}, {dead:,} dead"
        )
        troubled = [
            f"{view.name} {view.health.value}"
            for view in self.flusher.views()
            if view.health is not HealthState.OPEN
        ]
        if self.expiry.stop_reason is not None:
            troubled.append("expiry stopped")
        if self._reload_error is not None:
            troubled.append("last reload failed")
        return line + (f"; {', '.join(troubled)}" if troubled else "")

    def _full_accounts(self) -> dict[str, int]:
        """Accounts whose messages wait up to their max_waiting, with that."""
        limits = _max_waiting(self.configuration)
        if not limits:
            return {}
        messages = self.store.counts().messages
        return {
            name: limit
            for name, limit in limits.items()
            if sum(messages.get(name, {}).get(state, 0) for state in _WAITING) >= limit
        }

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

    def _on_fresh(self, fresh: Mapping[str, int]) -> None:
        if hasattr(self, "flusher"):
            self.flusher.wake(fresh)

    def _on_replayed(self, replayed: Mapping[str, Sequence[int]]) -> None:
        if hasattr(self, "flusher"):
            self.flusher.forget(replayed)

    def _on_store_failure(self, error: StoreUnavailable) -> None:
        _log.critical(
            "the database failed, nothing more is acknowledged and the daemon ends: %s",
            error,
            extra=about(Event.DATABASE_FAILED),
        )
        self.failed.set()

    # From the configuration to what each part needs of it

    def _plans(self, configuration: Configuration) -> dict[str, AccountPlan]:
        trust = SystemTrust()  # loaded anew at each reload, and once for all accounts
        return {name: self._plan(account, trust) for name, account in configuration.accounts.items()}

    def _plan(self, account: AccountSettings, trust: SystemTrust) -> AccountPlan:
        retry, batch = account.retry, account.batch
        wait = partial(backoff_ms, initial_ms=retry.initial_ms, max_ms=retry.max_ms, rng=self._rng)
        upstream = upstream_settings(account)
        settings = FlushSettings(
            name=account.name,
            health=HealthSettings(
                concurrency=account.concurrency,
                max_receipts=batch.max_receipts,
                retry_max_ms=retry.max_ms,
                auth_probe_ms=retry.auth_probe_ms,
                backoff_ms=wait,
            ),
            policy=RefusalPolicy(
                max_refusals=retry.max_refusals, lifetime_ms=retry.lifetime_ms, backoff_ms=wait
            ),
            linger_ms=batch.linger_ms,
            budget_bytes=batch.max_url_bytes - upstream.overhead,
            rate_limit=account.rate_limit,
            paused=self.store.paused(account.name),
        )
        context, fingerprint = trust_for(account, trust)
        connect = partial(
            SmartswitchClient,
            upstream,
            self._clock,
            context,
            on_repeat=partial(self.metrics.repeated, account.name),
        )
        return AccountPlan(settings, connect, (upstream, account.tls, fingerprint))

    # What the local API shows (its port Vitals)

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
            configuration=ConfigurationFacts(self._configured_at_ms, self._reloads, self._reload_error),
        )

    def exposition(self) -> tuple[bytes, str]:
        """The body of `/metrics`."""
        return self.metrics.exposition()

    def _counts(self) -> QueueCounts:
        return self.store.counts()

    def _views(self) -> tuple[AccountView, ...]:
        return self.flusher.views()

    def _alarms(self, free_bytes: int) -> tuple[str, ...]:
        alarms = list(self.problems())
        if free_bytes < self.configuration.database.min_free_bytes:
            alarms.append(
                "the disk is nearly full: registration answers 507 until there is more space than min_free"
            )
        if self._reload_error is not None:
            alarms.append(
                f"the last reload failed, and the configuration before it holds: {self._reload_error}"
            )
        if self.expiry.stop_reason is not None:
            alarms.append(
                f"expiry is stopped: {self.expiry.stop_reason}; check the clock, then 'dlr-buffer expiry resume'"
            )
        alarms += [
            f"account {view.name} is {view.health.value}: {view.cause}"
            for view in self.flusher.views()
            if view.health not in (HealthState.OPEN, HealthState.PAUSED)
        ]
        alarms += [alarm for server in self._servers if (alarm := server.alarm) is not None]
        alarms += [
            f"{path}: {detail}"
            for path, detail in certificate_warnings(self.configuration, self._clock.now_ms())
        ]
        alarms += [
            f"account {name}: {limit} messages wait for their final state, as many as its max_waiting: registration"
            " answers 503"
            for name, limit in self._full_accounts().items()
        ]
        if self._log is not None and (trouble := self._log.trouble) is not None:
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
            for server, name in zip(self._servers, ("client", "admin"), strict=False)
            for uid, calls in server.calls().items()
        }

    def _gauges(self) -> Mapping[str, tuple[str, float]]:
        facts = self.store.facts()
        connections: dict[str, tuple[str, float]] = {}
        for server, name in zip(self._servers, ("client", "admin"), strict=False):
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
                    0 if self._log is None else self._log.lost,
                ),
                "waiting_rows": ("Rows that wait to be committed.", facts.waiting_rows),
                "registration_stopped": (
                    "1 while there is less free space than min_free, so that registration answers 507.",
                    float(facts.free_bytes < self.configuration.database.min_free_bytes),
                ),
                "expiry_stopped": (
                    "1 while a clock alarm stops expiry.",
                    float(self.expiry.stop_reason is not None),
                ),
                "reload_failed": (
                    "1 while the configuration before the last reload holds, because that failed.",
                    float(self._reload_error is not None),
                ),
                "unhealthy": ("1 while /healthz would answer 503.", float(bool(self.problems()))),
            }
        )


_WAITING: Final = ("waiting", "enroute", "accepted", "unknown")


class _ExpiryPort:
    """Expiry as the local API shows it."""

    def __init__(self, expiry: Expiry) -> None:
        self._expiry = expiry

    def view(self) -> ExpiryView:
        """Whether it runs."""
        expiry = self._expiry
        return ExpiryView(
            stopped=expiry.stop_reason is not None,
            reason=expiry.stop_reason,
            since_ms=expiry.stopped_since_ms,
            last_sweep_at_ms=expiry.last_sweep_at_ms,
        )

    async def resume(self) -> ExpiryView:
        """Trust the clock again."""
        await self._expiry.resume()
        return self.view()


def _count(rows: int, word: str) -> str:
    return f"{rows:,} {word}{'' if rows == 1 else 's'}"


def _age(ms: int) -> str:
    """A time that has passed in one word and one number, as is enough at a glance."""
    seconds = max(0, ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _in_one_line(error: DlrBufferError) -> str:
    if isinstance(error, ConfigurationError):
        return "; ".join(f"{problem.path}: {problem.detail.splitlines()[0]}" for problem in error.problems)
    return " ".join(str(error).split())


def _proxy(account: AccountSettings) -> Proxy | None:
    if account.proxy is None:
        return None
    parts = urlsplit(account.proxy)
    credentials = None if account.proxy_credentials is None else account.proxy_credentials.reveal()
    return Proxy(parts.hostname or "", parts.port or 0, credentials)


def _shares(configuration: Configuration) -> Shares:
    """Divide the open files; twice what accounts may use, for a reload has the old and the new ones for a while."""
    upstream = 2 * sum(account.concurrency for account in configuration.accounts.values())
    return share_descriptors(raise_descriptor_limit(), upstream)


def _queue_settings(configuration: Configuration) -> QueueSettings:
    return QueueSettings(
        accounts=frozenset(configuration.accounts),
        default_validity_ms=configuration.messages.validity_period_ms,
        register_unknown=configuration.messages.unknown_messages == "register",
        max_waiting=_max_waiting(configuration),
    )


def _max_waiting(configuration: Configuration) -> dict[str, int]:
    """The accounts that have a limit of waiting messages, with it."""
    return {
        name: account.max_waiting for name, account in configuration.accounts.items() if account.max_waiting
    }


def _allow_lists(configuration: Configuration) -> tuple[AllowList, AllowList]:
    """Who may use the client socket and the admin socket; root always may be an admin."""
    api = configuration.api
    return (
        AllowList(None if api.client_allow is None else frozenset(api.client_allow), "[api] client_allow"),
        AllowList(None if api.admin_allow is None else frozenset({0, *api.admin_allow}), "[api] admin_allow"),
    )


def _retention_settings(configuration: Configuration) -> RetentionSettings:
    return RetentionSettings(
        acknowledged_ms=configuration.retention.acknowledged_ms, dead_ms=configuration.retention.dead_ms
    )


def upstream_settings(account: AccountSettings) -> UpstreamSettings:
    """Return what the client of an account needs of its configuration; it holds the credentials."""
    return UpstreamSettings(
        url=account.url,
        login=account.login.reveal(),
        password=account.password.reveal(),
        form=account.parameters == "form",
        timeout_ms=account.timeout_ms,
        concurrency=account.concurrency,
        proxy=_proxy(account),
    )


def trust_for(account: AccountSettings, trust: SystemTrust) -> tuple[ssl.SSLContext | None, str]:
    """Return whom an account's connections trust, None without TLS, and a fingerprint that differs when they do."""
    if not account.url.startswith("https:"):
        return None, ""
    if account.tls.context is not None:
        return account.tls.context, account.tls.fingerprint
    return trust.context(account.tls.min_version)


class _Tick:
    """A job that runs again and again; a database that has a moment of weakness neither ends it nor floods the log."""

    def __init__(self, what: str, job: Callable[[], object], clock: Clock) -> None:
        self._what = what
        self._job = job
        self._clock = clock
        self._said: tuple[str, int] | None = None

    async def run(self) -> None:
        try:
            result = self._job()
            if asyncio.iscoroutine(result):
                await result
        except DlrBufferError as error:
            now = self._clock.monotonic_ms()
            if self._said is None or self._said[0] != str(error) or now - self._said[1] >= SAY_EVERY_MS:
                self._said = (str(error), now)
                _log.warning("%s: put off until the next tick: %s", self._what, error)
        except asyncio.CancelledError:
            pass  # the daemon stops; APScheduler, which alone cancels it, would log a traceback
        else:
            self._said = None


def run_daemon(config_path: Path | None) -> int:
    """Run until SIGTERM or SIGINT.

    Returns the exit code: 0, or 1 if it could not start or the database failed.
    """
    _leave_no_core()
    try:
        sockets = listen_sockets(os.environ, SOCKET_NAMES)
        configuration = load(config_path, os.environ)
    except DlrBufferError as error:
        sys.stderr.write(f"dlr-buffer: {error}\n")
        return 1
    log = Log(os.environ)
    log.apply(configuration.log.level, configuration.log.format)
    log.take_uncaught()
    try:
        return asyncio.run(_run(configuration, config_path, sockets, log))
    except DlrBufferError as error:
        _log.critical("the daemon could not start: %s", error, extra=about(Event.START_FAILED))
        return 1


def _leave_no_core() -> None:
    """See to it that no core dump holds the memory, in which the passwords are, whatever the unit says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit does not hold for dumps that the kernel pipes into a program (core(5)): those get nothing of the memory.
    with suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")


async def _run(
    configuration: Configuration,
    config_path: Path | None,
    sockets: Mapping[str, socket.socket],
    log: Log,
) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hangup = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    daemon = Daemon(configuration, sockets=sockets, log=log)
    await daemon.start()
    # What was made so far lives as long as the process: the collector need not look at it again.
    gc.freeze()
    reloads = asyncio.create_task(_reload_on(hangup, daemon, config_path))
    ends = [asyncio.create_task(event.wait()) for event in (stop, daemon.failed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping: no new connections; what is under way is finished")
    # A reload under way may wait for requests of accounts that leave; the stop gives them its own grace.
    for task in (reloads, *ends):
        task.cancel()
    await asyncio.gather(reloads, *ends, return_exceptions=True)
    await daemon.stop()
    return 1 if daemon.failed.is_set() else 0


async def _reload_on(hangup: asyncio.Event, daemon: Daemon, config_path: Path | None) -> None:
    """Reload at every SIGHUP, one after another."""
    while True:
        await hangup.wait()
        hangup.clear()
        await daemon.reload_from(lambda: load(config_path, os.environ))
