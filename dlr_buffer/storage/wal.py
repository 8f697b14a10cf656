"""Whether SQLite's write-ahead log still holds everything that was committed to it.

SQLite reads a log only as far as its checksums hold and passes over the rest without a word: after a power cut
the rest is what nobody was told of, but a log that was removed, cut or damaged loses commits just as silently.
The wal-index (``-shm``) of a killed process tells the two apart, as long as the machine has not been started
anew since: it counts a frame only after the log was synced with it. Both are read here as files, before SQLite
opens them; their formats are https://sqlite.org/fileformat2.html#walformat and https://sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dlr_buffer.storage.lock import LastRun

_LOG_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_INDEX_HEADER: Final = 48
_INDEX_VERSION: Final = 3_007_000
_CHECKED_BYTES: Final = 64 * 1024 * 1024
"""So much of a log is summed up (a daemon's has 8 MiB, more only while something reads long), the rest measured."""

_Sum = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Index:
    """The wal-index: frames committed, frames of them that are in the database already, and the log's salt."""

    frames: int
    copied: int
    salt: bytes


def lost_commits(database: Path, last: LastRun, boot_id: str) -> str | None:
    """Say what is wrong with the log that a killed daemon left, None if nothing is known to be.

    Nobody may have the database open. Raises OSError if the files can't be read.
    """
    if last.process is None or last.boot_id != boot_id:
        return None
    log = database.with_name(database.name + "-wal")
    if (
        last.inode is not None
        and log.exists()
        and log.stat().st_size
        and database.exists()
        and database.stat().st_ino != last.inode
    ):
        return (
            f"{database} was put in place of the queue that ran here, whose log {log.name} still lies beside it; SQLite"
            f" would mix the two: move {log.name} and {database.name}-shm away"
        )
    index = _read_index(database.with_name(database.name + "-shm"))
    if index is None or index.copied >= index.frames:
        return None
    try:
        with log.open("rb") as file:
            whole = _whole_frames(file, index)
    except FileNotFoundError:
        whole = 0
    if whole >= index.frames:
        return None
    return (
        f"{log} is missing, cut or damaged: of {index.frames} pages that were committed to it {whole} are left, so what"
        f" was answered last is lost; restore {database} from a backup, or, to go on with what is left, remove"
        f" {database.name}-shm"
    )


def _read_index(path: Path) -> _Index | None:
    """Read the wal-index; None if there is none, or none that was written to its end."""
    try:
        content = path.read_bytes()[: 2 * _INDEX_HEADER + 4]
    except FileNotFoundError:
        return None
    first, second = content[:_INDEX_HEADER], content[_INDEX_HEADER : 2 * _INDEX_HEADER]
    if len(content) < 2 * _INDEX_HEADER + 4 or first != second:
        return None
    version, frames = struct.unpack_from("=I12xI", first)
    summed = _checksum((0, 0), first[:40], big=sys.byteorder == "big")
    if version != _INDEX_VERSION or struct.unpack_from("=II", first, 40) != summed:
        return None
    (copied,) = struct.unpack_from("=I", content, 2 * _INDEX_HEADER)
    return _Index(frames, copied, first[32:40])


def _whole_frames(file: BinaryIO, index: _Index) -> int:
    """Count the frames, up to those that the index knows, that are as they were written."""
    header = file.read(_LOG_HEADER)
    if len(header) < _LOG_HEADER:
        return 0
    magic, page = struct.unpack_from(">I4xI", header)
    big = bool(magic & 1)
    running = _checksum((0, 0), header[:24], big=big)
    if struct.unpack_from(">II", header, 24) != running:
        return 0
    if header[16:24] != index.salt:
        # The log was begun anew and the index not yet written: nothing is known.
        return index.frames
    for number in range(index.frames):
        frame = file.read(_FRAME_HEADER + page)
        if len(frame) < _FRAME_HEADER + page or frame[8:16] != index.salt:
            return number
        if file.tell() > _CHECKED_BYTES:
            continue
        running = _checksum(running, frame[:8] + frame[_FRAME_HEADER:], big=big)
        if struct.unpack_from(">II", frame, 16) != running:
            return number
    return index.frames


def _checksum(before: _Sum, content: bytes, *, big: bool) -> _Sum:
    """SQLite's sum over pairs of 32-bit words."""
    one, two = before
    words = struct.unpack(f"{'>' if big else '<'}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
