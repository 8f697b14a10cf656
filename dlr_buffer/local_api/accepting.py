"""Taking connections off a listening socket, a few a turn of the loop, and stopping so that none is lost.

asyncio's own server is left out: it sets the length of the queue of waiting connections anew (which is systemd's to
say, for a socket that it handed over), and cannot tell when all that it accepted has arrived. What is served over a
connection is `server`'s; how many there may be is `connections`'.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Callable
from typing import Final

from dlr_buffer.local_api.connections import ACCEPTED_AT_ONCE

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOOK_AGAIN_S: Final = 1.0
_DROPPED_AT_ONCE: Final = 16
"""Connections whose clients have left already that are dropped for one that is taken."""

_logger = logging.getLogger(__name__)


class Acceptor:
    """Takes the connections of ``sock``, which listens already and does not block, and gives each a new protocol."""

    def __init__(self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take none before `start`; closing ``sock`` stays with the caller."""
        self._sock = sock
        self._protocol = protocol
        self._arriving: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        """Take what waits already, and whatever comes."""
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    async def stop(self, *, drain: bool) -> None:
        """Take no more, and return once each connection that was taken has its protocol.

        With ``drain`` those that wait to be taken at this moment still are: after that the socket is no more. Without
        it they go on waiting, for whoever listens next.
        """
        if self._stopped:
            return
        if drain:
            poller = select.poll()
            poller.register(self._sock, select.POLLIN)
            while self._pause is None and poller.poll(0):  # noqa: ASYNC110 - each turn of the loop takes some
                await asyncio.sleep(0)
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)
        while self._arriving:
            await asyncio.wait(self._arriving)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection = accept_present(self._sock)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                # As busy as before in a moment; meanwhile the loop must not be told again and again.
                _logger.error("no connection can be taken: out of system resource (%s)", error)  # noqa: TRY400 - as said
                loop.remove_reader(self._sock)
                self._pause = loop.call_later(_LOOK_AGAIN_S, self._go_on)
                return
            connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
            task = loop.create_task(self._arrive(connection))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    def _go_on(self) -> None:
        self._pause = None
        self.start()

    async def _arrive(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError as error:
            connection.close()
            _logger.warning("a connection was lost as it came: %s", error)


def accept_present(sock: socket.socket) -> socket.socket:
    """Accept the next connection whose client is still there; BlockingIOError if there is none.

    To serve a connection takes twenty times as long as to see that nobody will read the answer. So a client that
    connects and leaves, again and again, does not keep others waiting behind what it left in the queue.
    """
    for _ in range(_DROPPED_AT_ONCE):
        connection, _ = sock.accept()
        if not _left(connection):
            return connection
        connection.close()
    raise BlockingIOError(errno.EAGAIN, "more wait, for the next turn")


def _left(connection: socket.socket) -> bool:
    """Whether the client closed its end; not if it only ended its sending side, for then it waits for the answer."""
    poll = select.poll()
    poll.register(connection, 0)  # that it hung up is told unasked
    return any(event & select.POLLHUP for _, event in poll.poll(0))
