"""What is counted: totals for `status`, and the same for Prometheus.

One `Metrics` object belongs to one daemon (no global registry). Gauges that come from the queue are read when
they are asked for, through functions that the daemon gives; nothing here queries anything itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dlr_buffer.health import AccountView, HealthState
from dlr_buffer.receipts import QueueCounts

QUEUE_TOTALS: Final = {
    "registered": "Messages registered.",
    "reported": "Reports that made a receipt.",
    "late_reports": "Reports refused because the message had another final state.",
    "expired": "Messages that expired.",
    "acknowledged": "Receipts that Smartswitch acknowledged.",
    "refused": "Refusals counted against a receipt.",
    "dead": "Receipts given up.",
    "superseded": "Receipts made pointless by a newer one.",
    "purged": "Acknowledged and superseded receipts removed by retention.",
    "purged_dead": "Dead letters removed by retention.",
    "admin_retry": "Receipts retried by an admin.",
    "admin_hold": "Receipts held by an admin.",
    "admin_release": "Receipts released by an admin.",
    "admin_delete": "Receipts deleted by an admin.",
    "admin_delete_messages": "Messages deleted by an admin.",
    "refused_full": "Registrations refused because there was less free space than min_free.",
    "refused_waiting": "Registrations refused because their account had max_waiting messages waiting.",
    "commit_failures": "Transactions that the database refused; nothing of them is stored.",
    "store_failures": "Times that the database refused to settle a request; tried again until it did.",
}
ACCOUNT_TOTALS: Final = {
    "sent": "Receipts put on the wire, resends included.",
    "resent": "Receipts put on the wire again.",
    "violations": "Entries of answers that broke the protocol and were ignored.",
    "bisections": "Batches halved to find a bad receipt.",
}
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
RATES_OVER_MS: Final = 60_000


class Metrics:
    """Totals since the start."""

    def __init__(
        self,
        *,
        counts: Callable[[], QueueCounts],
        accounts: Callable[[], Iterable[AccountView]],
        gauges: Callable[[], Mapping[str, tuple[str, float]]],
        calls: Callable[[], Mapping[tuple[str, str], int]] = dict,
        limits: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """``gauges`` gives further figures by name, each with its help text.

        ``calls`` gives the requests of the local API by socket and uid, ``limits`` max_waiting of the accounts that
        have one.
        """
        self._calls = calls
        self._limits = limits
        self._totals: Counter[str] = Counter()
        self._by_account: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._samples: deque[tuple[int, Counter[str]]] = deque(maxlen=64)
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "dlr_buffer_upstream_request_seconds",
            "How long an exchange with Smartswitch took.",
            ["account"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Figures(self, counts, accounts, gauges))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def events(self, counted: Mapping[str, int]) -> None:
        """Add what a commit brought, by the names of QUEUE_TOTALS."""
        # Not `update`, which asks first what it was given, and takes five times as long.
        for name, number in counted.items():
            self._totals[name] += number

    def request(self, account: str, outcome: str, *, receipts: int, resent: int, duration_ms: int) -> None:
        """Count one exchange with Smartswitch."""
        self._requests[account, outcome] += 1
        self._by_account[account, "sent"] += receipts
        self._by_account[account, "resent"] += resent
        self._seconds.labels(account).observe(duration_ms / 1000)

    def repeated(self, account: str, receipts: int) -> None:
        """Count receipts that went out twice in one exchange: the server had closed the first connection."""
        self._by_account[account, "sent"] += receipts
        self._by_account[account, "resent"] += receipts

    def account(self, account: str, name: str, count: int = 1) -> None:
        """Add to one of ACCOUNT_TOTALS."""
        self._by_account[account, name] += count

    def totals(self) -> dict[str, int]:
        """Everything counted since the start, over all accounts."""
        totals = {name: self._totals[name] for name in QUEUE_TOTALS}
        for name in ACCOUNT_TOTALS:
            totals[name] = sum(count for (_, each), count in self._by_account.items() if each == name)
        totals["requests"] = sum(self._requests.values())
        return totals

    def sample(self, now_ms: int) -> None:
        """Remember the totals of this moment, for `rates`.

        Called every few seconds (of a monotonic clock).
        """
        self._samples.append((now_ms, Counter(self.totals())))
        while len(self._samples) > 1 and self._samples[1][0] <= now_ms - RATES_OVER_MS:
            self._samples.popleft()

    def rates(self, now_ms: int) -> dict[str, float]:
        """Per second over the last minute (or since the start), for the totals that matter."""
        if not self._samples:
            return {}
        then, before = self._samples[0]
        seconds = max(1.0, (now_ms - then) / 1000)
        totals = self.totals()
        return {
            name: round((totals[name] - before[name]) / seconds, 2)
            for name in ("registered", "reported", "acknowledged", "expired", "requests", "resent", "refused")
        }

    def exposition(self) -> tuple[bytes, str]:
        """The body of ``/metrics`` in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def families(self) -> Iterable[Metric]:
        """The counters as Prometheus families."""
        for name, text in QUEUE_TOTALS.items():
            yield CounterMetricFamily(f"dlr_buffer_{name}", text, value=self._totals[name])
        for name, text in ACCOUNT_TOTALS.items():
            family = CounterMetricFamily(f"dlr_buffer_upstream_{name}", text, labels=["account"])
            for (account, each), count in sorted(self._by_account.items()):
                if each == name:
                    family.add_metric([account], count)
            yield family
        requests = CounterMetricFamily(
            "dlr_buffer_upstream_requests",
            "Exchanges with Smartswitch by outcome.",
            labels=["account", "outcome"],
        )
        for (account, outcome), count in sorted(self._requests.items()):
            requests.add_metric([account, outcome], count)
        yield requests
        calls = CounterMetricFamily(
            "dlr_buffer_api_requests",
            "Requests answered on the local API by socket and by the uid of who sent them ('other' beyond 64 uids).",
            labels=["socket", "uid"],
        )
        for (socket, uid), count in sorted(self._calls().items()):
            calls.add_metric([socket, uid], count)
        yield calls
        limits = GaugeMetricFamily(
            "dlr_buffer_account_max_waiting",
            "Messages that may wait for their final state, for accounts that have a limit.",
            labels=["account"],
        )
        for account, limit in sorted(self._limits().items()):
            limits.add_metric([account], limit)
        yield limits


class _Figures(Collector):
    """Asks for the gauges when Prometheus asks."""

    def __init__(
        self,
        metrics: Metrics,
        counts: Callable[[], QueueCounts],
        accounts: Callable[[], Iterable[AccountView]],
        gauges: Callable[[], Mapping[str, tuple[str, float]]],
    ) -> None:
        self._metrics = metrics
        self._counts = counts
        self._accounts = accounts
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, so that registering asks for nothing."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Everything but the histogram."""
        yield from self._metrics.families()
        counts = self._counts()
        for name, text, label, table in (
            (
                "dlr_buffer_messages",
                "Messages by state (waiting: none reported yet).",
                "state",
                counts.messages,
            ),
            ("dlr_buffer_receipts", "Receipts by status.", "status", counts.receipts),
        ):
            family = GaugeMetricFamily(name, text, labels=["account", label])
            for account, rows in table.items():
                for key, count in rows.items():
                    family.add_metric([account, key], count)
            yield family
        health = GaugeMetricFamily(
            "dlr_buffer_account_health",
            "1 for the state that the account is in.",
            labels=["account", "health"],
        )
        in_flight = GaugeMetricFamily(
            "dlr_buffer_receipts_in_flight", "Receipts on the wire now.", labels=["account"]
        )
        for view in self._accounts():
            for state in HealthState:
                health.add_metric([view.name, state.value], float(view.health is state))
            in_flight.add_metric([view.name], view.in_flight_receipts)
        yield health
        yield in_flight
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(f"dlr_buffer_{name}", text, value=value)
