"""How durations and sizes are written in the configuration: one whole number and one unit.

Only spelling lives here; which durations are sensible for which key is said in ``reading``.
"""

from __future__ import annotations

import re

# Largest first, so that writing picks the largest unit that fits without a rest.
DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
"""Milliseconds in each unit of a duration."""
SIZE_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
"""Bytes in each unit of a size."""

# Fifteen digits are beyond every limit and keep the product within 64 bits' reach of a clear message.
_QUANTITY = re.compile(r"([0-9]{1,15})([A-Za-z]+)")


def _parse(text: str, units: dict[str, int]) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return int(match[1]) * units[match[2]]


def _write(amount: int, units: dict[str, int]) -> str:
    for unit, worth in units.items():
        if amount and amount % worth == 0:
            return f"{amount // worth}{unit}"
    return "0s" if units is DURATION_UNITS else "0B"


def parse_duration(text: str) -> int:
    """Read ``250ms``, ``30s``, ``10m``, ``72h`` or ``7d`` into milliseconds; raises ValueError for all else."""
    return _parse(text, DURATION_UNITS)


def parse_size(text: str) -> int:
    """Read ``512B``, ``8KiB``, ``256MiB`` or ``1GiB`` into bytes; raises ValueError for all else."""
    return _parse(text, SIZE_UNITS)


def write_duration(ms: int) -> str:
    """Write milliseconds (not negative) as `parse_duration` reads them, in the largest unit that is exact."""
    return _write(ms, DURATION_UNITS)


def write_size(size: int) -> str:
    """Write bytes (not negative) as `parse_size` reads them, in the largest unit that is exact."""
    return _write(size, SIZE_UNITS)
