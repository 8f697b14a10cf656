"""What the oracle knows: the rules of a campaign, what it was told of each message and receipt, and the figures.

Records only; what follows from them is `oracle`'s to judge.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

FINAL = frozenset({"delivered", "expired", "undeliverable", "rejected"})
EXPIRED = "expired"
REGISTERED = "registered"
"""Stands for a registration where else the name of a state stands."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the daemons under test are configured to do."""

    default_validity_ms: int
    retention_ms: int
    dead_retention_ms: int
    concurrency: int
    max_refusals: int
    patience_ms: int
    """An answer that comes within this time is still waited for."""


class Said(StrEnum):
    """What the upstream let a client know of one receipt of a request."""

    OK = "ok"
    """An entry with its request_id and status ok, in an answer that could be read."""
    PERHAPS = "perhaps"
    """As ok, but so late that the client may have given up."""
    NOTHING = "nothing"
    """No entry that could be believed: an error, a refusal, or no answer at all."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One receipt in a request that the upstream read."""

    message_id: str
    state: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one receipt upstream: ``acted`` if the upstream took it to heart, ``said`` what it said."""

    acted: bool
    said: Said


@dataclass(frozen=True, slots=True)
class Shown:
    """A receipt as a list of the API shows it."""

    request_id: int
    account: str
    message_id: str
    state: str


@dataclass(slots=True, eq=False)
class KnownMessage:
    """One life of a message: after a deletion that is certain, whoever names it again begins another."""

    account: str
    message_id: str
    first_asked_ms: int
    periods: set[int]
    """The validity periods that its deadline may follow, in milliseconds."""
    first_answered_ms: int | None = None
    registered: bool = False
    """A registration was answered: since then the deadline is fixed."""
    deadline_ms: int | None = None
    """The deadline that an answer has shown."""
    asks: int = 0
    outstanding: Counter[str] = field(default_factory=Counter)
    """States (and `REGISTERED`) that somebody asked for without having an answer yet."""
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """How often it came to a state, by the answers; each time has a receipt of its own."""
    last_answered: str | None = None
    shown: Counter[str] = field(default_factory=Counter)
    """How many receipts with a request_id were seen anywhere, by state."""
    request_ids: set[int] = field(default_factory=set)
    final: str | None = None
    """The final state that an answer, the disk or the upstream has shown."""
    final_ok_ms: int | None = None
    final_dead_ms: int | None = None
    """When the receipt of its final state may have become a dead letter."""
    since_delete: set[str] | None = None
    """A deletion was asked for and is ambiguous: what was asked of the message then or later.

    It may be gone, or gone and begun anew; so it may have two final states, if the second one was asked for later.
    """
    picked: bool = False
    """A receipt of it was picked to be deleted: an older one may have become the newest again."""
    gone: bool = False
    """It was deleted, and nobody has asked for it since."""
    expirable: bool = False
    must_be_final: bool = False
    """It was there when an admin's expiry was asked for, which was answered."""
    exempted: bool = False
    sent_run: int = -1
    sent_id: int = 0
    on_wire: tuple[int, int, int] | None = None
    """The run, the request_id and the time of a request that is not answered yet."""

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{self.account}/{self.message_id}"

    @property
    def deletable(self) -> bool:
        """Whether it may have been deleted."""
        return self.gone or self.since_delete is not None

    @property
    def answered_anything(self) -> bool:
        """Whether somebody was told that it is there."""
        return self.registered or bool(self.answered) or bool(self.shown)

    def may_be_expired(self, at_ms: int) -> bool:
        """Whether its time can be over."""
        return self.expirable or at_ms >= self.first_asked_ms + min(self.periods)

    def may_be_final(self, at_ms: int) -> bool:
        """Whether anything can have ended it."""
        return bool(set(self.asked) & FINAL) or self.may_be_expired(at_ms)

    def may_be_anew(self, state: str) -> bool:
        """Whether this state can be that of another message of the same name, begun after a deletion."""
        asked = self.since_delete
        return bool(asked) and (state in (asked or ()) or state == EXPIRED)

    def ask(self, what: str) -> None:
        """Somebody asks for a state, or registers."""
        self.asks += 1
        self.outstanding[what] += 1
        if self.since_delete is not None:
            self.since_delete.add(what)

    def answer(self, what: str) -> None:
        """Somebody was answered."""
        self.outstanding[what] -= 1


@dataclass(slots=True, eq=False)
class KnownReceipt:
    """What is known of a request_id."""

    message: KnownMessage
    state: str
    sightings: int = 0
    acted: int = 0
    said_ok_ms: int | None = None
    """When the upstream first said ok to it in an answer that could be read."""
    refused: int = 0
    """How often the upstream was asked for it and did not say ok, since it was replayed."""
    dead_ms: int | None = None
    """When that came to be often enough for a dead letter."""
    unsettled: tuple[int, int] | None = None
    """The run and the request of an ok that the disk has not confirmed yet."""
    acknowledged: bool = False
    pointless: bool = False
    """A kill left it pending though a newer state of its message exists."""
    held: bool = False
    """It was seen held after a hold was answered, and nobody has asked to release anything since."""
    deletable: bool = False
    gone: bool = False
    """Its deletion was answered."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion of messages that was asked for: what each was like before."""

    account: str
    before: dict[str, tuple[KnownMessage, int, set[str] | None] | None]
    """By message_id; None if nobody has named it yet. Else how often it was asked for, and `since_delete`."""


@dataclass(slots=True)
class Figures:
    """What was counted; ``bound`` is how many duplicates the kills and the lost answers allow."""

    registrations: int = 0
    reports: int = 0
    unanswered: int = 0
    requests: int = 0
    receipts: int = 0
    resends: int = 0
    duplicates: int = 0
    bound: int = 0
    in_flight_at_kills: int = 0
    answers_lost: int = 0
    forgotten: int = 0
    most_known: int = 0
    named: int = 0
    """Messages that somebody asked for."""
    exempt: int = 0
    """Those of them that a deletion, which may have happened or not, lets off some of the checks."""
    actions: Counter[str] = field(default_factory=Counter)
    """What admins did for certain: messages or receipts by action."""
    dead: int = 0
    """Dead letters that were seen on the disk."""
    outcomes: Counter[str] = field(default_factory=Counter)
