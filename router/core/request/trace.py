"""The trace of one request: its phases, and the workers that it was sent to.

Nothing here knows OpenTelemetry. Without tracing there is no ``Trace``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from router.core.worker import WorkerAddress

if TYPE_CHECKING:
    from router.core.request.record import Record

MAX_PHASES = 64
"""Most phases of one request. A request that waits again and again gets no more."""


class Phase(NamedTuple):
    """``receive``, ``claim``, ``prompt``, ``wait``, ``decide`` or ``save``."""

    name: str
    began_at: float
    ended_at: float


@dataclass(slots=True)
class TracedAttempt:
    """One worker that was asked. ``first_event_at``: 0.0 if no stream began. ``outcome``: ``ok``, or why it failed."""

    span_id: str
    address: WorkerAddress
    began_at: float
    is_resumption: bool = False
    first_event_at: float = 0.0
    ended_at: float = 0.0
    outcome: str = "pending"


@dataclass(slots=True, kw_only=True)
class Trace:
    """Times are seconds on the router's monotonic clock; ids are lower-case hexadecimal digits, as in W3C Trace Context: 32 for
    a trace, 16 for a span."""

    trace_id: str
    parent_id: str
    """The client's span; empty if the trace begins here."""
    span_id: str
    is_sampled: bool
    began_at: float
    new_span_id: Callable[[], str]
    method: str = ""
    route: str = ""
    """Its path, with braces in place of names; empty: it is not traced."""
    request_id: str = ""
    status: int = 0
    ended_at: float = 0.0
    record: Record | None = None
    """None if the request never reached dispatch."""
    phases: list[Phase] = field(default_factory=list)
    attempts: list[TracedAttempt] = field(default_factory=list)
    phase_began_at: float = 0.0

    def traceparent(self, span_id: str) -> str:
        return f"00-{self.trace_id}-{span_id}-0{self.is_sampled:d}"

    def reach(self, phase: str, now: float) -> None:
        """``phase`` ends; it began when the last one ended."""
        if self.is_sampled and len(self.phases) < MAX_PHASES:
            self.phases.append(Phase(phase, self.phase_began_at or self.began_at, now))
        self.phase_began_at = now

    def attempt(self, address: WorkerAddress, now: float, *, is_resumption: bool = False) -> TracedAttempt:
        made = TracedAttempt(self.new_span_id(), address, now, is_resumption)
        self.attempts.append(made)
        return made

    def on_first_event(self, now: float) -> None:
        """The stream of the newest attempt begins."""
        self.attempts[-1].first_event_at = now


TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request that this task serves. A context variable, since most rooms on its way have no need of it."""


def trace_of(request_id: str) -> Trace | None:
    """None for the router's own requests in the midst of a client's request."""
    trace = TRACE.get()
    return trace if trace is not None and trace.request_id == request_id else None
