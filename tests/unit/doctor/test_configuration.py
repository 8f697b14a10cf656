"""The configuration and its files: faults are planted in real files with real owners and modes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlr_buffer.cli import main
from dlr_buffer.config import survey
from dlr_buffer.doctor import access
from dlr_buffer.doctor.access import Identity, identity_of_uid
from dlr_buffer.doctor.configuration import configuration_findings, file_findings, secret_readers_finding
from dlr_buffer.doctor.findings import Level
from tests.unit.doctor.findings_of import told

DAEMON = Identity("dlr-buffer", 4001, 4001, frozenset({4001}))
ROOT = Identity("root", 0, 0, frozenset({0}))
ADA = Identity("ada", 4010, 4010, frozenset({4010}))
SECRET = "canary-password"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")

SOUND = """\
[accounts.default]
url = "https://smartswitch.example.com/api/dlr"
login = "canary-login"
password_file = "{folder}/password"
"""


@pytest.fixture
def folder(public_folder: Path) -> Path:
    """A folder that everybody gets to, with a sound configuration and a password of the daemon's."""
    (public_folder / "config.toml").write_text(SOUND.format(folder=public_folder))
    (public_folder / "password").write_text(SECRET)
    for name in ("config.toml", "password"):
        (public_folder / name).chmod(0o640)
        if os.geteuid() == 0:
            os.chown(public_folder / name, 0, DAEMON.gid)
    return public_folder


def test_a_sound_configuration(folder: Path) -> None:
    """It can be used, and names its accounts; no credential is repeated."""
    (finding,) = configuration_findings(survey(folder / "config.toml", {}), viewer=ROOT)
    assert finding.level is Level.OK
    assert "accounts: default" in finding.what
    assert "canary" not in finding.what


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ('[apy]\nclient_mode = "0660"\n', "apy: is not a key here; did you mean api?"),
        ('[api]\nclient_mode = "0777"\n', "api.client_mode: must be an octal mode"),
        ("[api\n", "is not TOML"),
        ('[accounts.other]\nurl = "http://example.com/?x=canary"\n', "accounts.other.url: "),
    ],
)
def test_each_problem_of_the_file_is_an_error(folder: Path, planted: str, said: str) -> None:
    """What check-config would say is said, with the place to mend it; again without any credential."""
    with (folder / "config.toml").open("a") as file:
        file.write(planted)
    findings = list(configuration_findings(survey(folder / "config.toml", {}), viewer=ROOT))
    assert ("error", "config") in told(findings)
    assert any(said in finding.what for finding in findings)
    assert not any("canary" in finding.what for finding in findings)


def test_a_missing_file(tmp_path: Path) -> None:
    """A configuration that is not there is an error that says how to get one."""
    (finding,) = configuration_findings(survey(tmp_path / "config.toml", {}), viewer=ROOT)
    assert finding.level is Level.ERROR
    assert "there is no such file" in finding.what


def test_a_password_that_systemd_hands_over_is_no_fault(folder: Path) -> None:
    """Without password_file the account is whole if the unit grants the credential, and only then."""
    text = "".join(line for line in SOUND.splitlines(keepends=True) if "password_file" not in line)
    (folder / "config.toml").write_text(text)
    found = survey(folder / "config.toml", {})
    assert told(configuration_findings(found, viewer=ROOT)) == [("error", "config")]
    granted = frozenset({"accounts.default.password_file"})
    assert told(configuration_findings(found, viewer=ROOT, granted=granted)) == [("ok", "config")]


@as_root
def test_what_somebody_may_not_read_is_no_fault_but_a_note(folder: Path) -> None:
    """An ordinary user is told that the file was not looked at, not that it is wrong."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(ADA.gid)
            os.setuid(ADA.uid)
            seen = survey(folder / "config.toml", {})
            whole = told(configuration_findings(seen, viewer=ADA)) == [("note", "config-hidden")]
        except BaseException:  # noqa: BLE001 - the child must not go on with the tests
            whole = False
        os._exit(0 if whole else 1)
    assert os.waitpid(pid, 0)[1] == 0


@as_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "level", "code"),
    [
        (0, DAEMON.gid, 0o640, "ok", "file-mode"),
        (DAEMON.uid, DAEMON.gid, 0o400, "ok", "file-mode"),
        (0, DAEMON.gid, 0o644, "error", "file-mode"),
        (0, DAEMON.gid, 0o642, "error", "file-mode"),
        (0, DAEMON.gid, 0o660, "error", "file-mode"),
        (ADA.uid, DAEMON.gid, 0o640, "error", "file-mode"),
        (DAEMON.uid, 100, 0o640, "error", "file-mode"),
        (0, 0, 0o640, "error", "file-unreadable"),
        (0, DAEMON.gid, 0o600, "error", "file-unreadable"),
    ],
)
def test_who_may_read_a_secret(
    folder: Path, owner: int, group: int, mode: int, level: str, code: str
) -> None:
    """Root's or the daemon's, read by nobody else, changed by nobody else, and readable for the daemon."""
    os.chown(folder / "password", owner, group)
    (folder / "password").chmod(mode)
    assert told(file_findings(folder / "password", daemon=DAEMON)) == [(level, code)]


@as_root
@pytest.mark.parametrize(
    ("name", "group", "mode", "folder_mode", "said"),
    [
        ("password", DAEMON.gid, 0o640, 0o755, ""),
        ("password", 0, 0o600, 0o755, "/password can't be read by"),
        ("config.toml", 0, 0o640, 0o755, "/config.toml can't be read by"),
        ("password", DAEMON.gid, 0o640, 0o700, "/password can't be reached by"),
    ],
)
def test_check_config_by_root_tells_what_the_service_can_not_read(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    group: int,
    mode: int,
    folder_mode: int,
    said: str,
) -> None:
    """Root can read all, so what would stop the service at its start is told as a warning, with what mends it."""
    monkeypatch.setattr(access, "identity_of", {"dlr-buffer": DAEMON}.get)
    os.chown(folder / name, 0, group)
    (folder / name).chmod(mode)
    folder.chmod(folder_mode)
    assert main(["--config", str(folder / "config.toml"), "check-config"]) == 0
    shown = capsys.readouterr()
    assert said in shown.err
    assert ("warning: " in shown.err) == ("sudo ch" in shown.err) == bool(said)
    assert SECRET not in shown.out + shown.err


@as_root
def test_what_systemd_hands_over_is_not_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A credential is root's alone here, and systemd lets the service read it."""
    monkeypatch.setattr(access, "identity_of", {"dlr-buffer": DAEMON}.get)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    os.chown(folder / "password", 0, 0)
    assert main(["--config", str(folder / "config.toml"), "check-config"]) == 0
    assert capsys.readouterr().err == ""


@as_root
def test_the_remedy_mends_it(folder: Path) -> None:
    """The command that is told makes the finding go away."""
    password = folder / "password"
    password.chmod(0o666)
    own = identity_of_uid(os.geteuid())
    (finding,) = {each.remedy: each for each in file_findings(password, daemon=own)}.values()
    assert finding.remedy is not None
    assert os.system(finding.remedy.replace("sudo ", "")) == 0
    assert told(file_findings(password, daemon=own)) == [("ok", "file-mode")]


def test_a_file_without_a_secret_may_be_read_by_all(folder: Path) -> None:
    """Certificates of authorities are public; that everybody may change them is not."""
    (folder / "password").chmod(0o644)
    assert told(file_findings(folder / "password", daemon=None, secret=False)) == [("ok", "file-mode")]
    (folder / "password").chmod(0o646)
    assert told(file_findings(folder / "password", daemon=None, secret=False)) == [("error", "file-mode")]


@as_root
def test_a_folder_that_does_not_let_the_daemon_pass(folder: Path) -> None:
    """The file's own mode does not help if its folder is closed."""
    os.chown(folder, 0, 0)
    folder.chmod(0o700)
    assert told(file_findings(folder / "password", daemon=DAEMON)) == [("error", "file-unreachable")]


def test_a_file_that_is_missing(folder: Path) -> None:
    """One that systemd would take a credential from keeps the service from starting."""
    assert told(file_findings(folder / "nothing", daemon=None)) == [("error", "file-missing")]


def test_others_in_the_daemons_own_group() -> None:
    """Whoever is in the group that reads the secrets is named."""
    assert told([secret_readers_finding("dlr-buffer", ("dlr-buffer",), DAEMON)]) == [("ok", "secret-readers")]
    found = secret_readers_finding("dlr-buffer", ("dlr-buffer", "my-app"), DAEMON)
    assert told([found]) == [("warning", "secret-readers")]
    assert found is not None
    assert "my-app" in found.what
    assert secret_readers_finding("dlr-buffer", None, DAEMON) is None
