"""Totals, rates and Prometheus' text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import dlr_buffer
from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.metrics import ACCOUNT_TOTALS, QUEUE_TOTALS, Metrics
from dlr_buffer.receipts import QueueCounts, ReceiptAction
from dlr_buffer.selection import MessageAction


def view(name: str = "a", health: HealthState = HealthState.OPEN) -> AccountView:
    """An account with three receipts on the wire."""
    return AccountView(name, True, health, 0, None, None, None, 0, 100, 4, 0.0, 100, 1, 3, 0)  # noqa: FBT003 - by position


def make(*views: AccountView) -> Metrics:
    """Metrics over a small queue."""
    counts = QueueCounts({"a": {"waiting": 2}}, {"a": {"pending": 3, "dead": 1}})
    return Metrics(counts=lambda: counts, accounts=lambda: views, gauges=lambda: {"disk_bytes": ("Disk.", 7)})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus would read."""
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_totals_begin_at_nought_with_every_name() -> None:
    """`status` shows every total from the first moment on."""
    assert make().totals() == dict.fromkeys([*QUEUE_TOTALS, *ACCOUNT_TOTALS, "requests"], 0)


def test_what_is_counted_adds_up_over_accounts() -> None:
    """Events, exchanges and account totals are summed for `status` and kept apart for Prometheus."""
    metrics = make()
    metrics.events({"registered": 5, "dead": 1})
    metrics.events({"registered": 2})
    metrics.request("a", "acknowledged", receipts=10, resent=2, duration_ms=30)
    metrics.request("b", "timeout", receipts=1, resent=1, duration_ms=30_000)
    metrics.account("a", "violations", 3)
    metrics.account("b", "bisections")
    totals = metrics.totals()
    assert (totals["registered"], totals["dead"], totals["requests"]) == (7, 1, 2)
    assert (totals["sent"], totals["resent"], totals["violations"], totals["bisections"]) == (11, 3, 3, 1)
    found = samples(metrics)
    assert found["dlr_buffer_registered_total", ()] == 7
    assert found["dlr_buffer_upstream_sent_total", (("account", "a"),)] == 10
    assert found["dlr_buffer_upstream_sent_total", (("account", "b"),)] == 1
    outcome = (("account", "b"), ("outcome", "timeout"))
    assert found["dlr_buffer_upstream_requests_total", outcome] == 1
    assert found["dlr_buffer_upstream_request_seconds_count", (("account", "a"),)] == 1
    assert found["dlr_buffer_upstream_request_seconds_sum", (("account", "b"),)] == 30


def test_gauges_are_asked_for_at_each_scrape() -> None:
    """Counts, health (1 for the state it is in, 0 for every other) and further figures are those of the moment."""
    views = [view(), view("b", HealthState.SUSPENDED)]
    counts = QueueCounts({"a": {"waiting": 2}}, {"a": {"pending": 3}})
    metrics = Metrics(
        counts=lambda: counts, accounts=lambda: views, gauges=lambda: {"disk_bytes": ("Disk.", 7)}
    )
    found = samples(metrics)
    assert found["dlr_buffer_messages", (("account", "a"), ("state", "waiting"))] == 2
    assert found["dlr_buffer_receipts", (("account", "a"), ("status", "pending"))] == 3
    assert found["dlr_buffer_receipts_in_flight", (("account", "a"),)] == 3
    assert found["dlr_buffer_disk_bytes", ()] == 7
    shown = {
        health.value: found["dlr_buffer_account_health", (("account", "b"), ("health", health.value))]
        for health in HealthState
    }
    assert shown == {health.value: float(health is HealthState.SUSPENDED) for health in HealthState}
    views.pop()
    counts.receipts["a"]["pending"] = 4
    found = samples(metrics)
    assert found["dlr_buffer_receipts", (("account", "a"), ("status", "pending"))] == 4
    assert ("dlr_buffer_receipts_in_flight", (("account", "b"),)) not in found


def test_making_metrics_asks_for_nothing() -> None:
    """The daemon makes its metrics before there is a queue to ask."""

    def unexpected() -> QueueCounts:
        raise AssertionError

    Metrics(counts=unexpected, accounts=list, gauges=dict)


def test_an_accounts_name_cannot_break_the_text() -> None:
    """Labels are escaped: a strange name is one label, not another line."""
    metrics = make()
    name = 'quo"te\nline\\slash'
    metrics.account(name, "violations")
    assert samples(metrics)["dlr_buffer_upstream_violations_total", (("account", name),)] == 1


def test_two_daemons_in_one_process_do_not_share_totals() -> None:
    """There is no global registry."""
    one, other = make(), make()
    one.events({"registered": 1})
    assert samples(other)["dlr_buffer_registered_total", ()] == 0


@pytest.mark.parametrize("family", ["process_resident_memory_bytes", "python_info"])
def test_the_process_is_shown(family: str) -> None:
    """Memory and the version of Python are there, as admins expect of a Prometheus client."""
    assert any(name == family for name, _ in samples(make()))


def test_rates_over_the_last_minute() -> None:
    """Rates are per second over the last minute; before that over the time since the start."""
    metrics = make()
    assert metrics.rates(0) == {}
    metrics.sample(0)
    metrics.events({"registered": 100})
    assert metrics.rates(10_000)["registered"] == 10
    for at in range(5_000, 120_001, 5_000):
        metrics.sample(at)
        metrics.events({"registered": 10})
    assert metrics.rates(120_000)["registered"] == pytest.approx(2, rel=0.1)
    for at in range(125_000, 200_000, 5_000):
        metrics.sample(at)
    assert metrics.rates(195_000)["registered"] == 0
    assert len(metrics._samples) < 20


def test_every_event_of_the_queue_has_a_metric() -> None:
    """Whatever name the storage counts under is shown: none is dropped for being unknown here."""
    source = "".join(
        path.read_text(encoding="utf-8") for path in Path(dlr_buffer.__file__).parent.glob("storage/*.py")
    )
    names = set(re.findall(r'events\["(\w+)"\]', source))
    names |= {f"admin_{action.value}" for action in ReceiptAction}
    names |= {f"admin_{MessageAction.DELETE.value}_messages"}
    assert len(names) > 10
    assert names <= set(QUEUE_TOTALS)
