"""Traces on their way to the collector. All figures are zero where tracing is off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from router.runtime.metrics import Row, counter, gauge

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


def trace_rows(counts: TraceCounts) -> Iterable[Row]:
    return (
        counter(
            "dropped_traces",
            "Sampled requests whose spans never reached the collector, by cause.",
            lambda: counts.dropped,
            "cause",
        ),
        counter("sent_traces", "Sampled requests whose spans the collector took.", lambda: counts.sent),
        gauge("waiting_traces", "Sampled requests whose spans wait to be sent.", lambda: counts.waiting),
        gauge(
            "max_waiting_traces",
            "Most sampled requests whose spans may wait; spans of further ones are dropped.",
            lambda: counts.max_traces,
        ),
    )
