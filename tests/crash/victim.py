"""The daemon as a process that is there to be killed: start, readiness, and the ways to die."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.acceptance.harness import PATIENCE_S, Site, _environment
from tests.crash.starter import VARIABLE

ROOT = Path(__file__).parents[2]


class NotReady(Exception):
    """The daemon ended by itself instead of getting ready; the text is the end of its log."""


class Victim:
    """One run of the daemon, in a process group of its own."""

    def __init__(self, site: Site, *, crash_at: str | None = None) -> None:
        """Start it; ``crash_at`` tells it where to kill itself (see `starter`)."""
        self._site = site
        address = site.folder / "notify.sock"
        address.unlink(missing_ok=True)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(address))
        self._ready = threading.Event()
        self.ready_after_s: float | None = None
        """How long the start took; None before it was ready."""
        self._began = time.monotonic()
        environ = {**_environment(), "NOTIFY_SOCKET": str(address)}
        if crash_at is not None:
            environ[VARIABLE] = crash_at
        with site.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.starter", "--config", str(site.config), "run"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        self._gone = os.pidfd_open(self.process.pid)
        self._listener = threading.Thread(target=self._listen, name="notified", daemon=True)
        self._listener.start()

    def wait_ready(self) -> bool:
        """Whether it got ready (True) or was killed before that (False); raises NotReady if it just ended."""
        if not self._ready.wait(PATIENCE_S):
            raise NotReady(f"not ready after {PATIENCE_S:g} s:\n{self._log_end()}")
        if self.ready_after_s is not None:
            return True
        if (code := self.process.wait(PATIENCE_S)) != -signal.SIGKILL:
            raise NotReady(f"it ended with {code}:\n{self._log_end()}")
        return False

    def wait_gone(self, timeout_s: float) -> bool:
        """Whether it ends within that time."""
        return bool(select.select([self._gone], [], [], timeout_s)[0])

    def wait_for_child(self, timeout_s: float) -> bool:
        """Whether it starts a process of its own (a migration) before it is ready, within that time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not self._ready.is_set():
            if self.has_child():
                return True
        return False

    def has_child(self) -> bool:
        """Whether a process that it has started runs."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        try:
            return any((task / "children").read_text() for task in tasks.iterdir())
        except OSError:  # a thread, or all of it, has just ended
            return False

    def terminate(self) -> None:
        """Ask it to stop."""
        self.process.terminate()

    def kill(self, *, children: bool = False) -> int:
        """Kill it, with or without the processes that it started; returns how it ended."""
        if children and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Give everything back; kills it if it still runs, and what it has started as well."""
        if self.process.poll() is None:
            self.kill(children=True)
        self._listener.join(PATIENCE_S)
        os.close(self._gone)
        self._notified.close()

    def _log_end(self) -> str:
        return self._site.log.read_text("utf-8", "replace")[-3000:]

    def _listen(self) -> None:
        # A notification that nobody reads would block the daemon, as systemd's socket never does.
        with selectors.DefaultSelector() as selector:
            selector.register(self._notified, selectors.EVENT_READ)
            selector.register(self._gone, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._notified in ready:
                    if b"READY=1" in self._notified.recv(65536).splitlines() and not self._ready.is_set():
                        self.ready_after_s = time.monotonic() - self._began
                        self._ready.set()
                else:
                    self._ready.set()
                    return
