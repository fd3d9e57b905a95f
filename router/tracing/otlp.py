"""Spans as OpenTelemetry's SDK has them, and their way to a collector: OTLP over HTTP, in protobuf. The only module that knows
its packages, which the extra ``otel`` installs.

All of it is called in the thread of the queue. Of the environment it heeds the certificates and headers that
OpenTelemetry names (``OTEL_EXPORTER_OTLP_…``), and no proxy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from router.core.request.trace import Trace
from router.tracing.spans import Kind, Span, spans_of

_KINDS = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)


class OtlpSender:
    """``resource``: what the router says of itself. ``wall_offset_s()``: what is added to the router's clock for Unix time."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        timeout_s: float,
        resource: Mapping[str, str],
        is_known: Callable[[str], bool],
        wall_offset_s: Callable[[], float],
    ) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # its words hold URLs; the queue says what fails
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0  # an answer that leads elsewhere is a failure: the headers are for this collector
        self._exporter = OTLPSpanExporter(
            endpoint, headers=headers, timeout=timeout_s, compression=Compression.NoCompression, session=session
        )
        self._resource = Resource(resource)
        self._scope = InstrumentationScope("warmroute", resource["service.version"])
        self._is_known = is_known
        self._wall_offset_s = wall_offset_s

    def send(self, traces: Sequence[Trace]) -> bool:
        """Blocks for ``timeout_s`` at the most, but for a collector that answers drop by drop."""
        offset_s = self._wall_offset_s()
        spans = [self._span(trace, span, offset_s) for trace in traces for span in spans_of(trace, self._is_known)]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def stop(self) -> None:
        self._exporter.shutdown()

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
