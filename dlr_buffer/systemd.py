"""How the daemon talks to systemd.

Sockets that it hands over (sd_listen_fds(3)), readiness, status and watchdog (sd_notify(3), sd_watchdog_enabled(3)).
What has to get on for the watchdog to be told so is `watchdog`'s, the log is `logs`'.

No library that installs without a compiler covers this; the protocol is a datagram of ``KEY=value`` lines.
Without systemd everything here does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Final

from dlr_buffer.errors import DlrBufferError
from dlr_buffer.logs import Sparing

_FIRST_DESCRIPTOR: Final = 3
_USEC: Final = 1_000_000
_PATIENCE_S: Final = 1.0
"""So long may the event loop wait for systemd to take a change of state; for anything else not at all."""

_log = logging.getLogger(__name__)


def listen_sockets(
    environ: MutableMapping[str, str], names: frozenset[str], *, first: int = _FIRST_DESCRIPTOR
) -> dict[str, socket.socket]:
    """Take over the sockets that systemd listens on for this service, by their ``FileDescriptorName=``.

    The variables that tell of them are removed from ``environ``, so that no child takes them for its own. Raises
    DlrBufferError if one has a name that is not among ``names``, or is anything but a listening Unix stream socket.
    """
    pid, count, called = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid or pid != str(os.getpid()):
        return {}
    if not (count.isascii() and count.isdigit()):
        raise DlrBufferError(
            f"LISTEN_FDS is {count!r}, which is no number: whatever started the daemon is broken"
        )
    found = called.split(":") if called else ["unknown"] * int(count)
    if len(found) != int(count):
        raise DlrBufferError(
            f"LISTEN_FDS tells of {count} sockets, but LISTEN_FDNAMES has {len(found)} names"
        )
    _require_names(found, names)
    sockets: dict[str, socket.socket] = {}
    try:
        for descriptor, name in enumerate(found, first):
            sockets[name] = _socket_of(descriptor, name)
            _require_listening(sockets[name], name)
    except DlrBufferError:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


def _require_names(found: Sequence[str], names: frozenset[str]) -> None:
    """Raise DlrBufferError unless each is known and there once."""
    for name in found:
        if name not in names:
            known = " or ".join(sorted(names))
            raise DlrBufferError(
                f"systemd hands over a socket called {name!r}: set FileDescriptorName= to {known} in its socket unit,"
                " or give that another Service="
            )
        if found.count(name) > 1:
            raise DlrBufferError(
                f"systemd hands over two sockets called {name!r}: leave one ListenStream= in one socket unit"
            )


def _socket_of(descriptor: int, name: str) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise DlrBufferError(f"{_not_listening(name)} (descriptor {descriptor}: {error.strerror})") from None


def _require_listening(sock: socket.socket, name: str) -> None:
    """Raise DlrBufferError unless it is a Unix stream socket that listens; make it as the event loop needs it."""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise DlrBufferError(f"{_not_listening(name)}: use ListenStream= with an absolute path")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise DlrBufferError(f"{_not_listening(name)}: set Accept=no in its socket unit")
    sock.set_inheritable(False)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature


def _not_listening(name: str) -> str:
    return f"the socket {name!r} that systemd hands over is no listening Unix stream socket"


class Notifier:
    """Tells systemd how the service is; silent where ``NOTIFY_SOCKET`` is not set. May be used from any thread.

    A systemd that does not read for a while (it has room for ten datagrams) must not stop the daemon: what it has no
    room for is kept, the newest of each kind, and told with whatever is told next.
    """

    def __init__(self, environ: Mapping[str, str], *, patience_s: float = _PATIENCE_S) -> None:
        """Take the socket's name from the environment; a change of state waits ``patience_s`` for room at most."""
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self._patience_s = patience_s
        self._untold: dict[str, str] = {}
        self._telling = threading.Lock()
        self._sparing = Sparing()
        self.watchdog_s = _watchdog_s(environ) if address else None
        """Within so many seconds systemd wants to hear a `ping`, again and again; None if it does not watch us."""

    def ready(self) -> None:
        """The sockets answer and the queue is open; also ends a reload."""
        self._send("READY=1", patient=True)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", patient=True)

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1", patient=True)

    def extend_timeout(self, seconds: float) -> None:
        """Starting or stopping goes on: its limit is not over for so long."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _USEC)}")

    def ping(self) -> None:
        """All is well for the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")
        elif self._untold:
            self._send()

    def _send(self, *messages: str, patient: bool = False) -> None:
        """Tell these after what is untold yet."""
        if not self._address:
            return
        with self._telling:
            for message in messages:
                kind = message.partition("=")[0]
                # The newest is told last: READY ends a reload only behind its RELOADING.
                self._untold.pop(kind, None)
                self._untold[kind] = message
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                    sock.connect(self._address)
                    self._tell(sock, self._patience_s if patient else 0.0)
            except (BlockingIOError, TimeoutError):
                self._say_full(always=patient)
            except OSError as error:
                self._untold.clear()
                _log.warning("systemd could not be told: %s", error)
            # An old ping would say that all is well when it was.
            self._untold.pop("WATCHDOG", None)

    def _tell(self, sock: socket.socket, patience_s: float) -> None:
        ends = time.monotonic() + patience_s
        for kind, message in list(self._untold.items()):
            sock.settimeout(max(0.0, ends - time.monotonic()))
            sock.send(message.encode())
            del self._untold[kind]

    def _say_full(self, *, always: bool) -> None:
        if self._sparing.lets("full", time.monotonic()) is not None or always:
            _log.warning(
                "systemd does not read what it is told (%s); it is told again in a few seconds",
                ", ".join(self._untold),
            )


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    pid = environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None  # meant for another process of the service
    with suppress(ValueError):
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        return microseconds / _USEC if microseconds > 0 else None
    return None
