"""What the flusher needs of others.

The Outbox (storage), an Upstream (Smartswitch), and the settings of an account.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Protocol

from dlr_buffer.health import HealthSettings
from dlr_buffer.receipts import (
    Acknowledged,
    Claim,
    Cut,
    DueClaim,
    Receipt,
    RefusalPolicy,
    Refused,
    Settled,
)
from dlr_buffer.smartswitch.answers import Answer


class Outbox(Protocol):
    """Receipts that wait to be sent. A claimed receipt is in flight until it is settled."""

    async def start_over(self, account: str) -> None:
        """Look for fresh receipts of this account from the oldest on, whatever was passed over before."""
        ...

    async def claim(
        self, account: str, *, limit: int, excluding: Container[int], cut: Callable[[Sequence[Receipt]], Cut]
    ) -> Claim:
        """Claim the oldest fresh receipts of an account but ``excluding``.

        As many of ``limit`` as ``cut`` takes.
        """
        ...

    async def claim_due(  # noqa: PLR0913 - one claim, all by name
        self,
        account: str,
        *,
        now_ms: int,
        horizon_ms: int,
        excluding: Container[int],
        limit: int,
        cut: Callable[[Sequence[Receipt]], Cut],
    ) -> DueClaim:
        """Claim the receipt, but ``excluding``, that waited out a refusal or is replayed, the one due longest.

        One that is replayed brings the replays that are due next, as many of ``limit`` as ``cut`` takes of all.
        One more than ``horizon_ms`` ahead counts as due: the clock was set back.
        """
        ...

    async def claim_newest(self, account: str, *, excluding: Container[int]) -> Claim:
        """Claim the newest fresh receipt but ``excluding``."""
        ...

    async def claim_behind(self, account: str, *, after: int, excluding: Container[int]) -> Claim:
        """Claim the first fresh receipt with an id above ``after``, but ``excluding``, of those that `claim` passed.

        That were returned apart; `claim` does not come back to them by itself.
        """
        ...

    async def claim_these(self, account: str, request_ids: Sequence[int]) -> Claim:
        """Claim those of the named receipts that can be."""
        ...

    async def settle(  # noqa: PLR0913 - what came of one request, all by name
        self,
        account: str,
        *,
        acknowledged: Sequence[Acknowledged] = (),
        refused: Sequence[Refused] = (),
        returned: Sequence[int] = (),
        apart: Container[int] = (),
        unwaited: Sequence[int] = (),
        sent: bool = True,
        policy: RefusalPolicy,
        now_ms: int,
    ) -> Settled:
        """Write what came of a request in one transaction and end its claims.

        ``returned`` are not to blame and wait again; ``sent`` False says that they were not on the wire. Those
        of them that are ``apart`` are claimed by name only, until they are returned once more without it. Those
        ``unwaited`` lose the time that they wait for: from then on they count as fresh, as `claim_behind` does.
        What is in flight no more (it was settled before, or its claim was lost) stays as it is, and does not hinder the
        others.
        """
        ...

    def give_back(self, account: str, request_ids: Sequence[int], *, sent: bool) -> None:
        """End the claims of receipts, without waiting for it: for whoever ends, and can't `settle`.

        An answer to them that is being settled at this moment may come to nothing.
        """
        ...


class Upstream(Protocol):
    """A connection to one account's Smartswitch."""

    async def send(self, receipts: Sequence[Receipt]) -> Answer:
        """One request with these receipts; never raises but CancelledError."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class FlushSettings:
    """An account as the flusher needs it; durations in milliseconds."""

    name: str
    health: HealthSettings
    policy: RefusalPolicy
    linger_ms: int
    budget_bytes: int
    """What the receipts of a batch may take of the encoded request target."""
    rate_limit: float
    """Requests a second; 0 for none."""
    paused: bool
