"""The daemon as a process: its start from the command line, its signals, its end and exit code.

What it is made of, and how that starts and stops, is `Daemon`'s.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dlr_buffer.config import Configuration, load
from dlr_buffer.daemon import SOCKET_NAMES, Daemon
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.logs import Event, Log, about
from dlr_buffer.systemd import listen_sockets

_log = logging.getLogger(__name__)


def run_daemon(config_path: Path | None) -> int:
    """Run until SIGTERM or SIGINT.

    Returns the exit code: 0, or 1 if it could not start or the database failed.
    """
    leave_no_core()
    log = Log(os.environ)
    # What is wrong with the configuration is told too; how it wants its log is not known yet.
    log.apply("info", "auto")
    log.take_uncaught()
    try:
        sockets = listen_sockets(os.environ, SOCKET_NAMES)
        configuration = load(config_path, os.environ)
        log.apply(configuration.log.level, configuration.log.format)
        return asyncio.run(_run(configuration, config_path, sockets, log))
    except DlrBufferError as error:
        _log.critical("the daemon could not start: %s", error, extra=about(Event.START_FAILED))
        return 1


def leave_no_core() -> None:
    """See to it that no core dump holds the memory, in which the passwords are, whatever the unit says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit does not hold for dumps that the kernel pipes into a program (core(5)): those get nothing of the memory.
    with suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")


async def _run(
    configuration: Configuration,
    config_path: Path | None,
    sockets: Mapping[str, socket.socket],
    log: Log,
) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hangup = asyncio.Event()
    daemon = Daemon(configuration, sockets=sockets, log=log)

    def told_to_stop() -> None:
        stop.set()
        daemon.give_up_start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    try:
        await daemon.start()
    except DlrBufferError as error:
        if not stop.is_set():
            raise
        _log.info("stopped before the queue was open: %s", error, extra=about(Event.STOPPED))
        return 0
    # What was made so far lives as long as the process: the collector need not look at it again.
    gc.freeze()
    reloads = asyncio.create_task(_reload_on(hangup, daemon, config_path))
    ends = [asyncio.create_task(event.wait()) for event in (stop, daemon.failed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    _log.info("stopping: no new connections; what is under way is finished")
    # A reload under way may wait for requests of accounts that leave; the stop gives them its own grace.
    for task in (reloads, *ends):
        task.cancel()
    await asyncio.gather(reloads, *ends, return_exceptions=True)
    await daemon.stop()
    return 1 if daemon.failed.is_set() else 0


async def _reload_on(hangup: asyncio.Event, daemon: Daemon, config_path: Path | None) -> None:
    """Reload at every SIGHUP, one after another."""
    while True:
        await hangup.wait()
        hangup.clear()
        await daemon.reload_from(lambda: load(config_path, os.environ))
