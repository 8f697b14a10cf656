"""Who is to blame: evidence, suspects, and receipts set aside. Memory of one account, no I/O.

`Evidence` answers DESIGN §4's question whether another receipt was acknowledged since this one's first
attempt. `Suspects` holds what a bisection has still to send, in memory, so that it goes on after an outage.
`Asides` holds receipts that alone drew outages, so that one poison receipt neither stops an account nor stays
at the head of its queue. All of it is lost with the process: then suspicion begins anew, and nothing else is
harmed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dlr_buffer.receipts import Claimed

MAX_MARKS: Final = 100_000
MAX_ASIDES: Final = 1_000
MAX_SUSPECTS: Final = 2_000
STRIKES_TO_REFUSE: Final = 10
"""Outages drawn alone, while others are acknowledged, after which the receipt is to blame (DESIGN §4)."""


class Evidence:
    """Counts acknowledgements, and remembers how many there were when each receipt was first tried."""

    def __init__(self) -> None:
        """Start with nothing acknowledged."""
        self._acknowledged = 0
        self._marks: OrderedDict[int, tuple[int, int]] = OrderedDict()

    @property
    def acknowledged(self) -> int:
        """How many acknowledgements there were so far."""
        return self._acknowledged

    def attempt(self, claimed: Sequence[Claimed]) -> None:
        """Remember first attempts; a replay by an admin (its lifetime began anew) counts as a first one."""
        for each in claimed:
            known = self._marks.get(each.receipt.request_id)
            if known is None or known[1] != each.counted_since_ms:
                self._marks[each.receipt.request_id] = (self._acknowledged, each.counted_since_ms)
        while len(self._marks) > MAX_MARKS:
            # Forgetting makes the next attempt count as the first: later blame, never a wrong one.
            self._marks.popitem(last=False)

    def acknowledge(self, request_ids: Iterable[int]) -> None:
        """Count acknowledgements."""
        for request_id in request_ids:
            self._acknowledged += 1
            self._marks.pop(request_id, None)

    def against(self, request_id: int) -> bool:
        """Whether another receipt was acknowledged since this one's first attempt."""
        mark = self._marks.get(request_id)
        return mark is not None and self._acknowledged > mark[0]

    def forget(self, request_ids: Iterable[int]) -> None:
        """These are settled, or never were to blame."""
        for request_id in request_ids:
            self._marks.pop(request_id, None)


@dataclass(frozen=True, slots=True)
class Halving:
    """A suspect group cut in two: ``left`` is sent next; what comes of it decides about ``right``."""

    left: tuple[int, ...]
    right: tuple[int, ...]


class Suspects:
    """Groups that are known to hold a bad receipt, or may; the newest is followed first."""

    def __init__(self) -> None:
        """Start with no suspicion."""
        self._halvings: list[Halving] = []
        self._ids: set[int] = set()

    def __len__(self) -> int:
        """How many receipts are under suspicion."""
        return len(self._ids)

    def __contains__(self, request_id: object) -> bool:
        """Whether this receipt is under suspicion."""
        return request_id in self._ids

    def accuse(self, request_ids: Sequence[int]) -> None:
        """This group, as a whole, was refused (or must hold the bad one): halve it."""
        middle = (len(request_ids) + 1) // 2
        self._push(Halving(tuple(request_ids[:middle]), tuple(request_ids[middle:])))

    def resume(self, halving: Halving) -> None:
        """An outage came between: follow this one again later."""
        self._push(halving)

    def next(self) -> Halving | None:
        """The next group to send, taken out."""
        if not self._halvings:
            return None
        halving = self._halvings.pop()
        self._ids.difference_update(halving.left, halving.right)
        return halving

    def _push(self, halving: Halving) -> None:
        self._halvings.append(halving)
        self._ids.update(halving.left, halving.right)


@dataclass(slots=True)
class Aside:
    """A receipt that alone drew an outage; tried again alone, not before ``due_ms``."""

    strikes: int
    due_ms: int
    acknowledged_before: int


class Asides:
    """Receipts kept apart because they alone drew outages, in the order in which they were tried last."""

    def __init__(self) -> None:
        """Start with none."""
        self._asides: OrderedDict[int, Aside] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept apart."""
        return len(self._asides)

    def __contains__(self, request_id: object) -> bool:
        """Whether this receipt is kept apart."""
        return request_id in self._asides

    def get(self, request_id: int) -> Aside | None:
        """What is held against it."""
        return self._asides.get(request_id)

    def put(self, request_id: int, *, strike: bool, due_ms: int, acknowledged: int) -> tuple[int, list[int]]:
        """Keep a receipt apart after an outage that it drew alone.

        Returns its strikes, and the ids of others that had to go back to the queue to make room.
        """
        before = self._asides.pop(request_id, None)
        strikes = (before.strikes if before is not None else 0) + strike
        self._asides[request_id] = Aside(strikes, due_ms, acknowledged)
        dropped: list[int] = []
        while len(self._asides) > MAX_ASIDES:
            dropped.append(self._asides.popitem(last=False)[0])
        return strikes, dropped

    def remove(self, request_ids: Iterable[int]) -> None:
        """These are settled or gone."""
        for request_id in request_ids:
            self._asides.pop(request_id, None)

    def due(self, now_ms: int, horizon_ms: int) -> int | None:
        """One whose wait is over, if any.

        One more than ``horizon_ms`` ahead counts as due (the clock was set back).
        """
        return next(
            (
                each
                for each, aside in self._asides.items()
                if aside.due_ms <= now_ms or aside.due_ms > now_ms + horizon_ms
            ),
            None,
        )

    def next_due_ms(self) -> int | None:
        """When the next one's wait is over."""
        return min((aside.due_ms for aside in self._asides.values()), default=None)

    def longest_untried(self) -> int | None:
        """The one that was tried longest ago, for a probe when nothing else is there."""
        return next(iter(self._asides), None)

    def acquit(self) -> list[int]:
        """The account is well again: let those go that only were probes of it; returns their ids."""
        innocent = [request_id for request_id, aside in self._asides.items() if not aside.strikes]
        self.remove(innocent)
        return innocent
