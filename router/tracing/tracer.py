"""Begins and ends traces. A client that is in a trace has decided whether that is sampled; of other traces the configured share
is, by the trace's id alone. OpenTelemetry's SDK reads the client's headers, makes the ids and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import INVALID_SPAN_CONTEXT, format_span_id, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.core.request.trace import Trace


class Tracer:
    """``submit`` takes a sampled trace that has ended."""

    def __init__(self, sample_ratio: float, clock: Callable[[], float], submit: Callable[[Trace], None]) -> None:
        self._sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self._propagator = TraceContextTextMapPropagator()
        self._clock = clock
        self._submit = submit
        self._ids = RandomIdGenerator()

    def begin(self, method: str, headers: Mapping[str, str]) -> Trace:
        context, parent = None, INVALID_SPAN_CONTEXT
        if "traceparent" in headers:  # the SDK takes 10 µs to find none
            context = self._propagator.extract(headers)
            parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        return Trace(
            trace_id=format_trace_id(trace_id),
            parent_id=format_span_id(parent.span_id) if parent.is_valid else "",
            span_id=self.new_span_id(),
            is_sampled=self._sampler.should_sample(context, trace_id, "").decision.is_sampled(),
            began_at=self._clock(),
            new_span_id=self.new_span_id,
            method=method,
        )

    def end(self, trace: Trace, status: int) -> None:
        """``status``: what the client was answered; 0 where a worker's answer was, or nobody's."""
        trace.ended_at = self._clock()
        trace.status = status or (trace.record.status if trace.record is not None else 0)
        if trace.record is not None:
            trace.record.trace = None  # they would keep each other, and the record is remembered
        if trace.is_sampled and trace.route:
            self._submit(trace)

    def new_span_id(self) -> str:
        return str(format_span_id(self._ids.generate_span_id()))
