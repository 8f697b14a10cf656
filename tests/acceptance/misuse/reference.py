"""What the contract says becomes of items (DESIGN §2, §5), in plain Python: a model to compare the daemon with.

It knows one account's messages and their states, nothing of time, sending or storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FINAL = frozenset({"delivered", "expired", "undeliverable", "rejected"})
DEFAULT_S = 259_200


@dataclass(frozen=True, slots=True)
class Meant:
    """One item as the test meant it; ``bad`` is the code of its error, None if it may be taken."""

    raw: bytes
    message_id: str = ""
    state: str = ""
    validity_s: int | None = None
    bad: str | None = None


@dataclass(slots=True)
class Summary:
    """The answer to a bulk request."""

    stored: int = 0
    duplicates: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    validity_s: int
    explicit: bool
    state: str | None = None


@dataclass(slots=True)
class Reference:
    """The messages of an account that takes unknown ones."""

    messages: dict[str, _Known] = field(default_factory=dict)

    def register(self, items: Sequence[Meant]) -> Summary:
        """Register in order."""
        return _summed([item.bad or self._register(item) for item in items])

    def report(self, items: Sequence[Meant]) -> Summary:
        """Report in order."""
        return _summed([item.bad or self._report(item) for item in items])

    @property
    def states(self) -> dict[str, str | None]:
        """The state of each message."""
        return {name: known.state for name, known in self.messages.items()}

    def _register(self, item: Meant) -> str:
        known = self.messages.get(item.message_id)
        if known is None:
            self.messages[item.message_id] = _Known(item.validity_s or DEFAULT_S, explicit=True)
            return "stored"
        if known.state in FINAL:
            return "duplicate"
        if not known.explicit:  # known by a report only: the first registration has its way
            known.explicit = True
            known.validity_s = item.validity_s or known.validity_s
            return "stored"
        if item.validity_s in {None, known.validity_s}:
            return "duplicate"
        return "conflict"

    def _report(self, item: Meant) -> str:
        known = self.messages.setdefault(item.message_id, _Known(DEFAULT_S, explicit=False))
        if known.state == item.state:
            return "duplicate"
        if known.state in FINAL:
            return "message-final"
        known.state = item.state
        return "stored"


def _summed(outcomes: Sequence[str]) -> Summary:
    errors = [
        (index, outcome) for index, outcome in enumerate(outcomes) if outcome not in {"stored", "duplicate"}
    ]
    return Summary(outcomes.count("stored"), outcomes.count("duplicate"), errors)
