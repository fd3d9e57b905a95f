"""What keeps histories within their windows, as Prometheus sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.tenants.tenant import TenantRules
from router.runtime.series import counter
from router.sessions.context_window import ContextWindow
from router.sessions.recall.index import MeasuredIndex
from router.sessions.recall.sqlite import SqliteIndex

RECALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LAG_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ContextMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        recall = Histogram(
            "warmroute_recall_duration_seconds",
            "What a search for what left a prompt took.",
            buckets=RECALL_BUCKETS,
            registry=registry,
        )
        lag = Histogram(
            "warmroute_compaction_lag_seconds",
            "From the turn that passed a mark until its session's view was changed, notes included.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.observe_recall: Callable[[float], None] = recall.observe
        self.observe_lag: Callable[[float], None] = lag.observe


class ContextCollector(Collector):
    """``tenants``: those that are configured."""

    def __init__(
        self,
        context_window: ContextWindow,
        index: MeasuredIndex,
        max_waiting: int,
        tenants: Callable[[], Sequence[TenantRules]],
    ) -> None:
        self._context_window = context_window
        self._index = index
        self._max_waiting = max_waiting
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        views, compactor, counts = (
            self._context_window.views,
            self._context_window.compactor,
            self._context_window.views.counts,
        )
        yield counter("context_raw_tokens", "Of turns' prompts, as whole logs make them.", counts.raw, "strategy")
        yield counter("context_sent_tokens", "Of turns' prompts, as they were sent.", counts.sent, "strategy")
        yield counter(
            "compactions",
            "Histories looked at by the janitor, by what came of it, and cut in a turn.",
            {**compactor.results, "ceiling": views.cuts},
            "result",
        )
        yield CounterMetricFamily(
            "warmroute_recomputed_tokens", "Of prompts, what a cut made workers compute anew.", counts.recomputed_tokens
        )
        yield counter("janitor_tokens", "What notes cost, as models counted.", compactor.tokens, "kind")
        yield GaugeMetricFamily("warmroute_janitor_waiting", "Sessions that wait for the janitor.", compactor.waiting)
        yield GaugeMetricFamily("warmroute_max_janitor_waiting", "How many may.", self._max_waiting)
        yield counter(
            "recalls", "Searches for what left a prompt, by outcome.", self._context_window.recaller.results, "outcome"
        )
        yield CounterMetricFamily(
            "warmroute_recalls_by_words_alone",
            "Searches whose question was not embedded in time.",
            self._index.searches_without_meaning,
        )
        yield GaugeMetricFamily(
            "warmroute_recall_calls", "Calls that the index is at, or that wait for it.", self._index.pending
        )
        yield GaugeMetricFamily("warmroute_max_recall_calls", "How many there may be.", self._index.max_pending)
        yield CounterMetricFamily(
            "warmroute_recall_index_failures",
            "Calls that came to nothing by which the index follows sessions.",
            self._context_window.recaller.index_failures,
        )
        left = GaugeMetricFamily(
            "warmroute_tenant_summary_tokens_left", "Of the day's budget for notes.", labels=("tenant",)
        )
        for rules in self._tenants():
            if (tokens := compactor.budget.left(rules)) is not None:
                left.add_metric((rules.tenant,), tokens)
        yield left


class SqliteIndexCollector(Collector):
    """What only an index with a bound has."""

    def __init__(self, index: SqliteIndex) -> None:
        self._index = index

    def collect(self) -> Iterator[Metric]:
        index = self._index
        yield GaugeMetricFamily(
            "warmroute_recall_bytes", "Texts and vectors of the index, when this router changed it last.", index.bytes
        )
        yield GaugeMetricFamily("warmroute_max_recall_bytes", "How many it may have.", index.max_bytes)
        yield counter(
            "recall_evictions",
            "What went from the index since it, or its session, had too much.",
            index.evicted,
            "kind",
        )
