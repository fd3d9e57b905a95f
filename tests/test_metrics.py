"""What Prometheus reads: names, closed sets of labels, and counts that add up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from router.core.record import Record
from router.core.request import Route
from router.metrics import BATCH, GAP_BUCKETS, MAX_LABEL_VALUES, Metrics


def make_metrics() -> Metrics:
    return Metrics(CollectorRegistry(), lambda model: model.startswith("known"))


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


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.exposition()[0].decode()
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
        metrics.gaps(f"made-up-{number}")(0.01)
    text = metrics.exposition()[0].decode()
    assert "made-up" not in text
    labels = (("model", "other"), ("route", "/v1/chat/completions"), ("status", "200"))
    assert samples(metrics)["warmroute_requests_total", labels] == 300
    assert samples(metrics)["warmroute_inter_chunk_seconds_count", (("model", "other"),)] == 300


def test_series_stay_bounded_however_many_models_there_are() -> None:
    metrics = make_metrics()
    for number in range(MAX_LABEL_VALUES * 2):
        metrics.observe(make_record(f"known-{number}"))
    models = {dict(labels).get("model") for name, labels in samples(metrics) if name == "warmroute_requests_total"}
    assert len(models) <= MAX_LABEL_VALUES + 1
    assert "other" in models


def test_gaps_fall_into_their_buckets() -> None:
    metrics = make_metrics()
    observe = metrics.gaps("known")
    for gap in (0.001, 0.012, 99.0):
        observe(gap)
    found = samples(metrics)
    counts = [
        found["warmroute_inter_chunk_seconds_bucket", (("le", str(bound)), ("model", "known"))]
        for bound in (*GAP_BUCKETS[:3], "+Inf")
    ]
    assert counts == [1, 1, 2, 3]
