"""How much memory a daemon has come to hold, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path


def peak_kib(pid: int) -> int:
    """Return the most memory that a process ever held (VmHWM), in KiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert found
    return int(found[1])
