"""A recorded daemon under load, and what its disk may hold after a power cut at any moment of it.

`Bench` is one queue's folder with its recorder and its upstream. `Replay` goes through the records and looks at images
of the disk. What a record means is told in `recording`, `disk` and `answers`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from dlr_buffer.client import ApiError, Client, DaemonUnreachable
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.simulator import SimulatorSettings
from dlr_buffer.storage.lock import last_run
from dlr_buffer.storage.whole import require_there
from tests.acceptance.harness import PATIENCE_S, DaemonProcess, Site, StandIn, eventually, threads
from tests.crash.power.answers import (
    DOOMED,
    HELD,
    REFUSED,
    Broken,
    Listener,
    Promise,
    check_promises,
    check_whole,
)
from tests.crash.power.disk import Disk, Image, write_image
from tests.crash.power.recording import Record, Recorder
from tests.integration.storage.harness import opened, rows

CHECKPOINT_BYTES: Final = 200_000
MOST_LOADS: Final = 100
ROUNDS: Final = 12
OPENED_EVERY: Final = 16
FAR: Final = 1_000_000
"""Above every request_id that is used here."""
_EARLY: Final = f"""
import dlr_buffer.daemon, dlr_buffer.storage.writer
dlr_buffer.storage.writer.CHECKPOINT_BYTES = {CHECKPOINT_BYTES}
dlr_buffer.daemon.RETENTION_EVERY_S = 0.3
"""


class Bench:
    """One queue's folder, whose daemons are recorded and checkpoint often."""

    def __init__(self, folder: Path, scratch: Path, library: Path) -> None:
        """Nothing runs yet; ``scratch`` takes what is not the queue's, ``library`` is the recorder."""
        queue_folder = folder / "queue"
        queue_folder.mkdir()
        self.site = Site(queue_folder)
        self.scratch = scratch
        self.recorder = Recorder(queue_folder, scratch, library)
        refused = {f"{load}-0-{each}{REFUSED}" for load in range(MOST_LOADS) for each in range(ROUNDS)}
        self._upstream = StandIn(SimulatorSettings(refuse_message_ids=frozenset(refused)))
        self._upstream.__enter__()
        self._numbers = itertools.count()
        self._plants = scratch / "plants"
        self._plants.mkdir()
        self.plant("")
        self.site.configure(
            self._upstream.url,
            retry={"initial": "50ms", "max_refusals": 1},
            tables={"retention": {"dead": "1s"}},
        )

    def plant(self, code: str) -> None:
        """Have every daemon from now on run this first, to put a fault into its program."""
        (self._plants / "sitecustomize.py").write_text(_EARLY + code, encoding="utf-8")

    @property
    def environ(self) -> Mapping[str, str]:
        """What a recorded daemon is started with."""
        path = [str(self._plants), *filter(None, sys.path)]
        return {**self.recorder.environ, "PYTHONPATH": ":".join(path)}

    def start(self) -> DaemonProcess:
        """Run a recorded daemon, ready for use."""
        return self.site.start(**self.environ)

    def launch(self) -> DaemonProcess:
        """Run a recorded daemon that may not get ready."""
        daemon = DaemonProcess(self.site, self.environ)
        self.site.runs.append(daemon)
        return daemon

    def wait_end(self, daemon: DaemonProcess) -> int:
        """Return the exit code of a daemon that ends by itself."""
        return daemon.process.wait(PATIENCE_S)

    def load_until_dead(self, daemon: DaemonProcess) -> int:
        """Load until the daemon is gone; returns its exit code. Once it has refused something it must say it is ill."""
        for _ in range(MOST_LOADS):
            try:
                self.load(clients=1)
            except ApiError as error:
                if error.status != HTTPStatus.SERVICE_UNAVAILABLE or self._healthy():
                    raise
            except DaemonUnreachable:
                return self.wait_end(daemon)
        raise AssertionError("the daemon lives on")

    def _healthy(self) -> bool:
        try:
            self.site.ask("GET", "/healthz")
        except (ApiError, DaemonUnreachable):
            return False
        return True

    def load(self, *, clients: int = 3, rounds: int = ROUNDS, bulk: int = 60) -> None:
        """Register and report, singly and in bulk, from several connections at once."""
        prefix = next(self._numbers)
        with threads(clients + 1, lambda number: self._ask(f"{prefix}-{number}", number, rounds, bulk)):
            pass

    def _ask(self, prefix: str, number: int, rounds: int, bulk: int) -> None:
        with self.site.client() as app, self.site.admin() as admin:
            for each in range(rounds):
                if number == 0:
                    _ask_in_bulk(app, [f"{prefix}-{each}-{item}" for item in range(bulk)])
                    _act(admin, app, f"{prefix}-{each}")
                else:
                    _ask_singly(app, f"{prefix}-{each}", each)

    def wait_until_sent(self) -> None:
        """Return once all is acknowledged but what is refused: with nothing else to send, that waits without end."""
        eventually(
            lambda: self.site.pages("/v1/receipts"),
            lambda rows: all(
                row["status"] != "pending" or str(row["message_id"]).endswith(REFUSED) for row in rows
            ),
        )

    def wait_until_purged(self) -> None:
        """Return once retention has taken the first message that was refused."""
        eventually(lambda: self.site.pages("/v1/messages"), lambda rows: not _has(rows, f"0-0-0{REFUSED}"))

    def log_text(self) -> str:
        """What the daemons have logged."""
        return self.site.log.read_text("utf-8", "replace")

    def close(self) -> None:
        """End what runs."""
        self.site.close()
        self._upstream.__exit__(None, None, None)


def _has(rows: Iterable[Mapping[str, object]], message_id: str) -> bool:
    return any(row["message_id"] == message_id for row in rows)


def _ask_in_bulk(app: Client, message_ids: list[str]) -> None:
    app.register_many(message_ids)
    app.report_many([(each, "enroute") for each in message_ids])
    app.report_many([(each, "delivered") for each in message_ids[::2]])


def _ask_singly(app: Client, message_id: str, each: int) -> None:
    # Some messages expire while the test runs.
    app.register(message_id, validity_period=1 if each % 4 == 0 else None)
    if each % 4:
        for state in ("enroute", "delivered"):
            app.report(message_id, state)
        app.message(message_id)


def _act(admin: Client, app: Client, message_id: str) -> None:
    """An admin holds a receipt for ever, and deletes a message, if they are not on the wire just then."""
    told = app.report(f"{message_id}{HELD}", "delivered")
    admin.request("POST", "/v1/receipts/hold", {"request_ids": [told["request_id"]]})
    app.register(f"{message_id}{DOOMED}")
    doomed = {"account": "default", "message_ids": [f"{message_id}{DOOMED}"]}
    admin.request("POST", "/v1/messages/delete", doomed)
    # Refused, it becomes a dead letter, and retention soon takes it.
    app.report(f"{message_id}{REFUSED}", "delivered")


@dataclass(slots=True)
class Replay:
    """The disk and the answers, as far as the records were followed."""

    folder: Path
    disk: Disk = field(default_factory=Disk)
    promises: set[Promise] = field(default_factory=set)
    images: int = 0
    opened: int = 0
    """How many of the images the store itself has opened."""
    answers: int = 0
    _listener: Listener = field(default_factory=Listener)

    def follow(self, records: Iterable[Record]) -> Iterator[tuple[Record, list[Promise]]]:
        """Go through the records; yields each with what it promises, before that is among ``promises``.

        A power cut at a yield finds the disk as it was when the record was made.
        """
        self.folder.mkdir(exist_ok=True)
        for record in records:
            self.disk.replay(record)
            promised = self._listener.hear(record)
            self.answers += bool(promised)
            yield record, promised
            self.promises.update(promised)

    def check(self, image: Image, *, certain: bool = False) -> None:
        """Start from an image of the disk: everything promised so far has to be there, and nothing torn.

        Every ``certain`` one, and some of the others, are opened as the daemon opens its queue. Raises Broken.
        """
        self.images += 1
        database = write_image(image, self.folder)
        if certain or self.images % OPENED_EVERY == 0:
            open_queue(database)
            self.opened += 1
        check_promises(database, self.promises)
        check_whole(database)

    def check_answer(self, promised: list[Promise]) -> None:
        """What an answer promises has to be among what is certainly on the disk when its bytes leave.

        Raises Broken.
        """
        if promised:
            check_promises(write_image(self.disk.synced_only(), self.folder), {*promised})

    def cut(self, chance: random.Random, *, parts: int) -> None:
        """Cut the power now: the least, the most and some things in between that the disk may hold."""
        self.check(self.disk.synced_only(), certain=True)
        if self.disk.unsynced:
            self.check(self.disk.everything())
            for _ in range(parts):
                self.check(self.disk.something(chance))


def open_queue(database: Path) -> None:
    """Open what a power cut left as the daemon would, unless it is from a first start that did not come to its end.

    Raises Broken if it is refused, miscounted or taken for a backup.
    """

    async def run() -> None:
        async with opened(database) as queue:
            if queue.store._writer.numbers.next_request_id > FAR:
                raise Broken("the queue is taken for an older one than the last run's")

    try:
        require_there(database, last_run(database))
        if database.exists() and database.stat().st_size and rows(database, "SELECT 1 FROM sqlite_master"):
            asyncio.run(run())
    except (DlrBufferError, AssertionError) as error:
        raise Broken(f"the next start fails: {error}") from error
