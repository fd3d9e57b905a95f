"""Where traces begin, which are sampled, what settings they need, and how many of them may wait."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextvars import copy_context

import pytest

from router.config.loading import load_config
from router.config.schema import ConfigError
from router.config.serving import TracingConfig
from router.core.request.trace import MAX_PHASES, TRACE, Trace, trace_of
from router.tracing.build import open_tracing
from router.tracing.queue import TraceQueue
from router.tracing.tracer import Tracer
from tests.tracing.records import a_record

URL = "http://127.0.0.1:4318/v1/traces"


def tracer(ratio: float, seed: int = 1) -> Tracer:
    return Tracer(ratio, random.Random(seed).getrandbits, lambda: 1.0, lambda _: None)


def a_trace() -> Trace:
    return tracer(1.0).begin("POST", {})


def test_the_share_of_new_traces_that_is_sampled_is_the_configured_one() -> None:
    making = tracer(0.25)
    sampled = sum(making.begin("POST", {}).is_sampled for _ in range(2000))
    assert 400 < sampled < 600
    assert all(tracer(1.0, seed).begin("POST", {}).is_sampled for seed in range(100))
    assert not any(tracer(0.0, seed).begin("POST", {}).is_sampled for seed in range(100))


def test_an_id_is_never_zero() -> None:
    made = Tracer(1.0, lambda _: 0, lambda: 1.0, lambda _: None).begin("POST", {})
    assert int(made.trace_id, 16)
    assert int(made.span_id, 16)
    assert (len(made.trace_id), len(made.span_id)) == (32, 16)


def test_a_request_that_waits_again_and_again_has_a_bounded_trace() -> None:
    trace = a_trace()
    for number in range(MAX_PHASES + 5):
        trace.reach("wait", float(number))
    assert len(trace.phases) == MAX_PHASES


def test_a_trace_and_its_record_do_not_keep_each_other() -> None:
    trace = a_trace()
    trace.record = record = a_record(trace)
    tracer(1.0).end(trace, 200)
    assert record.trace is None


def test_what_the_router_asks_for_itself_is_no_part_of_the_clients_trace() -> None:
    def served() -> tuple[Trace | None, Trace | None]:
        trace = a_trace()
        trace.request_id = "r1"
        TRACE.set(trace)
        return trace_of("r1"), trace_of("embed_2")

    theirs, ours = copy_context().run(served)
    assert theirs is not None
    assert ours is None


async def test_what_finds_the_queue_full_is_dropped_and_what_waits_at_the_end_is_sent() -> None:
    sent: list[Trace] = []

    def send(traces: Sequence[Trace]) -> bool:
        sent.extend(traces)
        return True

    queue = TraceQueue(send, lambda: None, max_traces=100, interval_s=60)
    waiting = [a_trace() for _ in range(101)]
    for trace in waiting:
        queue.put(trace)
    assert (len(queue), queue.dropped["full"]) == (100, 1)
    queue.start()
    await queue.close(10)
    assert list(map(id, sent)) == list(map(id, waiting[:100]))
    assert queue.sent == 100


async def test_behind_a_failure_the_rest_is_not_tried_at_once_and_is_counted_at_the_end() -> None:
    queue = TraceQueue(lambda _: False, lambda: None, max_traces=1000, interval_s=60)
    for _ in range(200):
        queue.put(a_trace())
    queue._is_closing = True
    queue.start()
    await queue.close(10)
    assert (queue.dropped["failed"], queue.dropped["stopped"], queue.sent) == (64, 136, 0)


def test_tracing_without_its_extra_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router.tracing.otlp", None)
    with pytest.raises(ConfigError, match=r"needs the extra warmroute\[otel\]"):
        open_tracing(TracingConfig(endpoint=URL), {}, bool, float, float, random.Random(1).getrandbits)


def test_nothing_of_opentelemetry_is_needed_while_tracing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router.tracing.otlp", None)
    assert open_tracing(TracingConfig(), {}, bool, float, float, random.Random(1).getrandbits) is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4318",
        "http://collector:4318",
        "ftp://c/v1/traces",
        "http://c/a b",
        "http://u:hush-hush@c/v1/traces",
        "http://c/v1/traces?key=hush-hush",
    ],
)
def test_an_endpoint_that_is_no_whole_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.endpoint") as raised:
        load_config(None, {}, {"tracing.endpoint": endpoint})
    assert "hush-hush" not in str(raised.value)


def test_headers_that_are_none_are_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match=r"tracing\.headers=\*\*\*") as raised:
        load_config(None, {}, {"tracing.headers": ["secret"]})
    assert "secret" not in str(raised.value)
