"""What Prometheus reads: names, closed sets of labels, and counts that add up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from router.core.index.cache_use import CacheMisses
from router.core.request.record import Record
from router.core.request.retry import RetryBudget
from router.core.request.routes import Route
from router.proxy.metrics import BATCH, TTFT_BUCKETS, Metrics, dispatch_rows
from router.runtime.metrics import MAX_LABEL_VALUES, Exposition, Table
from router.wire.transcript import TranscriptBudget


class Counted:
    """Metrics with a registry of their own."""

    def __init__(self, is_known: Callable[[str], bool] = lambda model: model.startswith("known")) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, is_known)
        self.observe = self.metrics.observe
        self.observe_refusal = self.metrics.observe_refusal
        self.exposition = Exposition(self.registry, self.metrics.flush).read


def make_metrics() -> Counted:
    return Counted()


def make_record(model: str = "known", *, reason: str = "cached", retries: list[str] | None = None) -> Record:
    return Record(
        route=Route.CHAT,
        model=model,
        policy="cache_aware",
        request_id="r",
        stream=True,
        started_at=1.0,
        decided_at=1.001,
        first_byte_at=1.5,
        ended_at=3.0,
        status=200,
        reason=reason,
        retries=retries or [],
        prompt_tokens=100,
        predicted_cached_tokens=80.0,
        actual_cached_tokens=64,
    )


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def samples(metrics: Counted) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = asyncio.run(metrics.exposition())[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_request_is_counted_by_route_model_and_status() -> None:
    metrics = make_metrics()
    for _ in range(BATCH + 7):
        metrics.observe(make_record(retries=["died"]))
    found = samples(metrics)
    labels = (("model", "known"), ("route", "/v1/chat/completions"), ("status", "200"))
    assert found["warmroute_requests_total", labels] == BATCH + 7
    assert found["warmroute_retries_total", (("cause", "died"),)] == BATCH + 7
    decisions = (("policy", "cache_aware"), ("reason", "cached"))
    assert found["warmroute_routing_decisions_total", decisions] == BATCH + 7


def test_failures_are_there_at_zero_before_the_first_so_that_prometheus_sees_it_rise() -> None:
    metrics = make_metrics()
    before = samples(metrics)
    for cause in ("connect", "died", "timeout", "error", "busy"):
        assert before["warmroute_retries_total", (("cause", cause),)] == 0
    for outcome in ("unsafe", "failed"):
        assert before["warmroute_resumptions_total", (("cause", "died"), ("outcome", outcome))] == 0
    refused = (("model", "other"), ("route", "other"), ("status", "503"))
    assert before["warmroute_requests_total", refused] == 0
    metrics.observe(make_record())
    failed = (("model", "known"), ("route", "/v1/chat/completions"), ("status", "502"))
    assert samples(metrics)["warmroute_requests_total", failed] == 0


def test_predicted_and_actual_hits_stand_beside_the_prompts() -> None:
    metrics = make_metrics()
    metrics.observe(make_record())
    found = samples(metrics)
    model = (("model", "known"),)
    assert found["warmroute_prompt_tokens_total", model] == 100
    assert found["warmroute_predicted_cached_tokens_total", model] == 80
    assert found["warmroute_actual_cached_tokens_total", model] == 64


def test_first_tokens_and_durations_are_measured_from_the_requests_head() -> None:
    metrics = make_metrics()
    metrics.observe(make_record())
    found = samples(metrics)
    by_policy = (("model", "known"), ("policy", "cache_aware"))
    assert found["warmroute_time_to_first_token_seconds_sum", by_policy] == 0.5
    by_route = (("model", "known"), ("route", "/v1/chat/completions"))
    assert found["warmroute_request_duration_seconds_sum", by_route] == 2.0


def test_names_that_clients_make_up_become_other() -> None:
    metrics = make_metrics()
    for number in range(300):
        metrics.observe(make_record(f"made-up-{number}"))
    text = asyncio.run(metrics.exposition())[0].decode()
    assert "made-up" not in text
    labels = (("model", "other"), ("route", "/v1/chat/completions"), ("status", "200"))
    assert samples(metrics)["warmroute_requests_total", labels] == 300


def test_series_stay_bounded_however_many_models_there_are() -> None:
    metrics = make_metrics()
    for number in range(MAX_LABEL_VALUES * 2):
        metrics.observe(make_record(f"known-{number}"))
    models = {dict(labels).get("model") for name, labels in samples(metrics) if name == "warmroute_requests_total"}
    assert len(models) <= MAX_LABEL_VALUES + 1
    assert "other" in models


def test_batches_are_counted_when_they_are_full_and_when_prometheus_asks() -> None:
    metrics = Counted(lambda _model: True)
    registry = metrics.registry
    labels = {"route": "/v1/chat/completions", "model": "m", "status": "200"}
    for _ in range(BATCH):
        assert registry.get_sample_value("warmroute_requests_total", labels) is None
        metrics.observe(make_record("m"))
    assert registry.get_sample_value("warmroute_requests_total", labels) == BATCH
    metrics.observe(make_record("m"))
    assert registry.get_sample_value("warmroute_requests_total", labels) == BATCH
    asyncio.run(metrics.exposition())
    assert registry.get_sample_value("warmroute_requests_total", labels) == BATCH + 1


def test_unknown_cached_tokens_count_neither_as_hits_nor_as_misses() -> None:
    metrics = make_metrics()
    record = make_record()
    record.actual_cached_tokens = None
    metrics.observe(record)
    assert samples(metrics)["warmroute_prompt_tokens_total", (("model", "known"),)] == 0


def test_no_more_is_predicted_than_there_was() -> None:
    metrics = make_metrics()
    record = make_record()
    record.predicted_cached_tokens = 1e9
    metrics.observe(record)
    assert samples(metrics)["warmroute_predicted_cached_tokens_total", (("model", "known"),)] == 100


def test_a_request_that_nobody_was_chosen_for_is_no_decision() -> None:
    metrics = make_metrics()
    record = make_record("unheard-of", reason="")
    record.decided_at = record.first_byte_at = 0.0
    record.status = 404
    metrics.observe(record)
    found = samples(metrics)
    assert found["warmroute_requests_total", labelled(model="other", route=Route.CHAT.path, status="404")] == 1
    assert found["warmroute_routing_decisions_total", labelled(policy="cache_aware", reason="none")] == 0
    assert found["warmroute_router_overhead_seconds_count", labelled(phase="decide")] == 0
    assert found["warmroute_time_to_first_token_seconds_count", labelled(model="other", policy="cache_aware")] == 0


def test_only_streams_show_a_first_token() -> None:
    metrics = make_metrics()
    record = make_record()
    record.stream = False
    metrics.observe(record)
    count = "warmroute_time_to_first_token_seconds_count"
    assert samples(metrics)[count, labelled(model="known", policy="cache_aware")] == 0


def test_what_never_reached_dispatch_is_counted_too() -> None:
    metrics = make_metrics()
    metrics.observe_refusal("other", 404)
    assert samples(metrics)["warmroute_requests_total", labelled(model="other", route="other", status="404")] == 1


def test_first_token_buckets_are_vllms() -> None:
    metrics = make_metrics()
    metrics.observe(make_record())
    bounds = [
        float(dict(labels)["le"])
        for name, labels in samples(metrics)
        if name == "warmroute_time_to_first_token_seconds_bucket"
    ]
    assert bounds == [*TTFT_BUCKETS, float("inf")]


def test_waiting_for_room_is_no_overhead_of_the_router_and_counted_apart() -> None:
    metrics = make_metrics()
    waited = make_record()
    waited.queued_s, waited.decided_at = 2.0, 3.0001
    for record in (waited, make_record()):
        metrics.observe(record)
    found = samples(metrics)
    assert found["warmroute_queue_wait_seconds_count", ()] == 1
    assert found["warmroute_queue_wait_seconds_sum", ()] == 2.0
    assert found["warmroute_router_overhead_seconds_sum", (("phase", "decide"),)] < 0.01


async def test_two_scrapes_at_once_are_both_whole() -> None:
    metrics = make_metrics()
    metrics.observe(make_record())
    first, second = await asyncio.gather(metrics.exposition(), metrics.exposition())
    assert first == second


def test_the_budget_and_what_was_not_cached_are_read_when_prometheus_asks() -> None:
    budget, misses, registry = RetryBudget(0.2, 3), CacheMisses(), CollectorRegistry()
    misses.add(1000, 800, 500, 400)
    budget.take(0.0)
    registry.register(Table(dispatch_rows(budget, misses, TranscriptBudget(7))))
    for reason, tokens in {"new": 200, "elsewhere": 300, "gone": 100}.items():
        assert registry.get_sample_value("warmroute_uncached_tokens_total", {"reason": reason}) == tokens
    for name, value in {"retries_in_flight": 1, "retry_budget": 2, "retry_budget_max": 100}.items():
        assert registry.get_sample_value(f"warmroute_{name}") == value
