"""A Smartswitch that some messages are poison to, in every way there is; shared by tests and a benchmark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dlr_buffer.flusher.suspicion import STRIKES_TO_REFUSE
from dlr_buffer.receipts import Receipt, ReceiptError
from dlr_buffer.smartswitch.answers import Answer
from tests.integration.flusher.bench import Answerer, entries, ok, outage, refused

KINDS = ("errors", "partial", "500", "timeout", "mixed")
_MIXED = ("errors", "partial", "500", "timeout")
BATCH = 100
MAX_REFUSALS = 5
_BATCH_LOG2 = 7


@dataclass(frozen=True, slots=True)
class Poison:
    """Which of ``m0``, ``m1``, … are bad, and in which way."""

    kind: str
    rows: int
    share: float
    bad: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Draw them; always the same ones."""
        drawn = random.Random(1).sample(range(self.rows), round(self.rows * self.share))
        object.__setattr__(self, "bad", frozenset(f"m{number}" for number in drawn))

    @property
    def good(self) -> int:
        """How many are good."""
        return self.rows - len(self.bad)

    def way(self, message_id: str) -> str:
        """In which way this one is bad."""
        return _MIXED[int(message_id[1:]) % len(_MIXED)] if self.kind == "mixed" else self.kind

    def code(self, message_id: str) -> str:
        """The error code that its dead letter has to bear."""
        way = self.way(message_id)
        return "upstream-error" if way in ("500", "timeout") else f"{way}-{message_id}"

    def answerer(self) -> Answerer:
        """Answer a request: an outage if one draws it, else an error for all if one does, else entry by entry."""

        def answer(receipts: Sequence[Receipt]) -> Answer:
            bad = {
                each.message_id: self.way(each.message_id) for each in receipts if each.message_id in self.bad
            }
            ways = set(bad.values())
            if not ways:
                return ok(receipts)
            if "500" in ways:
                return outage("http-500")
            if "timeout" in ways:
                return outage("timeout")
            if "errors" in ways:
                first = next(name for name, way in bad.items() if way == "errors")
                return refused(self._error(first))
            return entries(
                receipts, lambda each: self._error(each.message_id) if each.message_id in bad else None
            )

        return answer

    def _error(self, message_id: str) -> ReceiptError:
        return ReceiptError(self.code(message_id), "Bad", "Please check it")

    @property
    def most_requests(self) -> int:
        """What all of it may cost, from the first request to the last dead letter.

        Full batches; for each bad one the way down from a batch to it alone, both halves of each step; its
        refusals, alone. One that draws outages besides is tried alone until it is convicted; and as an outage
        shrinks the account's batches as well, the way down may be gone twice.
        """
        refusing = 2 * _BATCH_LOG2 + MAX_REFUSALS
        failing = 4 * _BATCH_LOG2 + STRIKES_TO_REFUSE + MAX_REFUSALS
        each = refusing if self.kind in ("errors", "partial") else failing
        return self.rows // BATCH + len(self.bad) * each
