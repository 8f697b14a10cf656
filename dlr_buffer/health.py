"""Account health: one small pure state machine per account (DESIGN §4), and the record that shows it.

``open`` → (``concurrency`` outage answers in a row, or a server that asks to be left alone) → ``backing-off``
→ a probe → ``open``, the batch size restarting at 1 and doubling; ``suspended`` after authentication errors;
``rejecting`` while Smartswitch refuses what nothing proves to be the receipts' own fault. An admin's pause
lies beside it. No clock, no I/O: what the answers were is decided by `dlr_buffer.smartswitch.answers`, what
to send by `dlr_buffer.flusher`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec


class HealthState(StrEnum):
    """How an account is doing (DESIGN §4)."""

    OPEN = "open"
    BACKING_OFF = "backing-off"
    SUSPENDED = "suspended"
    REJECTING = "rejecting"
    PAUSED = "paused"
    UNCONFIGURED = "unconfigured"


class AccountView(msgspec.Struct, frozen=True):
    """What `status` and `/v1/accounts` show of an account.

    Times are wall milliseconds, durations milliseconds.
    """

    name: str
    configured: bool
    health: HealthState
    since_ms: int | None
    """When it entered this state."""
    cause: str | None
    """Why it is not open: what the last failing answer was, without any credential."""
    next_probe_at_ms: int | None
    backoff_ms: int | None
    failures: int
    """Failures in a row that the backoff grew with."""
    batch_limit: int | None
    """Receipts a request may carry now; smaller than max_receipts while recovering or after a 413."""
    concurrency: int | None
    rate_limit: float | None
    max_receipts: int | None
    in_flight_requests: int
    in_flight_receipts: int
    set_aside: int
    """Receipts kept apart in memory: suspects of a bisection, or ones that alone drew outages."""


class HealthSettings(msgspec.Struct, frozen=True):
    """What the state machine needs of an account's configuration; durations in milliseconds."""

    concurrency: int
    max_receipts: int
    retry_max_ms: int
    auth_probe_ms: int
    backoff_ms: Callable[[int], int]
    """From the number of failures in a row to the wait before the next probe."""


class Send(msgspec.Struct, frozen=True):
    """A batch of at most ``limit`` receipts may go now."""

    limit: int


class Probe(msgspec.Struct, frozen=True):
    """One request with one receipt may go now, to see whether the account is well again."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing may go before wall time ``until_ms`` (None: before an answer comes)."""

    until_ms: int | None


Permit = Send | Probe | Wait


class AccountHealth(msgspec.Struct, frozen=True):
    """How an account is doing; each event gives a new record."""

    state: HealthState = HealthState.OPEN
    since_ms: int | None = None
    cause: str | None = None
    outages: int = 0
    """Outage answers in a row while open."""
    failures: int = 0
    """Failed probes in a row, and the failure before them: what the backoff grows with."""
    probe_at_ms: int | None = None
    ramp: int | None = None
    """Receipts a batch may carry while recovering; None when it is not limited."""
    ceiling: int | None = None
    """Receipts a batch may carry since the last 413; grows back by one an acknowledged batch.

    None when not limited.
    """

    def batch_limit(self, settings: HealthSettings) -> int:
        """How many receipts a batch may carry."""
        limits = [settings.max_receipts]
        limits += [limit for limit in (self.ramp, self.ceiling) if limit is not None]
        return max(1, min(limits))

    def permit(self, settings: HealthSettings, *, in_flight: int, now_ms: int) -> Permit:
        """Say what may be sent now while ``in_flight`` requests are under way."""
        if self.state is HealthState.OPEN:
            return Send(self.batch_limit(settings)) if in_flight < settings.concurrency else Wait(None)
        if in_flight:
            return Wait(None)
        # A clock set back must not put the probe off for longer than any wait can be.
        longest = max(settings.retry_max_ms, settings.auth_probe_ms)
        if self.probe_at_ms is None or now_ms >= self.probe_at_ms or self.probe_at_ms > now_ms + longest:
            return Probe()
        return Wait(self.probe_at_ms)

    def acknowledged(self, settings: HealthSettings, now_ms: int) -> AccountHealth:
        """Smartswitch acknowledged something: the account is open, and batches may grow."""
        if self.state is not HealthState.OPEN:
            # A server that only refused was not overloaded.
            ramp = None if self.state is HealthState.REJECTING else 1
            return AccountHealth(since_ms=now_ms, ramp=ramp, ceiling=self.ceiling)
        ramp = self.ramp * 2 if self.ramp is not None else None
        ceiling = self.ceiling + 1 if self.ceiling is not None else None
        return msgspec.structs.replace(
            self,
            outages=0,
            failures=0,
            cause=None,
            ramp=ramp if ramp is not None and ramp < settings.max_receipts else None,
            ceiling=ceiling if ceiling is not None and ceiling < settings.max_receipts else None,
        )

    def outage(  # noqa: PLR0913 - the facts of one answer, by name
        self,
        settings: HealthSettings,
        *,
        cause: str,
        sent: int,
        probe: bool,
        retry_after_ms: int | None,
        now_ms: int,
    ) -> AccountHealth:
        """The account, not a receipt, is to blame for a failed request that carried ``sent`` receipts."""
        asked = min(retry_after_ms or 0, settings.retry_max_ms)
        if self.state is HealthState.OPEN:
            outages = self.outages + 1
            ramp = min(self.batch_limit(settings), max(1, sent // 2))
            if outages < settings.concurrency and not asked:
                return msgspec.structs.replace(self, outages=outages, cause=cause, ramp=ramp)
            return self._failing(
                HealthState.BACKING_OFF, cause, 1, max(asked, settings.backoff_ms(1)), now_ms
            )
        if probe:
            failures = self.failures + 1
            wait = max(asked, settings.backoff_ms(failures))
            return self._failing(HealthState.BACKING_OFF, cause, failures, wait, now_ms)
        if self.state is HealthState.BACKING_OFF and asked:
            # It was under way when the account fell.
            later = max(self.probe_at_ms or 0, now_ms + asked)
            return msgspec.structs.replace(self, probe_at_ms=later)
        return self

    def authentication_failed(self, settings: HealthSettings, *, cause: str, now_ms: int) -> AccountHealth:
        """The login or password is wrong (or access is denied).

        Ask one receipt at a time, every ``auth_probe``.
        """
        return self._failing(HealthState.SUSPENDED, cause, self.failures + 1, settings.auth_probe_ms, now_ms)

    def rejected(self, settings: HealthSettings, *, cause: str, now_ms: int) -> AccountHealth:
        """Something was refused, and nothing proves that the receipt is to blame."""
        failures = self.failures + 1
        return self._failing(HealthState.REJECTING, cause, failures, settings.backoff_ms(failures), now_ms)

    def too_large(self, sent: int) -> AccountHealth:
        """A request with ``sent`` receipts was too large: halve the batch limit."""
        half = max(1, sent // 2)
        return msgspec.structs.replace(
            self, ceiling=half if self.ceiling is None else min(half, self.ceiling)
        )

    def nudged(self, now_ms: int) -> AccountHealth:
        """Something was changed that may mend it (credentials, an admin's resume): probe at once."""
        if self.state is HealthState.OPEN:
            return self
        return msgspec.structs.replace(self, probe_at_ms=now_ms)

    def _failing(
        self, state: HealthState, cause: str, failures: int, wait_ms: int, now_ms: int
    ) -> AccountHealth:
        return AccountHealth(
            state=state,
            since_ms=self.since_ms if self.state is state else now_ms,
            cause=cause,
            failures=failures,
            probe_at_ms=now_ms + wait_ms,
            ceiling=self.ceiling,
        )
