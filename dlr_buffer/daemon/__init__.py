"""The daemon: the one place that knows every part and wires them (the composition root), and its life.

Start: configuration, the queue's lock, migrations, writer and readers, then the flushers, the sockets, the
ticks, and last READY to systemd. Stop: the sockets first (requests in work are answered; where systemd holds the
sockets, others wait for the next daemon), then the ticks, the flushers (requests under way finish or are given back),
and last the database. SIGHUP reloads accounts, message rules, retention and the log. Tests start this same object, with
a clock of their own. Nothing is decided here that belongs to a part.

`provision` turns the configuration into what each part needs, `vitals` says how all of it is doing, `ticking` runs the
jobs that come again and again, `running` is the process around it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from dlr_buffer import __version__
from dlr_buffer.clock import BootClock, SystemBootClock
from dlr_buffer.config import (
    AccountSettings,
    Configuration,
    ConfigurationError,
    SystemTrust,
    left_to_socket_units,
    restart_needed,
)
from dlr_buffer.daemon.provision import (
    allow_lists,
    flush_settings,
    queue_settings,
    retention_settings,
    shares,
    trust_for,
    upstream_settings,
)
from dlr_buffer.daemon.ticking import Tick
from dlr_buffer.daemon.vitals import Vitals
from dlr_buffer.errors import DlrBufferError, StoreUnavailable
from dlr_buffer.expiry import Expiry
from dlr_buffer.flusher.flusher import AccountPlan, Flusher
from dlr_buffer.flusher.ports import Upstream
from dlr_buffer.local_api.app import create_app
from dlr_buffer.local_api.bodies import BodyLimits, BodyRoom
from dlr_buffer.local_api.connections import (
    ConnectionLimits,
    Shares,
)
from dlr_buffer.local_api.ports import ExpiryView
from dlr_buffer.local_api.server import ApiServer
from dlr_buffer.local_api.sockets import bind
from dlr_buffer.logs import Event, Log, about, place_of, set_level
from dlr_buffer.receipt_queue.queue import ReceiptQueue
from dlr_buffer.retention import Retention
from dlr_buffer.smartswitch.client import SmartswitchClient, UpstreamSettings
from dlr_buffer.storage.store import SqliteStore, StoreListeners
from dlr_buffer.systemd import Notifier
from dlr_buffer.watchdog import Part, Watchdog

_log = logging.getLogger(__name__)

EXPIRY_EVERY_S: Final = 1
HOUSEKEEPING_EVERY_S: Final = 5
SAY_AGAIN_EVERY: Final = 12
"""Ticks of housekeeping after which a trouble that lasts is logged again: a minute."""
RETENTION_EVERY_S: Final = 600
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
        self._clock: BootClock = clock if clock is not None else SystemBootClock()
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, not a secret
        self._notifier = Notifier(environ if environ is not None else os.environ)
        self._handed_over = dict(sockets or {})
        self._watchdog: Watchdog | None = None
        self._stopping = False
        self._in_reload = False
        self._written: tuple[int, ...] = (-1,)
        """How far the writer was when the watchdog looked last."""
        self._seen_busy = 0
        """How often it was in the middle of something then."""
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        self._housekeepings = 0
        self._started_with = configuration
        """What holds of the keys that need a restart, whatever was read since."""
        self._given_up = threading.Event()
        self.failed = asyncio.Event()
        """Set when the database failed for good: the daemon has to end."""
        self.vitals = Vitals(configuration, clock=self._clock, log=log)
        self.metrics = self.vitals.metrics
        self.store: SqliteStore
        self.queue: ReceiptQueue
        self.flusher: Flusher
        self.expiry: Expiry
        self.retention: Retention

    @property
    def configuration(self) -> Configuration:
        """The one that holds."""
        return self.vitals.configuration

    # Life

    async def start(self) -> None:
        """Open the queue, begin to flush, expire and serve.

        Raises DlrBufferError with what to do, having closed everything again.
        """
        configuration = self.configuration
        descriptors = shares(configuration)
        listeners = StoreListeners(
            fresh=self._on_fresh,
            events=self.metrics.events,
            failed=self._on_store_failure,
            replayed=self._on_replayed,
        )
        self._notifier.status(f"Opening the queue {configuration.database.path}")
        async with self._patience(lambda: not self._given_up.is_set()):
            self.store = await SqliteStore.open(
                configuration.database.path,
                accounts=sorted(configuration.accounts),
                min_free_bytes=configuration.database.min_free_bytes,
                first_request_id=configuration.database.first_request_id,
                listeners=listeners,
                now_ms=self._clock.now_ms,
                given_up=self._given_up.is_set,
            )
        self.queue = ReceiptQueue(self.store, self._clock, queue_settings(configuration))
        self.flusher = Flusher(self.store, self.store, self._clock, self.metrics)
        self.expiry = Expiry(self.store, self._clock)
        self.retention = Retention(self.store, self.expiry.believed_now, retention_settings(configuration))
        self.vitals.store, self.vitals.flusher, self.vitals.expiry = self.store, self.flusher, self.expiry
        try:
            await self._serve(descriptors)
            await self.flusher.apply(self._plans(configuration), grace_ms=FLUSH_GRACE_MS)
            self.metrics.sample(self._clock.monotonic_ms())
            self._tick("expiry", self.expiry.sweep, EXPIRY_EVERY_S)
            self._tick("housekeeping", self._housekeeping, HOUSEKEEPING_EVERY_S)
            self._tick("retention", self.retention.sweep, RETENTION_EVERY_S)
            self._scheduler.start()
            self._watch()
            self.vitals.say_certificates()
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
        self._notifier.status(self.vitals.status_line())
        self._notifier.ready()

    def give_up_start(self) -> None:
        """Have `start` not wait for a long migration, which is undone as a whole; it raises then."""
        self._given_up.set()

    async def stop(self) -> None:
        """Answer what is in work, finish or give back what is under way upstream, close the queue."""
        self._stopping = True
        self._notifier.stopping()
        self._notifier.extend_timeout(STOP_S)
        self._notifier.status("Stopping: requests under way are answered")
        await asyncio.gather(*(server.stop(ANSWER_GRACE_MS) for server in self.vitals.servers))
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
                # Names of users and groups are looked up for it, which may take a directory service its time.
                await self.reload(await _apart(read))
            except DlrBufferError as error:
                self.vitals.reload_error = _in_one_line(error)
                _log.error(
                    "not reloaded, the old configuration stays: %s", error, extra=about(Event.RELOAD_REFUSED)
                )
            except Exception as error:  # noqa: BLE001 - one reload must not be the last
                kind = type(error).__name__
                self.vitals.reload_error = f"an error that nobody foresaw ({kind}); the log has where"
                _log.error(
                    "a reload failed in a way that nobody foresaw (%s); please report it, and restart the daemon if"
                    " what it does is not what is configured\n%s",
                    kind,
                    place_of(error),
                    extra=about(Event.DEFECT),
                )

    async def reload(self, configuration: Configuration) -> None:
        """Take on what can change while running; says what needs a restart.

        Raises DlrBufferError if it can't be, and then the old configuration holds whole.
        """
        with self._reloading():
            descriptors = shares(configuration)
            await self.store.add_accounts(sorted(configuration.accounts))
            plans = self._plans(configuration)
            # From here on nothing can be refused.
            self.vitals.configuration = configuration
            if keys := restart_needed(self._started_with, configuration):
                _log.warning(
                    "these changes need a restart of the daemon: %s",
                    ", ".join(keys),
                    extra=about(Event.RESTART_NEEDED, keys=", ".join(keys)),
                )
            self.queue.settings = queue_settings(configuration)
            self.retention.settings = retention_settings(configuration)
            for server, connections, allowed in zip(
                self.vitals.servers,
                (descriptors.client, descriptors.admin),
                allow_lists(configuration),
                strict=True,
            ):
                server.allow(ConnectionLimits(connections))
                server.admit(allowed)
            if self.vitals.log is None:
                set_level(configuration.log.level)
            else:
                self.vitals.log.apply(configuration.log.level, configuration.log.format)
            await self.flusher.apply(plans, grace_ms=FLUSH_GRACE_MS)
            self.vitals.reloaded()
            _log.info(
                "configuration reloaded: accounts %s",
                ", ".join(sorted(configuration.accounts)),
                extra=about(Event.RELOADED),
            )
            self.vitals.say_certificates()

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
            self.vitals.reloads += 1
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

    async def _serve(self, descriptors: Shares) -> None:
        api = self.configuration.api
        clients, admins = allow_lists(self.configuration)
        for name, path, mode, group, admin, connections, allowed in (
            (
                "client",
                api.client_socket,
                api.client_mode,
                api.client_group,
                False,
                descriptors.client,
                clients,
            ),
            ("admin", api.admin_socket, api.admin_mode, api.admin_group, True, descriptors.admin, admins),
        ):
            handed_over = self._handed_over.get(name)
            if handed_over is not None:
                self._say_handed_over(name, handed_over, path)
            app = create_app(
                self.queue,
                accounts=self.flusher,
                expiry=_ExpiryPort(self.expiry),
                vitals=self.vitals,
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
            self.vitals.servers.append(server)
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
            Tick(what, job, self._clock).run,
            "interval",
            seconds=every_s,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )

    async def _housekeeping(self) -> None:
        self._housekeepings += 1
        self.store.look_after(say_again=self._housekeepings % SAY_AGAIN_EVERY == 0)
        await self.vitals.look()
        self._notifier.status(self.vitals.status_line())

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

    def _plans(self, configuration: Configuration) -> dict[str, AccountPlan]:
        trust = SystemTrust()  # loaded anew at each reload, and once for all accounts
        return {name: self._plan(account, trust) for name, account in configuration.accounts.items()}

    def _plan(self, account: AccountSettings, trust: SystemTrust) -> AccountPlan:
        upstream = upstream_settings(account)
        context, fingerprint = trust_for(account, trust)
        connect = partial(
            SmartswitchClient,
            upstream,
            self._clock,
            context,
            on_repeat=partial(self.metrics.repeated, account.name),
        )
        settings = flush_settings(account, upstream, self._rng, paused=self.store.paused(account.name))
        return AccountPlan(settings, connect, (upstream, account.tls, fingerprint))


async def _apart(read: Callable[[], Configuration]) -> Configuration:
    """Call ``read`` on a thread that the process does not wait for at its end."""
    found: Future[Configuration] = Future()
    found.set_running_or_notify_cancel()  # whoever gives up waiting leaves it to come to its end

    def run() -> None:
        try:
            found.set_result(read())
        except Exception as error:  # noqa: BLE001 - for whoever waits
            found.set_exception(error)

    threading.Thread(target=run, name="configuration", daemon=True).start()
    return await asyncio.wrap_future(found)


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


def _in_one_line(error: DlrBufferError) -> str:
    if isinstance(error, ConfigurationError):
        return "; ".join(f"{problem.path}: {problem.detail.splitlines()[0]}" for problem in error.problems)
    return " ".join(str(error).split())
