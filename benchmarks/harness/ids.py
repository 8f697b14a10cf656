"""Message ids as suppliers have them: 13 digits in the order of arrival, or random UUIDs."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

FIRST = 1_561_370_632_513
"""The seed's example."""


def in_order(count: int, start: int = 0) -> list[str]:
    """Ids of 13 digits that grow, from the ``start``-th on."""
    return [str(FIRST + number) for number in range(start, start + count)]


def uuids(count: int, seed: int = 1) -> list[str]:
    """Random UUIDs, the same for the same ``seed``."""
    chance = random.Random(seed)
    return [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(count)]


def shuffled(message_ids: Sequence[str], seed: int = 1) -> list[str]:
    """The same ids in random order."""
    mixed = list(message_ids)
    random.Random(seed).shuffle(mixed)
    return mixed


def near_arrival(message_ids: Sequence[str], window: int = 20_000, seed: int = 1) -> list[str]:
    """The same ids, each at most about ``window`` places from where it arrived: as handsets confirm."""
    chance = random.Random(seed)
    places = [(number + chance.random() * window, each) for number, each in enumerate(message_ids)]
    return [each for _, each in sorted(places)]
