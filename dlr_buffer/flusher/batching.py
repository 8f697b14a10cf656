"""When a batch closes: by count, by encoded bytes, or by linger, whichever comes first (DESIGN §4). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dlr_buffer.receipts import Cut, Receipt
from dlr_buffer.smartswitch import wire


def cut_batch(
    waiting: Sequence[Receipt], *, limit: int, budget_bytes: int, linger_ms: int, now_ms: int
) -> Cut:
    """Decide how many of the oldest ``waiting`` receipts (at least one) make a batch now.

    A full batch goes at once; one that is not stays open until its oldest receipt has waited for
    ``linger_ms``. A receipt from the future (the clock was set back) does not linger.
    """
    take = wire.fitting(waiting, budget_bytes=budget_bytes, max_receipts=limit)
    if take >= limit or take < len(waiting):
        return Cut(take)
    waited_ms = now_ms - waiting[0].created_at_ms
    if waited_ms >= linger_ms or waited_ms < 0:
        return Cut(take)
    return Cut(0, waiting[0].created_at_ms + linger_ms)
