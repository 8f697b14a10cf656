"""A throwaway machine with a real systemd as PID 1, in namespaces over an overlay of this machine's root.

`Machine` boots one, runs commands in it and ends it; `unfit` says why this machine can't have one. How its file
system is made is in ``init.sh``. What is installed and tried in it is the tests' business.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

INIT = Path(__file__).with_name("init.sh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON = "/usr/bin/python3"
"""The machine's own Python: one below a home folder is out of a service's sight."""
BOOT_S = 60.0
COMMAND_S = 120.0
_NEEDED = (
    "unshare",
    "nsenter",
    "setpriv",
    "mount",
    "pivot_root",
    "systemctl",
    "useradd",
    "make",
    "curl",
    PYTHON,
)
_NAMESPACES = (
    "--mount",
    "--pid",
    "--fork",
    "--uts",
    "--ipc",
    "--cgroup",
    "--kill-child",
    "--propagation",
    "private",
)
_PASSED_ON = (
    "HOME",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTPS_PROXY",
)


def unfit(folder: Path) -> str | None:
    """Say why no machine can be booted here, or None if one can; ``folder`` has to exist and is only written to."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "booting systemd in namespaces takes root"
    if not Path("/lib/systemd/systemd").exists():
        return "no systemd on this machine"
    if missing := [name for name in _NEEDED if shutil.which(name, path=PATH) is None]:
        return "not on this machine: " + ", ".join(missing)
    if subprocess.run(
        [PYTHON, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"],
        check=False,
        capture_output=True,
    ).returncode:
        return f"{PYTHON} is older than 3.11, or has no venv module"
    if not os.access(_cgroups() / "cgroup.procs", os.W_OK):
        return "no cgroup2 file system is mounted, or it can't be written to"
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "bash", INIT, folder, "--probe"],
        check=False,
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        return f"no namespaces or overlays here: {probe.stderr.strip()}"
    return None


def eventually(good: Callable[[], bool], *, patience_s: float = BOOT_S) -> None:
    """Return once ``good`` holds; raises RetryError if it does not for so long."""
    Retrying(
        retry=retry_if_result(lambda held: not held), wait=wait_fixed(0.02), stop=stop_after_delay(patience_s)
    )(good)


class Machine:
    """One booted machine; a context manager, which ends it and all that runs in it."""

    def __init__(self, folder: Path) -> None:
        """Keep everything below ``folder``; what lies in ``folder/share`` is ``/share`` inside."""
        self.share = folder / "share"
        self.share.mkdir(mode=0o755)
        self._folder = folder
        self._name = f"dlr-test-{os.getpid()}"
        self._cgroup = _cgroups() / self._name
        self._pid = 0

    def __enter__(self) -> Self:
        """Boot, and return once all units are started."""
        self._cgroup.mkdir()
        # The shell goes into the cgroup first, which makes that the root of the machine's cgroup namespace.
        enter = ("bash", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self._cgroup))
        with (self._folder / "console.log").open("wb") as console:
            self._unshare = subprocess.Popen(
                [*enter, "unshare", *_NAMESPACES, "bash", str(INIT), str(self._folder), self._name],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        try:
            eventually(self._has_systemd)
            # systemd manages a cgroup only if no process of others is in it.
            (_cgroups() / "cgroup.procs").write_text(str(self._unshare.pid))
            eventually(self._is_running)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it at once; nothing of it is left."""
        self._end()

    @property
    def root(self) -> Path:
        """Its root folder, as this machine sees it."""
        return Path(f"/proc/{self._pid}/root")

    def run(
        self,
        *command: str,
        user: str = "root",
        cwd: str = "/",
        stdin: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, with pip's settings of the host, and return how it ended.

        stderr is mixed into ``stdout``, in the order in which things were said.
        """
        known = {"PATH": PATH, "LANG": "C.UTF-8", "SYSTEMD_PAGER": "cat", "SYSTEMD_COLORS": "0"}
        known |= {
            name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in _PASSED_ON
        }
        known |= environ or {}
        become: Sequence[str] = ()
        if user != "root":
            become = (
                "setpriv",
                f"--reuid={user}",
                f"--regid={user}",
                "--init-groups",
                "env",
                "HOME=/nonexistent",
            )
        enter = ("nsenter", "-t", str(self._pid), "-m", "-p", "-u", "-i", "-C", "-r", "-w")
        settings = [f"{name}={value}" for name, value in known.items()]
        return subprocess.run(
            [*enter, "env", "-i", "-C", cwd, *settings, *become, *command],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            input=stdin,
            text=True,
            timeout=COMMAND_S,
        )

    def ask(self, *command: str) -> str:
        """Run a command as root that has to succeed, and return what it said, without the newline at the end."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.rstrip("\n")

    def facts(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit, as ``systemctl show`` has them."""
        lines = self.ask("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def _has_systemd(self) -> bool:
        assert self._unshare.poll() is None, (self._folder / "console.log").read_text()
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        for child in children:
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._pid = int(child)
        return self._pid != 0

    def _is_running(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _end(self) -> None:
        # --kill-child: with unshare its child goes, the machine's PID 1, and with that all processes and mounts.
        self._unshare.kill()
        self._unshare.wait()
        eventually(self._cgroup_is_gone)

    def _cgroup_is_gone(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with suppress(OSError):  # its processes are still going
                Path(folder).rmdir()
        return not self._cgroup.exists()


def _cgroups() -> Path:
    """Return where cgroup2 is mounted; beside the older hierarchies that is a folder of its own."""
    mixed = Path("/sys/fs/cgroup/unified")
    return mixed if mixed.exists() else Path("/sys/fs/cgroup")
