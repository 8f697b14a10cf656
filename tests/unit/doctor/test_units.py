"""systemd's units, by what `systemctl show` tells; a real systemd is asked in tests/systemd."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dlr_buffer.doctor import units
from dlr_buffer.doctor.units import (
    ADMIN_SOCKET,
    CLIENT_SOCKET,
    SERVICE,
    Systemctl,
    credential_files,
    difference_findings,
    granted_keys,
    listens,
    makes_folder,
    service_findings,
    shipped_units,
    socket_unit_findings,
)
from tests.documents import ROOT
from tests.unit.doctor.findings_of import told

SOUND = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "Result": "success",
    "NRestarts": "0",
    "MainPID": "4711",
    "NeedDaemonReload": "no",
    "WatchdogUSec": "30s",
    "Type": "notify",
    "DropInPaths": "",
}
WELL = [("ok", "unit-state"), ("ok", "unit-enabled")]


def test_a_sound_service() -> None:
    """Active, enabled, watched, as shipped: nothing to be done."""
    assert told(service_findings(SOUND)) == WELL


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({"LoadState": "not-found"}, [("note", "unit")]),
        ({"LoadState": "bad-setting"}, [("error", "unit")]),
        ({"NeedDaemonReload": "yes"}, [("warning", "unit-reload"), *WELL]),
        ({"ActiveState": "failed", "Result": "exit-code"}, [("error", "unit-state"), WELL[1]]),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, [("error", "unit-state"), WELL[1]]),
        ({"ActiveState": "activating", "SubState": "start"}, [("note", "unit-state"), WELL[1]]),
        ({"ActiveState": "inactive"}, [("warning", "unit-state"), WELL[1]]),
        ({"NRestarts": "3"}, [WELL[0], ("warning", "unit-restarts"), WELL[1]]),
        ({"UnitFileState": "disabled"}, [WELL[0], ("warning", "unit-enabled")]),
        ({"UnitFileState": "masked"}, [WELL[0], ("warning", "unit-enabled")]),
        ({"Type": "simple"}, [*WELL, ("warning", "unit-type")]),
        ({"WatchdogUSec": "0"}, [*WELL, ("note", "unit-watchdog")]),
        ({"DropInPaths": "/etc/a.conf /etc/b.conf"}, [*WELL, ("note", "unit-drop-ins")]),
    ],
)
def test_a_fault_of_the_service(planted: dict[str, str], expected: list[tuple[str, str]]) -> None:
    """Each state that is not as it should be is one finding more, or another one."""
    assert told(service_findings(SOUND | planted)) == expected


@pytest.mark.parametrize(
    ("client", "admin", "expected"),
    [
        ({}, {}, []),
        ({"ActiveState": "active"}, {"ActiveState": "active"}, [("ok", "socket-unit")] * 2),
        ({"ActiveState": "inactive"}, {"ActiveState": "inactive"}, [("note", "socket-unit")]),
        (
            {"ActiveState": "active"},
            {"ActiveState": "inactive"},
            [("ok", "socket-unit"), ("warning", "socket-unit")],
        ),
        (
            {"ActiveState": "failed"},
            {"ActiveState": "active"},
            [("error", "socket-unit"), ("ok", "socket-unit")],
        ),
    ],
)
def test_socket_units_go_together(
    client: dict[str, str], admin: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    """Both are used, or none; one alone would leave the other to the daemon."""
    both = {
        CLIENT_SOCKET: client and {"LoadState": "loaded", "Result": "resources", **client},
        ADMIN_SOCKET: admin and {"LoadState": "loaded", "Result": "resources", **admin},
    }
    assert told(socket_unit_findings(both, running=True)) == expected


def test_socket_units_stop_with_the_daemon() -> None:
    """That they are not used is only said while the daemon runs without them."""
    inactive = {"LoadState": "loaded", "ActiveState": "inactive"}
    stopped = {CLIENT_SOCKET: inactive, ADMIN_SOCKET: inactive}
    assert told(socket_unit_findings(stopped, running=True)) == [("note", "socket-unit")]
    assert told(socket_unit_findings(stopped, running=False)) == []


def test_folders_that_systemd_makes() -> None:
    """Only those of StateDirectory=, by their whole name."""
    assert makes_folder({"StateDirectory": "other dlr-buffer"}, Path("/var/lib/dlr-buffer"))
    assert not makes_folder({"StateDirectory": "dlr-buffer"}, Path("/srv/dlr-buffer"))
    assert not makes_folder({}, Path("/var/lib/dlr-buffer"))


def test_where_systemd_listens_nobody_connects_by_mistake() -> None:
    """Only a unit that is active listens."""
    assert listens({"LoadState": "loaded", "ActiveState": "active"})
    assert not listens({"LoadState": "loaded", "ActiveState": "inactive"})
    assert not listens({"LoadState": "not-found", "ActiveState": "inactive"})
    assert not listens({})


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("LoadCredential=default.password:/etc/dlr-buffer/default.password", {"default.password_file"}),
        ("LoadCredentialEncrypted=other-1.password:/etc/credstore/x", {"other-1.password_file"}),
        ("SetCredential=a.login:secret", {"a.login", "a.login_file"}),
        ("LoadCredential=default.password", {"default.password_file"}),
        ("ImportCredential=b.proxy_credentials", {"b.proxy_credentials_file"}),
        ("LoadCredential=b.client_key:/k", {"b.tls.client_key", "b.tls.client_cert"}),
        ("LoadCredential=b.something:/k", set()),
    ],
)
def test_secrets_that_a_unit_hands_over(line: str, keys: set[str]) -> None:
    """Every way of systemd's to hand over a credential is understood, a comment is not."""
    text = f"[Service]\n# LoadCredential=no.password:/x\n{line}\n"
    assert granted_keys(text) == {f"accounts.{key}" for key in keys}


def test_files_that_credentials_are_taken_from() -> None:
    """Only those that hold them in the clear, by their whole name."""
    text = (
        "LoadCredential=a.password:/etc/dlr-buffer/a b.password \n"
        "LoadCredentialEncrypted=b.password:/etc/credstore/b\n"
        "LoadCredential=c.password\n#LoadCredential=d.password:/d\n"
    )
    assert credential_files(text) == (Path("/etc/dlr-buffer/a b.password"),)


def test_an_installed_unit_that_differs(tmp_path: Path) -> None:
    """Comments, spaces and the place of the program do not matter; every other line does, by name."""
    shipped = "[Unit]\nAfter=network.target\n[Service]\nExecStart=/usr/local/bin/dlr-buffer run\nNoNewPrivileges=yes\n"
    installed = tmp_path / SERVICE
    installed.write_text("# here\n" + shipped.replace("/usr/local", "/usr").replace("After=", "After = "))
    seen = {SERVICE: {"FragmentPath": str(installed)}}
    assert told(difference_findings(seen, {SERVICE: shipped})) == [("ok", "unit-file")]
    installed.write_text(shipped.replace("NoNewPrivileges=yes", "Restart=no"))
    (finding,) = difference_findings(seen, {SERVICE: shipped})
    assert told([finding]) == [("warning", "unit-file")]
    assert "NoNewPrivileges, Restart" in finding.what


def test_the_shipped_units_are_found(tmp_path: Path) -> None:
    """The first folder that has some is taken; in the project they are beside the package."""
    assert SERVICE in shipped_units()
    (tmp_path / SERVICE).write_text("[Unit]\n")
    assert shipped_units((tmp_path / "no", tmp_path)) == {SERVICE: "[Unit]\n"}
    assert shipped_units((tmp_path / "no",)) == {}


def test_the_wheel_takes_every_unit_along() -> None:
    """A unit that is added is compared too, where the project's folder is not at hand."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    shared = build["targets"]["wheel"]["shared-data"]
    here = {
        f"systemd/{name}": f"share/dlr-buffer/systemd/{name}" for name in shipped_units((ROOT / "systemd",))
    }
    assert len(here) == len(units.SOCKETS) + 1
    assert shared == here


def test_without_systemd_nothing_is_asked(tmp_path: Path) -> None:
    """Where systemd is not PID 1, its program is not even started."""
    nobody = Systemctl(tmp_path / "nothing")
    assert not nobody.present
    assert nobody.show(SERVICE) is None
    assert nobody.text(SERVICE) == ""
    assert units.is_installed(None) is False
