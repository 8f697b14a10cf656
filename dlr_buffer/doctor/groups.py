"""The service's user and groups: whether they are there, and who is in them."""

from __future__ import annotations

import grp
from collections.abc import Iterator
from typing import Final

from dlr_buffer.doctor.access import Identity, identity_of, members
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning

SERVICE_USER: Final = "dlr-buffer"
CLIENT_GROUP: Final = "dlr-buffer-client"
ADMIN_GROUP: Final = "dlr-buffer-admin"
_PURPOSES: Final = {
    CLIENT_GROUP: ("apps that may register and report", "my-app"),
    ADMIN_GROUP: ("admins who need not be root", "my-admin"),
}
_MAKE: Final = "sudo systemd-sysusers, or sudo make install, which make what is missing"


def user_finding(name: str, *, needed: bool) -> Finding:
    """Say whether the user that the daemon runs as is there; ``needed``: a service is installed that runs as it."""
    if (found := identity_of(name)) is not None:
        return ok("user", f"the user {name} is there (uid {found.uid})")
    if needed:
        return error("user", f"there is no user {name}, whom the service runs as", _MAKE)
    return note("user", f"there is no user {name}; only a service needs it", _MAKE)


def group_findings(name: str, *, daemon: Identity | None, used: bool) -> Iterator[Finding]:
    """Look at a group of a socket; ``used`` if a socket is given to it.

    Says whether it is there, who is in it, and whether the daemon is, which else can't give its socket to it.
    """
    found = members(name)
    whom, example = _PURPOSES.get(name, ("those who may use the socket", "my-app"))
    if found is None:
        if used:
            yield error("group", f"there is no group {name}, to which a socket is to be given", _MAKE)
        else:
            yield warning("group", f"there is no group {name}, for {whom}", _MAKE)
        return
    others = [each for each in found if daemon is None or each != daemon.name]
    if others:
        yield ok("group", f"in the group {name} ({whom}): {', '.join(others)}")
    else:
        yield note(
            "group",
            f"nobody is in the group {name} ({whom}) but the daemon"
            if found
            else f"nobody is in the group {name} ({whom})",
            f"sudo usermod --append --groups {name} {example}, and start that program anew",
        )
    if daemon is not None and daemon.uid != 0 and grp.getgrnam(name).gr_gid not in daemon.groups:
        command = f"sudo usermod --append --groups {name} {daemon.name} && sudo systemctl restart dlr-buffer"
        if used:
            yield error(
                "group-daemon",
                f"the daemon's user {daemon.name} is not in {name}, so it can't give its socket to it",
                command,
            )
        else:
            yield note("group-daemon", f"the daemon's user {daemon.name} is not in {name}", command)
