"""The units under systemd: installed, enabled, active, as this program brings them, and with which drop-ins.

`Systemctl` asks; `service_findings` and its like judge what was told. What stands in the shipped units is not judged,
only compared with those that are installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import dlr_buffer
from dlr_buffer.doctor.findings import Finding, error, note, ok, warning

SERVICE: Final = "dlr-buffer.service"
CLIENT_SOCKET: Final = "dlr-buffer-client.socket"
ADMIN_SOCKET: Final = "dlr-buffer-admin.socket"
SOCKETS: Final = (CLIENT_SOCKET, ADMIN_SOCKET)

Properties = Mapping[str, str]
"""What ``systemctl show`` tells of a unit."""

_ASKED: Final = (
    *(
        "LoadState",
        "ActiveState",
        "SubState",
        "UnitFileState",
        "Result",
        "ExecMainStatus",
        "NRestarts",
        "MainPID",
    ),
    *(
        "FragmentPath",
        "DropInPaths",
        "NeedDaemonReload",
        "WatchdogUSec",
        "Type",
        "User",
        "Group",
        "LimitNOFILE",
    ),
    *("StateDirectory", "Listen", "SocketMode", "SocketUser", "SocketGroup"),
)
_PATIENCE_S: Final = 10
_SHIPPED: Final = (
    Path(dlr_buffer.__file__).parents[1] / "systemd",
    Path(sys.prefix) / "share" / "dlr-buffer" / "systemd",
)
"""The project that an editable installation points to, and the wheel's shared data."""
_CREDENTIAL: Final = re.compile(
    r"^(?:Load|Set|Import)Credential(?:Encrypted)?=\s*([a-z0-9][a-z0-9_-]*)\.(\w+)(?::|\s*$)", re.MULTILINE
)
_GRANTED_KEYS: Final = {
    "password": ("password_file",),
    "login": ("login", "login_file"),
    "client_key": ("tls.client_key", "tls.client_cert"),
    "proxy_credentials": ("proxy_credentials_file",),
}
"""What is missing in the configuration, and is no fault, where systemd hands over the credential of that name."""
_CREDENTIAL_FILE: Final = re.compile(r"^LoadCredential=[^:\n]+:(/.+?)\s*$", re.MULTILINE)
_JOURNAL: Final = "sudo journalctl --unit dlr-buffer --lines 50"


class Systemctl:
    """Asks the system's systemd about units."""

    def __init__(self, marker: Path = Path("/run/systemd/system")) -> None:
        """``marker`` is there where systemd is PID 1 (sd_booted(3))."""
        self.present = marker.is_dir() and shutil.which("systemctl") is not None

    def show(self, unit: str) -> Properties | None:
        """Return what is known of a unit; None where there is no systemd, or it does not answer."""
        told = self._ask("show", unit, "--property=" + ",".join(_ASKED))
        if told is None:
            return None
        return {name: value for name, _, value in (line.partition("=") for line in told.splitlines())}

    def text(self, unit: str) -> str:
        """Return the unit's file with its drop-ins, empty if there is none."""
        return self._ask("cat", unit) or ""

    def _ask(self, *arguments: str) -> str | None:
        if not self.present:
            return None
        try:
            done = subprocess.run(  # noqa: S603 - nothing in it comes from outside
                ["systemctl", "--no-pager", *arguments],  # noqa: S607 - the system's own, wherever that is
                check=True,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout


def is_installed(unit: Properties | None) -> bool:
    """Whether systemd knows the unit."""
    return unit is not None and unit.get("LoadState") not in (None, "", "not-found")


def listens(unit: Properties | None) -> bool:
    """Whether systemd listens for the daemon: a connection would start it."""
    return is_installed(unit) and unit is not None and unit.get("ActiveState") == "active"


def makes_folder(unit: Properties, folder: Path) -> bool:
    """Whether systemd makes ``folder`` before the service starts (StateDirectory=)."""
    return any(folder == Path("/var/lib") / name for name in unit.get("StateDirectory", "").split())


def granted_keys(text: str) -> frozenset[str]:
    """Return the dotted keys in whose place a unit's ``text`` lets systemd hand over a credential."""
    return frozenset(
        f"accounts.{account}.{key}"
        for account, name in _CREDENTIAL.findall(text)
        for key in _GRANTED_KEYS.get(name, ())
    )


def credential_files(text: str) -> tuple[Path, ...]:
    """Return the files in the clear from which a unit's ``text`` lets systemd take credentials."""
    return tuple(dict.fromkeys(map(Path, _CREDENTIAL_FILE.findall(text))))


def service_findings(unit: Properties) -> Iterator[Finding]:
    """Judge the state of the service's unit."""
    if not is_installed(unit):
        yield note("unit", f"systemd knows no {SERVICE}: the daemon is started by hand", "sudo make install")
        return
    if unit.get("LoadState") != "loaded":
        yield error(
            "unit", f"{SERVICE} can't be used: {unit.get('LoadState')}", f"systemctl status {SERVICE}"
        )
        return
    yield from _reload_finding(SERVICE, unit)
    yield from _state_findings(unit)
    if unit.get("UnitFileState") in ("disabled", "masked"):
        yield warning(
            "unit-enabled",
            f"{SERVICE} is {unit['UnitFileState']}: after a reboot the daemon is not started",
            f"sudo systemctl enable {SERVICE}"
            if unit["UnitFileState"] == "disabled"
            else f"sudo systemctl unmask {SERVICE} && sudo systemctl enable {SERVICE}",
        )
    elif unit.get("UnitFileState"):
        yield ok("unit-enabled", f"{SERVICE} is {unit['UnitFileState']}")
    if unit.get("Type") not in ("notify", "notify-reload"):
        yield warning(
            "unit-type",
            f"{SERVICE} is of Type={unit.get('Type')}: systemd does not wait until the daemon is ready",
            f"remove Type= from its drop-ins: systemctl cat {SERVICE}",
        )
    # What is not running yet does not tell.
    if unit.get("ActiveState") == "active" and unit.get("WatchdogUSec") in ("0", "infinity", "", None):
        yield note(
            "unit-watchdog",
            "no watchdog: a daemon that hangs is not started anew",
            f"set WatchdogSec=, if this release pings one: sudo systemctl edit {SERVICE}",
        )
    if unit.get("DropInPaths"):
        yield note("unit-drop-ins", f"drop-ins change {SERVICE}: {', '.join(unit['DropInPaths'].split())}")


def _state_findings(unit: Properties) -> Iterator[Finding]:
    state = unit.get("ActiveState")
    match state:
        case "active" | "reloading":
            yield ok("unit-state", f"{SERVICE} is {state} (process {unit.get('MainPID')})")
        case "failed":
            yield error(
                "unit-state",
                f"{SERVICE} failed: {unit.get('Result')}, exit code {unit.get('ExecMainStatus')}",
                f"see why: {_JOURNAL}; then: sudo systemctl restart {SERVICE}",
            )
        case "activating" if unit.get("SubState") == "auto-restart":
            yield error(
                "unit-state",
                f"{SERVICE} ends again and again: {unit.get('Result')}, exit code {unit.get('ExecMainStatus')}",
                f"see why: {_JOURNAL}",
            )
        case "activating":
            yield note("unit-state", f"{SERVICE} is being started", f"systemctl status {SERVICE}")
        case _:
            yield warning("unit-state", f"{SERVICE} is {state}", f"sudo systemctl start {SERVICE}")
    restarts = unit.get("NRestarts", "0")
    if state == "active" and restarts not in ("", "0"):
        yield warning(
            "unit-restarts",
            f"systemd had to start the daemon anew {restarts} times since {SERVICE} was started",
            f"see why: {_JOURNAL}; systemctl reset-failed {SERVICE} sets the count back",
        )


def socket_unit_findings(units: Mapping[str, Properties], *, running: bool) -> Iterator[Finding]:
    """Judge the units of both sockets: both are used, or none is; ``running`` if the daemon is (they stop with it)."""
    there = {name: unit for name, unit in units.items() if is_installed(unit)}
    if not there:
        return
    for name, unit in there.items():
        yield from _reload_finding(name, unit)
        state = unit.get("ActiveState")
        if state == "failed":
            yield error(
                "socket-unit",
                f"{name} failed: {unit.get('Result')}",
                f"systemctl status {name}; then: sudo systemctl restart {name}",
            )
        elif state == "active":
            yield ok("socket-unit", f"{name} is active: connections wait while the daemon restarts")
    active = [name for name, unit in units.items() if unit.get("ActiveState") == "active"]
    failed = [name for name, unit in units.items() if unit.get("ActiveState") == "failed"]
    if not active and not failed and running:
        yield note(
            "socket-unit",
            "the socket units are not used: while the daemon restarts, connections are refused",
            f"sudo systemctl enable --now {' '.join(there)} && sudo systemctl restart {SERVICE}",
        )
    elif len(active) == 1 and not failed:
        (idle,) = (name for name in units if name not in active)
        yield warning(
            "socket-unit",
            f"{active[0]} is active, but {idle} is not",
            f"sudo systemctl enable --now {idle} && sudo systemctl restart {SERVICE}",
        )


def _reload_finding(name: str, unit: Properties) -> Iterator[Finding]:
    if unit.get("NeedDaemonReload") == "yes":
        yield warning(
            "unit-reload",
            f"the files of {name} were changed, and systemd has not read them yet",
            "sudo systemctl daemon-reload",
        )


def shipped_units(folders: Sequence[Path] = _SHIPPED) -> dict[str, str]:
    """Return the units that this program brings, by name: those that were installed with it, or its project's."""
    for folder in folders:
        if found := {path.name: path.read_text("utf-8") for path in sorted(folder.glob("dlr-buffer*.s*"))}:
            return found
    return {}


def difference_findings(units: Mapping[str, Properties], shipped: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the installed units with the shipped ones; drop-ins are not looked at, nor where the program lies."""
    for name, unit in units.items():
        path = Path(unit.get("FragmentPath", ""))
        if name not in shipped or not unit.get("FragmentPath"):
            continue
        differing = _differing(_directives(path.read_text("utf-8")), _directives(shipped[name]))
        if not differing:
            yield ok("unit-file", f"{path} is the one that this version brings")
            continue
        listed = ", ".join(differing[:_MOST_NAMED]) + (", ..." if differing[_MOST_NAMED:] else "")
        yield warning(
            "unit-file",
            f"{path} is not the one that this version brings; it differs in {listed}",
            f"{_reinstall(path)} writes it anew; keep changes of your own in a drop-in: sudo systemctl edit {name}",
        )


def _reinstall(unit: Path) -> str:
    packaged = any(unit.is_relative_to(folder) for folder in ("/lib/systemd", "/usr/lib/systemd"))
    return "sudo apt-get install --reinstall dlr-buffer" if packaged else "sudo make install"


_MOST_NAMED: Final = 6
_OF_THE_PLACE: Final = ("ExecStart", "ExecReload", "Documentation")
"""What depends on where and how the program was installed."""


def _directives(text: str) -> dict[str, list[str]]:
    """Read a unit's file into its values by ``Section.Name``, comments and spaces left out (systemd.syntax(7))."""
    found: dict[str, list[str]] = {}
    section = ""
    joined = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    for line in joined.replace("\\\n", " ").splitlines():
        if titled := re.fullmatch(r"\s*\[(.+)\]\s*", line):
            section = titled[1]
        elif "=" in line:
            name, _, value = line.partition("=")
            if name.strip() not in _OF_THE_PLACE:
                found.setdefault(f"{section}.{name.strip()}", []).append(" ".join(value.split()))
    return found


def _differing(installed: Mapping[str, list[str]], shipped: Mapping[str, list[str]]) -> list[str]:
    names = dict.fromkeys([*shipped, *installed])
    return [name.partition(".")[2] for name in names if installed.get(name) != shipped.get(name)]
