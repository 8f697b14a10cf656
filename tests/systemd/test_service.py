"""The service under a real systemd: every command that the documents print, and what the unit promises.

One machine is booted for the whole file. On it the sections of `tests.documents.ON_A_MACHINE` are run as printed, line
by line: what begins with ``sudo`` as root, all else as the user of an app. The further tests look at what came of it.
The stand-in for Smartswitch runs in the machine too, and takes the place of the https address.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import copy_project
from tests.documents import AT_THE_END, ON_A_MACHINE, RUN_LANGUAGES, Block, Section, blocks_of
from tests.systemd.machine import PYTHON, Machine, eventually, unfit

pytestmark = pytest.mark.timeout(300)  # whichever test comes first boots the machine and installs

APP = "my-app"
"""The app of docs/operations.md, which joins the apps' group there."""
ADMIN = "ada"
"""The admin of docs/operations.md, who joins the admins' group there and is not root."""
STRANGER = "stranger"
"""A user of the machine who has nothing to do with the service."""
PASSWORD = "correct-horse-battery"
UPSTREAM = "https://smartswitch.example.com/api/dlr"
VENV = "/opt/dlr-buffer/venv"
"""Leads to the environment in use; the others lie beside it."""
SERVICE_PYTHON = f"{VENV}/bin/python"
ETC = "/etc/dlr-buffer"
UNIT = "dlr-buffer.service"
SOCKET_UNIT = "/usr/local/lib/systemd/system/dlr-buffer-client.socket"
UNITS = "/usr/local/lib/systemd/system"
STEPS = [
    (block, step)
    for section in ON_A_MACHINE
    for block in blocks_of(section)
    if block.language in RUN_LANGUAGES
    for step in (block.commands if block.language == "sh" else [block.text])
]
"""Each command, and each block that is no list of commands, in the order in which they are run."""
UNINSTALL, PURGE = [
    command for section in AT_THE_END for block in blocks_of(section) for command in block.commands
]

# Stands for the admin: keeps a copy of what was there before, then writes what the share has under the file's name.
EDITOR = """\
#!/bin/sh
set -eu
name=$(basename "$1")
cp "$1" "/share/before/$name.$(ls /share/before | wc -l)"
cat "/share/edited/$name" >"$1"
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """How one step ended."""

    code: int
    output: str


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine that has the project, an app's user and an admin's editor, and nothing of the service."""
    if reason := unfit(tmp_path_factory.mktemp("probe")):
        pytest.skip(reason)
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        project = copy_project(machine.share / "project")
        for name in ("edited", "before"):
            (machine.share / name).mkdir()
        config = (project / "config/config.toml").read_text()
        assert UPSTREAM in config
        url = f"http://127.0.0.1:{_free_port()}/api/dlr"
        (machine.share / "edited/config.toml").write_text(config.replace(UPSTREAM, url))
        (machine.share / "edited/default.password").write_text(PASSWORD + "\n")
        editor = machine.share / "editor"
        editor.write_text(EDITOR)
        machine.ask("chmod", "--recursive", "a+rX", "/share")
        machine.ask("install", "-m", "0755", "/share/editor", "/usr/local/bin/editor")
        for user in (APP, ADMIN, STRANGER):
            machine.ask("useradd", "--system", "--user-group", "--shell", "/usr/sbin/nologin", user)
        yield machine


@pytest.fixture(scope="module")
def tried(machine: Machine) -> list[Tried]:
    """Run every step of the documents, in order; how each ended is judged by the tests."""
    results = []
    entered: set[Section] = set()
    # The stand-in is part of the program, so it can only be started once that is installed.
    installed = blocks_of(ON_A_MACHINE[0])[-1].commands[-1]
    for block, step in STEPS:
        if block.section == Section("docs/operations.md", "Steer"):
            _leave_something_to_steer(machine)
        if block.section not in entered:
            entered.add(block.section)
            _before(machine, block.section)
        results.append(_try(machine, block, step))
        if step == installed:
            _start_stand_in(machine)
            installed = ""
    return results


@pytest.fixture
def service(machine: Machine, tried: list[Tried]) -> Machine:
    """The machine, with the service installed and running."""
    machine.ask("systemctl", "start", UNIT)
    return machine


@pytest.mark.parametrize(
    "number", range(len(STEPS)), ids=[f"{block.section}: {step.splitlines()[0]}" for block, step in STEPS]
)
def test_a_printed_command_works(tried: list[Tried], number: int) -> None:
    """Each command of the documents exits with 0 on a fresh machine, run in the documents' order."""
    assert tried[number].code == 0, tried[number].output


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("sudo make install", "writing /etc/dlr-buffer/config.toml"),
        ("sudo dlr-buffer check-config", 'password = "***"'),
        ("sudo dlr-buffer show 1561370632513", "delivered"),
        ("sudo dlr-buffer pause default", "paused"),
        (
            "sudo curl --silent --unix-socket /run/dlr-buffer/admin.sock http://localhost/metrics",
            "dlr_buffer_receipts{",
        ),
        ("systemctl status dlr-buffer", "active (running)"),
        ("sudo dlr-buffer doctor", "the daemon answers at the admin socket"),
        ("sudo dlr-buffer doctor --no-network --deep", "nothing is wrong"),
        ("sudo dlr-buffer hold --account default --state unknown --dry-run", "1 receipt would be held"),
        ("sudo dlr-buffer hold --account default --state unknown --yes", "1 receipt held"),
        ("sudo dlr-buffer release --status held --yes", "1 receipt released"),
    ],
)
def test_a_printed_command_does_what_is_said(tried: list[Tried], step: str, said: str) -> None:
    """Beyond the exit code: commands whose effect the documents name have it."""
    outputs = [done.output for (_, printed), done in zip(STEPS, tried, strict=True) if printed == step]
    assert outputs, f"the documents do not print {step!r} any longer"
    assert said in outputs[0]


def test_all_that_the_documents_reported_reached_smartswitch(service: Machine) -> None:
    """What the examples reported is acknowledged, one receipt for each state, over all restarts on the way."""
    eventually(lambda: _account(service)["receipts"]["pending"] == 0)
    receipts = _rows(service, "receipts")
    states = {(row["message_id"], row["message_state"]): row["status"] for row in receipts}
    assert states[("1561370632513", "delivered")] == "acknowledged"
    assert states[("1561370632514", "delivered")] == "acknowledged"
    assert states[("to-be-steered", "unknown")] == "acknowledged"
    assert len(states) == len(receipts)


def test_a_queue_that_was_moved_is_whole(service: Machine) -> None:
    """On the new host there is every message and receipt that the old one had, and no request_id is used twice."""
    messages, receipts = json.loads((service.share / "moved.json").read_text())
    assert receipts
    now = {row["request_id"]: row["message_id"] for row in _rows(service, "receipts")}
    assert now.items() >= {row["request_id"]: row["message_id"] for row in receipts}.items()
    assert {row["message_id"] for row in _rows(service, "messages")} >= {
        row["message_id"] for row in messages
    }
    service.ask("dlr-buffer", "report", "came-after-the-move", "delivered")
    (new,) = (row for row in _rows(service, "receipts") if row["message_id"] == "came-after-the-move")
    assert int(new["request_id"]) > max(int(row["request_id"]) for row in receipts)


def test_the_unit_verifies(service: Machine) -> None:
    """No complaint comes from systemd about the unit as it is installed."""
    done = service.run("systemd-analyze", "verify", f"{UNITS}/{UNIT}")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_daemon_says_that_it_is_ready(service: Machine) -> None:
    """The unit is of the type that waits for READY, and is active; the daemon runs as its own user, never restarted."""
    facts = service.facts(UNIT, "Type", "ActiveState", "SubState", "MainPID", "NRestarts", "UnitFileState")
    pid = facts.pop("MainPID")
    assert facts == {
        "Type": "notify",
        "ActiveState": "active",
        "SubState": "running",
        "NRestarts": "0",
        "UnitFileState": "enabled",
    }
    assert service.ask("ps", "-o", "user:20=,group:20=", "-p", pid).split() == ["dlr-buffer", "dlr-buffer"]


def test_files_and_sockets_have_the_promised_owners(service: Machine) -> None:
    """Secrets are root's and the service's, the client socket is the apps' group's, the other the admins' group's."""
    said = service.ask(
        *("stat", "--format=%n %a %U %G"),
        *(
            f"{ETC}/config.toml",
            "/run/dlr-buffer/client.sock",
            "/run/dlr-buffer/admin.sock",
            "/var/lib/dlr-buffer",
        ),
    )
    assert said.splitlines() == [
        f"{ETC}/config.toml 640 root dlr-buffer",
        "/run/dlr-buffer/client.sock 660 root dlr-buffer-client",
        "/run/dlr-buffer/admin.sock 660 root dlr-buffer-admin",
        "/var/lib/dlr-buffer 700 dlr-buffer dlr-buffer",
    ]


@pytest.mark.parametrize(
    ("user", "name", "code"),
    [
        (APP, "client", 0),
        (APP, "admin", 7),
        (ADMIN, "client", 7),
        (ADMIN, "admin", 0),
        (STRANGER, "client", 7),
        (STRANGER, "admin", 7),
    ],
)
def test_who_may_connect(service: Machine, user: str, name: str, code: int) -> None:
    """Apps in their group reach the client socket, admins in theirs the admin socket, others neither (curl's 7)."""
    done = service.run(
        *(
            "curl",
            "--silent",
            "--fail",
            "--unix-socket",
            f"/run/dlr-buffer/{name}.sock",
            "http://localhost/healthz",
        ),
        user=user,
    )
    assert done.returncode == code, done.stdout


def test_an_admin_need_not_read_the_configuration(service: Machine) -> None:
    """For a member of the admins' group `status` works without a word about the file with login and password."""
    assert service.run("cat", f"{ETC}/config.toml", user=ADMIN).returncode != 0
    done = service.run("dlr-buffer", "status", user=ADMIN)
    assert done.returncode == 0, done.stdout
    assert "config.toml" not in done.stdout
    named = service.run("dlr-buffer", "--config", f"{ETC}/config.toml", "status", user=ADMIN)
    assert named.returncode == 1
    assert "cannot be read" in named.stdout


def test_reload_is_told_to_systemd(service: Machine) -> None:
    """A reload keeps the process, and is announced with RELOADING and ended with READY."""
    before = service.facts(UNIT, "MainPID", "NRestarts")
    cursor = _journal_cursor(service)
    service.ask("systemctl", "log-level", "debug")
    try:
        service.ask("systemctl", "reload", UNIT)
        eventually(lambda: "READY=1" in _notifications(service, cursor))
    finally:
        service.ask("systemctl", "log-level", "info")
    assert _notifications(service, cursor) == ["RELOADING=1", "READY=1"]
    assert service.facts(UNIT, "MainPID", "NRestarts") == before
    eventually(lambda: service.facts(UNIT, "ActiveState") == {"ActiveState": "active"})


def test_a_restart_keeps_the_queue(service: Machine) -> None:
    """Messages that wait for their state, and all receipts, are there after `systemctl restart`."""
    service.ask("dlr-buffer", "register", "waits-over-a-restart")
    eventually(lambda: _account(service)["receipts"]["pending"] == 0)
    before = _rows(service, "messages"), _rows(service, "receipts")
    assert "waits-over-a-restart" in {row["message_id"] for row in before[0]}
    pid = service.facts(UNIT, "MainPID")
    service.ask("systemctl", "restart", UNIT)
    assert service.facts(UNIT, "MainPID") != pid
    assert (_rows(service, "messages"), _rows(service, "receipts")) == before


def test_the_journal_has_fields(service: Machine) -> None:
    """What an admin does is one entry with priority, kind and facts, sent by the journal's own protocol."""
    service.ask("dlr-buffer", "pause", "default")
    service.ask("dlr-buffer", "resume", "default")
    eventually(lambda: len(_entries(service, "ACTION=resume account")) > 0)
    entry = _entries(service, "ACTION=pause account")[-1]
    assert entry["_TRANSPORT"] == "journal"
    assert entry["_SYSTEMD_UNIT"] == UNIT
    assert entry["PRIORITY"] == "5"
    assert entry["MESSAGE_ID"] == "a6dca8a2c97c4fd29ca131a2b3885a7a"
    assert (entry["ACCOUNT"], entry["PEER_UID"], entry["PEER_USER"]) == ("default", "0", "root")
    assert entry["PEER_PID"].isdigit()
    # The unit hides other processes, so this is what the command line says of itself.
    assert re.fullmatch(r"dlr-buffer/[0-9].*", entry["PEER_PROGRAM"])
    assert entry["MESSAGE"].startswith("root (uid 0, process ")
    assert entry["MESSAGE"].endswith(": pause account (default)")
    assert entry["CODE_FILE"].endswith("/local_api/audit.py")


def test_priorities_can_be_asked_for(service: Machine) -> None:
    """`--priority warning` has what somebody should look at, and nothing of the daemon's ordinary life."""
    service.ask("sed", "-i.before", 's/^min_free = .*/min_free = "1024GiB"/', f"{ETC}/config.toml")
    try:
        service.ask("systemctl", "restart", UNIT)
        eventually(lambda: len(_entries(service, "MESSAGE_ID=168ffc04ec194203957c1eb094dda136")) > 0)
    finally:
        service.ask("mv", f"{ETC}/config.toml.before", f"{ETC}/config.toml")
        service.ask("systemctl", "restart", UNIT)
    warned = _entries(service, "--priority=warning", f"_SYSTEMD_UNIT={UNIT}")
    assert any(entry["MESSAGE"].startswith("registration stops: ") for entry in warned)
    assert {entry["PRIORITY"] for entry in warned} <= {"2", "3", "4"}
    assert not any("serves" in entry["MESSAGE"] for entry in warned)
    lived = _entries(service, "MESSAGE_ID=539995bb889e4c4386e30e4872725d43")
    assert {entry["PRIORITY"] for entry in lived} == {"6"}


def test_a_killed_daemon_is_started_again(service: Machine) -> None:
    """After SIGKILL systemd starts it anew, on the same queue."""
    service.ask("dlr-buffer", "register", "waits-over-a-kill")
    pid = service.facts(UNIT, "MainPID")
    service.ask("systemctl", "kill", "--signal=KILL", UNIT)
    eventually(
        lambda: service.facts(UNIT, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
    )
    assert service.facts(UNIT, "MainPID") != pid
    assert "waits-over-a-kill" in {row["message_id"] for row in _rows(service, "messages")}


def test_a_stop_is_clean(service: Machine) -> None:
    """`systemctl stop` ends the daemon with exit code 0, and takes the sockets away."""
    service.ask("systemctl", "stop", UNIT)
    facts = service.facts(UNIT, "ActiveState", "Result", "ExecMainCode", "ExecMainStatus")
    assert facts == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainCode": "1",
        "ExecMainStatus": "0",
    }
    eventually(lambda: service.run("ls", "-A", "/run/dlr-buffer").stdout == "")
    done = service.run("dlr-buffer", "status")
    assert done.returncode == 69
    assert "systemctl status dlr-buffer" in done.stdout


def test_metrics_that_can_not_be_had_leave_the_last_ones(service: Machine) -> None:
    """With the daemon stopped the printed command fails, and the file for Prometheus stays as it was, its time too.

    Whatever it writes is in that folder, so that the file is exchanged at once, and is not collected before.
    """
    (command,) = {step for _, step in STEPS if "/metrics" in step and ".prom" in step}
    (folder,) = re.findall(r"cd (\S+)", command)
    look = ("find", folder, "-name", "*.prom", "-size", "+0", "-printf", "%f %s %T@")
    before = service.ask(*look)
    assert before.startswith("dlr-buffer.prom ")
    service.ask("systemctl", "stop", UNIT)
    done = service.run("bash", "-c", command.removeprefix("sudo "))
    assert done.returncode != 0
    assert service.ask(*look) == before
    assert not re.search(r"(?:>|--output|mv) *\S*/", command)


def test_no_password_is_seen(service: Machine) -> None:
    """Neither the journal of a delivery at debug level nor the list of processes has the password."""
    service.ask("sed", "-i", 's/^level = "info"/level = "debug"/', f"{ETC}/config.toml")
    service.ask("systemctl", "restart", UNIT)
    service.ask("dlr-buffer", "report", "told-at-debug-level", "delivered")
    eventually(lambda: _account(service)["receipts"]["pending"] == 0)
    seen = service.ask("journalctl", "--no-pager", "--output=cat", "--unit", UNIT) + service.ask(
        "ps", "axeww"
    )
    assert "dlr-buffer run" in seen
    assert PASSWORD not in seen


FRAGMENT = f"systemctl show --value --property=FragmentPath {UNIT}"
# What is planted, how it is taken back, and which finding of which level says so.
FAULTS = [
    (f"chmod 0644 {ETC}/default.password", f"chmod 0640 {ETC}/default.password", "error", "0644"),
    (f"chmod 0644 {ETC}/config.toml", f"chmod 0640 {ETC}/config.toml", "error", "every user of this machine"),
    (
        f"chown root:root {ETC}/config.toml",
        f"chown root:dlr-buffer {ETC}/config.toml",
        "error",
        "can't be read by",
    ),
    ("chmod 0666 /run/dlr-buffer/client.sock", "chmod 0660 /run/dlr-buffer/client.sock", "error", "not 0660"),
    (
        "chown root /var/lib/dlr-buffer/queue.db",
        "chown dlr-buffer /var/lib/dlr-buffer/queue.db",
        "error",
        "can't read and write it",
    ),
    (
        f"sed -i 's/^NoNewPrivileges=yes/NoNewPrivileges=no/' $({FRAGMENT})",
        f"sed -i 's/^NoNewPrivileges=no/NoNewPrivileges=yes/' $({FRAGMENT}) && systemctl daemon-reload",
        "warning",
        "it differs in NoNewPrivileges",
    ),
    (
        f"systemctl disable {UNIT}",
        f"systemctl enable {UNIT}",
        "warning",
        "after a reboot the daemon is not started",
    ),
    (
        f"usermod --append --groups dlr-buffer {STRANGER}",
        f"gpasswd --delete {STRANGER} dlr-buffer",
        "warning",
        STRANGER,
    ),
    (f"systemctl stop {UNIT}", f"systemctl start {UNIT}", "warning", "no daemon runs"),
    (
        f"systemctl stop {UNIT}; echo nonsense >>{ETC}/config.toml; systemctl start {UNIT}",
        f"sed -i '$ d' {ETC}/config.toml && systemctl reset-failed {UNIT}; systemctl restart {UNIT}",
        "error",
        "is not TOML",
    ),
]


@pytest.mark.parametrize(("plant", "take_back", "level", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_doctor_finds_a_planted_fault(
    service: Machine, plant: str, take_back: str, level: str, words: str
) -> None:
    """A sound service has no error; with the fault there is a finding of that level more, which says it."""
    service.run("sh", "-c", plant)
    try:
        findings = _diagnosis(service)
    finally:
        service.ask("sh", "-c", take_back)
    assert [each for each in findings if each["level"] == level and words in each["finding"]], findings
    assert all(each["remedy"] for each in findings if each["level"] in ("warning", "error"))


def test_doctor_finds_no_fault_in_a_sound_service(service: Machine) -> None:
    """Whatever was planted before was taken back; the unit is the shipped one, and the daemon of this version."""
    findings = _diagnosis(service)
    assert [each["finding"] for each in findings if each["level"] == "error"] == []
    sound = {each["check"] for each in findings if each["level"] == "ok"}
    assert {
        "config",
        "file-mode",
        "user",
        "unit-state",
        "unit-enabled",
        "unit-file",
        "socket",
        "answer",
    } <= sound
    assert {"version", "queue", "queue-owner", "queue-lock", "space", "open-files"} <= sound


def test_an_ordinary_user_is_told_what_was_not_looked_at(service: Machine) -> None:
    """A stranger gets no error for what only root may see, but notes that say so, and no secret."""
    done = service.run("dlr-buffer", "--json", "doctor", "--no-network", user=STRANGER)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout
    hidden = [
        each
        for each in findings
        if each["level"] == "note" and "sudo dlr-buffer doctor" in (each["remedy"] or "")
    ]
    places = " ".join(each["finding"] for each in hidden)
    for place in (f"{ETC}/config.toml", "/var/lib/dlr-buffer", "admin.sock"):
        assert place in places
    assert PASSWORD not in done.stdout


def test_installing_again_keeps_what_the_admin_wrote(service: Machine) -> None:
    """The first edit finds the shipped files, the second (after another `make install`) what the first one wrote."""
    before, edited = service.share / "before", service.share / "edited"
    shipped = (service.share / "project/config/config.toml").read_text()
    found = {path.name: path.read_text() for path in before.iterdir()}
    assert found == {
        "config.toml.0": shipped,
        "default.password.1": "",
        "config.toml.2": (edited / "config.toml").read_text(),
        "default.password.3": (edited / "default.password").read_text(),
    }


def test_an_upgrade_says_what_is_left_to_do(service: Machine, tried: list[Tried]) -> None:
    """`make install` over a running service leaves it running as it was, and says how to go over.

    The environment that it was started from stays, even one of the earlier layout; others that nothing runs from go.
    Socket units that have changed take more than a restart, which it says too. What an earlier version had put outside
    of its prefix goes; all else can be read, whatever root's umask is.
    """
    assert "venv.1" in _environments(service), "the daemon ran from it still when the third was made"
    _make_it_the_earlier_layout(service)
    _plant_environments(service)
    pid = service.facts(UNIT, "MainPID")
    dropped = "/usr/local/share/man/man1/dlr-buffer-dropped.1"
    service.ask("bash", "-c", f"touch {dropped} && echo {dropped} >>/opt/dlr-buffer/installed-files")
    service.ask("bash", "-c", f"echo '# of before' >>{SOCKET_UNIT}")
    done = service.run("bash", "-c", "umask 077 && make install", cwd="/share/project")
    assert done.returncode == 0, done.stdout
    restart, sockets = done.stdout.splitlines()[-2:]
    assert restart.endswith("sudo systemctl restart dlr-buffer")
    assert sockets.startswith("The socket units have changed")
    unchanged = [
        said.output for (_, step), said in zip(STEPS, tried, strict=True) if step == "sudo make install"
    ]
    assert len(unchanged) > 2
    assert not any("The socket units" in said for said in unchanged)
    assert service.facts(UNIT, "MainPID") == pid
    assert service.run("ls", dropped).returncode != 0
    assert (
        service.ask(
            "bash", "-c", "find /opt/dlr-buffer $(cat /opt/dlr-buffer/installed-files) ! -perm -o=r ! -type l"
        )
        == ""
    )
    assert service.ask("dlr-buffer", "--version").startswith("dlr-buffer ")
    assert _environments(service) == {"venv.0", "venv.1", "venv.70", "venv.90"}
    assert service.ask("readlink", VENV) == "venv.1"
    service.ask("systemctl", "reload", UNIT)
    service.ask("systemctl", "restart", UNIT)
    assert f"{VENV}.1/bin/python" in service.ask("ps", "axeww", "--format=args")
    service.ask("bash", "-c", "systemctl stop runs-from-an-old-one; rm -r /opt/dlr-buffer/venv.{70,90}")


@pytest.mark.parametrize(
    ("broken", "said"),
    [("-m venv", "could not make a virtual environment"), ("-m nothing", "Nothing was changed")],
    ids=["no ensurepip", "no network"],
)
def test_an_install_that_breaks_off_changes_nothing(service: Machine, broken: str, said: str) -> None:
    """With another Python, whose installation fails half-way, the program is there and whole as before."""
    other = service.share / "other-python"
    other.write_text(
        f'#!/bin/sh\ncase "$*" in\n*version_info\\[:2\\]*) echo 3.99 ;;\n"{broken} "*) exit 1 ;;\n'
        f'*) exec {PYTHON} "$@" ;;\nesac\n'
    )
    other.chmod(0o755)
    look = (
        "bash",
        "-c",
        f"cd {VENV}/.. && readlink {VENV} && ls -A . && find -L venv/ -type f | sort | md5sum",
    )
    before = service.ask(*look)
    done = service.run(
        *("make", "install", "PYTHON=/share/other-python"),
        cwd="/share/project",
        environ={"PIP_NO_INDEX": "1"},  # with which pip finds nothing
    )
    assert done.returncode != 0
    assert said in done.stdout
    assert service.ask(*look) == before
    assert service.ask("dlr-buffer", "--version").startswith("dlr-buffer ")


def test_a_build_needs_nothing_that_is_not_pinned(service: Machine) -> None:
    """No tool of the installation is left in the service's environment, and none was fetched behind the locks' back."""
    names = service.ask("ls", "/opt/dlr-buffer/venv/lib/python3.11/site-packages").split()
    assert "dlr_buffer" in names
    assert not {"hatchling", "shtab", "share", "editables"} & set(names)


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "bash-completion/completions/dlr-buffer"),
        ("zsh", "zsh/site-functions/_dlr-buffer"),
        ("fish", "fish/vendor_completions.d/dlr-buffer.fish"),
    ],
)
def test_completion_is_where_the_shell_looks(service: Machine, shell: str, place: str) -> None:
    """Each shell's script is in place, and knows of the commands."""
    assert "check-config" in service.ask("cat", f"/usr/local/share/{place}"), shell


def test_accounts_are_completed_from_the_configuration(service: Machine) -> None:
    """Whoever may read the configuration gets the names of its accounts after `dlr-buffer pause`."""
    line = (
        ". /usr/local/share/bash-completion/completions/dlr-buffer; COMP_WORDS=(dlr-buffer pause ''); COMP_CWORD=2;"
        " _shtab_dlr_buffer; echo ${COMPREPLY[@]}"
    )
    assert service.ask("bash", "-c", line) == "default"


@pytest.mark.parametrize("page", [["dlr-buffer"], ["dlr-buffer", "status"], ["5", "dlr-buffer-config"]])
def test_manual_pages_are_found(service: Machine, page: list[str]) -> None:
    """`man` finds the pages of the program, of a command and of the configuration, without an index made anew."""
    if service.run("man", "--version").returncode:
        pytest.skip("man-db is not installed")
    assert "/usr/local/share/man/" in service.ask(
        "man", "--where", *page
    ) or "/usr/local/man/" in service.ask("man", "--where", *page)


@pytest.mark.parametrize(
    ("user", "given", "said"),
    [
        (APP, "", "sudo make install"),
        ("root", "PYTHON=/share/hidden", "is below a home folder"),
        ("root", "PYTHON=/share/none", "is not Python 3.11 or newer"),
        ("root", "PREFIX=/home/dlr-buffer", "is below a home folder"),
        ("root", "PREFIX=somewhere", "PREFIX is an absolute path"),
        ("root", "PREFIX=/share/taken", "was not made by make install"),
        ("root", "PATH=/share/few", "systemd-sysusers is not here"),
    ],
)
def test_an_install_that_cannot_work_is_refused(machine: Machine, user: str, given: str, said: str) -> None:
    """It says what to do instead, before anything is changed."""
    hidden = machine.share / "hidden"
    # As the Python of a version manager would: new enough, and living in a home folder.
    hidden.write_text(
        '#!/bin/sh\ncase "$2" in *realpath*) echo /home/ada/.pyenv/versions/3.12.1;; *) echo 3.12;; esac\n'
    )
    hidden.chmod(0o755)
    (machine.share / "taken/venv").mkdir(parents=True, exist_ok=True)
    few = machine.share / "few"
    few.mkdir(exist_ok=True)
    machine.ask(
        "bash", "-c", f"ln -sf /usr/bin/* /share/{few.name}/ && rm /share/{few.name}/systemd-sysusers"
    )
    done = machine.run("make", "install", *filter(None, [given]), user=user, cwd="/share/project")
    assert done.returncode != 0
    assert said in done.stdout
    assert "installing" not in done.stdout
    assert list((machine.share / "taken/venv").iterdir()) == []


def test_uninstall_leaves_queue_and_configuration(service: Machine) -> None:
    """Program, link and unit go and the service stops; queue, configuration and user stay. Twice does no harm.

    Asked for another prefix than the program's it removes nothing, and names the right one.
    """
    # The last but one of this file: the service is gone after it.
    pid = service.facts(UNIT, "MainPID")["MainPID"]
    refused = service.run("make", "uninstall", "PURGE=maybe", cwd="/share/project")
    assert refused.returncode != 0
    assert "PURGE is yes" in refused.stdout
    refused = service.run("make", "uninstall", "PREFIX=/srv/another", cwd="/share/project")
    assert refused.returncode != 0
    assert "sudo make uninstall PREFIX=/opt/dlr-buffer" in refused.stdout
    assert service.facts(UNIT, "MainPID")["MainPID"] == pid
    for _ in range(2):
        done = service.run("bash", "-c", UNINSTALL.removeprefix("sudo "), cwd="/share/project")
        assert done.returncode == 0, done.stdout
        assert "PURGE=yes" in done.stdout
    assert service.run("ps", "-p", pid).returncode != 0
    assert service.facts(UNIT, "LoadState") == {"LoadState": "not-found"}
    for gone in ("/opt/dlr-buffer", "/usr/local/bin/dlr-buffer", f"{UNITS}/{UNIT}"):
        assert service.run("ls", "-d", gone).returncode != 0
    assert service.ask("find", "/etc/systemd/system", UNITS, "-name", "dlr-buffer*.service") == ""
    assert service.ask("find", "/etc/systemd/system", UNITS, "-name", "dlr-buffer*.socket") == ""
    found = service.ask("find", "/etc", "/run", "/usr/local", "-name", "*dlr-buffer*").splitlines()
    # The drop-in is an admin's, as far as anybody can tell.
    assert sorted(found) == [ETC, f"/etc/systemd/system/{UNIT}.d"]
    service.ask("ls", f"{ETC}/config.toml", f"{ETC}/default.password", "/var/lib/dlr-buffer/queue.db")
    service.ask("id", "dlr-buffer")


def test_purge_leaves_nothing(machine: Machine, tried: list[Tried]) -> None:
    """Asked for in so many words, queue, configuration, user and groups go as well. Twice does no harm.

    A disk of the queue's own, which can't be removed, is emptied.
    """
    queue = "/var/lib/dlr-buffer"
    machine.ask("mount", "--bind", queue, queue)
    for _ in range(2):
        done = machine.run("bash", "-c", PURGE.removeprefix("sudo "), cwd="/share/project")
        assert done.returncode == 0, done.stdout
        if machine.run("mountpoint", queue).returncode == 0:
            assert machine.ask("ls", "-A", queue) == ""
            machine.ask("umount", queue)
    assert machine.run("ls", "-d", ETC, "/var/lib/dlr-buffer").stdout.count("No such file") == 2
    for kind in ("passwd", "group"):
        assert "dlr-buffer" not in machine.ask("getent", kind)


def _try(machine: Machine, block: Block, step: str) -> Tried:
    """Run one step as a reader of the document would."""
    match block.language:
        case "sh":
            root = step.startswith("sudo ")
            # What is read from standard input in any of them is a password.
            done = machine.run(
                *("bash", "-c", step.removeprefix("sudo ")),
                user="root" if root else APP,
                cwd="/share/project",
                stdin=PASSWORD + "\n",
            )
        case "python":
            done = machine.run(SERVICE_PYTHON, "-c", step, user=APP)
        case "ini":
            done = _use_drop_in(machine, step)
        case other:
            raise AssertionError(f"nobody knows how to run a block in {other!r}")
    return Tried(done.returncode, done.stdout)


def _use_drop_in(machine: Machine, text: str) -> subprocess.CompletedProcess[str]:
    """Put a drop-in beside the unit, and the password out of the configuration, and restart."""
    (machine.share / "drop-in.conf").write_text(text)
    machine.ask(
        "install", "-D", "-m", "0644", "/share/drop-in.conf", f"/etc/systemd/system/{UNIT}.d/docs.conf"
    )
    machine.ask("sed", "-i", "/^password_file = /d", f"{ETC}/config.toml")
    machine.ask("systemctl", "daemon-reload")
    return machine.run("systemctl", "restart", UNIT)


def _start_stand_in(machine: Machine) -> None:
    """Run the stand-in where the configuration expects Smartswitch, and return once it listens."""
    config = machine.ask("cat", f"{ETC}/config.toml")
    found = re.search(r'"http://(127\.0\.0\.1:\d+)/api/dlr"', config)
    assert found is not None
    machine.ask("install", "-m", "0600", "/share/edited/default.password", "/root/stand-in.password")
    machine.ask(
        *("systemd-run", "--quiet", "--unit=smartswitch", "/usr/local/bin/dlr-buffer", "simulate"),
        *("--listen", found[1], "--login", "supplier", "--password-file", "/root/stand-in.password"),
    )
    eventually(
        lambda: machine.run("curl", "--silent", f"http://{found[1]}/_simulator/record").returncode == 0
    )


def _before(machine: Machine, section: Section) -> None:
    """Do what lies between two sections."""
    if section == Section("docs/operations.md", "On the old host"):
        (machine.share / "moved.json").write_text(
            json.dumps([_rows(machine, "messages"), _rows(machine, "receipts")])
        )
    if section == Section("docs/operations.md", "On the new host"):
        # From here on the machine is another host: of the old one's it has what was copied over, and the program.
        machine.ask("rm", "-r", "/var/lib/dlr-buffer", ETC)


def _leave_something_to_steer(machine: Machine) -> None:
    """Report an intermediate state while the account is paused (the README's last command), so that it waits."""
    machine.ask("dlr-buffer", "report", "to-be-steered", "unknown")


def _environments(machine: Machine) -> set[str]:
    return {Path(name).name for name in machine.ask("bash", "-c", f"ls -d {VENV}.*").splitlines()}


def _make_it_the_earlier_layout(machine: Machine) -> None:
    """Have the daemon run from an environment that is a folder, not a link to one, as `make install` once made it."""
    lines = [
        "set -eu",
        f"cd {VENV}/..",
        "used=$(readlink venv)",
        "mv --no-target-directory $used venv.before && rm -r venv venv.[0-9]* && mv venv.before venv",
        f"sed -i 1s,.*,#!{VENV}/bin/python, venv/bin/dlr-buffer",
        f"systemctl restart {UNIT}",
    ]
    machine.ask("bash", "-c", "\n".join(lines))


def _plant_environments(machine: Machine) -> None:
    """Plant an old one that something runs from, in a sandbox such as the daemon's; one for nothing; a stranger's."""
    lines = [
        "set -eu",
        f"mkdir {VENV}.70 {VENV}.80 {VENV}.90",
        f"touch {VENV}.70/.made-by-make-install {VENV}.80/.made-by-make-install",
        f"cp /bin/sleep {VENV}.70/sleep",
        f"systemd-run --quiet --unit=runs-from-an-old-one --property=ProtectSystem=strict {VENV}.70/sleep infinity",
    ]
    machine.ask("bash", "-c", "\n".join(lines))


def _diagnosis(machine: Machine) -> list[dict[str, Any]]:
    """Return what doctor finds, the accounts' servers left out."""
    done = machine.run("dlr-buffer", "--json", "doctor", "--no-network")
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == int(any(each["level"] == "error" for each in findings)), done.stdout
    assert PASSWORD not in done.stdout
    return findings


def _account(machine: Machine) -> Mapping[str, Any]:
    """Return the account as `status` shows it."""
    (line,) = [
        facts
        for facts in map(json.loads, machine.ask("dlr-buffer", "--json", "status").splitlines())
        if facts.get("accounts")
    ]
    account: Mapping[str, Any] = line["accounts"][0]
    return account


def _rows(machine: Machine, kind: str) -> list[dict[str, Any]]:
    """Return all messages or receipts as `list` shows them."""
    return [
        json.loads(line)
        for line in machine.ask("dlr-buffer", "--json", "list", kind, "--limit", "0").splitlines()
    ]


def _entries(machine: Machine, *matches: str) -> list[dict[str, Any]]:
    """Return entries of the journal, with their fields."""
    return [
        json.loads(line)
        for line in machine.ask("journalctl", "--no-pager", "--output=json", "--quiet", *matches).splitlines()
    ]


def _journal_cursor(machine: Machine) -> str:
    """Return where the journal ends now."""
    return machine.ask("journalctl", "--no-pager", "--lines=0", "--show-cursor").partition("cursor: ")[2]


def _notifications(machine: Machine, cursor: str) -> list[str]:
    """Return what the daemon told systemd since ``cursor``, which writes it down at its debug level."""
    lines = machine.ask(
        "journalctl", "--no-pager", "--output=cat", f"--after-cursor={cursor}", "_PID=1"
    ).splitlines()
    told = [line for line in lines if line.startswith(UNIT) and "Got notification message" in line]
    return [name for line in told for name in re.findall(r"(?:RELOADING|READY)=1", line)]


def _free_port() -> int:
    """Return a port of loopback that nobody uses; the machine shares the host's network."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
