"""Starts the real daemon for the watchdog's test: ``python -m tests.systemd.stalling run``.

It is the daemon as it is, but on SIGUSR1 the part that the file ``/run/dlr-buffer/stall`` names stops getting on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from dlr_buffer.cli import main
from dlr_buffer.daemon import Daemon

PART: Final = Path("/run/dlr-buffer/stall")


def stall_writer(daemon: Daemon) -> None:
    """Let the writer's thread wait for ever in a command."""

    def wait(_connection: Connection) -> None:
        threading.Event().wait()

    daemon.store._writer.afterwards(wait)


def stall_flusher(daemon: Daemon) -> None:
    """Let an account's loop wait for ever at its next turn."""

    async def wait() -> None:
        await asyncio.Event().wait()

    account = daemon.flusher._running["default"]
    account._close_retired = wait  # type: ignore[method-assign]


def stall_loop(_daemon: Daemon) -> None:
    """Let the event loop wait for ever."""
    threading.Event().wait()


STALLS: Final[dict[str, Callable[[Daemon], None]]] = {
    "the writer": stall_writer,
    "flushing of account default": stall_flusher,
    "the event loop": stall_loop,
}
"""By the part's name in the log."""


class StallingDaemon(Daemon):
    """The daemon, which listens to SIGUSR1 once it serves."""

    async def start(self) -> None:
        """Serve."""
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGUSR1, lambda: STALLS[PART.read_text(encoding="utf-8")](self)
        )
        await super().start()


if __name__ == "__main__":
    from dlr_buffer.daemon import running

    running.Daemon = StallingDaemon  # type: ignore[attr-defined]
    sys.exit(main())
