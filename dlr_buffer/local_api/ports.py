"""What the local API needs of the daemon beside the receipt queue: protocols, and the records that cross them.

The daemon fulfils these. How the records look in JSON is in `dlr_buffer.local_api.resources`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from dlr_buffer.health import AccountView


class ExpiryView(msgspec.Struct, frozen=True):
    """Whether expiry runs; ``reason`` and ``since_ms`` say why and since when it is stopped. Wall milliseconds."""

    stopped: bool
    reason: str | None
    since_ms: int | None
    last_sweep_at_ms: int | None


class DatabaseFacts(msgspec.Struct, frozen=True):
    """Where the queue lies and how large it is; ``free_bytes`` is what the disk has left."""

    path: str
    size_bytes: int
    wal_bytes: int
    free_bytes: int
    sqlite_version: str


class ConfigurationFacts(msgspec.Struct, frozen=True):
    """Since when the configuration holds, how many reloads were tried since the start, and why the last one failed."""

    loaded_at_ms: int = 0
    reloads: int = 0
    error: str | None = None


class DaemonFacts(msgspec.Struct, frozen=True):
    """What `/v1/status` shows beside the counts.

    ``rates`` are events per second over the last minute, ``totals`` events since the start, both by name; ``alarms``
    are sentences for an admin, none of them with a credential.
    """

    version: str
    pid: int
    started_at_ms: int
    database: DatabaseFacts
    rates: dict[str, float]
    totals: dict[str, int]
    alarms: tuple[str, ...]
    configuration: ConfigurationFacts = ConfigurationFacts()


class Accounts(Protocol):
    """The accounts and their health."""

    def views(self) -> tuple[AccountView, ...]:
        """Every account that is configured or has rows, by name."""
        ...

    async def pause(self, name: str) -> AccountView:
        """Stop sending for this account until it is resumed, durably; raises NotFound."""
        ...

    async def resume(self, name: str) -> AccountView:
        """Send again; raises NotFound."""
        ...


class Expiry(Protocol):
    """The sweep that expires overdue messages."""

    def view(self) -> ExpiryView:
        """Whether it runs."""
        ...

    async def resume(self) -> ExpiryView:
        """Trust the clock again after an alarm (DESIGN §8); harmless if it was not stopped."""
        ...


class Vitals(Protocol):
    """How the daemon is doing."""

    def problems(self) -> tuple[str, ...]:
        """Why the daemon is not healthy, a sentence each; empty while commits succeed and flushers run."""
        ...

    def facts(self) -> DaemonFacts:
        """What `/v1/status` shows; costs no scan of the queue."""
        ...

    def exposition(self) -> tuple[bytes, str]:
        """The body of `/metrics` and its content type."""
        ...
