"""A file system of a few megabytes that a test can fill and empty, and a queue's folder whose database lies on it.

`SmallDisk` mounts a tmpfs, whose limits are those of a small partition; `unfit` says why this machine can't.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dlr_buffer.client import ApiError, Client
from tests.acceptance.harness import Site

MIB = 1024 * 1024


def unfit(folder: Path) -> str | None:
    """Say why nothing can be mounted on ``folder``, or None if something can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a small file system takes root on Linux"
    tried = _mount(folder, 1)
    if tried.returncode:
        return f"nothing can be mounted here: {tried.stderr.strip()}"
    _unmount(folder)
    return None


class SmallDisk:
    """A tmpfs of ``mib`` MiB on ``folder`` while it is entered."""

    def __init__(self, folder: Path, mib: int) -> None:
        """Mount nothing yet."""
        self.folder = folder
        self._mib = mib
        self._ballast = folder / "ballast"

    def __enter__(self) -> Self:
        """Mount it."""
        done = _mount(self.folder, self._mib)
        if done.returncode:
            raise OSError(done.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount it, even if something still uses it."""
        _unmount(self.folder)

    @property
    def free_bytes(self) -> int:
        """What is left."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all space but so much; what others write meanwhile may make it less."""
        with self._ballast.open("ab") as file:
            while (more := self.free_bytes - leave_bytes) > 0:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), more)
                except OSError:  # another program was quicker
                    continue

    def take(self, database: Path) -> Path:
        """Copy a database onto the disk; returns the copy."""
        return Path(shutil.copyfile(database, self.folder / database.name))

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@dataclass(slots=True)
class DiskSite(Site):
    """A queue's folder with the database alone on a small disk."""

    disk: Path = Path()

    @property
    def database(self) -> Path:
        """The queue's file."""
        return self.disk / "queue.db"

    def alarms(self) -> str:
        """The alarms of `status` in one text."""
        return "\n".join(self.ask("GET", "/v1/status")["alarms"])

    def metric(self, name: str) -> float:
        """A metric without labels."""
        lines: str = self.ask("GET", "/metrics")
        return next(float(line.split()[1]) for line in lines.splitlines() if line.startswith(f"{name} "))

    def lines(self, text: str) -> int:
        """How many lines of the log say this."""
        return sum(text in line for line in self.log.read_text("utf-8").splitlines())


def refusal(app: Client, method: str, path: str, body: object) -> ApiError:
    """Ask, and return the problem that has to come."""
    try:
        answer = app.request(method, path, body)
    except ApiError as error:
        return error
    raise AssertionError(f"answered: {answer}")


def _mount(folder: Path, mib: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
