"""Traces on their way to the collector; all zero where tracing is off."""

from __future__ import annotations

from collections.abc import Iterable

from router.runtime.metrics import Row, counter, gauge
from router.tracing.queue import CAUSES, TraceQueue

NOTHING_DROPPED = dict.fromkeys(CAUSES, 0)


def trace_rows(queue: TraceQueue | None) -> Iterable[Row]:
    return (
        counter(
            "dropped_traces",
            "Sampled requests whose spans never reached the collector, by cause.",
            lambda: queue.dropped if queue is not None else NOTHING_DROPPED,
            "cause",
        ),
        counter(
            "sent_traces",
            "Sampled requests whose spans the collector took.",
            lambda: queue.sent if queue is not None else 0,
        ),
        gauge(
            "waiting_traces",
            "Sampled requests whose spans wait to be sent.",
            lambda: len(queue) if queue is not None else 0,
        ),
        gauge(
            "max_waiting_traces",
            "Most sampled requests whose spans may wait; spans of further ones are dropped.",
            lambda: queue.max_traces if queue is not None else 0,
        ),
    )
