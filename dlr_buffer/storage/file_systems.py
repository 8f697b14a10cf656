"""On which file system a folder lies, and which kinds of them are no place for a queue.

SQLite's log needs the memory and the locks of one host, and a disk behind them that syncs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
ON_A_NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "gfs2", "lustre", "ncpfs", "ocfs2"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.cephfs"),
    }
)
"""Cluster file systems too: what one host maps into memory another does not see."""
LAYERED: Final = frozenset({"overlay", "aufs", "virtiofs", "vboxsf"})
"""Made by a container or a virtual machine; what is on one may vanish with it, or not be synced."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system, as ``/proc/self/mounts`` has it (proc_pid_mounts(5))."""

    kind: str
    source: str
    mounted_at: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        """A few words."""
        return f"{self.kind} on {self.source}"


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> FileSystem:
    """Return the file system that ``folder`` is in; "unknown" where the kernel does not tell."""
    best = FileSystem("unknown", "unknown", "", ())
    place = folder.resolve()
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return best
    for line in lines:
        source, at, kind, options = map(_unescaped, line.split(" ")[:4])
        # A later mount at the same place lies over the earlier one.
        if place.is_relative_to(at) and len(at) >= len(best.mounted_at):
            best = FileSystem(kind, source, at, tuple(options.split(",")))
    return best


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
