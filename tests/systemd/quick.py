"""The service on a machine in a second: the program runs from this work tree's copy and this environment's libraries.

Units, users and folders are those of the project; what `make install` does is tested in ``test_service.py``.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.checkout import copy_project
from tests.systemd.machine import PYTHON, Machine

UNIT = "dlr-buffer.service"
SOCKETS = ("dlr-buffer-client.socket", "dlr-buffer-admin.socket")
CONFIG = "/etc/dlr-buffer/config.toml"
PASSWORD = "correct-horse-battery"
_PROGRAM = """\
#!{python}
import sys
from dlr_buffer.cli import main
sys.exit(main())
"""


def unlike() -> str | None:
    """Say why this environment's libraries do not fit the machine's Python, or None if they do."""
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    theirs = subprocess.run(
        [PYTHON, "-c", version], check=True, capture_output=True, text=True
    ).stdout.strip()
    ours = "{}.{}".format(*sys.version_info[:2])
    return None if ours == theirs else f"the tests run on Python {ours}, the machine's is {theirs}"


def install(machine: Machine, url: str, *, config: str = "") -> None:
    """Install units, users, a configuration for ``url`` and the program; nothing is started.

    ``config`` stands before the account's table.
    """
    project = copy_project(machine.share / "project")
    libraries = machine.share / "libraries"
    source = sysconfig.get_path("purelib")
    # Links where that is possible: hundreds of megabytes, of which nothing is changed.
    if subprocess.run(
        ["cp", "--archive", "--link", source, libraries], check=False, capture_output=True
    ).returncode:
        subprocess.run(["rm", "-rf", libraries], check=True)
        subprocess.run(["cp", "--archive", source, libraries], check=True)
    venv = "/opt/dlr-buffer/venv"
    machine.ask(PYTHON, "-m", "venv", "--without-pip", venv)
    (machine.share / "program.pth").write_text(f"/share/{project.name}\n/share/{libraries.name}\n")
    (machine.share / "dlr-buffer").write_text(_PROGRAM.format(python=f"{venv}/bin/python"))
    (machine.share / "password").write_text(PASSWORD + "\n")
    (machine.share / "config.toml").write_text(
        f"{config}\n[accounts.default]\nurl = '{url}'\nlogin = 'supplier'\n"
        "password_file = '/etc/dlr-buffer/default.password'\n"
    )
    machine.ask("chmod", "--recursive", "a+rX", "/share/project")
    lines = [
        "set -eu",
        f"install -m 0644 /share/program.pth {venv}/lib/python*/site-packages/",
        "install -m 0755 /share/dlr-buffer /usr/local/bin/dlr-buffer",
        "cd /share/project/systemd",
        "install -m 0644 *.service *.socket /etc/systemd/system/",
        "install -D -m 0644 sysusers.d/dlr-buffer.conf /etc/sysusers.d/dlr-buffer.conf",
        "install -D -m 0644 tmpfiles.d/dlr-buffer.conf /etc/tmpfiles.d/dlr-buffer.conf",
        "systemd-sysusers dlr-buffer.conf",
        "systemd-tmpfiles --create dlr-buffer.conf",
        "install -d -m 0755 /etc/dlr-buffer",
        f"install -m 0640 -g dlr-buffer /share/config.toml {CONFIG}",
        "install -m 0640 -g dlr-buffer /share/password /etc/dlr-buffer/default.password",
        "systemctl daemon-reload",
    ]
    machine.ask("bash", "-c", "\n".join(lines))


def drop_in(machine: Machine, unit: str, name: str, text: str | None) -> None:
    """Write a drop-in of a unit, or remove it (None), and have systemd read it."""
    path = Path(f"/etc/systemd/system/{unit}.d/{name}.conf")
    if text is None:
        machine.ask("rm", "-f", str(path))
    else:
        (machine.share / "drop-in").write_text(text)
        machine.ask("install", "-D", "-m", "0644", "/share/drop-in", str(path))
    machine.ask("systemctl", "daemon-reload")
