"""How traces fare on their way to the collector, read when Prometheus asks; all zero where tracing is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.runtime.series import counter

NOTHING_DROPPED = {"full": 0, "failed": 0, "stopped": 0}


class TraceFigures(Protocol):
    max_traces: int
    sent: int

    @property
    def dropped(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...


class TracingCollector(Collector):
    def __init__(self, figures: TraceFigures | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield counter(
            "dropped_traces",
            "Sampled requests whose spans never reached the collector, by why.",
            NOTHING_DROPPED if figures is None else figures.dropped,
            "cause",
        )
        sent = CounterMetricFamily("warmroute_sent_traces", "Sampled requests whose spans the collector has.")
        sent.add_metric((), figures.sent if figures is not None else 0)
        yield sent
        for name, text, value in (
            ("waiting_traces", "Requests whose spans wait to be sent.", len(figures) if figures is not None else 0),
            ("max_waiting_traces", "How many may.", figures.max_traces if figures is not None else 0),
        ):
            gauge = GaugeMetricFamily(f"warmroute_{name}", text)
            gauge.add_metric((), value)
            yield gauge
