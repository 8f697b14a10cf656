"""Where the daemon's sockets are, and what to tell somebody who cannot reach one.

Client commands need the configuration's ``[api]`` table only: they run as users who may read neither the
configuration nor the passwords, so nothing else of it is looked at. The daemon itself loads `dlr_buffer.config`.
"""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlr_buffer.client import Client, DaemonUnreachable
from dlr_buffer.errors import DlrBufferError

DEFAULT_CONFIG = Path("/etc/dlr-buffer/config.toml")
DEFAULT_CLIENT_SOCKET = Path("/run/dlr-buffer/client.sock")
DEFAULT_ADMIN_SOCKET = Path("/run/dlr-buffer/admin.sock")


class ConfigurationUnusable(DlrBufferError):
    """The configuration does not tell where the sockets are; the text says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """The two sockets of one daemon (DESIGN §5)."""

    client: Path = DEFAULT_CLIENT_SOCKET
    admin: Path = DEFAULT_ADMIN_SOCKET


def find_sockets(args: argparse.Namespace, environ: Mapping[str, str]) -> Sockets:
    """Return the sockets that ``--socket``, ``--config``, DLR_BUFFER_CONFIG or /etc's configuration name.

    Without a configuration, or if it must not be read and was not asked for by name, these are the defaults: members
    of a socket's group need not be among those who may read the configuration. Raises ConfigurationUnusable if the
    named file is missing or can't be read, or if its ``[api]`` table makes no sense.
    """
    if args.socket is not None:
        return Sockets(args.socket, args.socket)
    named = args.config or environ.get("DLR_BUFFER_CONFIG")
    path = Path(named) if named else DEFAULT_CONFIG
    try:
        text = path.read_bytes()
    except OSError as error:
        if not named and isinstance(error, (FileNotFoundError, PermissionError)):
            return Sockets()
        raise _unusable(path, f"cannot be read ({error.strerror})") from None
    return _sockets_of(path, text)


def client_side(args: argparse.Namespace, *, retry_for_s: float = 30.0) -> Client:
    """Return a connection to the client socket; raises DaemonUnreachable at once if nobody answers."""
    client = Client(find_sockets(args, os.environ).client, retry_for_s=retry_for_s)
    client.connect()
    return client


def admin_side(args: argparse.Namespace) -> Client:
    """Return a connection to the admin socket; raises DaemonUnreachable at once if nobody answers.

    Its calls wait as long as it takes: an action on millions of rows is not given up, Ctrl-C ends the wait.
    """
    client = Client(find_sockets(args, os.environ).admin, timeout_s=None)
    client.connect()
    return client


def unreachable_hint(error: DaemonUnreachable) -> str:
    """Say what to do about it, in one line."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return _owner_hint(error.socket)
    if error.request_sent:
        return "the daemon may have acted on the request: look before you repeat it"
    hint = (
        "is it running? See `systemctl status dlr-buffer`; another socket is named with --socket or --config"
    )
    if error.socket in (DEFAULT_CLIENT_SOCKET, DEFAULT_ADMIN_SOCKET) and _is_hidden(DEFAULT_CONFIG):
        hint += f" ({DEFAULT_CONFIG}, which may name one, is not yours to read)"
    return hint


def _is_hidden(path: Path) -> bool:
    """Whether there is a file, or may be one, that this user may not read."""
    try:
        path.open("rb").close()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _owner_hint(path: Path) -> str:
    """Say whose the socket is, or the directory that hides it."""
    for place in (path, *path.parents):
        try:
            facts = place.stat()
        except OSError:
            continue
        if place != path and os.access(place, os.X_OK):
            continue
        group = _group_name(facts.st_gid)
        return f"{place} belongs to the group {group}: join it (usermod -aG {group} USER), or ask as root"
    return "ask as root, or join the group that owns it"


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _sockets_of(path: Path, content: bytes) -> Sockets:
    import tomllib

    try:
        api = tomllib.loads(content.decode()).get("api", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _unusable(path, f"is not TOML: {error}") from None
    if not isinstance(api, dict):
        raise _unusable(path, "has an [api] that is not a table")
    return Sockets(
        _socket_path(path, api, "client_socket", DEFAULT_CLIENT_SOCKET),
        _socket_path(path, api, "admin_socket", DEFAULT_ADMIN_SOCKET),
    )


def _socket_path(path: Path, api: Mapping[str, object], key: str, default: Path) -> Path:
    value = api.get(key, str(default))
    if not isinstance(value, str) or not value.startswith("/"):
        raise _unusable(path, f"has an api.{key} that is not an absolute path in quotes")
    return Path(value)


def _unusable(path: Path, problem: str) -> ConfigurationUnusable:
    return ConfigurationUnusable(
        f"the configuration {path} {problem}; name another with --config, or a socket with --socket"
    )
