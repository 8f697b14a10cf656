"""Times as text, and the clocks: the system's and the one that tests move."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlr_buffer import clock as clock_module
from dlr_buffer.clock import BootClock, SystemBootClock, parse_rfc3339, rfc3339
from tests.clocks import START_MS, FakeClock
from tests.loops import on_loop


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_459_260_250, "2026-11-23T18:41:00.250Z"),
        (START_MS, "2027-01-15T08:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_709_210_096_007, "2024-02-29T12:34:56.007Z"),
    ],
)
def test_times_are_written_as_rfc3339(at_ms: int, text: str) -> None:
    """A wall time is written in UTC with exactly three decimals, and read back."""
    assert rfc3339(at_ms) == text
    assert parse_rfc3339(text) == at_ms


@given(st.integers(min_value=0, max_value=253_402_300_799_999))
def test_writing_and_reading_a_time_is_exact(at_ms: int) -> None:
    """No millisecond is lost to floating point on the way through text."""
    assert parse_rfc3339(rfc3339(at_ms)) == at_ms


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2026-11-23T19:41:00.25+01:00", 1_795_459_260_250),
        ("2026-11-23T18:41:00Z", 1_795_459_260_000),
        ("2026-11-23T18:41:00.250999Z", 1_795_459_260_250),
    ],
)
def test_offsets_and_other_precisions_are_read(text: str, at_ms: int) -> None:
    """A time with another offset or precision means the same moment, cut to milliseconds."""
    assert parse_rfc3339(text) == at_ms


@pytest.mark.parametrize("text", ["2026-11-23T18:41:00", "2026-11-23", "yesterday", ""])
def test_a_time_without_offset_or_sense_is_refused(text: str) -> None:
    """A time that could mean several moments, or none, is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the type is all that is promised
        parse_rfc3339(text)


def test_the_system_clock_tells_of_one_machine() -> None:
    """The real clock's readings fit together: it does not go back and the boot id stays."""
    clock = SystemBootClock()
    first, boot = clock.monotonic_ms(), clock.boot_id()
    assert clock.now_ms() > 1_700_000_000_000
    assert clock.monotonic_ms() >= first
    assert clock.boot_id() == boot != ""
    assert clock.boottime_ms() > 0
    assert clock.synchronised() in (True, False)


@pytest.mark.parametrize(
    ("said", "code", "synchronised"),
    [("yes", 0, True), ("no", 0, False), ("yes", 1, False), ("", 127, False)],
)
def test_systemd_is_asked_where_the_kernel_may_not_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    code: int,
    synchronised: bool,  # noqa: FBT001 - a row
) -> None:
    """Where the service's unit forbids the system call, timedatectl tells; without its answer nothing is trusted."""
    program = tmp_path / "timedatectl"
    if code != 127:
        program.write_text(f"#!/bin/sh\necho {said}\nexit {code}\n")
        program.chmod(0o755)
    monkeypatch.setattr(clock_module, "TIMEDATECTL", (str(program),))
    monkeypatch.setattr(clock_module, "_kernel_synchronised", lambda: None)
    clock = SystemBootClock()
    assert clock.synchronised() is False
    thread = clock._timedated._thread
    assert thread is not None
    thread.join(60)
    assert clock.synchronised() is synchronised
    assert clock._timedated._thread is thread, "not asked again so soon"


@on_loop
async def test_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    """The tests' clock wakes who has slept long enough and nobody else; a leap of the wall wakes nobody."""
    clock = FakeClock()
    told: BootClock = clock
    woken: list[str] = []

    async def sleep(name: str, duration_ms: int) -> None:
        await told.sleep(duration_ms)
        woken.append(name)

    tasks = [asyncio.create_task(sleep(name, ms)) for name, ms in (("b", 200), ("a", 100), ("c", 300))]
    await asyncio.sleep(0)
    assert clock.sleeping == 3
    clock.leap(10_000)
    await asyncio.sleep(0)
    assert not woken
    clock.advance(250)
    await asyncio.gather(*tasks[:2])
    assert woken == ["a", "b"]
    assert clock.now_ms() - START_MS == 10_250
    assert clock.sleeping == 1
    clock.advance(50)
    await tasks[2]
