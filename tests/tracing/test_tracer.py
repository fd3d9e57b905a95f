"""Where traces begin, which are sampled, and what settings they need."""

from __future__ import annotations

import sys
from contextvars import copy_context

import pytest

from router.config.loading import load_config
from router.config.schema import ConfigError
from router.config.serving import TracingConfig
from router.core.request.trace import MAX_PHASES, TRACE, Trace, trace_of
from router.tracing.build import open_tracing
from router.tracing.metrics import TraceCounts
from router.tracing.tracer import Tracer
from tests.tracing.records import a_record

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
URL = "http://127.0.0.1:4318/v1/traces"


def tracer(ratio: float) -> Tracer:
    return Tracer(ratio, lambda: 1.0, lambda _: None)


def a_trace() -> Trace:
    return tracer(1.0).begin("POST", {})


def test_the_share_of_new_traces_that_is_sampled_is_the_configured_one() -> None:
    for trace in [tracer(0.25).begin("POST", {}) for _ in range(100)]:
        assert trace.is_sampled == (int(trace.trace_id[16:], 16) < 1 << 62)
        assert (len(trace.trace_id), len(trace.span_id), trace.parent_id) == (32, 16, "")
    assert all(tracer(1.0).begin("POST", {}).is_sampled for _ in range(100))
    assert not any(tracer(0.0).begin("POST", {}).is_sampled for _ in range(100))


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("flags", "is_sampled"), [("00", False), ("01", True), ("02", False), ("ff", True)])
def test_the_lowest_flag_of_a_client_alone_says_whether_its_trace_is_sampled(
    ratio: float, flags: str, is_sampled: bool
) -> None:
    trace = tracer(ratio).begin("POST", {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}", "tracestate": "a=b"})
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE_ID, PARENT_ID, is_sampled)


@pytest.mark.parametrize("given", ["", "no", f"00-{'0' * 32}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-01-more"])
def test_a_trace_begins_here_where_the_client_names_none(given: str) -> None:
    trace = tracer(1.0).begin("POST", {"traceparent": given})
    assert trace.parent_id == ""
    assert trace.trace_id not in (TRACE_ID, "0" * 32)


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


def test_tracing_without_its_extra_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router.tracing.otlp", None)
    with pytest.raises(ConfigError, match=r"needs the extra warmroute\[otel\]"):
        open_tracing(TracingConfig(endpoint=URL), {}, bool, float, float, TraceCounts())


def test_nothing_of_opentelemetry_is_needed_while_tracing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router.tracing.otlp", None)
    assert open_tracing(TracingConfig(), {}, bool, float, float, TraceCounts()) is None


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
