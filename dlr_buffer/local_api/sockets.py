"""Binding Unix sockets whose permissions are right from the first instant.

Serving them is `server`'s. Which paths, modes and groups is the configuration's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from pathlib import Path

from dlr_buffer.errors import DlrBufferError

BACKLOG = 1024
_PROBE_TIMEOUT_S = 1.0


class BoundSocket(socket.socket):
    """A listening Unix socket that takes its file with it when it is closed, if the file is still its own."""

    def __init__(self) -> None:
        """Make an unbound socket."""
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path: Path | None = None
        self._identity: tuple[int, int] | None = None

    def owns(self, path: Path) -> None:
        """Remember the file that is ours."""
        self._path = path
        self._identity = _identity(path)

    def unlink(self) -> None:
        """Remove the file, unless it is another's by now; nobody new can connect then."""
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                if _identity(path) == self._identity:
                    path.unlink()

    def close(self) -> None:
        """Close, and remove the file."""
        self.unlink()
        super().close()


def bind(path: Path, mode: int, gid: int | None) -> BoundSocket:
    """Return a socket that listens at ``path``, with these permissions and this group (None: the process's).

    A stale socket file is replaced. Raises DlrBufferError if a living daemon answers there, if something else than a
    socket lies there, or if the system refuses.
    """
    if not path.parent.is_dir():
        raise DlrBufferError(
            f"the folder of the socket {path} does not exist; create it, or name another path"
        )
    _check_free(path)
    # Under a name of its own until everything is right: then the rename shows it to the world, atomically.
    draft = path.parent / f".{secrets.token_hex(4)}"
    listening = BoundSocket()
    try:
        # On Linux the file gets the mode of the unbound socket (cut by the umask): here none at all. The umask, which
        # all threads share, is left alone.
        os.fchmod(listening.fileno(), 0)
        listening.bind(os.fspath(draft))
        if gid is not None:
            os.chown(draft, -1, gid)
        draft.chmod(mode)
        listening.listen(BACKLOG)
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        draft.replace(path)
        listening.owns(path)
    except OSError as error:
        listening.close()
        draft.unlink(missing_ok=True)
        raise DlrBufferError(f"cannot bind the socket {path}: {_reason(error, gid)}") from None
    return listening


def _check_free(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DlrBufferError(f"cannot look at the socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise DlrBufferError(f"{path} exists and is not a socket; remove it yourself, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # nobody listens: its daemon is dead
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ETIMEDOUT, None}:
                raise DlrBufferError(
                    f"cannot tell whether a daemon answers at the socket {path}: {error.strerror}"
                ) from None
            # Its queue of connections is full: it lives, if barely.
    raise DlrBufferError(f"another daemon answers at the socket {path}; stop it, or name another path")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _reason(error: OSError, gid: int | None) -> str:
    if isinstance(error, PermissionError) and gid is not None:
        return (
            f"{error.strerror} (may this user write to the folder, is it in the group {gid}, and does its unit allow"
            " chown? See systemd/examples/without-socket-units.conf)"
        )
    if error.errno is None:  # raised by Python itself, which knows the limit
        return f"{error}; a socket's path may have about 100 bytes"
    return error.strerror or str(error)
