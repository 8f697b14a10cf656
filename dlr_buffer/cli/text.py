"""Words for numbers, times and foreign text, as the command line prints them. Pure; tables are in `tables`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_SPANS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def span(milliseconds: float) -> str:
    """Write a duration in its two largest units: ``0s``, ``250ms``, ``3m12s``, ``2d4h``; a negative one as ``0s``."""
    whole = int(milliseconds)
    if whole <= 0:
        return "0s"
    if whole < 1000:  # noqa: PLR2004 - a second
        return f"{whole}ms"
    largest = next(index for index, (_, size) in enumerate(_SPANS) if whole >= size)
    words = ""
    for unit, size in _SPANS[largest : largest + 2]:
        count, whole = divmod(whole, size)
        words += f"{count}{unit}" if count else ""
    return words


def moment_ms(rfc3339: str) -> int:
    """Read a time of the local API into milliseconds since 1970; raises ValueError."""
    # Not `dlr_buffer.clock`'s: that module brings asyncio along, which takes longer than a whole `list`.
    return round(datetime.fromisoformat(rfc3339).timestamp() * 1000)


def moment(rfc3339: str | None) -> str:
    """Write a time of the local API for a table: ``2026-11-23 18:41:00`` in UTC; ``-`` for none."""
    if rfc3339 is None:
        return "-"
    return f"{datetime.fromisoformat(rfc3339).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def age(rfc3339: str | None, now_ms: int) -> str:
    """Write how long ago a time was (``3m12s``); ``-`` for none."""
    return "-" if rfc3339 is None else span(now_ms - moment_ms(rfc3339))


def ahead(rfc3339: str | None, now_ms: int) -> str:
    """Write how far ahead a time is (``in 3m12s``, or ``now`` once it is past); ``-`` for none."""
    if rfc3339 is None:
        return "-"
    left = moment_ms(rfc3339) - now_ms
    return f"in {span(left)}" if left > 0 else "now"


def size(count: float) -> str:
    """Write a number of bytes: ``512 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - the next unit
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """Write ``1 receipt``, ``2,000 receipts``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor, change its colours or turn its text around.

    Message ids come from apps and error texts from Smartswitch: neither may write control sequences here.
    """
    return _UNPRINTED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
