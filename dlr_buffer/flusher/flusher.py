"""All accounts together: starting, reloading, pausing and stopping their flushers.

What one account does is in `account`; where its settings and its connection come from is the daemon's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dlr_buffer.clock import Clock
from dlr_buffer.errors import NotFound
from dlr_buffer.flusher.account import AccountFlusher
from dlr_buffer.flusher.ports import FlushSettings, Outbox, Upstream
from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.logs import Event, about
from dlr_buffer.metrics import Metrics

_log = logging.getLogger(__name__)


class AccountBook(Protocol):
    """What the database knows of accounts."""

    def accounts(self) -> tuple[str, ...]:
        """Every account that was ever configured."""
        ...

    def accounts_with_rows(self) -> tuple[str, ...]:
        """Those that have messages or receipts, configured or not."""
        ...

    def paused(self, account: str) -> bool:
        """Whether an admin paused it."""
        ...

    async def set_paused(self, account: str, *, paused: bool) -> None:
        """Remember it durably."""
        ...


@dataclass(frozen=True, slots=True)
class AccountPlan:
    """An account as configured; ``connect`` opens its connection.

    ``connection_key`` changes when a new one is needed.
    """

    settings: FlushSettings
    connect: Callable[[], Upstream]
    connection_key: object


class Flusher:
    """One `AccountFlusher` for every configured account."""

    def __init__(self, outbox: Outbox, book: AccountBook, clock: Clock, metrics: Metrics) -> None:
        """Start nothing yet."""
        self._outbox = outbox
        self._book = book
        self._clock = clock
        self._metrics = metrics
        self._running: dict[str, AccountFlusher] = {}
        self._leaving: list[AccountFlusher] = []
        """Those whose accounts are not configured any more, until all their answers are written."""
        self._keys: dict[str, object] = {}

    async def apply(self, plans: Mapping[str, AccountPlan], *, grace_ms: int) -> None:
        """Run exactly these accounts: new ones start, changed ones go on with what changed, others stop."""
        for name in [name for name in self._running if name not in plans]:
            _log.warning(
                "account %s is not configured any more: its messages still expire, its receipts stay in the queue and"
                " are not sent",
                name,
                extra=about(Event.ACCOUNT_UNCONFIGURED, account=name),
            )
            self._leaving.append(self._running.pop(name))
            del self._keys[name]
        await asyncio.gather(*(leaving.stop(grace_ms, keep_writing=True) for leaving in self._leaving))
        self._leaving = [leaving for leaving in self._leaving if leaving.writes]
        for name, plan in plans.items():
            running = self._running.get(name)
            if running is None:
                running = AccountFlusher(
                    plan.settings, plan.connect(), self._outbox, self._clock, self._metrics
                )
                self._running[name] = running
                for leaving in self._leaving:
                    if leaving.settings.name == name:
                        leaving.successor = running
                running.start()
            elif self._keys[name] != plan.connection_key:
                running.replace(plan.settings, plan.connect())
            else:
                running.replace(plan.settings, None)
            self._keys[name] = plan.connection_key

    def wake(self, fresh: Mapping[str, int]) -> None:
        """Receipts became claimable in these accounts."""
        for name, receipts in fresh.items():
            if (running := self._running.get(name)) is not None:
                running.arrived(receipts)

    def forget(self, replayed: Mapping[str, Sequence[int]]) -> None:
        """An admin made these receipts of these accounts due now: nothing is held against them any more."""
        for name, request_ids in replayed.items():
            if (running := self._running.get(name)) is not None:
                running.forget(request_ids)

    def views(self) -> tuple[AccountView, ...]:
        """Every account that is configured or has rows, by name."""
        views = {name: running.view() for name, running in self._running.items()}
        for name in self._book.accounts_with_rows():
            if name not in views:
                views[name] = _unconfigured(name)
        return tuple(views[name] for name in sorted(views))

    async def pause(self, name: str) -> AccountView:
        """Stop sending for an account, durably; raises NotFound."""
        self._require(name)
        await self._book.set_paused(name, paused=True)
        if (running := self._running.get(name)) is not None:
            running.pause()
        return self._view(name)

    async def resume(self, name: str) -> AccountView:
        """Send again; raises NotFound."""
        self._require(name)
        await self._book.set_paused(name, paused=False)
        if (running := self._running.get(name)) is not None:
            running.resume()
        return self._view(name)

    def progress(self) -> Mapping[str, int]:
        """By account that sends, a number that grows while its loop turns; to be asked makes each turn once more."""
        for running in self._running.values():
            running.wake()
        return {name: running.turns for name, running in self._running.items()}

    def problems(self) -> tuple[str, ...]:
        """Loops that ended on their own, and answers that can't be written."""
        everyone = [*self._running.values(), *self._leaving]
        found = [each for running in everyone for each in (running.failed, running.unwritten)]
        return tuple(problem for problem in found if problem is not None)

    async def stop(self, grace_ms: int) -> None:
        """Stop all, each with the same grace for what is under way."""
        everyone = [*self._running.values(), *self._leaving]
        await asyncio.gather(*(running.stop(grace_ms) for running in everyone))

    def _require(self, name: str) -> None:
        if name not in self._running and name not in self._book.accounts():
            raise NotFound(f"no account is called {name!r}")

    def _view(self, name: str) -> AccountView:
        running = self._running.get(name)
        return running.view() if running is not None else _unconfigured(name)


def _unconfigured(name: str) -> AccountView:
    return AccountView(
        name=name,
        configured=False,
        health=HealthState.UNCONFIGURED,
        since_ms=None,
        cause="the account has rows in the queue, but no [accounts] table in the configuration",
        next_probe_at_ms=None,
        backoff_ms=None,
        failures=0,
        batch_limit=None,
        concurrency=None,
        rate_limit=None,
        max_receipts=None,
        in_flight_requests=0,
        in_flight_receipts=0,
        set_aside=0,
    )
