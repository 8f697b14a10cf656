"""A real nginx in front of the stand-in, with TLS, on loopback and in a folder of its own.

`Nginx` writes its configuration, starts it, reloads it and ends it; what nginx saw is in its own access log, read by
`requests`. `absent` says why there is none. Its limits are nginx's defaults unless a test says otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped] # publishes no types
import trustme

from tests.acceptance.harness import PATIENCE_S, eventually

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
AUTHORITY = trustme.CA()
"""Vouches for the server, and for its clients."""
_CONFIGURATION = """\
{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{}}
http {{
    log_format seen '$status $ssl_protocol $connection $connection_requests $request_length';
    access_log {folder}/access.log seen;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.pem;
        {directives}
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    }}
}}
"""


def absent() -> str | None:
    """Say why nginx can't be run here, or None if it can."""
    return "nginx is not on this machine (Debian: apt install nginx)" if NGINX is None else None


@dataclass(frozen=True, slots=True)
class Seen:
    """One request in nginx's access log; ``number`` is which one of its connection it was."""

    status: int
    protocol: str
    connection: int
    number: int
    length: int


class Nginx:
    """nginx as a context manager; what it is told beside the default comes as ``directives`` of its server."""

    def __init__(self, folder: Path, upstream: int, *directives: str) -> None:
        """Write its files; it is started when the context is entered. ``upstream`` is the stand-in's port."""
        self.folder = folder
        self._upstream = upstream
        # nginx binds it with SO_REUSEADDR; until then nobody else gets it from the kernel.
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        (folder / "server.pem").write_bytes(
            AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
        )
        self.authority = folder / "authority.pem"
        self.authority.write_bytes(AUTHORITY.cert_pem.bytes())
        self._write(directives)

    @property
    def url(self) -> str:
        """The account's url."""
        return f"https://localhost:{self.port}/api/dlr"

    @property
    def tls(self) -> dict[str, object]:
        """The account's table ``tls`` with which this server is trusted."""
        return {"ca_file": str(self.authority)}

    def certificate(self, name: str, *, authority: trustme.CA = AUTHORITY) -> Path:
        """Write a client's certificate with its key, and return the file."""
        path = self.folder / f"{name}.pem"
        path.touch(0o600)
        path.write_bytes(authority.issue_cert(f"{name}.example.com").private_key_and_cert_chain_pem.bytes())
        return path

    def requests(self) -> list[Seen]:
        """All requests that it answered so far."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [
            Seen(int(status), protocol, int(connection), int(number), int(length))
            for status, protocol, connection, number, length in map(str.split, lines)
        ]

    def errors(self) -> str:
        """What it logged beside requests."""
        return (self.folder / "error.log").read_text()

    def reload(self, *directives: str) -> None:
        """Have it read its configuration anew, with other ``directives``; returns when new workers have taken over."""
        before = {worker.pid for worker in self._workers()}
        self._write(directives)
        self._process.send_signal(signal.SIGHUP)
        eventually(lambda: {worker.pid for worker in self._workers()} - before, lambda new: len(new) == 2)

    def __enter__(self) -> Self:
        """Start it, and return once it listens."""
        assert NGINX is not None
        self._process = subprocess.Popen(
            [
                *(NGINX, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")),
                *("-e", str(self.folder / "error.log"), "-g", "daemon off;"),
            ],
            stdin=subprocess.DEVNULL,
        )
        eventually(self._listens, bool)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and its workers."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def _write(self, directives: tuple[str, ...]) -> None:
        (self.folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                # The files of the test are root's, if root runs it.
                user="user root;" if os.geteuid() == 0 else "",
                folder=self.folder,
                port=self.port,
                upstream=self._upstream,
                directives="\n        ".join(directives),
            )
        )

    def _workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self._process.pid).children()
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self.folder / "error.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
