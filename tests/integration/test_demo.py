"""`dlr-buffer demo`, end to end, and what it says when something does not add up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlr_buffer.demo import Plan, compare

DEMO = [sys.executable, "-m", "dlr_buffer", "demo"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short: the path of a Unix socket in it has 107 bytes at most."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="dlr") as folder:
        yield Path(folder)


def test_the_demo_shows_the_whole_job_and_cleans_up(short: Path) -> None:
    """A thousand messages with faults between: every one gets exactly one final state, and nothing is left behind."""
    environment = os.environ | {"TMPDIR": str(short)}
    done = subprocess.run(
        [*DEMO, "--json"], capture_output=True, text=True, env=environment, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    sums = json.loads(done.stdout)
    assert {name: sums[name] for name in ("registered", "delivered", "expired", "undeliverable", "dead")} == {
        "registered": 1000,
        "delivered": 850,
        "expired": 100,
        "undeliverable": 50,
        "dead": 0,
    }
    assert sums["resends"] > 0
    assert sums["batches"] <= sums["requests"]
    assert "exactly one final state" in done.stderr
    assert list(short.iterdir()) == []


def test_an_interrupted_demo_stops_its_daemon_and_cleans_up(short: Path) -> None:
    """After Ctrl-C the exit code is 130, the folder is gone, and so is the daemon."""
    environment = os.environ | {"TMPDIR": str(short), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("Registering"):
                break
        (folder,) = short.iterdir()
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(30) == 130
    assert not folder.exists()
    assert _processes_with(str(folder)) == []


def _processes_with(text: str) -> list[str]:
    """Return the command lines of running processes that hold ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if os.fsencode(text) in command:
            found.append(command.decode(errors="replace"))
    return found


def _agreeing(plan: Plan) -> tuple[dict[str, Any], dict[str, list[tuple[str, str | None]]], dict[str, int]]:
    """Return a status, what the stand-in saw, and its counters, as they are when all went well."""
    messages = {"delivered": 17, "undeliverable": 1, "expired": 2}
    status = {
        "totals": {"registered": 20, "requests": 5, "resent": 1},
        "accounts": [
            {"messages": messages, "receipts": {"pending": 0, "held": 0, "dead": 0, "acknowledged": 22}}
        ],
    }
    seen: dict[str, list[tuple[str, str | None]]] = {
        message_id: [(state, str(number))] for number, (message_id, state) in enumerate(plan.finals.items())
    }
    record = {"accepted": 22, "requests": 5, "resends": 1, "after_final": 0, "reused_request_ids": 0}
    return status, seen, record


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ("nothing", None),
        ("missing", "no final state"),
        ("twice", "delivered, delivered"),
        ("stranger", "was never registered"),
        ("dead", "receipts dead"),
        ("acknowledged", "receipts acknowledged"),
        ("requests", "the daemon counts 5, and 6 arrived"),
        ("resends", "receipts sent again"),
        ("after_final", "receipts came after a final state"),
    ],
)
def test_every_difference_is_found(spoiled: str, words: str | None) -> None:
    """A message without a final state or with two, a stranger, a dead letter or a wrong count: each fails the demo."""
    plan = Plan.of(20)
    status, seen, record = _agreeing(plan)
    first = next(iter(plan.finals))
    match spoiled:
        case "nothing":
            pass
        case "missing":
            seen[first] = []
        case "twice":
            seen[first].append(("delivered", "99"))
        case "stranger":
            seen["0"] = [("delivered", "99")]
        case "dead" | "acknowledged":
            status["accounts"][0]["receipts"][spoiled] += 1
        case _:
            record[spoiled] += 1
    differences = compare(plan, status, seen, record)
    assert len(differences) == (words is not None)
    assert words is None or words in differences[0]
