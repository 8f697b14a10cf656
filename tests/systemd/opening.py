"""Starts the real daemon for the test of long migrations: ``python -m tests.systemd.opening run``.

It is the daemon as it is, but its queue takes longer to open than its unit allows for a start. With ``HASTY`` in the
environment it does not ask systemd for more time either, as a daemon that knows nothing of that would.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dlr_buffer.cli import main
from dlr_buffer.storage import store
from dlr_buffer.storage.lock import LastRun
from dlr_buffer.storage.migrate import ensure_schema
from dlr_buffer.systemd import Notifier

TAKES_S: Final = 6
"""More than the unit's `TimeoutStartSec=5`, in which a busy machine has loaded the program by far."""


def main_with_a_long_migration() -> int:
    """Run the daemon so."""
    migrate = ensure_schema

    def long_migration(path: Path, last: LastRun, given_up: Callable[[], bool]) -> None:
        time.sleep(TAKES_S)
        migrate(path, last, given_up)

    def ask_for_nothing(_notifier: Notifier, _seconds: float) -> None:
        pass

    store.ensure_schema = long_migration  # type: ignore[attr-defined, assignment]
    if "HASTY" in os.environ:
        Notifier.extend_timeout = ask_for_nothing  # type: ignore[method-assign, assignment]
    return main()


if __name__ == "__main__":
    sys.exit(main_with_a_long_migration())
