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

import msgspec

from dlr_buffer.receipts import Claimed

MAX_MARKS: Final = 100_000
MAX_ASIDES: Final = 1_000
MAX_SUSPECTS: Final = 2_000
MAX_BLAMED: Final = 20
"""Receipts refused one after another, with nothing acknowledged in between.

Until the account is in question.
"""
STRIKES_TO_REFUSE: Final = 10
"""Outages drawn alone, while others are acknowledged, after which the receipt is to blame (DESIGN §4)."""


class _Mark(msgspec.Struct, gc=False):
    """How many acknowledgements there were when a receipt was first tried: ever, and in the present era."""

    first: int
    counted_since_ms: int
    era: int
    since: int


class Evidence:
    """Counts acknowledgements, and remembers how many there were when each receipt was first tried.

    An era ends whenever the account itself falls in question. What was tried in an earlier one is no evidence
    for a refusal: else the first acknowledgement after an outage would speak against all that waited through
    it.
    """

    def __init__(self) -> None:
        """Start with nothing acknowledged."""
        self._acknowledged = 0
        self._era = 0
        self._marks: OrderedDict[int, _Mark] = OrderedDict()

    @property
    def acknowledged(self) -> int:
        """How many acknowledgements there were so far."""
        return self._acknowledged

    def attempt(self, claimed: Sequence[Claimed]) -> list[int]:
        """Remember first attempts; a replay by an admin (its lifetime began anew) counts as a first one.

        Returns those that are tried for the first time in this sense: nothing is held against them.
        """
        begun: list[int] = []
        for each in claimed:
            request_id = each.receipt.request_id
            known = self._marks.get(request_id)
            # A first refusal begins the lifetime as well, but is no replay.
            replayed = known is not None and known.counted_since_ms != each.counted_since_ms
            if known is None or (replayed and not each.receipt.refusals):
                self._marks[request_id] = _Mark(
                    self._acknowledged, each.counted_since_ms, self._era, self._acknowledged
                )
                begun.append(request_id)
                continue
            known.counted_since_ms = each.counted_since_ms
            if known.era != self._era:
                known.era = self._era
                if not each.receipt.refusals:
                    # One that was refused by evidence before has been judged by itself already.
                    known.since = self._acknowledged
        while len(self._marks) > MAX_MARKS:
            # Forgetting makes the next attempt count as the first: later blame, never a wrong one.
            self._marks.popitem(last=False)
        return begun

    def acknowledge(self, request_ids: Iterable[int]) -> None:
        """Count acknowledgements."""
        for request_id in request_ids:
            self._acknowledged += 1
            self._marks.pop(request_id, None)

    def begin_era(self) -> None:
        """The account itself is in question: what was tried so far proves nothing against a receipt."""
        self._era += 1

    def others_succeeded(self, request_id: int) -> bool:
        """Whether another receipt was acknowledged since this one's first attempt."""
        mark = self._marks.get(request_id)
        return mark is not None and self._acknowledged > mark.first

    def against(self, request_id: int) -> bool:
        """Whether another receipt was acknowledged since this one's first attempt in this era.

        Then it is to blame.
        """
        mark = self._marks.get(request_id)
        return mark is not None and mark.era == self._era and self._acknowledged > mark.since


@dataclass(frozen=True, slots=True)
class Halving:
    """A suspect group cut in two: ``left`` is sent next; what comes of it decides about ``right``.

    Without ``right`` it is a group by itself.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]


class Suspects:
    """Groups that are known to hold a bad receipt, or may; the newest is followed first.

    A group that was taken out by `next` counts as suspect until it is closed, so that nothing of it goes as
    fresh meanwhile.
    """

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

    def ids(self) -> frozenset[int]:
        """Every receipt under suspicion."""
        return frozenset(self._ids)

    def accuse(self, request_ids: Sequence[int]) -> None:
        """This group, as a whole, was refused (or must hold the bad one): halve it."""
        middle = (len(request_ids) + 1) // 2
        self._push(Halving(tuple(request_ids[:middle]), tuple(request_ids[middle:])))

    def split(self, request_ids: Sequence[int]) -> None:
        """One of this group may draw outages: send each half by itself."""
        middle = (len(request_ids) + 1) // 2
        for half in (request_ids[middle:], request_ids[:middle]):
            self._push(Halving(tuple(half), ()))

    def resume(self, halving: Halving) -> None:
        """Something else came between: follow this one again later."""
        self._push(halving)

    def next(self, limit: int) -> Halving | None:
        """The next group to send, taken out, with at most ``limit`` receipts in ``left``."""
        if not self._halvings:
            return None
        halving = self._halvings.pop()
        left, rest = halving.left[:limit], halving.left[limit:]
        if rest and halving.right:
            # The bad one is somewhere in both: any cut will do to look for it.
            return Halving(left, rest + halving.right)
        if rest:
            self._push(Halving(rest, ()))
        return Halving(left, halving.right)

    def close(self, halving: Halving) -> None:
        """What came of a group that was taken out is known.

        It is not suspect any more, unless accused again.
        """
        self._ids.difference_update(halving.left, halving.right)

    def _push(self, halving: Halving) -> None:
        self._halvings.append(halving)
        self._ids.update(halving.left, halving.right)


@dataclass(slots=True)
class Aside:
    """A receipt that alone drew an outage, or was refused; tried again alone, not before ``due_ms``."""

    strikes: int
    due_ms: int
    acknowledged_before: int
    refused: bool
    """Smartswitch refused it alone while nothing proved it to be bad."""


class Asides:
    """Receipts kept apart because they alone drew outages, in the order in which they were tried last."""

    def __init__(self) -> None:
        """Start with none."""
        self._asides: OrderedDict[int, Aside] = OrderedDict()
        self._on_the_wire: set[int] = set()

    def __len__(self) -> int:
        """How many are kept apart."""
        return len(self._asides)

    def __contains__(self, request_id: object) -> bool:
        """Whether this receipt is kept apart."""
        return request_id in self._asides

    def get(self, request_id: int) -> Aside | None:
        """What is held against it."""
        return self._asides.get(request_id)

    def put(
        self, request_id: int, *, strike: bool, refused: bool, due_ms: int, acknowledged: int
    ) -> int | None:
        """Keep a receipt apart after an outage that it drew alone, or after it was ``refused`` alone.

        Returns its strikes; None if there is no room for another one. (To drop one instead, with what is held
        against it, would let none ever come to its end where there are more than fit.)
        """
        before = self._asides.pop(request_id, None)
        if before is None and len(self._asides) >= MAX_ASIDES:
            return None
        strikes = (before.strikes if before is not None else 0) + strike
        refused = refused or (before is not None and before.refused)
        self._asides[request_id] = Aside(strikes, due_ms, acknowledged, refused)
        return strikes

    def ids(self) -> frozenset[int]:
        """Every receipt that is kept apart."""
        return frozenset(self._asides)

    @property
    def has_room(self) -> bool:
        """Whether there is room for many more."""
        return len(self._asides) <= MAX_ASIDES // 2

    def remove(self, request_ids: Iterable[int]) -> None:
        """These are settled or gone."""
        for request_id in request_ids:
            self._asides.pop(request_id, None)

    def release(self, request_ids: Iterable[int]) -> list[int]:
        """Let go of those of these that are kept apart, and not on the wire; returns their ids."""
        released = [each for each in request_ids if each in self._asides and each not in self._on_the_wire]
        self.remove(released)
        return released

    def depart(self, request_id: int) -> None:
        """It goes on the wire: it is not offered again before it has landed."""
        self._on_the_wire.add(request_id)

    def land(self, request_ids: Iterable[int]) -> None:
        """These are back from the wire, and what came of them is settled."""
        self._on_the_wire.difference_update(request_ids)

    def due(self, now_ms: int, horizon_ms: int, acknowledged: int) -> int | None:
        """One whose wait is over, if any; ``acknowledged`` is how many receipts were so far.

        One that waits for more than ``horizon_ms`` and its own patience counts as due (the clock was set back).
        """
        for request_id, aside in self._asides.items():
            due_ms = self._due_ms(aside, horizon_ms, acknowledged)
            late = due_ms <= now_ms or aside.due_ms > now_ms + horizon_ms
            if late and request_id not in self._on_the_wire:
                return request_id
        return None

    def next_due_ms(self, horizon_ms: int, acknowledged: int) -> int | None:
        """When the next one's wait is over."""
        return min(
            (
                self._due_ms(aside, horizon_ms, acknowledged)
                for request_id, aside in self._asides.items()
                if request_id not in self._on_the_wire
            ),
            default=None,
        )

    @staticmethod
    def _due_ms(aside: Aside, horizon_ms: int, acknowledged: int) -> int:
        """When it may be tried again.

        While nothing else goes through another outage would prove nothing, so it has patience then.
        """
        proves_nothing = aside.strikes and acknowledged == aside.acknowledged_before
        return aside.due_ms + horizon_ms if proves_nothing else aside.due_ms

    def longest_untried(self) -> int | None:
        """The one that was tried longest ago, for a probe when nothing else is there."""
        return next((each for each in self._asides if each not in self._on_the_wire), None)

    def acquit(self) -> list[int]:
        """The account is well again: let those go that only were probes of it; returns their ids."""
        innocent = [
            request_id
            for request_id, aside in self._asides.items()
            if not aside.strikes and not aside.refused
        ]
        self.remove(innocent)
        return innocent
