"""The servers that peers keep their queues in, each in a folder of its own and reached over a Unix socket in it.

They are started from programs that are there already; nothing is ever installed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

REDIS = "redis-server"
POSTGRES = "postgres"
_PACKAGES = {REDIS: "redis-server", POSTGRES: "postgresql"}
_DEBIAN = Path("/usr/lib/postgresql")
_READY_WITHIN_S = 60


@dataclass(frozen=True, slots=True)
class Store:
    """Where a peer's queue lies."""

    address: str
    """What the peer calls it: a path or a URL."""
    server: int | None = None
    """The process that serves it; None if the peer's own programs open it themselves."""


def find(program: str) -> Path | None:
    """Return where a server's program is; Debian keeps PostgreSQL's off the path."""
    if found := shutil.which(program):
        return Path(found)
    if program == POSTGRES:
        versions = sorted(_DEBIAN.glob(f"*/bin/{program}"), key=lambda each: int(each.parts[-3]))
        return versions[-1] if versions else None
    return None


def advice(program: str) -> str:
    """Say what to install for a program that is missing."""
    return f"{program} is missing: install it (on Debian and Ubuntu: apt install {_PACKAGES[program]})"


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Store]:
    """Give a file; there is no server."""
    yield Store(str(folder / "queue.db"))


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Store]:
    """Run a Redis that syncs each write before it answers."""
    address = folder / "redis.sock"
    options = {
        "port": "0",
        "unixsocket": str(address),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "logfile": str(folder / "redis.log"),
    }
    command = [str(find(REDIS)), *(word for name, value in options.items() for word in (f"--{name}", value))]
    with _running(command, address, signal.SIGTERM) as program:
        yield Store(f"redis+socket://{address}", program.pid)


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Store]:
    """Run a PostgreSQL as it comes (it syncs each commit), and put PgQueuer's tables into it."""
    server = find(POSTGRES)
    assert server is not None
    user = _unprivileged()
    data = folder / "data"
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    initdb = str(server.resolve().with_name("initdb"))
    _quietly(
        [initdb, "-D", str(data), "-U", "receipts", "-A", "trust", "-E", "UTF8", "--no-sync"], folder, user
    )
    command = [str(server), "-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
    # SIGINT is PostgreSQL's fast shutdown: it waits for no client.
    with _running(command, folder / ".s.PGSQL.5432", signal.SIGINT, user=user) as program:
        address = f"postgresql://receipts@/postgres?host={folder}"
        pgq = [sys.executable, "-m", "pgqueuer", "--pg-dsn", address]
        _quietly([*pgq, "install", "--durability", "durable"], folder)
        yield Store(address, program.pid)


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as: it refuses to be run by root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SystemExit("PostgreSQL refuses to be run by root, and there is neither a user postgres nor nobody")


class _User(TypedDict):
    user: int | None
    group: int | None
    extra_groups: list[int] | None


def _as(user: pwd.struct_passwd | None) -> _User:
    if user is None:
        return _User(user=None, group=None, extra_groups=None)
    return _User(user=user.pw_uid, group=user.pw_gid, extra_groups=[])


def _quietly(command: list[str], folder: Path, user: pwd.struct_passwd | None = None) -> None:
    """Run a program to its end; what it says is shown only if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **_as(user))
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def _running(
    command: list[str], address: Path, stop: signal.Signals, user: pwd.struct_passwd | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    log = address.parent / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=address.parent,
            **_as(user),
        ) as program,
    ):
        try:
            _await(program, address, log)
            yield program
        finally:
            program.send_signal(stop)


def _await(program: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while program.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(address))
            return
        time.sleep(0.02)
    raise SystemExit(f"{address.name} was not served:\n{log.read_text()}")
