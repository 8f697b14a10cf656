"""The unit files as they are, looked at by systemd's own tools; no machine is booted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.documents import ROOT

UNITS = ROOT / "systemd"
SERVICE = "dlr-buffer.service"
EXAMPLES = sorted(path.name for path in (UNITS / "examples").glob("*.conf"))
EXPOSURE = 1.2

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a folder of their own, with a program that is on every machine."""
    folder = tmp_path / "units"
    folder.mkdir()
    for path in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        (folder / path.name).write_text(
            path.read_text("utf-8").replace("/usr/local/bin/dlr-buffer", "/bin/true"), "utf-8"
        )
    return folder


def verified(units: Path) -> str:
    """What systemd says against the units."""
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(path) for path in sorted(units.iterdir()) if path.is_file())],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
    )
    # Units of this machine itself are none of our business.
    return "\n".join(line for line in done.stdout.splitlines() if "dlr-buffer" in line)


def test_systemd_has_nothing_against_the_units(units: Path) -> None:
    """Every key and value of the service and its sockets is one that systemd knows."""
    assert verified(units) == ""


@pytest.mark.parametrize("name", EXAMPLES)
def test_systemd_has_nothing_against_an_example(units: Path, name: str) -> None:
    """Each example works as a drop-in of the unit that it names."""
    text = (UNITS / "examples" / name).read_text("utf-8")
    unit = "dlr-buffer-client.socket" if "[Socket]" in text else SERVICE
    folder = units / f"{unit}.d"
    folder.mkdir()
    (folder / name).write_text(text, "utf-8")
    if unit == SERVICE:
        assert "dlr-buffer.service.d/" in text
    assert verified(units) == ""


def test_what_is_wrong_would_be_noticed(units: Path) -> None:
    """A key that systemd does not know is found by the tests above."""
    (units / SERVICE).write_text(
        (units / SERVICE).read_text("utf-8") + "\n[Service]\nProtectEverything=yes\n", "utf-8"
    )
    assert "ProtectEverything" in verified(units)


def test_the_exposure_is_low(units: Path) -> None:
    """The unit as it is shipped is rated at 1.2 at the most, of 10."""
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", units / SERVICE],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert float(said.rpartition("exposure level for ")[2].split()[1]) <= EXPOSURE
