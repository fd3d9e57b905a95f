"""How sampled requests wait for the collector, and what becomes of them when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from threading import Event
from unittest.mock import patch

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from router.core.request.trace import Trace
from router.tracing import otlp
from router.tracing.metrics import TraceCounts
from router.tracing.otlp import BATCH, TraceExporter, TraceSender
from tests.e2e.routed import until


class Collector:
    """Raises the errors that it is given, and succeeds after them. ``is_open``: it answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.ids: list[str] = []
        self.is_open = Event()
        self.is_open.set()
        self.was_asked = Event()

    def send(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.was_asked.set()
        self.is_open.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.ids += [str(span.attributes["warmroute.request_id"]) for span in spans if span.attributes]
        return SpanExportResult.SUCCESS


def a_trace(number: int) -> Trace:
    return Trace(
        trace_id="1" * 32,
        span_id="2" * 16,
        parent_id="",
        is_sampled=True,
        began_at=0.0,
        new_span_id=lambda: "3" * 16,
        request_id=str(number),
        route="/v1/models",
    )


def a_sender(collector: Collector, max_queue: int, interval_s: float = 60.0) -> tuple[TraceSender, TraceCounts]:
    counts = TraceCounts(max_queue)
    exporter = TraceExporter(
        collector.send, collector.is_open.set, {"service.version": "1"}, lambda _model: True, lambda: 0.0, counts
    )
    with patch.multiple(otlp, MAX_QUEUE=max_queue, INTERVAL_S=interval_s):
        return TraceSender(exporter, counts), counts


async def a_busy_sender(collector: Collector, max_queue: int) -> tuple[TraceSender, TraceCounts]:
    """The collector does not answer its first batch until it is opened."""
    collector.is_open.clear()
    sender, counts = a_sender(collector, max_queue)
    for number in range(BATCH):
        sender.put(a_trace(number))
    assert await asyncio.to_thread(collector.was_asked.wait, 10)
    return sender, counts


@pytest.mark.parametrize("error", [ConnectionError("closed"), ValueError("a bad answer"), RuntimeError("redirected")])
async def test_traces_are_sent_again_after_the_exporter_raised(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "warmroute.tracing")
    collector = Collector(error, error)
    sender, counts = a_sender(collector, 10, 0.01)

    def has_tried(number: int) -> bool:
        return counts.dropped["failed"] + counts.sent == number

    for number in range(1, 4):
        sender.put(a_trace(number))
        await until(partial(has_tried, number))
    assert (counts.dropped["failed"], counts.sent, collector.ids) == (2, 1, ["3"])
    await asyncio.wait_for(sender.close(5.0), 10.0)
    ours = [record.message for record in caplog.records if record.name == "warmroute.tracing"]
    assert ours == ["traces cannot be sent, and are dropped", "traces are sent again"]


async def test_a_request_that_finds_the_queue_full_is_dropped_and_those_that_wait_at_the_end_are_sent() -> None:
    collector = Collector()
    sender, counts = await a_busy_sender(collector, 100)
    for number in range(BATCH, BATCH + 101):
        sender.put(a_trace(number))
    assert (counts.waiting, counts.dropped["full"]) == (100, 1)
    collector.is_open.set()
    await asyncio.wait_for(sender.close(10.0), 20.0)
    assert (counts.waiting, counts.sent) == (0, BATCH + 100)
    assert collector.ids == [str(number) for number in range(BATCH + 100)]


async def test_requests_that_a_collector_that_hangs_leaves_waiting_are_counted_at_the_end() -> None:
    sender, counts = await a_busy_sender(Collector(), 1000)
    for number in range(5):
        sender.put(a_trace(number))
    assert counts.waiting == 5
    await asyncio.wait_for(sender.close(0.01), 10.0)
    assert counts.dropped["stopped"] == 5
