"""A Smartswitch that some messages are poison to, in every way there is; shared by tests and a benchmark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dlr_buffer.flusher.suspicion import STRIKES_TO_REFUSE
from dlr_buffer.receipts import Receipt, ReceiptError
from dlr_buffer.smartswitch.answers import Answer, TooLarge
from tests.integration.flusher.bench import Answerer, entries, ok, outage, refused, wrong_password

KINDS = ("errors", "partial", "missing", "500", "timeout", "403", "413", "mixed")
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
        return self._error(self.way(message_id), message_id).code

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
            if "403" in ways:
                return wrong_password(coded=False)
            if "413" in ways:
                return TooLarge(413)
            if "errors" in ways:
                first = next(name for name, way in bad.items() if way == "errors")
                return refused(self._error("errors", first))
            if ways == {"missing"} and len(bad) == len(receipts):
                return outage("nothing-answered")  # an answer that names none of ours
            return entries(
                receipts,
                lambda each: (
                    self._error(bad[each.message_id], each.message_id) if each.message_id in bad else None
                ),
            )

        return answer

    @staticmethod
    def _error(way: str, message_id: str) -> ReceiptError:
        match way:
            case "500" | "timeout" | "403" | "missing":  # one that is missing is so alone as well, in the end
                code = "upstream-error"
            case "413":
                code = "http-413"
            case _:
                code = f"{way}-{message_id}"
        return ReceiptError(code, "Bad", "Please check it")

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
