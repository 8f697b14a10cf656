"""``dlr-buffer bench`` as a user runs it: real daemon, real disk, real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlr_buffer.cli import exits

BENCH = [sys.executable, "-m", "dlr_buffer", "bench"]


def test_all_is_measured(tmp_path: Path) -> None:
    """Six figures and what limits them, as JSON lines; nothing stays in the folder."""
    config = tmp_path / "config.toml"
    queue = tmp_path / "queue"
    queue.mkdir()
    config.write_text(f'[database]\nurl = "sqlite:///{queue}/queue.db"\n')
    done = subprocess.run(
        [*BENCH, "--config", str(config), "--seconds", "0.1", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done
    place, *figures, last = map(json.loads, done.stdout.splitlines())
    assert place["folder"] == str(queue)
    assert place["seconds"] == 0.1
    assert len(figures) == 6
    assert all(figure["per_second"] > 0 for figure in figures)
    assert [figure["daemon_cores"] is None for figure in figures] == [True, True, False, False, False, False]
    assert any("Registering one at a time" in sentence for sentence in last["limits"])
    assert list(queue.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("lines", [1, 3, 5])
def test_it_is_interrupted(tmp_path: Path, number: signal.Signals, lines: int) -> None:
    """Ctrl-C or SIGTERM ends it while the disk, or the daemon, is measured, and nothing stays."""
    with subprocess.Popen(
        [*BENCH, "--folder", str(tmp_path), "--seconds", "0.5"], stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        for _ in range(lines):
            assert bench.stdout.readline()
        assert list(tmp_path.iterdir())
        bench.send_signal(number)
        assert bench.wait(60) == exits.INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def test_it_reads_for_people(tmp_path: Path) -> None:
    """A line for the place, one for each figure, and sentences about what limits this machine."""
    done = subprocess.run(
        [*BENCH, "--folder", str(tmp_path), "--seconds", "0.1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Measuring {tmp_path} (")
    assert [" a second" in line for line in lines[1:7]] == [True] * 6
    assert lines[7] == ""
    assert all(line.startswith("- ") for line in lines[8:])
