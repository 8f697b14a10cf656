"""How the daemon talks to systemd.

Readiness and status (sd_notify(3)), and log lines with priorities (sd-daemon(3)).

No library that installs without a compiler covers this; the protocol is a datagram of ``KEY=value`` lines.
Without systemd everything here does nothing, or writes plain lines for a terminal.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Mapping
from typing import Final

_PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


class Notifier:
    """Tells systemd how the service is; silent where ``NOTIFY_SOCKET`` is not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take the socket's name from the environment."""
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""

    def ready(self) -> None:
        """The sockets answer and the queue is open."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1")

    def status(self, line: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(self._address)
                sock.sendall(message.encode())
        except OSError as error:
            logging.getLogger(__name__).warning("systemd could not be told: %s", error)


class _JournalFormatter(logging.Formatter):
    """One line an event with the syslog priority in front; journald reads it and adds the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 5)
        text = super().format(record)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines() or [""])


class _TerminalFormatter(logging.Formatter):
    """Lines for people: time in UTC, level, text."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self.converter = time.gmtime


def log_to_stderr(level: str, environ: Mapping[str, str]) -> None:
    """Send this program's log to stderr, for the journal or for a person.

    Other libraries only speak from warnings on.
    """
    handler = logging.StreamHandler(sys.stderr)
    in_journal = "JOURNAL_STREAM" in environ
    handler.setFormatter(_JournalFormatter("%(message)s") if in_journal else _TerminalFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("dlr_buffer").setLevel(level.upper())
    # A sweep that takes longer than its tick is no news.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
