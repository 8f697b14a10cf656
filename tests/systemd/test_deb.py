"""The Debian package: what `make deb` builds, and one life of it under a real systemd, from dpkg's view and an admin's.

The package is built as the documents say, and once more elsewhere, for comparison. One machine is booted for the whole
file; the tests that install, upgrade, remove and purge are one life, in the order in which they stand here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dlr_buffer import __version__
from tests.checkout import copy_project
from tests.documents import WITH_THE_PACKAGE, blocks_of
from tests.extent import LONG
from tests.systemd.machine import Machine, eventually, unfit

pytestmark = pytest.mark.timeout(600)  # whichever test comes first builds the package

ETC = "/etc/dlr-buffer"
UNIT = "dlr-buffer.service"
LIBRARY = "/usr/lib/dlr-buffer"
PASSWORD = "correct-horse-battery"
BUILD, INSTALL, *CONFIGURE = [
    command for block in blocks_of(WITH_THE_PACKAGE[0]) for command in block.commands
]
REMOVE, PURGE = [command for block in blocks_of(WITH_THE_PACKAGE[1]) for command in block.commands]
_TOOLS = ("dpkg-buildpackage", "dh", "dh_installsysusers", "lintian", "apt-get")

# An app that never stops: each id is written down once the daemon has answered for it. Only the standard library and
# the project's own folder are used, for the package's files are replaced meanwhile.
APP = """\
import itertools, sys, time
sys.path.insert(0, "/share/project")
from dlr_buffer.client import Client
with Client("/run/dlr-buffer/client.sock") as queue, open("/share/answered", "a", buffering=1) as answered:
    for number in itertools.count():
        queue.register(f"app-{number}")
        print(f"app-{number}", file=answered)
        time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project; the package is built in the copy."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        pytest.skip("not on this machine: " + ", ".join(missing))
    if reason := unfit(tmp_path_factory.mktemp("probe")):
        pytest.skip(reason)
    return copy_project(tmp_path_factory.mktemp("deb") / "project")


@pytest.fixture(scope="module")
def elsewhere(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project once more, to a folder of another name."""
    return copy_project(tmp_path_factory.mktemp("elsewhere") / "another-name")


@pytest.fixture(scope="module")
def rebuilding(elsewhere: Path) -> Iterator[subprocess.Popen[str]]:
    """Build the same once more meanwhile, with all being another about the build that should not matter."""
    command = ["sh", "-c", "umask 077 && exec make deb"]
    environ = _environ() | {"TZ": "Asia/Tokyo", "LC_ALL": "C"}
    with subprocess.Popen(
        command, cwd=elsewhere, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as building:
        yield building
        building.kill()


@pytest.fixture(scope="module")
def package(project: Path, rebuilding: subprocess.Popen[str]) -> Path:
    """Build the package with the command that is printed."""
    done = subprocess.run(
        ["sh", "-c", BUILD],
        cwd=project,
        env=_environ(),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (built,) = (project / "dist").iterdir()
    assert done.stdout.splitlines()[-1] == f"dist/{built.name}"
    return built


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine that has the project with the package in it, and an admin's editor."""
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        share = machine.share
        shutil.copytree(package.parents[1], share / "project")
        # Of a container's image: it would forbid the package to start anything. And an index of all manual pages is
        # nothing that this is about.
        machine.ask("rm", "-f", "/usr/sbin/policy-rc.d", "/var/lib/man-db/auto-update")
        (share / "config.toml").write_text(
            (share / "project/config/config.toml").read_text().replace('level = "info"', 'level = "warning"')
        )
        (share / "default.password").write_text(PASSWORD + "\n")
        (share / "app.py").write_text(APP)
        editor = share / "editor"
        editor.write_text('#!/bin/sh\nset -eu\ncat "/share/$(basename "$1")" >"$1"\n')
        machine.ask("chmod", "--recursive", "a+rX", "/share")
        machine.ask("install", "-m", "0755", "/share/editor", "/usr/local/bin/editor")
        yield machine


def test_lintian_finds_nothing(package: Path) -> None:
    """Neither errors nor warnings; what is overridden says why."""
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", package],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert not re.search("^[EW]:", done.stdout, re.MULTILINE)
    overrides = (package.parents[1] / "debian/dlr-buffer.lintian-overrides").read_text().splitlines()
    assert all(reason.startswith("# ") for reason in overrides[::2])
    assert not any(tag.startswith("#") for tag in overrides[1::2])


def test_the_package_is_what_this_release_is_called(package: Path) -> None:
    """debian/changelog, which gives the package its version, is as far as the program itself."""
    assert _field(package, "Version") == __version__
    assert package.name == f"dlr-buffer_{__version__}_{_field(package, 'Architecture')}.deb"


def test_the_package_has_what_it_needs_and_no_tools(package: Path) -> None:
    """A page for each command, completion for three shells and the licence of each library; no pip, no bytecode."""
    listed = subprocess.run(
        ["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(r" \./(\S*)", listed)
    for name in (
        "usr/share/bash-completion/completions/dlr-buffer",
        "usr/share/zsh/vendor-completions/_dlr-buffer",
        "usr/share/fish/vendor_completions.d/dlr-buffer.fish",
        "usr/share/man/man1/dlr-buffer.1.gz",
        "usr/share/man/man1/dlr-buffer-check-db.1.gz",
        "usr/share/man/man5/dlr-buffer-config.5.gz",
        "usr/share/doc/dlr-buffer/changelog.Debian.gz",
    ):
        assert name in names
    assert not [name for name in names if re.search(r"/pip/|\.pyc$|/hatchling/|/shtab/|activate", name)]
    copyright_ = subprocess.run(
        ["sh", "-c", f"dpkg-deb --fsys-tarfile {package} | tar -xO ./usr/share/doc/dlr-buffer/copyright"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    libraries = re.findall(r"/site-packages/([^/]+)-[^/-]+\.dist-info/ ?\n", listed)
    assert len(libraries) > 20
    for library in set(libraries) - {"dlr_buffer"}:
        assert f"/site-packages/{library}*\n" in copyright_


@pytest.mark.skipif(not LONG, reason="a part of `make test-long`")
def test_a_build_elsewhere_gives_the_same_bytes(
    package: Path, rebuilding: subprocess.Popen[str], elsewhere: Path
) -> None:
    """Folder, umask, time zone and moment of the build leave no trace."""
    output, _ = rebuilding.communicate()
    assert rebuilding.returncode == 0, output
    assert (elsewhere / "dist" / package.name).read_bytes() == package.read_bytes()


def test_an_installation_by_make_is_not_hidden(machine: Machine) -> None:
    """Where `make install` was used, the package refuses, says what to do, and leaves nothing."""
    machine.ask("ln", "-s", "/opt/dlr-buffer/venv/bin/dlr-buffer", "/usr/local/bin/dlr-buffer")
    done = _apt(machine, INSTALL)
    assert done.returncode != 0
    assert "sudo make uninstall" in done.stdout
    machine.ask("rm", "/usr/local/bin/dlr-buffer")
    assert machine.run("ls", LIBRARY, ETC).stdout.count("No such file") == 2


def test_install_starts_nothing_and_says_what_is_next(machine: Machine) -> None:
    """Unconfigured it is neither enabled nor started; files for secrets are there, theirs that should read them."""
    done = _apt(machine, INSTALL)
    assert done.returncode == 0, done.stdout
    assert "sudo systemctl enable --now dlr-buffer" in done.stdout
    assert machine.facts(UNIT, "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "disabled",
    }
    assert machine.ask("systemctl", "--failed", "--no-legend") == ""
    assert machine.ask(
        "stat", "--format=%n %a %U %G", f"{ETC}/config.toml", f"{ETC}/default.password"
    ).splitlines() == [
        f"{ETC}/config.toml 640 root dlr-buffer",
        f"{ETC}/default.password 640 root dlr-buffer",
    ]
    assert machine.ask("id", "--name", "--groups", "dlr-buffer").split()[0] == "dlr-buffer"


def test_the_next_steps_bring_it_up(machine: Machine) -> None:
    """The commands that are printed after the installation end with a daemon that answers."""
    for command in CONFIGURE:
        done = machine.run("bash", "-c", command.removeprefix("sudo "))
        assert done.returncode == 0, f"{command}: {done.stdout}"
    assert machine.facts(UNIT, "ActiveState", "UnitFileState", "FragmentPath") == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "FragmentPath": f"/lib/systemd/system/{UNIT}",
    }
    pid = machine.facts(UNIT, "MainPID")["MainPID"]
    assert machine.ask("ps", "-o", "user:20=,args=", "-p", pid).split() == [
        "dlr-buffer",
        f"{LIBRARY}/bin/python3",
        "/usr/bin/dlr-buffer",
        "run",
    ]
    machine.ask("dlr-buffer", "pause", "default")


def test_make_install_stays_away(machine: Machine) -> None:
    """Beside the package `make install` and `make uninstall` refuse, before anything is changed."""
    for target in ("install", "uninstall"):
        done = machine.run("make", target, "PYTHON=/usr/bin/python3", cwd="/share/project")
        assert done.returncode != 0
        assert "The Debian package dlr-buffer is installed" in done.stdout
    assert machine.run("ls", "-d", "/opt/dlr-buffer").returncode != 0


def test_an_upgrade_loses_nothing(machine: Machine, package: Path) -> None:
    """A new version starts the daemon anew beside an app that never stops: every answer it got is kept."""
    machine.ask("bash", "-c", "seq --format=waits-%g 500 | dlr-buffer register")
    machine.ask("bash", "-c", "seq --format=waits-%g 200 | dlr-buffer report --state delivered")
    machine.ask("systemd-run", "--quiet", "--unit=app", "/usr/bin/python3", "-B", "/share/app.py")
    answered = machine.share / "answered"
    eventually(lambda: answered.exists() and len(answered.read_text().splitlines()) > 20)
    pid = machine.facts(UNIT, "MainPID")

    newer = _with_a_higher_version(package)
    shutil.move(newer, machine.share / "project")
    done = _apt(machine, INSTALL.replace("dist/dlr-buffer_*.deb", newer.name))
    assert done.returncode == 0, done.stdout
    assert "sudo editor" not in done.stdout
    assert machine.ask("dlr-buffer", "--version") == f"dlr-buffer {__version__}+1"
    assert machine.facts(UNIT, "MainPID") != pid
    assert machine.facts(UNIT, "ActiveState") == {"ActiveState": "active"}
    before = len(answered.read_text().splitlines())
    eventually(lambda: len(answered.read_text().splitlines()) > before + 20)

    assert machine.facts("app.service", "ActiveState", "NRestarts")["ActiveState"] == "active"
    machine.ask("systemctl", "stop", "app.service")
    kept = _queue(machine)
    # The id that was asked for last may be in the queue without an answer.
    ids = {f"waits-{number}" for number in range(1, 501)} | set(answered.read_text().split())
    assert ids <= set(kept)
    assert len(set(kept) - ids) <= 1
    assert sum(state == "delivered" for state in kept.values()) == 200
    assert 'level = "warning"' in machine.ask("cat", f"{ETC}/config.toml")


def test_remove_leaves_the_queue(machine: Machine) -> None:
    """The program, its units and all that it compiled go; queue, configuration and passwords stay, and it says so."""
    machine.share.joinpath("kept").write_text(json.dumps(_queue(machine)))
    done = _apt(machine, REMOVE)
    assert done.returncode == 0, done.stdout
    assert "apt purge dlr-buffer" in done.stdout
    assert machine.facts(UNIT, "ActiveState", "LoadState") == {
        "ActiveState": "inactive",
        "LoadState": "not-found",
    }
    assert machine.run("pgrep", "-f", "dlr-buffer run").returncode == 1
    assert (
        machine.run("ls", "-d", LIBRARY, "/usr/bin/dlr-buffer", "/run/dlr-buffer").stdout.count("No such")
        == 3
    )
    machine.ask("ls", f"{ETC}/config.toml", f"{ETC}/default.password", "/var/lib/dlr-buffer/queue.db")


def test_installed_again_it_goes_on(machine: Machine) -> None:
    """What was enabled is enabled and started again, on the same queue, without a question."""
    done = _apt(machine, INSTALL)
    assert done.returncode == 0, done.stdout
    assert machine.facts(UNIT, "ActiveState", "UnitFileState") == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
    }
    assert _queue(machine) == json.loads(machine.share.joinpath("kept").read_text())


def test_purge_leaves_nothing_but_the_user(machine: Machine) -> None:
    """Queue, configuration, passwords and links of the units are gone; the user keeps its number.

    A disk of the queue's own, which can't be removed, is emptied.
    """
    queue = "/var/lib/dlr-buffer"
    machine.ask("mount", "--bind", queue, queue)
    done = _apt(machine, PURGE)
    assert done.returncode == 0, done.stdout
    machine.ask("umount", queue)
    machine.ask("rmdir", queue)
    assert machine.ask("find", "/etc", "/var/lib", "/run", "/usr", "-xdev", "-name", "dlr-buffer*") == ""
    machine.ask("id", "dlr-buffer")


def _apt(machine: Machine, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is printed, in the project's folder, without a terminal to ask at."""
    return machine.run(
        "bash",
        "-c",
        command.removeprefix("sudo "),
        cwd="/share/project",
        environ={"DEBIAN_FRONTEND": "noninteractive"},
    )


def _queue(machine: Machine) -> Mapping[str, str]:
    """Return the state of each message."""
    lines = machine.ask("dlr-buffer", "--json", "list", "messages", "--limit", "0").splitlines()
    return {row["message_id"]: row["state"] for row in map(json.loads, lines)}


def _with_a_higher_version(package: Path) -> Path:
    """Make the next release of a package: the same, but for its version. Building it anew would take a minute."""
    tree = package.parents[1] / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    newer = f"{__version__}+1"
    for file in (
        tree / "DEBIAN/control",
        *tree.glob("usr/lib/dlr-buffer/lib/*/site-packages/dlr_buffer/__init__.py"),
    ):
        text = file.read_text()
        assert __version__ in text
        file.write_text(text.replace(__version__, newer))
    built = package.parents[1] / package.name.replace(__version__, newer)
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, built], check=True, capture_output=True)
    shutil.rmtree(tree)
    return built


def _field(package: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "--field", package, name], check=True, capture_output=True, text=True
    ).stdout.strip()


def _environ() -> dict[str, str]:
    """Return this process's environment, of which an outer make and its tests are not to be felt."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PYTEST_"))
    }
