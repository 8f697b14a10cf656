"""What the stand-in received: counters, and per message what was said about it, in order.

The record is the witness of tests and of `demo`: it proves that each message got exactly one final state. Its
memory is bounded; what had to be forgotten is counted. It decides nothing, and never shows a credential.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dlr_buffer.simulator.protocol import FINAL_STATES, Receipt, mask_target

_MAX_SIGHTINGS = 1000
_SHOWN_TARGETS = 20

FinalState = tuple[str, str | None]
"""A final state and the request_id that it came under."""


@dataclass(slots=True)
class Sighting:
    """One receipt as it was seen in one request; ``accepted`` turns true when the stand-in acts on it."""

    state: str
    request_id: str | None
    accepted: bool = False


@dataclass(slots=True)
class _Message:
    sightings: list[Sighting] = field(default_factory=list)
    finals: tuple[FinalState, ...] = ()


Arrival = list[tuple[_Message, Sighting]]
"""The sightings of one request, in its order; for `Record.accept` only."""


class Record:
    """Everything that was received since the start, within bounds.

    Counters: ``requests``, ``receipts`` (entries of requests, resends included), ``outcomes`` (requests by
    what became of them), ``accepted`` (distinct receipts acted on), ``acknowledged`` (ok entries that were
    answered to a client still there, repeats included), ``resends`` (receipts whose request_id came before),
    ``reused_request_ids`` (request_ids that came before for another message or state: a client's fault),
    ``after_final`` (receipts seen after another final state of the same message was accepted: a client's
    fault), ``max_batch``, ``concurrent_requests``, ``max_concurrent_requests``, ``forgotten_messages``.

    ``targets`` and ``bodies`` are the last requests' raw request targets and bodies, credentials included:
    for comparing, not for showing.
    """

    def __init__(self, max_messages: int = 1_000_000, max_targets: int = 1000) -> None:
        """Remember at most so many messages and request targets."""
        self.max_messages = max_messages
        self.targets: deque[str] = deque(maxlen=max_targets)
        self.bodies: deque[bytes] = deque(maxlen=max_targets)
        self.requests = 0
        self.receipts = 0
        self.accepted = 0
        self.acknowledged = 0
        self.resends = 0
        self.reused_request_ids = 0
        self.after_final = 0
        self.max_batch = 0
        self.concurrent_requests = 0
        self.max_concurrent_requests = 0
        self.forgotten_messages = 0
        self.outcomes: Counter[str] = Counter()
        self.finals: Counter[str] = Counter()
        self._messages: dict[str, _Message] = {}
        self._request_ids: set[str] = set()

    def __repr__(self) -> str:
        """Say how much came; no target and no body is shown."""
        return f"Record(requests={self.requests}, receipts={self.receipts}, accepted={self.accepted})"

    def begin(self, target: str, body: bytes, receipts: tuple[Receipt, ...]) -> Arrival:
        """Note a request that has been read whole; `end` has to follow."""
        self.requests += 1
        self.receipts += len(receipts)
        self.max_batch = max(self.max_batch, len(receipts))
        self.concurrent_requests += 1
        self.max_concurrent_requests = max(self.max_concurrent_requests, self.concurrent_requests)
        self.targets.append(target)
        self.bodies.append(body)
        arrival = [self._sight(receipt) for receipt in receipts]
        if len(self._messages) > self.max_messages:
            self._forget()
        return arrival

    def accept(self, message: _Message, sighting: Sighting) -> None:
        """Note that the stand-in acted on a receipt of `begin`'s."""
        pair = (sighting.state, sighting.request_id)
        earlier = message.sightings if len(message.sightings) > 1 else ()
        if not any(seen.accepted and (seen.state, seen.request_id) == pair for seen in earlier):
            self.accepted += 1
        sighting.accepted = True
        if sighting.state in FINAL_STATES and pair not in message.finals:
            message.finals += (pair,)
            self.finals[sighting.state] += 1

    def end(self) -> None:
        """Note that a request of `begin`'s is answered or gone."""
        self.concurrent_requests -= 1

    def __contains__(self, message_id: object) -> bool:
        """Say whether anything came about the message (and is not forgotten)."""
        return message_id in self._messages

    def sightings(self, message_id: str) -> tuple[Sighting, ...]:
        """Return what came about a message, oldest first; empty if nothing did."""
        message = self._messages.get(message_id)
        return () if message is None else tuple(message.sightings)

    def final_states(self) -> dict[str, list[FinalState]]:
        """Return every message's accepted final states, repeats left out: a client owes exactly one."""
        return {message_id: list(message.finals) for message_id, message in self._messages.items()}

    def summary(self) -> dict[str, Any]:
        """Return all counters, ready for JSON, without walking over the messages."""
        return {
            "requests": self.requests,
            "receipts": self.receipts,
            "accepted": self.accepted,
            "acknowledged": self.acknowledged,
            "resends": self.resends,
            "reused_request_ids": self.reused_request_ids,
            "after_final": self.after_final,
            "messages": len(self._messages),
            "forgotten_messages": self.forgotten_messages,
            "max_batch": self.max_batch,
            "concurrent_requests": self.concurrent_requests,
            "max_concurrent_requests": self.max_concurrent_requests,
            "final_states": dict(sorted(self.finals.items())),
            "outcomes": dict(sorted(self.outcomes.items())),
        }

    def shown(self) -> dict[str, Any]:
        """Return `summary` and the last request targets with their credentials masked."""
        recent = islice(reversed(self.targets), _SHOWN_TARGETS)
        return self.summary() | {"targets": [mask_target(target) for target in recent][::-1]}

    def _sight(self, receipt: Receipt) -> tuple[_Message, Sighting]:
        message_id, state, request_id = receipt
        message = self._messages.get(message_id)
        if message is None:
            message = self._messages[message_id] = _Message()
        if request_id is not None:
            if request_id not in self._request_ids:
                self._request_ids.add(request_id)
            else:
                self.resends += 1
                if not any(s.request_id == request_id and s.state == state for s in message.sightings):
                    self.reused_request_ids += 1
        if message.finals and (state, request_id) not in message.finals:
            self.after_final += 1
        sighting = Sighting(state, request_id)
        message.sightings.append(sighting)
        if len(message.sightings) > _MAX_SIGHTINGS:
            self._shorten(message)
        return message, sighting

    def _shorten(self, message: _Message) -> None:
        """Drop a message's oldest sighting that was not accepted, else its oldest one."""
        seen = message.sightings
        index = next((i for i, sighting in enumerate(seen[:-1]) if not sighting.accepted), 0)
        request_id = seen.pop(index).request_id
        if request_id is not None and all(sighting.request_id != request_id for sighting in seen):
            self._request_ids.discard(request_id)

    def _forget(self) -> None:
        """Drop the oldest messages: a hundredth more than needed, as a dict's front is slow to cut."""
        surplus = len(self._messages) - self.max_messages + self.max_messages // 100
        for message_id in list(islice(self._messages, surplus)):
            message = self._messages.pop(message_id)
            self._request_ids.difference_update(
                s.request_id for s in message.sightings if s.request_id is not None
            )
        self.forgotten_messages += surplus
