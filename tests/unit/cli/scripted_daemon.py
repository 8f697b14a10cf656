"""A tiny HTTP server on a Unix socket that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Reply:
    """An answer: ``raw`` bytes as they are, else a status with a JSON document."""

    status: int = 200
    document: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang_up: bool = False
    """Close the connection afterwards without saying so."""
    unread: bool = False
    """Answer before the body is read."""


DROPPED = Reply(raw=b"", hang_up=True)
"""The request is read, and the connection closed without an answer."""


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    content_type: str | None
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The lines of an NDJSON body, decoded."""
        return [json.loads(line) for line in self.body.splitlines()]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = True

    def __init__(self, path: Path, owner: ScriptedDaemon) -> None:
        self.owner = owner
        super().__init__(str(path), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.opened(self.connection)

    def finish(self) -> None:
        super().finish()
        self.connection.close()
        self.server.owner.closed.set()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        reply = self.server.owner.next_reply()
        length = 0 if reply.unread else int(self.headers.get("Content-Length", 0))
        asked = Asked(
            self.command,
            self.path,
            self.headers.get("Content-Type"),
            self.rfile.read(length) if length else b"",
        )
        self.server.owner.requests.append(asked)
        if reply.raw is not None:
            self.wfile.write(reply.raw)
        else:
            body = json.dumps(reply.document).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        self.close_connection = reply.hang_up or reply.unread
        return False  # answered: there is no method to call

    def handle(self) -> None:
        # The base class ends a connection whenever parse_request is false; here only a hang-up does.
        self.close_connection = False
        while not self.close_connection:
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline:
                return
            self.close_connection = False
            self.parse_request()

    def log_message(self, *_: object) -> None:
        pass


class ScriptedDaemon:
    """Answers requests with ``replies`` in order, and afterwards with the last one again."""

    def __init__(self, path: Path, replies: Sequence[Reply] = (Reply(),)) -> None:
        """Answer at ``path`` once entered."""
        self.path = path
        self.replies = list(replies)
        self.requests: list[Asked] = []
        self.connections = 0
        self.closed = threading.Event()
        self._open: list[socket.socket] = []
        self._answered = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Bind and answer, in a thread."""
        self._server = _Server(self.path, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close every connection and stop."""
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue
        self._server.server_close()

    def opened(self, connection: socket.socket) -> None:
        """Count a connection, for the handler."""
        self.connections += 1
        self._open.append(connection)

    def next_reply(self) -> Reply:
        """Return what to answer now, for the handler."""
        reply = self.replies[min(self._answered, len(self.replies) - 1)]
        self._answered += 1
        return reply


def problem(status: int, code: str, **headers: str) -> Reply:
    """Return an RFC 9457 answer; header names are written with underscores."""
    document = {"type": f"urn:dlr-buffer:problem:{code}", "title": code, "status": status, "code": code}
    return Reply(
        status,
        document | {"detail": f"because of {code}"},
        {name.replace("_", "-"): value for name, value in headers.items()},
    )
