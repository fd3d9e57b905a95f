"""Sends the spans of requests to a collector of OpenTelemetry: OTLP over HTTP, in protobuf. The SDK's batch processor queues
requests and sends them in its own thread, where their spans are made.

Of the environment this heeds the certificates and headers that OpenTelemetry names (``OTEL_EXPORTER_OTLP_…``), and no proxy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import ClassVar

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from router.config.serving import TracingConfig
from router.core.request.trace import Trace
from router.runtime.log_once import LogOnce
from router.tracing.metrics import TraceCounts
from router.tracing.spans import Kind, Span, spans_of

log = logging.getLogger("warmroute.tracing")

BATCH = 64
"""Requests whose spans are sent at once."""

MAX_QUEUE = 2048
"""Requests whose spans may wait to be sent; those of others are dropped."""

INTERVAL_S = 1.0
"""Time for which spans wait so that they are sent together."""

EXPORT_S = 5.0
"""Time for the collector to take a batch."""

_KINDS = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


@dataclass(frozen=True, slots=True)
class _Request:
    """A request in the SDK's queue, in place of its spans. The SDK reads nothing but ``context``."""

    trace: Trace
    context: ClassVar[SpanContext] = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)


class TraceSender:
    """Queues sampled requests. No request waits for it. A request that finds ``MAX_QUEUE`` others waiting is dropped and
    counted."""

    def __init__(self, exporter: TraceExporter, counts: TraceCounts) -> None:
        counts.max_traces = MAX_QUEUE
        self._counts = counts
        self._exporter = exporter
        self._processor = BatchSpanProcessor(exporter, MAX_QUEUE, INTERVAL_S * 1e3, min(BATCH, MAX_QUEUE))

    def put(self, trace: Trace) -> None:
        if self._counts.waiting >= self._counts.max_traces:  # the SDK would drop the oldest, and count it nowhere
            self._counts.dropped["full"] += 1
            return
        self._counts.queued += 1
        self._processor.on_end(_Request(trace))

    async def close(self, within_s: float) -> None:
        """Send the waiting requests, if that is possible in time. A collector that hangs holds up no exit."""
        ending = Thread(target=self._processor.shutdown, name="traces", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, within_s)
        self._exporter.shutdown()
        if left := self._counts.waiting:
            self._counts.dropped["stopped"] += left
            log.warning("the router stopped before these traces were sent", extra={"traces": left})


class TraceExporter:
    """An exporter of the SDK. Makes the spans of requests and sends them, in the thread of the SDK's processor.

    ``resource``: attributes of the router. ``wall_offset_s()``: what is added to the router's clock for Unix time.
    """

    def __init__(
        self,
        send: Callable[[Sequence[ReadableSpan]], SpanExportResult],
        stop: Callable[[], None],
        resource: Mapping[str, str],
        is_known: Callable[[str], bool],
        wall_offset_s: Callable[[], float],
        counts: TraceCounts,
    ) -> None:
        self._send = send
        self._stop = stop
        self._resource = Resource(resource)
        self._scope = InstrumentationScope("warmroute", resource["service.version"])
        self._is_known = is_known
        self._wall_offset_s = wall_offset_s
        self._counts = counts
        self._errors = LogOnce()

    def export(self, batch: Sequence[_Request]) -> SpanExportResult:
        """May raise what older exporters raise: the SDK's thread goes on, and the requests count as failed."""
        self._counts.taken += len(batch)
        offset_s, result = self._wall_offset_s(), SpanExportResult.FAILURE
        try:
            traces = [each.trace for each in batch]
            result = self._send([self._span(t, s, offset_s) for t in traces for s in spans_of(t, self._is_known)])
        finally:
            if result is SpanExportResult.SUCCESS:
                self._counts.sent += len(batch)
                if self._errors.succeeded():
                    log.info("traces are sent again")
            else:
                self._counts.dropped["failed"] += len(batch)
                if self._errors.failed(""):
                    log.warning("traces cannot be sent, and are dropped")
        return result

    def shutdown(self) -> None:
        self._stop()

    def _span(self, trace: Trace, span: Span, offset_s: float) -> ReadableSpan:
        trace_id = int(trace.trace_id, 16)
        parent = None
        if span.parent_id:
            is_remote = span.parent_id == trace.parent_id
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote, _SAMPLED)
        return ReadableSpan(
            span.name,
            SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
            parent,
            self._resource,
            span.attributes,
            kind=_KINDS[span.kind],
            status=_ERROR if span.error else _UNSET,
            start_time=int((span.began_at + offset_s) * 1e9),
            end_time=int((span.ended_at + offset_s) * 1e9),
            instrumentation_scope=self._scope,
        )


def otlp_exporter(config: TracingConfig) -> OTLPSpanExporter:
    """An export takes ``EXPORT_S`` at the most, but for a collector that answers drop by drop."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # its messages hold URLs; TraceExporter logs failures
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0  # an answer that leads elsewhere is a failure: the headers are for this collector
    return OTLPSpanExporter(
        config.endpoint,
        headers=dict(each.split("=", 1) for each in config.headers),
        timeout=EXPORT_S,
        compression=Compression.NoCompression,
        session=session,
    )
