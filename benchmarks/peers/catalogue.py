"""The peers: what each is made of, and whether it can be run here. Their code is in the modules named ``…_app``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.peers import servers
from benchmarks.peers.servers import Store

_HUEY_THREADS = "32"
_CELERY_THREADS = "16"
_CELERY = (
    "celery",
    "--app=benchmarks.peers.celery_app",
    "--quiet",
    "worker",
    "--pool=threads",
    f"--concurrency={_CELERY_THREADS}",
    # One worker alone has nobody to talk to.
    "--without-gossip",
    "--without-mingle",
    "--loglevel=warning",
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue that others would use for this job."""

    name: str
    packages: tuple[str, ...]
    """What has to be installed; the first gives the version."""
    server: str | None
    """The program that its store needs."""
    storing: Callable[[Path], AbstractContextManager[Store]]
    app: str
    """The module that apps import."""
    worker: tuple[str, ...]
    """What Python runs to send receipts: a module and its arguments."""
    putting: str = "putting"
    """What of the module gives a `Put`."""
    bulk: bool = False
    """Whether one call can put in many."""

    def title(self) -> str:
        """Return its name with the version that is installed."""
        name, _, rest = self.name.partition(",")
        return f"{name} {version(self.packages[0])},{rest}"

    def missing(self) -> str:
        """Say what to install before it can be run; nothing if all is there."""
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                return f"the Python package {package} is missing: run it with `make bench`, which installs it"
        if self.server is not None and servers.find(self.server) is None:
            return servers.advice(self.server)
        return ""

    def command(self) -> list[str]:
        """Return the command that starts its worker."""
        return [sys.executable, "-m", *self.worker]


PEERS = (
    Peer(
        name="huey, SQLite",
        packages=("huey", "urllib3"),
        server=None,
        storing=servers.sqlite,
        app="benchmarks.peers.huey_app",
        worker=(
            "huey.bin.huey_consumer",
            "benchmarks.peers.huey_app.huey",
            "--worker-type=thread",
            f"--workers={_HUEY_THREADS}",
            "--quiet",
        ),
    ),
    Peer(
        name="Celery, Redis",
        packages=("celery", "celery-batches", "redis", "urllib3"),
        server=servers.REDIS,
        storing=servers.redis,
        app="benchmarks.peers.celery_app",
        worker=_CELERY,
    ),
    Peer(
        name="Celery with celery-batches, Redis",
        packages=("celery-batches", "celery", "redis", "urllib3"),
        server=servers.REDIS,
        storing=servers.redis,
        app="benchmarks.peers.celery_app",
        # A batch is filled in the worker's memory, so what all batches on their way hold has to be there.
        worker=(*_CELERY, "--prefetch-multiplier=50"),
        putting="putting_for_batches",
    ),
    Peer(
        name="PgQueuer, PostgreSQL",
        packages=("pgqueuer", "asyncpg", "aiohttp", "uvloop"),
        server=servers.POSTGRES,
        storing=servers.postgresql,
        app="benchmarks.peers.pgqueuer_app",
        worker=("benchmarks.peers.pgqueuer_app",),
        bulk=True,
    ),
)
