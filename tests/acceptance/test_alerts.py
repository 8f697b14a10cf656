"""config/prometheus-alerts.yml: it speaks of metrics that there are, and each alert fires for its fault and no other.

What a running daemon exposes is put into Prometheus' own test bed, `promtool test rules`, as it is and with one fault
at a time. Debian's package prometheus has promtool; without it only the names are compared.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dlr_buffer.client import Client
from dlr_buffer.health import HealthState
from dlr_buffer.messages import MessageState
from dlr_buffer.receipts import ReceiptStatus
from tests.documents import ROOT
from tests.integration.test_cli import running

RULES = ROOT / "config/prometheus-alerts.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
NAMED = set(re.findall(r"\bdlr_buffer_\w+", RULES.read_text()))
STEPS = 96
"""Of five minutes, eight hours: the longest rule looks back for six and waits for half of one."""
GIB = 1 << 30
FRESH = {"node_textfile_mtime_seconds{file='/x/dlr-buffer.prom'}": f"0+300x{STEPS}"}
ACCOUNT = "{account='default',health='%s'}"
OTHER = "instance='other'"
NOT_OPEN = {f"dlr_buffer_account_health{ACCOUNT % 'open'}": "0"}
LEFT = {**NOT_OPEN, f"dlr_buffer_account_health{ACCOUNT % 'unconfigured'}": "1"}
NOTHING_OWED = {"dlr_buffer_receipts{account='default',status='pending'}": "0"}
FAULTS: Mapping[str, Mapping[str, str | None]] = {
    "DlrBufferAbsent": {"dlr_buffer_unhealthy": None},
    # One host of two, gone dumb after four hours.
    "DlrBufferAbsentOnHost": {f"dlr_buffer_unhealthy{{{OTHER}}}": f"0x{STEPS // 2} _x{STEPS // 2}"},
    "DlrBufferMetricsOld": {"node_textfile_mtime_seconds{file='/x/dlr-buffer.prom'}": "60"},
    "DlrBufferUnhealthy": {"dlr_buffer_unhealthy": "1"},
    "DlrBufferRegistrationStopped": {"dlr_buffer_registration_stopped": "1"},
    "DlrBufferAccountSuspended": {**NOT_OPEN, f"dlr_buffer_account_health{ACCOUNT % 'suspended'}": "1"},
    "DlrBufferAccountRejecting": {**NOT_OPEN, f"dlr_buffer_account_health{ACCOUNT % 'rejecting'}": "1"},
    "DlrBufferAccountBackingOff": {**NOT_OPEN, f"dlr_buffer_account_health{ACCOUNT % 'backing-off'}": "1"},
    "DlrBufferAccountUnconfigured": {
        **LEFT,
        **NOTHING_OWED,
        "dlr_buffer_messages{account='default',state='waiting'}": "1",
    },
    "DlrBufferExpirySilent": {"dlr_buffer_expiry_silent_seconds": "61"},
    "DlrBufferExpiryStopped": {"dlr_buffer_expiry_stopped": "1"},
    "DlrBufferCommitsFail": {"dlr_buffer_commit_failures_total": f"0+1x{STEPS}"},
    "DlrBufferDeadLetters": {"dlr_buffer_dead_total": f"0+1x{STEPS}"},
    "DlrBufferDeadLettersPurged": {"dlr_buffer_purged_dead_total": f"0+1x{STEPS}"},
    "DlrBufferBacklog": {"dlr_buffer_receipts{account='default',status='pending'}": f"10000+500x{STEPS}"},
    "DlrBufferDiskFills": {"dlr_buffer_database_free_bytes": f"{20 * GIB}-{GIB // 24}x{STEPS}"},
    "DlrBufferLogGrows": {"dlr_buffer_database_wal_bytes": str(GIB)},
    "DlrBufferConnectionsRefused": {"dlr_buffer_client_connections_refused": f"0+1x{STEPS}"},
}


@pytest.fixture(scope="module")
def exposed() -> dict[str, float]:
    """Every sample of a running daemon that has done a little, by its name and labels."""
    with running() as cli:
        cli.run("report", "m1", "delivered", "--account", "default")
        with Client(cli.folder / "admin.sock") as client:
            text = client.request("GET", "/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        each.name
        + "{"
        + ",".join(f"{key}='{value}'" for key, value in sorted(each.labels.items()))
        + "}": each.value
        for each in samples
        if each.name.startswith("dlr_buffer_")
    }


def test_every_metric_that_a_rule_names_is_exposed(exposed: dict[str, float]) -> None:
    """Names, and the values of labels, are the daemon's own: a renamed metric would silence its alert for ever."""
    text = RULES.read_text()
    assert len(NAMED) > 10
    assert {name.partition("{")[0] for name in exposed} >= NAMED
    assert _values("health", text) <= set(HealthState)
    assert _values("status", text) <= set(ReceiptStatus)
    assert _values("state", text) <= {"waiting", *MessageState}


def test_every_alert_has_its_fault() -> None:
    """No alert is without the proof below."""
    assert list(FAULTS) == ALERTS


def test_each_alert_fires_for_its_fault_alone(exposed: dict[str, float], tmp_path: Path) -> None:
    """A sound daemon raises none; each fault raises its alert, and only that."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine (Debian: apt install prometheus)")
    sound: dict[str, str | None] = {
        name: f"{value:g}" for name, value in exposed.items() if name.partition("{")[0] in NAMED
    }
    sound.update(FRESH)
    for name in exposed:
        # Nobody listens where the daemon of the test sends to.
        if name.startswith("dlr_buffer_account_health{"):
            sound[name] = str(int("health='open'" in name))
        if name.startswith("dlr_buffer_database_free_bytes"):
            sound[name] = str(100 * GIB)
    lives = [
        _life("sound", sound, []),
        _life("an account left, owing nothing", sound | LEFT | NOTHING_OWED, []),
    ]
    for alert, fault in FAULTS.items():
        whole = {name if name.endswith("}") else name + "{}": values for name, values in fault.items()}
        assert {name.replace(OTHER, "") for name in whole} <= sound.keys(), f"{alert}: no such series"
        lives.append(_life(alert, sound | whole, [alert]))
    bed = tmp_path / "bed.yml"
    # JSON is YAML.
    bed.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": lives}))
    done = subprocess.run([promtool, "test", "rules", bed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [_life("x", sound, [ALERTS[0]])]}))
    assert (
        subprocess.run([promtool, "test", "rules", broken], capture_output=True, check=False).returncode != 0
    )


def _values(label: str, text: str) -> set[str]:
    """What a label is compared with, in one place or another."""
    return {value for values in re.findall(rf'\b{label}=~?"([\w|-]+)"', text) for value in values.split("|")}


def _life(name: str, series: Mapping[str, str | None], alerts: list[str]) -> dict[str, object]:
    """Write a test of promtool's: after these series, exactly these alerts fire."""
    return {
        "name": name,
        "interval": "5m",
        "input_series": [
            {"series": _on_a_host(each), "values": values if "x" in values else f"{values}x{STEPS}"}
            for each, values in series.items()
            if values is not None
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{5 * STEPS}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
            }
        ],
    }


def _on_a_host(series: str) -> str:
    return series if OTHER in series else series.replace("{", "{instance='host',", 1)
