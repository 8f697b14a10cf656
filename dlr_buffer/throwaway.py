"""A real daemon on a queue that is thrown away, and a stand-in for Smartswitch, for ``dlr-buffer demo`` and ``bench``.

`Daemon` is a child process that is known only through its command line and its sockets, `StandIn` runs in a thread;
`folder` gives them a place and removes it, also when SIGTERM or Ctrl-C ends the program (`sigterm_interrupts`). What is
then done with them, and what the user reads of it, belongs to `demo` and `bench`.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from tenacity import Retrying, retry_if_exception_type, wait_fixed
from tenacity.stop import stop_after_delay

from dlr_buffer.client import Client, DaemonUnreachable
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.simulator import Exchange, Simulator, SimulatorSettings

_START_S = 20.0
_STOP_S = 15.0
_LOG_LINES = 20
_LONGEST_FOR_SOCKETS = 80
"""A socket's path may have 107 bytes (unix(7)); its name in the folder takes some."""
_LOGIN = "throwaway"

_CONFIGURATION = """\
[api]
client_socket = {client}
admin_socket = {admin}

[database]
url = {database}
min_free = "1MiB"

[accounts.default]
url = {url}
login = {login}
password_file = {password}
timeout = {timeout}

[accounts.default.batch]
max_receipts = {max_receipts}
linger = "50ms"

[accounts.default.retry]
initial = "200ms"
max = "2s"
"""


class ThrowawayFailed(DlrBufferError):
    """The daemon did not start, ended on its own, or did not stop in order; the text says which."""


class StandIn:
    """A stand-in that behaves by ``settings``, on an event loop in a thread of its own, as a context manager."""

    def __init__(self, settings: SimulatorSettings) -> None:
        """Take a new login and password, whatever ``settings`` has; nothing listens before the context is entered."""
        self.login = _LOGIN
        self.password = secrets.token_hex(8)
        self.batches = 0
        """Requests with more than one receipt."""
        self._simulator = Simulator(
            replace(settings, login=self.login, password=self.password), on_exchange=self._count
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-in", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._simulator.url

    def summary(self) -> dict[str, Any]:
        """Return its counters."""
        return self._simulator.record.summary()

    def finals(self) -> dict[str, list[tuple[str, str | None]]]:
        """Return the accepted final states of each message, with their request_ids."""
        return self._simulator.record.final_states()

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._call(self._simulator.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, and end the thread."""
        try:
            self._call(self._simulator.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _count(self, exchange: Exchange) -> None:
        self.batches += len(exchange.receipts) > 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a throwaway daemon keeps what it has: ``queue`` is its database, all else is in ``folder``."""

    folder: Path
    queue: Path

    @property
    def client_socket(self) -> Path:
        """Where apps ask."""
        return self.folder / "client.sock"

    @property
    def admin_socket(self) -> Path:
        """Where admins ask."""
        return self.folder / "admin.sock"

    @property
    def log(self) -> Path:
        """What the daemon writes."""
        return self.folder / "daemon.log"


class Daemon:
    """The real daemon as a child process, as a context manager; it sends to ``stand_in``."""

    def __init__(self, place: Place, stand_in: StandIn, *, max_receipts: int, timeout: str) -> None:
        """Write the configuration; the process starts when the context is entered."""
        self.place = place
        self._config = place.folder / "config.toml"
        password = place.folder / "default.password"
        password.touch(0o600)
        password.write_text(stand_in.password + "\n", encoding="utf-8")
        values: dict[str, str | int] = {
            "client": str(place.client_socket),
            "admin": str(place.admin_socket),
            "database": f"sqlite:///{place.queue}",
            "url": stand_in.url,
            "login": stand_in.login,
            "password": str(password),
            "timeout": timeout,
            "max_receipts": max_receipts,
        }
        text = _CONFIGURATION.format(**{name: json.dumps(value) for name, value in values.items()})
        self._config.write_text(text, encoding="utf-8")
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it answers. Raises ThrowawayFailed if it ends instead."""
        with self.place.log.open("wb") as log:
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "dlr_buffer", "run", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this program alone, which then stops the daemon in order
            )
        try:
            self._wait_for_answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it. Raises ThrowawayFailed if it did not end as it should."""
        code = self._stop()
        if error is None and code != 0:
            raise ThrowawayFailed(f"the daemon ended with exit code {code} when it was told to stop")

    @property
    def pid(self) -> int:
        """The process's id. Raises ThrowawayFailed before it was started."""
        if self._child is None:
            raise ThrowawayFailed("the daemon was not started")
        return self._child.pid

    def client(self) -> Client:
        """Return an app's connection."""
        return Client(self.place.client_socket)

    def admin(self) -> Client:
        """Return an admin's connection."""
        return Client(self.place.admin_socket, retry_for_s=2)

    def expect_alive(self) -> None:
        """Raise ThrowawayFailed if it has ended."""
        if self._child is not None and (code := self._child.poll()) is not None:
            raise ThrowawayFailed(f"the daemon ended on its own with exit code {code}")

    def last_words(self) -> str:
        """Return the end of the daemon's log."""
        try:
            lines = self.place.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        except OSError:
            lines = []
        return "\n".join(["The daemon's last log lines:", *(f"  {line}" for line in lines or ["(none)"])])

    def _wait_for_answer(self) -> None:
        def answered() -> None:
            self.expect_alive()
            with Client(self.place.client_socket, retry_for_s=0) as client:
                client.request("GET", "/healthz")

        Retrying(
            retry=retry_if_exception_type(DaemonUnreachable),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(_START_S),
            reraise=True,
        )(answered)

    def _stop(self) -> int:
        if self._child is None:
            return 0
        self._child.terminate()
        try:
            return self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


@contextmanager
def folder(name: str, *, keep: bool = False) -> Iterator[Path]:
    """Give a new private folder with a path short enough for sockets; it is removed afterwards unless ``keep``."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_FOR_SOCKETS:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    path = Path(tempfile.mkdtemp(prefix=f"dlr-buffer-{name}-", dir=parent))
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that the daemon is stopped and the folder removed then too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
