"""What a daemon did to its files and sockets, in order: the recorder is built, aimed and read here.

`recorder.c` does the recording inside the daemon, `build` compiles it. `Recorder` gives the environment that loads it,
tells a running daemon which operation is to fail, and reads the records. What they mean for a disk is in `disk`, for
an app in `answers`.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tests.missing import skip_or_fail

_SOURCE = Path(__file__).with_name("recorder.c")
_OPTIONS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC")
_HEADER = struct.Struct("=IIiiqQ")
_RULE = struct.Struct("=ii")


class Kind(IntEnum):
    """What happened; the numbers are recorder.c's."""

    START = 1
    CREATE = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC_BEGIN = 5
    SYNC = 6
    SYNC_FAILED = 7
    UNLINK = 8
    SEND = 9
    RECV = 10
    FAULT = 11


class File(IntEnum):
    """To which file; the numbers are recorder.c's."""

    NONE = 0
    DATABASE = 1
    WAL = 2
    JOURNAL = 3
    FOLDER = 4
    LOCK = 5
    SOCKET = 6


class Operation(IntEnum):
    """What can be made to fail; the numbers are recorder.c's."""

    SYNC = 0
    WRITE = 1
    READ = 2
    TRUNCATE = 3


class Action(IntEnum):
    """How; the numbers are recorder.c's."""

    NOTHING = 0
    FAIL_ONCE = 1
    FAIL_ALWAYS = 2
    DIE = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened. ``offset`` is in bytes: where was written, or the size that was truncated to."""

    kind: Kind
    file: File
    pid: int
    fd: int
    offset: int
    content: bytes


def build(scratch: Path) -> Path:
    """Compile recorder.c in ``scratch``; returns the library. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        skip_or_fail("the recorder of system calls needs a C compiler (cc or gcc)")
    library = scratch / "recorder.so"
    subprocess.run([compiler, *_OPTIONS, "-o", str(library), str(_SOURCE), "-ldl", "-pthread"], check=True)
    return library


class Recorder:
    """Records of all runs in one queue folder, and the faults that its daemon is to meet."""

    def __init__(self, folder: Path, scratch: Path, library: Path) -> None:
        """Nothing is recorded yet; ``library`` is what `build` made."""
        self._library = library
        self._folder = folder
        self._log = scratch / "records"
        self._control = scratch / "control"
        self._control.write_bytes(bytes(_RULE.size * len(Operation) * (File.SOCKET + 1)))

    @property
    def environ(self) -> dict[str, str]:
        """What a daemon has to be started with."""
        return {
            "LD_PRELOAD": str(self._library),
            "RECORDER_FOLDER": str(self._folder.resolve()),
            "RECORDER_LOG": str(self._log),
            "RECORDER_CONTROL": str(self._control),
        }

    def fault(self, file: File, operation: Operation, action: Action, *, after: int = 1) -> None:
        """Have the ``after``-th such operation from now on fail (or be the daemon's last)."""
        with self._control.open("r+b") as control, mmap.mmap(control.fileno(), 0) as rules:
            at = _RULE.size * (file * len(Operation) + operation)
            rules[at : at + _RULE.size] = _RULE.pack(action, after)

    def mend(self) -> None:
        """Let nothing fail any more."""
        for file in range(File.SOCKET):
            for operation in Operation:
                self.fault(File(file), operation, Action.NOTHING)

    def records(self) -> Iterator[Record]:
        """Everything that was recorded so far, in order."""
        with self._log.open("rb") as log:
            while len(head := log.read(_HEADER.size)) == _HEADER.size:
                kind, file, pid, fd, offset, length = _HEADER.unpack(head)
                yield Record(Kind(kind), File(file), pid, fd, offset, log.read(length))

    def faults(self) -> int:
        """How many operations were made to fail so far."""
        return sum(record.kind is Kind.FAULT for record in self.records())
