"""The programs that a benchmark runs against: the sink, and the daemon with a queue of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import machine

_CONFIG = """
[api]
client_socket = "{folder}/client.sock"
admin_socket = "{folder}/admin.sock"

[database]
url = "sqlite:///{database}"

[accounts.default]
url = "http://127.0.0.1:{port}/api/dlr"
login = "supplier"
password_file = "{folder}/password"
concurrency = {concurrency}
rate_limit = {rate_limit}

[accounts.default.batch]
max_receipts = {max_receipts}
linger = "{linger_ms}ms"

[log]
level = "error"
"""


@dataclass(slots=True)
class SinkServer:
    """A running sink."""

    program: subprocess.Popen[str]
    port: int
    summary: dict[str, Any] = field(default_factory=dict)
    """What it said at its end."""

    def count(self) -> int:
        """How many receipts came so far."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write("count\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline())


@contextlib.contextmanager
def sink(latency_ms: float = 0, watch: str = "") -> Iterator[SinkServer]:
    """Run a sink."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness.sink",
        "--latency-ms",
        str(latency_ms),
        "--watch",
        watch,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        server = SinkServer(program, int(program.stdout.readline()))
        try:
            yield server
        finally:
            rest, _ = program.communicate()
            server.summary = json.loads(rest)


@dataclass(slots=True)
class DaemonProcess:
    """A running daemon."""

    program: subprocess.Popen[bytes]
    folder: Path
    ready_s: float
    """How long it took from its start to its first answer."""

    @property
    def pid(self) -> int:
        """Its process."""
        return self.program.pid

    @property
    def client_socket(self) -> str:
        """Where apps call."""
        return str(self.folder / "client.sock")

    @property
    def admin_socket(self) -> str:
        """Where admins call."""
        return str(self.folder / "admin.sock")

    @property
    def database(self) -> Path:
        """Its queue."""
        return self.folder / "queue.db"

    def cpu_s(self) -> float:
        """CPU seconds it took so far."""
        return machine.cpu_s(self.pid)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """One call on the admin socket; returns the status and the decoded answer."""
        return ask(self.admin_socket, method, path, body)


def ask(sock: str, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    """One call over a Unix socket; returns the status and the decoded answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(sock)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes[9:12]), json.loads(content)


@contextlib.contextmanager
def daemon(  # noqa: PLR0913 - the settings of a daemon, by name
    folder: Path,
    *,
    port: int = 9,
    database: Path | None = None,
    concurrency: int = 4,
    max_receipts: int = 100,
    linger_ms: int = 250,
    rate_limit: float = 0,
    module: str = "dlr_buffer",
) -> Iterator[DaemonProcess]:
    """Run a daemon whose files lie in ``folder``; with no ``port`` its account can reach nobody."""
    (folder / "password").write_text("secret")
    (folder / "password").chmod(0o600)
    config = folder / "config.toml"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            database=database or folder / "queue.db",
            port=port,
            concurrency=concurrency,
            max_receipts=max_receipts,
            linger_ms=linger_ms,
            rate_limit=rate_limit,
        )
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", module, "--config", str(config), "run"], env=environment
    ) as program:
        try:
            yield DaemonProcess(program, folder, _await(program, str(folder / "client.sock"), began))
        finally:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)


def _await(program: subprocess.Popen[bytes], sock: str, began: float) -> float:
    while program.poll() is None:
        with contextlib.suppress(OSError):
            status, _ = ask(sock, "GET", "/healthz")
            if status == 200:
                return time.perf_counter() - began
        time.sleep(0.005)
    raise SystemExit(f"the daemon ended with {program.returncode} before it was ready")
