"""Runs the program with a wall clock that a test sets: the kernel's, plus the milliseconds in a file.

``DLR_BUFFER_TEST_CLOCK`` names the file. Everything else is the program as it is; monotonic time is the
kernel's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dlr_buffer.cli import main
from dlr_buffer.clock import SystemClock

_OFFSET = Path(os.environ.get("DLR_BUFFER_TEST_CLOCK", os.devnull))


def _now_ms(_clock: SystemClock) -> int:
    return time.time_ns() // 1_000_000 + int(_OFFSET.read_text(encoding="ascii"))


if __name__ == "__main__":
    SystemClock.now_ms = _now_ms  # type: ignore[method-assign,assignment]
    sys.exit(main())
