"""What the acceptance tests run: the daemon as a process of its own, and a Smartswitch stand-in in a thread.

Nothing here knows the daemon's inside: it is started by its command line, told things by signals and over its
sockets, and asked over its sockets. `Site` is one queue's folder, `DaemonProcess` one run of it, `StandIn` the
stand-in with plain calls, `Fixed` a bare TCP server that records bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tenacity import Retrying, retry_if_result, wait_fixed
from tenacity.stop import stop_after_delay

from dlr_buffer.client import Client
from dlr_buffer.simulator import Record, Simulator, SimulatorSettings
from dlr_buffer.simulator.server import Script
from dlr_buffer.storage.schema import STATE_NAMES, STATUSES

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long anything is waited for; only ends a test that fails anyway."""
STOP_S = 10.0
"""How long a stop may take (the issue's acceptance)."""
LOGIN = "LOGIN"
PASSWORD = "PASSWORD"
QUICK_RETRY = {"initial": "20ms", "max": "200ms"}


def eventually(ask: Callable[[], T], good: Callable[[T], bool], *, patience_s: float = PATIENCE_S) -> T:
    """Ask again and again until the answer is good; returns it. Raises RetryError with the last answer."""
    return Retrying(
        retry=retry_if_result(lambda answer: not good(answer)),
        wait=wait_fixed(0.02),
        stop=stop_after_delay(patience_s),
    )(ask)


def toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Write tables of plain values as TOML."""
    lines = []
    for name, values in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Site:
    """One queue's folder with its configuration, password files and log."""

    folder: Path
    runs: list[DaemonProcess] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "config.toml"

    @property
    def client_socket(self) -> Path:
        """Where apps ask."""
        return self.folder / "client.sock"

    @property
    def admin_socket(self) -> Path:
        """Where admins ask."""
        return self.folder / "admin.sock"

    @property
    def database(self) -> Path:
        """The queue's file."""
        return self.folder / "queue.db"

    @property
    def log(self) -> Path:
        """What the daemon wrote to stdout and stderr, over all runs."""
        return self.folder / "daemon.log"

    def password_file(self, account: str = "default") -> Path:
        """The password file of an account."""
        return self.folder / f"{account}.password"

    def configure(
        self,
        url: str = "http://127.0.0.1:9/api/dlr",
        *,
        account: Mapping[str, object] | None = None,
        batch: Mapping[str, object] | None = None,
        retry: Mapping[str, object] | None = None,
        others: Mapping[str, Mapping[str, object]] | None = None,
        tables: Mapping[str, Mapping[str, object]] | None = None,
        login: str = LOGIN,
        password: str = PASSWORD,
    ) -> None:
        """Write a configuration with the account ``default`` at ``url``, further ``others``, further tables."""
        accounts = {"default": {"url": url, **(account or {})}, **(others or {})}
        sections: dict[str, Mapping[str, object]] = {
            "api": {"client_socket": str(self.client_socket), "admin_socket": str(self.admin_socket)},
            "database": {"url": f"sqlite:///{self.database}", "min_free": "1MiB"},
        }
        for name, values in (tables or {}).items():
            sections[name] = {**sections.get(name, {}), **values}
        for name, values in accounts.items():
            self.password_file(name).touch(0o600)
            self.password_file(name).write_text(password + "\n", encoding="utf-8")
            known = {"login": login, "password_file": str(self.password_file(name))}
            sections[f"accounts.{name}"] = {**known, **values}
            sections[f"accounts.{name}.batch"] = {"linger": "20ms", **(batch or {})}
            sections[f"accounts.{name}.retry"] = {**QUICK_RETRY, **(retry or {})}
        self.config.write_text(toml(sections), encoding="utf-8")

    def start(self, *, module: str = "dlr_buffer", **environ: str) -> DaemonProcess:
        """Run the daemon (or a module that runs it with some part replaced); returns once it says that it is ready."""
        daemon = DaemonProcess(self, environ, module)
        self.runs.append(daemon)
        daemon.wait_ready()
        return daemon

    def client(self, *, retry_for_s: float = 0.0) -> Client:
        """An app's connection; by default nothing is tried again."""
        return Client(self.client_socket, retry_for_s=retry_for_s)

    def admin(self) -> Client:
        """An admin's connection."""
        return Client(self.admin_socket, retry_for_s=0.0)

    def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Ask on the admin socket over a connection of its own."""
        with self.admin() as admin:
            return admin.request(method, path, body)

    def account(self, name: str = "default") -> dict[str, Any]:
        """An account as `/v1/status` shows it."""
        accounts: list[dict[str, Any]] = self.ask("GET", "/v1/status")["accounts"]
        return next(account for account in accounts if account["name"] == name)

    def wait_for_account(
        self, good: Callable[[dict[str, Any]], bool], name: str = "default"
    ) -> dict[str, Any]:
        """Wait until the status of an account is as wanted, and return it."""
        return eventually(lambda: self.account(name), good)

    def wait_until_sent(self) -> dict[str, Any]:
        """Wait until nothing is pending for the account ``default``; returns its status."""
        return self.wait_for_account(lambda account: not account["receipts"]["pending"])

    def pages(self, path: str) -> list[dict[str, Any]]:
        """Everything that a list holds, page by page."""
        items: list[dict[str, Any]] = []
        with self.admin() as admin:
            target = f"{path}?limit=1000"
            while True:
                page = admin.request("GET", target)
                items += page["items"]
                if page["next_cursor"] is None:
                    return items
                target = f"{path}?cursor={page['next_cursor']}"

    def recount(self) -> dict[str, dict[str, int]]:
        """Count the tables' rows of the account ``default``, zeros left out, past every counter."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)
        try:
            (account,) = connection.execute("SELECT id FROM accounts WHERE name = 'default'").fetchone()
            messages = connection.execute(
                "SELECT state, count(*) FROM messages WHERE account_id = ? GROUP BY state", [account]
            ).fetchall()
            receipts = connection.execute(
                "SELECT status, count(*) FROM receipts WHERE account_id = ? GROUP BY status", [account]
            ).fetchall()
        finally:
            connection.close()
        return {
            "messages": {STATE_NAMES[state]: rows for state, rows in messages},
            "receipts": {STATUSES[status].value: rows for status, rows in receipts},
        }

    def command(
        self,
        *arguments: str,
        stdin: str | bytes = b"",
        config: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command of the program as a user would, with this site's configuration."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        named = ["--config", str(self.config)] if config else []
        done = subprocess.run(
            [sys.executable, "-m", "dlr_buffer", *named, *arguments],
            input=given,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            env={**_environment(), **(environ or {})},
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def close(self) -> None:
        """End every daemon that still runs."""
        for daemon in self.runs:
            daemon.close()


class DaemonProcess:
    """One run of the daemon, which tells this process how it is (sd_notify)."""

    def __init__(self, site: Site, environ: Mapping[str, str], module: str = "dlr_buffer") -> None:
        """Start the process."""
        address = site.folder / f"notify-{len(site.runs)}.sock"
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(address))
        self._seen: Counter[str] = Counter()
        self._changed = threading.Condition()
        with site.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(site.config), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_environment(), "NOTIFY_SOCKET": str(address), **environ},
            )
        self._log = site.log
        self._gone = os.pidfd_open(self.process.pid)
        self._listener = threading.Thread(target=self._listen, name="notified", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def wait_ready(self, times: int = 1) -> None:
        """Return once it has said so many times since its start that it is ready."""
        with self._changed:
            told = self._changed.wait_for(
                lambda: self._seen["READY=1"] >= times or self._seen["gone"], PATIENCE_S
            )
            ready = self._seen["READY=1"] >= times
        if not told or not ready:
            raise AssertionError(f"the daemon did not get ready:\n{self._log.read_text('utf-8', 'replace')}")

    def reload(self) -> None:
        """Send SIGHUP, and return once it is ready again."""
        with self._changed:
            times = self._seen["READY=1"]
        self.process.send_signal(signal.SIGHUP)
        self.wait_ready(times + 1)

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code; TimeoutExpired if it takes longer than allowed."""
        self.process.terminate()
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """Send SIGKILL, as a power failure would but for the disk."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill it if it still runs, and give everything back."""
        if self.process.poll() is None:
            self.kill()
        self._listener.join(PATIENCE_S)
        os.close(self._gone)
        self._notified.close()

    def _listen(self) -> None:
        # A notification that nobody reads would block the daemon, as systemd's socket never does.
        with selectors.DefaultSelector() as selector:
            selector.register(self._notified, selectors.EVENT_READ)
            selector.register(self._gone, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                lines = (
                    self._notified.recv(65536).decode().splitlines() if self._notified in ready else ["gone"]
                )
                with self._changed:
                    self._seen.update(lines)
                    self._changed.notify_all()
                if lines == ["gone"]:
                    return


class StandIn:
    """A `Simulator` on an event loop in a thread of its own, as a context manager with plain calls."""

    def __init__(self, settings: SimulatorSettings | None = None, *, script: Script | None = None) -> None:
        """Prepare; nothing is bound yet."""
        self.simulator = Simulator(settings, script=script)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-in", daemon=True)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._call(self.simulator.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; raises what a script raised."""
        try:
            self._call(self.simulator.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def url(self) -> str:
        """The account's url."""
        return self.simulator.url

    def behave(self, settings: SimulatorSettings) -> None:
        """Behave otherwise from the next request on."""

        async def change() -> None:
            self.simulator.settings = settings

        self._call(change())

    def wait_for(self, good: Callable[[Record], bool], *, patience_s: float = PATIENCE_S) -> None:
        """Return once ``good`` holds for what was received."""
        self._call(self.simulator.wait_for(good, patience_s))

    def look(self, at: Callable[[Record], T]) -> T:
        """Read something of the record, while nothing changes it."""

        async def ask() -> T:
            return at(self.simulator.record)

        return self._call(ask())

    @contextmanager
    def listening_tls(self, context: ssl.SSLContext) -> Iterator[int]:
        """Listen with TLS on another port, which is yielded, and say nothing to whoever accepts the handshake."""

        async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = self._call(asyncio.start_server(silence, "127.0.0.1", 0, ssl=context))
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self._loop.call_soon_threadsafe(server.close)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class Fixed:
    """A TCP server that records each request's bytes and answers it with the next of some fixed bytes."""

    def __init__(self, *answers: bytes) -> None:
        """Listen on loopback; ``answers`` are whole HTTP answers, each followed by a close."""
        self._answers = list(answers)
        self.requests: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="fixed", daemon=True)

    @property
    def url(self) -> str:
        """The account's url."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/api/dlr"

    def __enter__(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (piece := connection.recv(65536)):
                    request += piece
                if request and self._answers:
                    self.requests.append(request)
                    connection.sendall(self._answers.pop(0))


@contextmanager
def threads(count: int, work: Callable[[int], None]) -> Iterator[Sequence[threading.Thread]]:
    """Run ``work(number)`` in so many threads; on leaving they are joined, and what one raised is raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in running:
        thread.start()
    yield running
    for thread in running:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in running)
    if failures:
        raise failures[0]


def _environment() -> dict[str, str]:
    """The environment without what would speak to the daemon of this very session."""
    left_out = {"DLR_BUFFER_CONFIG", "NOTIFY_SOCKET", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"}
    return {name: value for name, value in os.environ.items() if name not in left_out}
