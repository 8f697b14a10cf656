"""Random work of apps, flusher, admins and time against a real store, with the rules checked at every step."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptAction, Reported
from tests.integration.storage.harness import (
    ACCEPTED,
    DELIVERED,
    ENROUTE,
    EXPIRED,
    HOUR,
    PENDING,
    UNDELIVERABLE,
    UNKNOWN,
    Queue,
    opened,
    rows,
)
from tests.loops import on_loop

STATES = [*[ENROUTE, ACCEPTED, UNKNOWN] * 3, DELIVERED, UNDELIVERABLE]


@dataclass(slots=True)
class Model:
    """What must be true of the queue, whatever was done to it."""

    queue: Queue
    path: Path
    dice: random.Random
    names: list[str] = field(default_factory=list)
    final: dict[str, MessageState] = field(default_factory=dict)
    flying: set[int] = field(default_factory=set)
    highest: int = 0
    sent: dict[str, list[MessageState]] = field(default_factory=dict)

    async def register(self) -> None:
        """An app registers."""
        await self.queue.register(self.dice.choice(self.names), validity=self.dice.choice([None, 3600, 7200]))

    async def report(self) -> None:
        """An app reports; ids only rise, and after a final state nothing is news."""
        name, state = self.dice.choice(self.names), self.dice.choice(STATES)
        (outcome,) = await self.queue.report((name, state))
        if isinstance(outcome, Reported) and outcome.receipt is not None:
            assert outcome.receipt.request_id > self.highest
            self.highest = outcome.receipt.request_id
            assert name not in self.final
            if state.final:
                self.final[name] = state

    async def claim(self) -> None:
        """The flusher claims; only the newest receipt of a message is sent, and one of a message at a time."""
        claimed = await self.queue.claim(limit=self.dice.randrange(1, 5))
        due = await self.queue.claim_due()
        if due.claimed is not None:
            claimed.append(due.claimed.receipt.request_id)
        for each in claimed:
            receipt = await self.queue.receipt(each)
            assert receipt.status is PENDING
            newest = (await self.queue.view(receipt.message_id)).receipts[-1].receipt
            assert newest.request_id == each, "an older one was sent"
        self.flying |= set(claimed)
        messages = [(await self.queue.receipt(each)).message_id for each in self.flying]
        assert len(messages) == len(set(messages)), "two of one message in flight"

    async def settle(self) -> None:
        """Some of what is in flight is answered, this way or that; nothing follows an acknowledged final state."""
        parts: list[list[int]] = [[], [], []]
        for each in sorted(self.flying):
            if self.dice.random() < 0.6:
                parts[self.dice.randrange(3)].append(each)
                self.flying.remove(each)
        for each in parts[0]:
            receipt = await self.queue.receipt(each)
            before = self.sent.setdefault(receipt.message_id, [])
            assert not any(state.final for state in before)
            before.append(receipt.message_state)
        await self.queue.settle(acknowledged=parts[0], refused=parts[1], returned=parts[2])

    async def steer(self) -> None:
        """An admin acts on a few receipts; every one is changed, skipped or in flight."""
        some = {self.dice.randrange(1, self.highest + 2) for _ in range(3)}
        action = self.dice.choice(list(ReceiptAction))
        count = await self.queue.act(action, *some, dry_run=self.dice.random() < 0.3)
        assert sum(count) == len(some)

    async def pass_time(self) -> None:
        """Time passes and messages expire; what was final stays what it was."""
        self.queue.clock.advance(self.dice.randrange(HOUR))
        await self.queue.expire()
        for name in self.names:
            if await self.queue.gone(name):
                continue
            state = (await self.queue.message(name)).state
            if state is EXPIRED:
                self.final.setdefault(name, EXPIRED)
            assert self.final.get(name) in (None, state)
        (self.highest,) = rows(self.path, "SELECT next_request_id - 1 FROM queue_state")[0]

    async def step(self) -> None:
        """Do anything."""
        ways: list[Callable[[], Awaitable[None]]] = [self.register, self.settle, self.steer, self.pass_time]
        ways += [self.report] * 3 + [self.claim] * 2
        await self.dice.choice(ways)()
        for each in self.flying:
            assert (await self.queue.receipt(each)).in_flight


@pytest.mark.parametrize("seed", [1, 2])
@on_loop
async def test_anything_in_any_order(path: Path, seed: int) -> None:
    """Hundreds of random steps break no rule of DESIGN §2, and leave counters and chains right (see `opened`)."""
    async with opened(path) as queue:
        model = Model(queue, path, random.Random(seed))
        for step in range(250):
            model.names = [f"m{n}" for n in range(step // 10, step // 10 + 12)]
            await model.step()
        await queue.settle(returned=sorted(model.flying))
        assert model.final
        assert model.sent
