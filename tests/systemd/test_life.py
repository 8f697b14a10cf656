"""The service's life under a real systemd: restarts and reloads under load, a watchdog that bites, and its hardening.

One machine is booted for the whole file; the apps are threads of this process, on the machine's sockets.
"""

from __future__ import annotations

import http.client
import itertools
import json
import select
import shlex
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dlr_buffer import clock
from dlr_buffer.client import Client
from dlr_buffer.logs import Event
from dlr_buffer.simulator import SimulatorSettings
from tests.acceptance.harness import StandIn
from tests.documents import ROOT
from tests.extent import LONG
from tests.systemd.machine import Machine, eventually, unfit
from tests.systemd.quick import CONFIG, PASSWORD, SOCKETS, UNIT, drop_in, install, unlike
from tests.systemd.stalling import STALLS

pytestmark = pytest.mark.timeout(300)

CLIENTS = 16
ROUNDS = 20
CALLS_BETWEEN = 2
"""So often each app has called between two restarts, so that it is in the middle of its work at each."""
EXPOSURE = 1.2
STALLING = """\
[Service]
ExecStart=
ExecStart=/opt/dlr-buffer/venv/bin/python -m tests.systemd.stalling run
WatchdogSec=2
RestartSec=0
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine on which the service runs."""
    if reason := unfit(tmp_path_factory.mktemp("probe")) or unlike():
        pytest.skip(reason)
    stand_in = StandIn(SimulatorSettings(login="supplier", password=PASSWORD))
    with stand_in, Machine(tmp_path_factory.mktemp("machine")) as machine:
        install(machine, stand_in.url)
        machine.ask("systemctl", "enable", "--now", UNIT)
        yield machine


class Apps:
    """Threads that register and report until they are told to stop, each in its own way."""

    def __init__(self, client_socket: Path) -> None:
        """Start nothing yet."""
        self._path = client_socket
        self._changed = threading.Condition()
        self._calls: Counter[int] = Counter()
        self._stop = False
        self.failures: list[str] = []
        self.registered: set[str] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run them; on leaving they stop after the call that they are in."""
        ways = (self._with_our_client, self._one_connection_a_request, self._keeping_a_connection)
        threads = [
            threading.Thread(target=self._guarded, args=(ways[number % len(ways)], number), daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            self.wait()
            yield
            self.wait()
        finally:
            self._stop = True
            for thread in threads:
                thread.join(60)
        assert not any(thread.is_alive() for thread in threads)

    def wait(self) -> None:
        """Return once each has called again a few times, or one has failed."""
        with self._changed:
            aims = {number: self._calls[number] + CALLS_BETWEEN for number in range(CLIENTS)}
            assert self._changed.wait_for(
                lambda: self.failures or all(self._calls[number] >= aim for number, aim in aims.items()), 60
            )

    def _guarded(self, way: Callable[[int], None], number: int) -> None:
        try:
            way(number)
        except Exception as error:  # noqa: BLE001 - told by the test
            with self._changed:
                self.failures.append(f"{way.__name__}: {error!r}")
                self._changed.notify_all()

    def _called(self, number: int, message_id: str) -> None:
        with self._changed:
            self.registered.add(message_id)
            self._calls[number] += 1
            self._changed.notify_all()

    def _ids(self, number: int) -> Iterator[str]:
        for count in itertools.count():
            if self._stop:
                return
            yield f"{id(self)}-{number}-{count}"

    def _with_our_client(self, number: int) -> None:
        """An app with our own client."""
        with Client(self._path) as client:
            for message_id in self._ids(number):
                client.register(message_id)
                client.report(message_id, "delivered")
                self._called(number, message_id)

    def _one_connection_a_request(self, number: int) -> None:
        """An app that does as curl does, and repeats nothing."""
        for message_id in self._ids(number):
            connection = _Connection(self._path)
            _register(connection, message_id)
            connection.close()
            self._called(number, message_id)

    def _keeping_a_connection(self, number: int) -> None:
        """An app that keeps its connection as HTTP libraries do, and repeats nothing that was sent.

        It makes another one if told to, or if it finds it closed.
        """
        connection = _Connection(self._path)
        for message_id in self._ids(number):
            if connection.sock is not None and connection.was_closed():
                connection.close()
            try:
                _register(connection, message_id)
            except BrokenPipeError:  # nothing of it could be sent
                connection.close()
                _register(connection, message_id)
            self._called(number, message_id)
        connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)

    def was_closed(self) -> bool:
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)


def _register(connection: _Connection, message_id: str) -> None:
    connection.request("POST", "/v1/messages", json.dumps({"message_id": message_id}))
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 201, answer.status


@pytest.fixture
def apps(machine: Machine) -> Apps:
    """Apps that are not started yet."""
    machine.ask("systemctl", "start", UNIT)
    return Apps(machine.root / "run/dlr-buffer/client.sock")


def waiting_or_final(machine: Machine) -> set[str]:
    """All messages of the queue."""
    lines = machine.ask("dlr-buffer", "--json", "list", "messages", "--limit", "0").splitlines()
    return {json.loads(line)["message_id"] for line in lines}


def test_no_call_fails_over_restarts(machine: Machine, apps: Apps) -> None:
    """While sixteen apps call, the daemon is restarted twenty times: each call of each is answered, nothing is lost."""
    pids = [machine.facts(UNIT, "MainPID")["MainPID"]]
    with apps.running():
        for _ in range(ROUNDS):
            machine.ask("systemctl", "restart", UNIT)
            pids.append(machine.facts(UNIT, "MainPID")["MainPID"])
            apps.wait()
            assert not apps.failures
    assert not apps.failures
    assert len(set(pids)) == ROUNDS + 1
    assert machine.facts(UNIT, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}
    assert apps.registered <= waiting_or_final(machine)


def test_no_call_fails_over_reloads(machine: Machine, apps: Apps) -> None:
    """As over restarts, but for reloads, which the same process goes through."""
    before = machine.facts(UNIT, "MainPID", "NRestarts")
    with apps.running():
        for _ in range(ROUNDS):
            machine.ask("systemctl", "reload", UNIT)
            apps.wait()
            assert not apps.failures
    assert not apps.failures
    assert machine.facts(UNIT, "MainPID", "NRestarts") == before
    status = json.loads(machine.ask("dlr-buffer", "--json", "status").splitlines()[0])
    assert status["configuration"]["reloads"] == ROUNDS
    assert apps.registered <= waiting_or_final(machine)


@contextmanager
def edited(machine: Machine, change: str) -> Iterator[None]:
    """The configuration as ``sed`` changes it, which holds with the next restart or reload; at the end as it was."""
    machine.ask("cp", CONFIG, "/root/config.toml")
    machine.ask("sed", "-i", change, CONFIG)
    try:
        yield
    finally:
        machine.ask("cp", "--no-preserve=ownership,mode", "/root/config.toml", CONFIG)


def test_a_reload_waits_and_tells_what_is_wrong(machine: Machine) -> None:
    """`systemctl reload` fails with what is wrong, which then is an alarm, until one succeeds; the daemon goes on."""
    with edited(machine, "1i nonsense = 1"):
        assert machine.run("systemctl", "reload", UNIT).returncode != 0
        said = machine.ask("journalctl", "--no-pager", "--output=cat", "--lines=20", "--unit", UNIT)
        assert "the configuration before holds: nonsense" in said
        assert "the last reload failed" in machine.ask("dlr-buffer", "status")
        assert machine.facts(UNIT, "ActiveState") == {"ActiveState": "active"}
    machine.ask("systemctl", "reload", UNIT)
    assert "the last reload failed" not in machine.ask("dlr-buffer", "status")


def test_a_start_that_fails_is_told_as_such(machine: Machine) -> None:
    """A configuration with an error: the journal has it by priority and by kind, as it has what fails later."""
    try:
        with edited(machine, "1i nonsense = 1"):
            assert machine.run("systemctl", "restart", UNIT).returncode != 0
        kind = f"MESSAGE_ID={Event.START_FAILED.message_id}"
        said = machine.ask(
            "journalctl", "--no-pager", "--output=cat", "--priority=crit", "--unit", UNIT, kind
        )
        assert "the daemon could not start: the configuration cannot be used" in said
        assert "nonsense" in said
    finally:
        machine.ask("systemctl", "restart", UNIT)


def test_an_allow_list_lets_a_reload_through(machine: Machine) -> None:
    """Where `admin_allow` names one admin, `systemctl reload` still works, and can take the list back."""
    try:
        with edited(machine, r"1i [api]\nadmin_allow = [4711]"):
            machine.ask("systemctl", "reload", UNIT)
            machine.ask("systemctl", "reload", UNIT)
    finally:
        machine.ask("systemctl", "reload", UNIT)


@pytest.mark.parametrize(
    "given",
    [
        "LoadCredential=default.password:/etc/dlr-buffer/default.password",
        f"SetCredential=default.password:{PASSWORD}",
        "LoadCredentialEncrypted=default.password:/root/encrypted",
    ],
    ids=lambda given: given.partition("=")[0],
)
def test_a_password_may_be_a_credential_of_systemd(machine: Machine, given: str) -> None:
    """However systemd is given the password, receipts are acknowledged with it, after a reload too."""
    name = given.partition("=")[0]
    if name == "LoadCredentialEncrypted":
        machine.ask(
            *("systemd-creds", "encrypt", "--with-key=host", "--name=default.password"),
            *("/etc/dlr-buffer/default.password", "/root/encrypted"),
        )
    drop_in(machine, UNIT, "credential", f"[Service]\n{given}\n")
    try:
        with edited(machine, "/^password_file/d"):
            for act in ("restart", "reload"):
                machine.ask("systemctl", act, UNIT)
                message_id = f"{name}-{act}"
                machine.ask("dlr-buffer", "register", message_id)
                machine.ask("dlr-buffer", "report", message_id, "delivered")
                eventually(partial(acknowledged, machine, message_id))
    finally:
        drop_in(machine, UNIT, "credential", None)
        machine.ask("systemctl", "restart", UNIT)


def acknowledged(machine: Machine, message_id: str) -> bool:
    """Whether Smartswitch has acknowledged a message's receipt."""
    shown = json.loads(machine.ask("dlr-buffer", "--json", "show", message_id))
    return [receipt["status"] for receipt in shown["receipts"]] == ["acknowledged"]


@pytest.mark.parametrize(
    "hasty", [False, True] if LONG else [False], ids=lambda hasty: "does not ask" if hasty else "asks"
)
def test_a_long_migration_is_waited_for(machine: Machine, *, hasty: bool) -> None:
    """A queue that takes longer to open than a start may take: systemd waits, because it is asked to."""
    starting = "ExecStart=\nExecStart=/opt/dlr-buffer/venv/bin/python -m tests.systemd.opening run\n"
    environment = "Environment=PYTHONPATH=/share/project" + (" HASTY=1" if hasty else "")
    drop_in(
        machine,
        UNIT,
        "opening",
        f"[Service]\n{starting}TimeoutStartSec=5\nRestart=no\n{environment}\n",
    )
    try:
        ready = machine.run("systemctl", "restart", UNIT).returncode == 0
        assert ready is not hasty
        result = machine.facts(UNIT, "ActiveState", "Result")
        assert result == (
            {"ActiveState": "failed", "Result": "timeout"}
            if hasty
            else {"ActiveState": "active", "Result": "success"}
        )
    finally:
        drop_in(machine, UNIT, "opening", None)
        machine.ask("systemctl", "reset-failed", UNIT)
        machine.ask("systemctl", "restart", UNIT)


@pytest.mark.parametrize("part", STALLS)
def test_a_part_that_stalls_is_restarted(machine: Machine, part: str) -> None:
    """Whichever part stops getting on: the log names it, systemd's watchdog ends the daemon, and a new one serves."""
    drop_in(machine, UNIT, "stalling", STALLING + "Environment=PYTHONPATH=/share/project\n")
    try:
        machine.ask("systemctl", "restart", UNIT)
        before = machine.facts(UNIT, "MainPID", "NRestarts")
        machine.ask("bash", "-c", f"printf %s '{part}' >/run/dlr-buffer/stall")
        machine.ask("systemctl", "kill", "--signal=USR1", UNIT)
        eventually(lambda: machine.facts(UNIT, "NRestarts")["NRestarts"] != before["NRestarts"])
        eventually(lambda: machine.facts(UNIT, "ActiveState") == {"ActiveState": "active"})
        assert machine.facts(UNIT, "MainPID")["MainPID"] != before["MainPID"]
        pid = f"_PID={before['MainPID']}"
        said = machine.ask("journalctl", "--no-pager", "--output=cat", "--priority=crit", pid)
        assert f"{part} has not got on" in said
        assert "Watchdog timeout" in machine.ask("journalctl", "--no-pager", "--unit", UNIT, "--lines=50")
        machine.ask("dlr-buffer", "status")
    finally:
        drop_in(machine, UNIT, "stalling", None)
        machine.ask("rm", "-f", "/run/dlr-buffer/stall")
        machine.ask("systemctl", "restart", UNIT)


def test_the_exposure_is_low(machine: Machine) -> None:
    """What the daemon could do if it were taken over is rated as little by systemd, and the daemon runs like that."""
    said = machine.ask("systemd-analyze", "security", UNIT, "--no-pager")
    assert float(said.rpartition("exposure level for ")[2].split()[1]) <= EXPOSURE
    machine.ask("dlr-buffer", "status")


def test_the_clock_can_be_asked_about(machine: Machine) -> None:
    """Kept from the system call that could set the clock too, the daemon can ask systemd whether it is synchronised."""
    if machine.run("systemctl", "is-active", "dbus.service").returncode:
        pytest.skip("no message bus on this machine (Debian: apt install dbus)")
    asking = f"ExecStartPre={shlex.join(clock.TIMEDATECTL)}"
    drop_in(machine, UNIT, "asking", f"[Service]\n{asking}\n")
    try:
        machine.ask("systemctl", "restart", UNIT)
        said = machine.ask("journalctl", "--no-pager", "--output=cat", "--unit", UNIT, "_COMM=timedatectl")
        assert said in ("yes", "no")
    finally:
        drop_in(machine, UNIT, "asking", None)
        machine.ask("systemctl", "restart", UNIT)


def test_socket_units_alone_start_the_daemon(machine: Machine) -> None:
    """An app that connects while only the socket units run is answered by a daemon that starts for it."""
    machine.ask("systemctl", "stop", UNIT)
    machine.ask("systemctl", "start", *SOCKETS)
    assert machine.facts(UNIT, "ActiveState") == {"ActiveState": "inactive"}
    machine.ask("dlr-buffer", "register", "starts-the-daemon")
    assert machine.facts(UNIT, "ActiveState") == {"ActiveState": "active"}


def test_a_stop_means_it(machine: Machine) -> None:
    """`systemctl stop` of the daemon stops its socket units too: no app that connects starts it again."""
    machine.ask("systemctl", "stop", UNIT)
    eventually(
        lambda: all(machine.facts(each, "ActiveState")["ActiveState"] == "inactive" for each in SOCKETS)
    )
    assert machine.run("dlr-buffer", "status").returncode == 69
    assert machine.facts(UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    machine.ask("systemctl", "start", UNIT)
    machine.ask("dlr-buffer", "status")


@pytest.mark.parametrize("masked", [SOCKETS, SOCKETS[:1]], ids=["none", "only one"])
def test_without_socket_units(machine: Machine, masked: tuple[str, ...]) -> None:
    """What no unit makes the daemon makes itself, with the modes and groups of its configuration."""
    machine.ask("systemctl", "stop", UNIT)
    drop_in(machine, UNIT, "without", (ROOT / "systemd/examples/without-socket-units.conf").read_text())
    try:
        with edited(machine, r'1i [api]\nclient_group = "dlr-buffer-client"\nclient_mode = "0660"'):
            for unit in masked:
                machine.ask("mv", f"/etc/systemd/system/{unit}", f"/root/{unit}")
                machine.ask("systemctl", "mask", unit)
            machine.ask("systemctl", "start", UNIT)
            machine.ask("dlr-buffer", "register", f"without-{len(masked)}")
            machine.ask("dlr-buffer", "status")
            said = machine.ask(
                "stat", "--format=%n %a %U %G", "/run/dlr-buffer/client.sock", "/run/dlr-buffer/admin.sock"
            )
            admin = "600 dlr-buffer dlr-buffer" if len(masked) == 2 else "660 root dlr-buffer-admin"
            assert said.splitlines() == [
                "/run/dlr-buffer/client.sock 660 dlr-buffer dlr-buffer-client",
                f"/run/dlr-buffer/admin.sock {admin}",
            ]
    finally:
        machine.ask("systemctl", "stop", UNIT)
        for unit in masked:
            machine.ask("systemctl", "unmask", unit)
            machine.ask("mv", f"/root/{unit}", f"/etc/systemd/system/{unit}")
        drop_in(machine, UNIT, "without", None)
        machine.ask("systemctl", "start", UNIT)
