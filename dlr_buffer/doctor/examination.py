"""Everything in order: what each check is given to look at, and what becomes of one that may not look.

The only module that knows all others. A check that is refused by the kernel, as an ordinary user's are, ends as a note
that says so; one that breaks off ends as an error of its own, and the others go on.
"""

from __future__ import annotations

import asyncio
import grp
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from dlr_buffer import __version__
from dlr_buffer.clock import SystemBootClock
from dlr_buffer.config import (
    AccountSettings,
    ApiSettings,
    Configuration,
    DatabaseSettings,
    LogSettings,
    MessageSettings,
    RetentionSettings,
    survey,
)
from dlr_buffer.doctor import configuration as configuration_checks
from dlr_buffer.doctor import groups, machine, queue, running, sockets, space, units, upstream
from dlr_buffer.doctor.access import Identity, group_name, identity_of, identity_of_uid, members
from dlr_buffer.doctor.findings import Finding, error, note
from dlr_buffer.doctor.running import Answer, Asked, Commands
from dlr_buffer.errors import DlrBufferError
from dlr_buffer.storage.file_systems import file_system
from dlr_buffer.storage.glance import lock_holders

AS_ROOT: Final = "ask as root: sudo dlr-buffer doctor"
_CREDENTIALS: Final = Path("/run/credentials")
"""Where systemd keeps what it hands to a running service, for root to see."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be looked at."""

    config: Path | None = None
    deep: bool = False
    """Whether the queue's pages and rows are looked through."""
    network: bool = True
    """Whether the accounts' servers are connected to."""
    probe: str | None = None
    """The account whose credentials are tried."""


@dataclass(frozen=True, slots=True)
class Section:
    """Findings about one thing, as they are shown together."""

    title: str
    findings: tuple[Finding, ...]


class UnknownAccount(DlrBufferError):
    """A probe was asked for an account that is not configured, or not whole."""


def examine(
    wishes: Wishes, environ: Mapping[str, str], systemctl: units.Systemctl | None = None
) -> Iterator[Section]:
    """Look at everything, section by section; raises UnknownAccount before the first one.

    Changes nothing, and sends nothing upstream but with ``wishes.probe``.
    """
    patient = _Patient(wishes, environ, systemctl or units.Systemctl())
    sections: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("configuration", patient.configuration_section),
        ("users and groups", patient.groups_section),
        ("systemd", patient.units_section),
        ("sockets", patient.sockets_section),
        ("queue", patient.queue_section),
        ("disk space", patient.space_section),
        ("machine", patient.machine_section),
        ("accounts", patient.accounts_section),
    )
    for title, look in sections:
        yield Section(title, tuple(_guarded(title, look)))


def _guarded(title: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except PermissionError as refused:
        place = refused.filename or title
        yield note("hidden", f"{place} may not be looked at by {_viewer().name}", AS_ROOT)
    except (OSError, DlrBufferError) as problem:
        yield error(
            "broken-off", f"looking at {title} broke off: {problem}", "mend what is told here, and ask again"
        )


def _viewer() -> Identity:
    return identity_of_uid(os.geteuid())


class _Patient:
    """The installation that is looked at: its configuration, units and daemon, asked once for all checks."""

    def __init__(self, wishes: Wishes, environ: Mapping[str, str], systemctl: units.Systemctl) -> None:
        self._wishes = wishes
        self._viewer = _viewer()
        self._systemctl = systemctl
        self._units = {name: systemctl.show(name) or {} for name in (units.SERVICE, *units.SOCKETS)}
        self._service = self._units[units.SERVICE]
        self._survey = survey(wishes.config, _with_credentials(environ))
        self._named = wishes.config is not None or bool(environ.get("DLR_BUFFER_CONFIG"))
        self._unit_text = systemctl.text(units.SERVICE)
        self._configuration = self._survey.configuration or Configuration(
            ApiSettings(), DatabaseSettings(), MessageSettings(), RetentionSettings(), LogSettings(), {}
        )
        self._probed = self._account_to_probe()
        api = self._configuration.api
        self._admin = self._ask(api.admin_socket, units.ADMIN_SOCKET, admin=True)
        self._client = self._ask(api.client_socket, units.CLIENT_SOCKET, admin=False)
        self._queue = queue.real_path(self._configuration.database.path)
        self._holders: frozenset[int] | None = None
        with suppress(OSError):
            self._holders = lock_holders(self._queue)
        self._pid = self._find_process()
        self._daemon = self._find_identity()

    # What the checks are given

    def _account_to_probe(self) -> AccountSettings | None:
        name = self._wishes.probe
        if name is None:
            return None
        account = self._configuration.accounts.get(name)
        if account is None:
            known = ", ".join(self._configuration.accounts) or "none that may be read"
            raise UnknownAccount(f"no account is called {name!r} in {self._survey.path} (accounts: {known})")
        wrong = [each for each in self._survey.problems if each.path.startswith(f"accounts.{name}.")]
        if wrong or not (account.url and account.password.reveal()):
            raise UnknownAccount(
                f"the account {name} can't be tried before its configuration is mended: dlr-buffer check-config"
            )
        return account

    def _ask(self, path: Path, unit: str, *, admin: bool) -> Asked:
        idle = self._service.get("ActiveState") in ("inactive", "failed", "deactivating")
        if units.listens(self._units[unit]) and idle:
            return Asked(path, Answer.NOT_ASKED)
        return running.ask(path, admin=admin)

    def _find_process(self) -> int | None:
        """Return the daemon's process, if one is known."""
        if self._admin.status is not None:
            return int(self._admin.status["pid"])
        if self._holders:
            return min(self._holders)
        told = self._service.get("MainPID", "0")
        return int(told) if told.isdigit() and told != "0" else None

    def _find_identity(self) -> Identity | None:
        """Return whom the daemon runs as, or will; None if nothing tells."""
        if self._pid is not None:
            with suppress(OSError):
                return identity_of_uid(Path(f"/proc/{self._pid}").stat().st_uid)
        if units.is_installed(self._service):
            found = identity_of(self._service.get("User") or "root")
            group = self._service.get("Group")
            if found is not None and group:
                with suppress(KeyError):
                    gid = grp.getgrnam(group).gr_gid
                    return replace(found, gid=gid, groups=found.groups | {gid})
            return found
        if (found := identity_of(groups.SERVICE_USER)) is not None and not self._is_private:
            return found
        return self._viewer if self._is_private else None

    @property
    def _is_private(self) -> bool:
        """Whether the configuration was named, and no service is installed: somebody runs a daemon of their own."""
        return self._named and not units.is_installed(self._service)

    @property
    def _commands(self) -> Commands:
        if units.is_installed(self._service) or not self._is_private:
            return Commands()
        start = f"dlr-buffer run --config {shlex.quote(str(self._survey.path))}"
        return Commands(start, f"stop it, and start it again: {start}", "see what it wrote on standard error")

    @property
    def _alive(self) -> bool:
        answering = (Answer.WELL, Answer.UNHEALTHY)
        return bool(self._holders) or self._admin.answer in answering or self._client.answer in answering

    # The checks, in the order in which they are shown

    def configuration_section(self) -> Iterator[Finding]:
        yield from configuration_checks.configuration_findings(
            self._survey, viewer=self._viewer, granted=units.granted_keys(self._unit_text)
        )
        complained = {each.path for each in self._survey.problems}
        # What the configuration says of a file is not said twice, and one that several accounts name is looked at once.
        files = {} if str(self._survey.path) in complained else {self._survey.path: True}
        for key, path in self._survey.files.items():
            if key not in complained:
                files[path] = not key.endswith(configuration_checks.PUBLIC_KEYS)
        for path, secret in files.items():
            look = partial(configuration_checks.file_findings, path, daemon=self._daemon, secret=secret)
            yield from _guarded(str(path), look)
        # Those that systemd reads, as root; and what lies about, such as one that was put away encrypted.
        others = (
            *units.credential_files(self._unit_text),
            *sorted(self._survey.path.parent.glob("*.password")),
        )
        for path in dict.fromkeys(others):
            if path not in self._survey.files.values():
                yield from _guarded(str(path), partial(configuration_checks.file_findings, path, daemon=None))

    def groups_section(self) -> Iterator[Finding]:
        installed = units.is_installed(self._service)
        user = self._service.get("User") or groups.SERVICE_USER
        yield groups.user_finding(user, needed=installed)
        if self._daemon is not None and self._daemon.uid != 0:
            own = group_name(self._daemon.gid)
            reading = configuration_checks.secret_readers_finding(own, members(own), self._daemon)
            if reading is not None and not self._is_private:
                yield reading
        if self._is_private:
            return
        used = self._socket_groups()
        for name in dict.fromkeys((groups.CLIENT_GROUP, groups.ADMIN_GROUP, *used)):
            yield from groups.group_findings(name, daemon=self._daemon, used=name in used)

    def _socket_groups(self) -> tuple[str, ...]:
        """Return the groups that sockets are given to, but for the daemon's own."""
        api = self._configuration.api
        found = []
        for unit, gid in ((units.CLIENT_SOCKET, api.client_group), (units.ADMIN_SOCKET, api.admin_group)):
            if units.listens(self._units[unit]):
                found.append(self._units[unit].get("SocketGroup") or "root")
            elif gid is not None:
                with suppress(KeyError):
                    found.append(grp.getgrgid(gid).gr_name)
        own = None if self._daemon is None else group_name(self._daemon.gid)
        return tuple(name for name in dict.fromkeys(found) if name not in ("root", own))

    def units_section(self) -> Iterator[Finding]:
        if not self._systemctl.present:
            yield note("unit", "systemd does not run here: the daemon is started by something else")
            return
        yield from units.service_findings(self._service)
        there = {name: self._units[name] for name in units.SOCKETS}
        yield from units.socket_unit_findings(there, running=self._service.get("ActiveState") == "active")
        yield from units.difference_findings(self._units, units.shipped_units())

    def sockets_section(self) -> Iterator[Finding]:
        api = self._configuration.api
        for name, unit, asked, mode, gid in (
            ("client", units.CLIENT_SOCKET, self._client, api.client_mode, api.client_group),
            ("admin", units.ADMIN_SOCKET, self._admin, api.admin_mode, api.admin_group),
        ):
            if units.listens(self._units[unit]):
                if (elsewhere := sockets.unit_path_finding(unit, asked.path, self._units[unit])) is not None:
                    yield elsewhere
                wanted = sockets.wanted_by_unit(unit, asked.path, self._units[unit])
            else:
                wanted = sockets.wanted_by_configuration(name, asked.path, mode, gid, self._daemon)
            yield from _guarded(str(asked.path), partial(sockets.socket_findings, wanted))
            yield from running.answer_findings(name, asked, alive=self._alive, commands=self._commands)
        version = running.version_finding(
            self._admin.version or self._client.version, __version__, self._commands
        )
        if version is not None:
            yield version
        if self._admin.status is not None:
            yield from running.alarm_findings(self._admin.status)

    def queue_section(self) -> Iterator[Finding]:
        path = self._queue
        made = units.makes_folder(self._service, path.parent)
        yield from queue.owner_findings(path, self._daemon, made_at_start=made)
        if not path.parent.is_dir():
            return
        yield queue.file_system_finding(path.parent, file_system(path.parent))
        yield from queue.file_findings(path)
        if not path.exists():
            return
        status = self._admin.status
        yield from queue.lock_findings(
            path, lock_holders(path), daemon_pid=None if status is None else int(status["pid"])
        )
        if (log := queue.log_finding(path, held=self._alive)) is not None:
            yield log
        if self._wishes.deep:
            yield from queue.rows_findings(path)

    def space_section(self) -> Iterator[Finding]:
        folder = self._queue.parent
        if not folder.is_dir():
            return
        status = self._admin.status
        growth = None if status is None else space.growth_of(status, self._configuration)
        yield from space.space_findings(
            folder, space.free_bytes(folder), self._configuration.database.min_free_bytes, growth
        )

    def machine_section(self) -> Iterator[Finding]:
        yield from machine.clock_findings(SystemBootClock(), self._admin.status, self._commands)
        yield machine.sqlite_finding()
        yield from machine.python_findings()
        yield from self._open_files()

    def _open_files(self) -> Iterator[Finding]:
        if self._pid is not None:
            limit, in_use = machine.open_files_limit(self._pid), None
            with suppress(PermissionError):
                in_use = machine.open_files(self._pid)
            yield from machine.open_files_findings(limit, self._configuration, in_use=in_use)
            return
        told = self._service.get("LimitNOFILE", "")
        if told.isdigit() or told == "infinity":
            limit = int(told) if told.isdigit() else None
            yield from machine.open_files_findings(limit, self._configuration)

    def accounts_section(self) -> Iterator[Finding]:
        accounts = [each for each in self._configuration.accounts.values() if each.url]
        if not accounts:
            yield note(
                "upstream", f"no account can be read from {self._survey.path}, so no server is looked at"
            )
        elif not self._wishes.network:
            yield upstream.left_out_finding(accounts)
        else:
            for findings in asyncio.run(upstream.reach_all(accounts, SystemBootClock().now_ms())):
                yield from findings
        if self._probed is not None:
            yield asyncio.run(upstream.probe(self._probed))


def _with_credentials(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Let root see the passwords that systemd handed to the running service."""
    folder = _CREDENTIALS / units.SERVICE
    with suppress(OSError):
        if "CREDENTIALS_DIRECTORY" not in environ and folder.is_dir():
            return {**environ, "CREDENTIALS_DIRECTORY": str(folder)}
    return environ
