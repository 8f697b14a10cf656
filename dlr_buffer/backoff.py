"""How long to wait after failures: exponential growth with full jitter, capped.

Pure: the caller brings the count of failures and the randomness. When to wait, and for whose sake, is account
health's and the receipt's business.
"""

from __future__ import annotations

import random

_FLOOR_SHARE = 10
"""The least wait is one tenth of the current cap: full jitter alone may draw (almost) no wait at all."""


def backoff_ms(failures: int, *, initial_ms: int, max_ms: int, rng: random.Random) -> int:
    """Return the wait in milliseconds after ``failures`` failures in a row (fewer than 1 counts as 1).

    Drawn evenly between a tenth of the cap and the cap, which is ``initial_ms`` doubled per further failure
    and never above ``max_ms``; at least 1 ms ("full jitter" of the AWS Architecture Blog, with a floor).
    """
    # tenacity.wait_random_exponential has the same full jitter, but draws from the global random module, and
    # so could not be replayed in a test; it also wants a RetryCallState, which nothing outside its own loop
    # has. The shift is bounded, so that a million failures do not build a number of a million bits.
    doublings = min(max(failures, 1) - 1, max_ms.bit_length())
    cap_ms = max(1, min(max_ms, initial_ms << doublings))
    return rng.randint(max(1, cap_ms // _FLOOR_SHARE), cap_ms)
