"""Where a trace begins, whether it is sampled, and what becomes of it at its end.

A client that is in a trace has decided whether that is sampled; otherwise the share that was configured decides, by the
trace's id alone, as OpenTelemetry's TraceIdRatioBased does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.core.request.trace import Trace
from router.wire.trace_context import read_traceparent

_LOW_64 = (1 << 64) - 1


class Tracer:
    """``bits(n)``: n random bits. ``submit``: takes a sampled trace that has ended."""

    def __init__(
        self,
        sample_ratio: float,
        bits: Callable[[int], int],
        clock: Callable[[], float],
        submit: Callable[[Trace], None],
    ) -> None:
        self._bound = round(sample_ratio * (1 << 64))
        self._bits = bits
        self._clock = clock
        self._submit = submit

    def begin(self, method: str, headers: Mapping[str, str]) -> Trace:
        given = read_traceparent(headers.get("traceparent", ""))
        trace_id = given.trace_id if given else f"{self._bits(128) or 1:032x}"
        return Trace(
            trace_id=trace_id,
            parent_id=given.parent_id if given else "",
            span_id=self.new_span_id(),
            is_sampled=given.is_sampled if given else int(trace_id, 16) & _LOW_64 < self._bound,
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
        return f"{self._bits(64) or 1:016x}"
