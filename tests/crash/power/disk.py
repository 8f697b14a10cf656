"""What a disk may hold after a power cut: the records of a run replayed against the rules of POSIX, at their worst.

Only what was synced is certain. Of what was written since, any part may be there, in sectors, in any order, one of them
torn; a file exists for certain only once its folder was synced. After a sync that failed, what it should have written
is lost for ever, although the running system goes on reading it (Linux marks the pages clean); only what is written
anew counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.crash.power.recording import File, Kind, Record

SECTOR: Final = 512
NAMES: Final = {
    File.DATABASE: "queue.db",
    File.WAL: "queue.db-wal",
    File.JOURNAL: "queue.db-journal",
    File.LOCK: "queue.db.lock",
}
WHOLE: Final = frozenset({File.LOCK})
"""A note that fits into one sector of a disk, and so is written as a whole or not at all."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A new size in bytes."""

    size: int


Change = Write | Truncate


def _applied(content: bytearray, changes: list[Change]) -> bytearray:
    for change in changes:
        match change:
            case Write(offset, written):
                if len(content) < offset:
                    content.extend(bytes(offset - len(content)))
                content[offset : offset + len(written)] = written
            case Truncate(size):
                del content[size:]
                content.extend(bytes(size - len(content)))
    return content


def _sectors(write: Write) -> Iterator[Write]:
    at, end = write.offset, write.offset + len(write.content)
    while at < end:
        until = min(end, at - at % SECTOR + SECTOR)
        yield Write(at, write.content[at - write.offset : until - write.offset])
        at = until


@dataclass(slots=True, eq=False)
class Stored:
    """One file: what is certain, and what was done since in the order of doing."""

    certain: bytearray = field(default_factory=bytearray)
    since: list[Change] = field(default_factory=list)
    covered: int = 0

    def begin_sync(self) -> None:
        """A sync covers what was done before it began."""
        self.covered = len(self.since)

    def end_sync(self, *, succeeded: bool) -> None:
        """What was covered is certain now, or lost."""
        if succeeded:
            _applied(self.certain, self.since[: self.covered])
        del self.since[: self.covered]

    def partly(self, chance: random.Random, *, torn: bool = True) -> list[Change]:
        """Some of what was done since: by sectors, each there or not, one of them ``torn`` in the middle."""
        share = chance.random()
        kept: list[Change] = []
        for change in self.since:
            match change:
                case Write():
                    kept += [sector for sector in _sectors(change) if chance.random() < share]
                case Truncate() if chance.random() < share:
                    kept.append(change)
                case Truncate():
                    pass
        written = [place for place, change in enumerate(kept) if isinstance(change, Write)]
        if written and torn:
            place = chance.choice(written)
            victim = kept[place]
            if isinstance(victim, Write) and len(victim.content) > 1:
                kept[place] = Write(victim.offset, victim.content[: chance.randrange(1, len(victim.content))])
        return kept


Image = dict[File, bytearray]
"""The content of the files that are there."""


class Disk:
    """The disk under a queue's folder while records are replayed."""

    def __init__(self) -> None:
        """Begin with an empty folder."""
        self._now: dict[File, Stored] = {}
        self._certain: dict[File, Stored] = {}

    def replay(self, record: Record) -> None:
        """Follow one record."""
        file = record.file
        if file is File.FOLDER and record.kind is Kind.SYNC:
            self._certain = dict(self._now)
        if file not in NAMES:
            return
        match record.kind:
            case Kind.CREATE:
                self._now[file] = Stored()
            case Kind.UNLINK:
                self._now.pop(file, None)
            case Kind.WRITE:
                self._now[file].since.append(Write(record.offset, record.content))
            case Kind.TRUNCATE:
                self._now[file].since.append(Truncate(record.offset))
            case Kind.SYNC_BEGIN:
                self._now[file].begin_sync()
            case Kind.SYNC | Kind.SYNC_FAILED:
                self._now[file].end_sync(succeeded=record.kind is Kind.SYNC)
            case Kind.START | Kind.SEND | Kind.RECV | Kind.FAULT:
                pass

    @property
    def unsynced(self) -> int:
        """How many changes are not certain yet."""
        return sum(len(stored.since) for stored in self._now.values())

    def synced_only(self) -> Image:
        """The least that is left: only synced bytes of files whose folder was synced since they came."""
        return {file: bytearray(stored.certain) for file, stored in self._certain.items()}

    def everything(self) -> Image:
        """The most: everything reached the disk in time, but what a failed sync lost."""
        return {file: _applied(bytearray(stored.certain), stored.since) for file, stored in self._now.items()}

    def something(self, chance: random.Random) -> Image:
        """Something in between: any part of what is not certain."""
        image = {}
        for file in NAMES:
            before, after = self._certain.get(file), self._now.get(file)
            stored = after if before is after else chance.choice((before, after))
            if stored is not None:
                image[file] = _applied(
                    bytearray(stored.certain), stored.partly(chance, torn=file not in WHOLE)
                )
        return image


def write_image(image: Image, folder: Path) -> Path:
    """Put the files of an image into ``folder``, and nothing else of a queue; returns the database's path.

    The lock file tells of an earlier boot, as it does after a power cut.
    """
    for stale in folder.iterdir():
        stale.unlink()
    for file, content in image.items():
        (folder / NAMES[file]).write_bytes(content)
    database = folder / NAMES[File.DATABASE]
    lock = folder / NAMES[File.LOCK]
    if lock.exists() and database.exists():
        noted = re.sub(rb"(?m)^boot .*$", b"boot another", lock.read_bytes())
        lock.write_bytes(re.sub(rb"(?m)^file .*$", b"file %d" % database.stat().st_ino, noted))
    return database
