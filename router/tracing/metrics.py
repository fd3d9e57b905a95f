"""How traces fare on their way to the collector, read when Prometheus asks. All figures are zero where tracing is off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.runtime.series import counter

CAUSES = ("full", "failed", "stopped")
"""Why traces are dropped."""


class TraceCounts:
    """``queued`` and ``dropped["full"]`` are counted by the requests, ``taken`` and what follows from it by the thread that
    sends."""

    def __init__(self, max_traces: int = 0) -> None:
        self.max_traces = max_traces
        self.queued = 0
        self.taken = 0
        self.sent = 0
        self.dropped: Counter[str] = Counter(dict.fromkeys(CAUSES, 0))

    @property
    def waiting(self) -> int:
        return self.queued - self.taken


class TracingCollector(Collector):
    def __init__(self, counts: TraceCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        yield counter(
            "dropped_traces",
            "Sampled requests whose spans never reached the collector, by cause.",
            counts.dropped,
            "cause",
        )
        sent = CounterMetricFamily("warmroute_sent_traces", "Sampled requests whose spans the collector has.")
        sent.add_metric((), counts.sent)
        yield sent
        for name, text, value in (
            ("waiting_traces", "Requests whose spans wait to be sent.", counts.waiting),
            ("max_waiting_traces", "Most requests whose spans may wait to be sent.", counts.max_traces),
        ):
            gauge = GaugeMetricFamily(f"warmroute_{name}", text)
            gauge.add_metric((), value)
            yield gauge
