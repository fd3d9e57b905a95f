"""Makes the spans of a trace. Pure. This module decides names, kinds, times and attributes, and so what of a request may leave
the router.

No span holds text of a prompt or an answer, a key, a tenant, a session's name, a path with a name in it, or a model's name
that no worker serves: a client may write anything there.

Attributes follow OpenTelemetry's semantic conventions for HTTP servers and for clients of generative AI
(https://opentelemetry.io/docs/specs/semconv/), whose ``gen_ai.*`` are in development. Attributes without a convention begin
with ``warmroute.``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from router.core.request.record import Record
from router.core.request.trace import Trace, TracedAttempt

Value = str | int | float | bool | Sequence[str]

PROVIDER = "vllm"
"""``gen_ai.provider.name``."""

_FINE = frozenset({"ok", "client_gone", "client_stalled", "cancelled"})
"""Outcomes that are not a worker's failure."""


_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Known methods. Any other text comes from a client."""


class Kind(Enum):
    INTERNAL = 0
    SERVER = 1
    CLIENT = 2


class Span(NamedTuple):
    """Times are seconds on the router's monotonic clock. ``error`` is the reason of a failure; empty means none."""

    name: str
    kind: Kind
    span_id: str
    parent_id: str
    began_at: float
    ended_at: float
    attributes: Mapping[str, Value]
    error: str = ""


def spans_of(trace: Trace, is_known: Callable[[str], bool]) -> Sequence[Span]:
    """The request's span first, then its children in order. ``is_known(model)``: a worker serves it."""
    model = trace.record.model if trace.record is not None and is_known(trace.record.model) else ""
    return [_request(trace, model), *_phases(trace), *_attempts(trace, model)]


def _request(trace: Trace, model: str) -> Span:
    method = trace.method if trace.method in _METHODS else "_OTHER"
    attributes: dict[str, Value] = {
        "http.request.method": method,
        "http.route": trace.route,
        "warmroute.request_id": trace.request_id,
    }
    if trace.status:
        attributes["http.response.status_code"] = trace.status
    error = str(trace.status) if trace.status >= 500 else ""
    if trace.record is not None:
        attributes |= _decision(trace.record, model)
        if trace.record.status < 400 and trace.record.outcome not in _FINE:
            error = error or trace.record.outcome
    if error:
        attributes["error.type"] = error
    name = f"{'HTTP' if method == '_OTHER' else method} {trace.route}"
    return Span(name, Kind.SERVER, trace.span_id, trace.parent_id, trace.began_at, trace.ended_at, attributes, error)


def _decision(record: Record, model: str) -> Mapping[str, Value]:
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": record.route.spec.operation,
        "warmroute.stream": record.stream,
        "warmroute.policy": record.policy,
        "warmroute.outcome": record.outcome,
        "warmroute.attempts": record.attempts,
    }
    if model:
        attributes["gen_ai.request.model"] = model
    if record.reason:
        attributes["warmroute.reason"] = record.reason
        attributes["warmroute.predicted_cached_tokens"] = round(record.predicted_cached_tokens)
    if record.queued_s:
        attributes["warmroute.queued_s"] = record.queued_s
    if record.retries:
        attributes["warmroute.retries"] = list(record.retries)
    if record.resumptions:
        attributes["warmroute.resumptions"] = [f"{each.cause}:{each.outcome}" for each in record.resumptions]
    return attributes


def _phases(trace: Trace) -> Iterator[Span]:
    for phase in trace.phases:
        ids = (trace.new_span_id(), trace.span_id)
        yield Span(phase.name, Kind.INTERNAL, *ids, phase.began_at, phase.ended_at, {})


def _attempts(trace: Trace, model: str) -> Iterator[Span]:
    record = trace.record
    if record is None:
        return
    for attempt in trace.attempts:
        yield _attempt(trace, record, attempt, model, has_answered=attempt is trace.attempts[-1])
        if attempt.first_event_at:
            for name, began_at, ended_at in (
                ("first token", attempt.began_at, attempt.first_event_at),
                ("relay", attempt.first_event_at, attempt.ended_at),
            ):
                yield Span(name, Kind.INTERNAL, trace.new_span_id(), attempt.span_id, began_at, ended_at, {})


def _attempt(trace: Trace, record: Record, attempt: TracedAttempt, model: str, *, has_answered: bool) -> Span:
    """An attempt's span. The attempt that ended the answer has the tokens, as its worker counted them."""
    operation = record.route.spec.operation
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "server.address": attempt.address.host,
        "server.port": attempt.address.port,
        "warmroute.worker": attempt.address.name,
        "warmroute.outcome": attempt.outcome,
    }
    if model:
        attributes["gen_ai.request.model"] = model
    if attempt.is_resumption:
        attributes["warmroute.resumes"] = True
    if has_answered and record.prompt_tokens:
        attributes["gen_ai.usage.input_tokens"] = record.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = record.completion_tokens
        if record.actual_cached_tokens is not None:
            attributes["gen_ai.usage.cache_read.input_tokens"] = record.actual_cached_tokens
    error = "" if attempt.outcome in _FINE else attempt.outcome
    if error:
        attributes["error.type"] = error
    ids = (attempt.span_id, trace.span_id)
    name = f"{operation} {model}".rstrip()
    return Span(name, Kind.CLIENT, *ids, attempt.began_at, attempt.ended_at, attributes, error)
