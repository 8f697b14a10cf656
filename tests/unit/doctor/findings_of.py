"""What tests of findings look at: level and code, and that each fault comes with what to do."""

from __future__ import annotations

from collections.abc import Iterable

from dlr_buffer.doctor.findings import Finding, Level


def told(findings: Iterable[Finding | None]) -> list[tuple[str, str]]:
    """Return level and code of each; every warning and error has to say what to do, in one line each."""
    found = [each for each in findings if each is not None]
    for each in found:
        assert each.remedy or each.level in (Level.OK, Level.NOTE), each
        assert "\n" not in each.what + (each.remedy or ""), each
    return [(each.level.value, each.code) for each in found]
