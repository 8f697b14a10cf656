"""What every peer sends: the request for one receipt or for several, and whether the answer acknowledged it.

The same request as the daemon's, so that the sink has the same work with each. A message's id is its receipt's as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

Put = Callable[[Sequence[str]], None]
"""Puts the receipts of these messages into a peer's queue with one call; they are durable when it returns."""

STORE = "PEER_STORE"
"""The environment variable that says where a peer's queue lies; what that is, each peer knows."""
UPSTREAM = "PEER_UPSTREAM"
"""The environment variable with the URL that receipts go to."""


class NotAcknowledged(Exception):
    """The upstream did not say ok to each receipt; they have to be sent again."""


def store() -> str:
    """Where the queue lies."""
    return os.environ[STORE]


def url(message_ids: Sequence[str], message_state: str = "delivered") -> str:
    """Return what to post to, with an empty body, for these messages."""
    pairs = "&".join(
        f"message_id={each}&message_state={message_state}&request_id={each}" for each in message_ids
    )
    return f"{os.environ[UPSTREAM]}?{pairs}&_login=supplier&_password=secret"


def check(status: int, body: bytes, message_ids: Sequence[str]) -> None:
    """Read an answer.

    Raises NotAcknowledged unless every receipt was acknowledged.
    """
    if status != 200:
        raise NotAcknowledged(f"the upstream answered {status}")
    entries = json.loads(body)["data"]
    if isinstance(entries, dict):
        entries = [entries]
    good = {each["meta"]["request_id"] for each in entries if each["attributes"]["status"] == "ok"}
    if not good.issuperset(message_ids):
        raise NotAcknowledged("the upstream did not acknowledge every receipt")
