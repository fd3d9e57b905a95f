"""What Prometheus reads: names, closed sets of labels, and counts that add up."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules
from router.core.fleet.rules import FleetRules
from router.core.index.cache_use import CacheMisses
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.core.request.retry import RetryBudget
from router.core.request.routes import Route
from router.core.worker import WorkerAddress
from router.proxy.metrics import BATCH, GAP_BUCKETS, MAX_LABEL_VALUES, TTFT_BUCKETS, FleetCollector, Metrics


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
        metrics.gaps(f"made-up-{number}")(0.01)
    text = asyncio.run(metrics.exposition())[0].decode()
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


def test_batches_are_counted_when_they_are_full_and_when_prometheus_asks() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, lambda _model: True)
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


def test_the_fleet_is_read_when_prometheus_asks() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, lambda _model: True)
    index = PrefixIndex(10_000, 1_000)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
    budget, misses = RetryBudget(0.2, 3), CacheMisses()
    misses.add(1000, 800, 500, 400)
    registry.register(
        FleetCollector(fleet, index, misses, budget, lambda: [("live_requests", "Requests under way.", 5)], {"head": 2})
    )
    fleet.set_members([WorkerAddress("http", host, 80) for host in "ab"])
    well, ill = fleet.members()
    for member in (well, ill):
        member.health.on_probe_answered(0.0)
    ill.health.on_death(1.0)
    budget.take(0.0)
    with fleet.lease(well.position, 300.0, 1.0, shows_first_token=True):
        found = samples(metrics)
    for member, state in ((well, "up"), (ill, "ejected")):
        states = {each: labelled(worker=member.name, state=each) for each in ("starting", "up", "ejected")}
        assert [each for each in states if found["warmroute_worker_state", states[each]]] == [state]
    name = labelled(worker=well.name)
    assert found["warmroute_worker_in_flight", name] == found["warmroute_worker_requests_total", name] == 1
    assert found["warmroute_worker_queued_prefill_tokens", name] == 300
    assert found["warmroute_worker_prefill_rate", name] == 10_000
    assert found["warmroute_prefix_index_blocks", name] == 0
    assert found["warmroute_prefix_index_max_blocks", name] == 390
    assert found["warmroute_worker_ejections_total", labelled(worker=ill.name, cause="died")] == 1
    assert found["warmroute_worker_ejections_total", labelled(worker=well.name, cause="died")] == 0
    for reason, tokens in {"new": 200, "elsewhere": 300, "gone": 100}.items():
        assert found["warmroute_uncached_tokens_total", labelled(reason=reason)] == tokens
    assert found["warmroute_retries_in_flight", ()] == 1
    assert found["warmroute_retry_budget", ()] == 2
    assert found["warmroute_retry_budget_max", ()] == 100
    assert found["warmroute_live_requests", ()] == 5


def test_a_worker_that_left_is_no_series_any_more() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, lambda _model: True)
    index = PrefixIndex(10_000, 1_000)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
    registry.register(FleetCollector(fleet, index, CacheMisses(), RetryBudget(0.2, 3), list, {}))
    fleet.set_members([WorkerAddress("http", "a", 80)])
    assert any("worker" in dict(labels) for _name, labels in samples(metrics))
    fleet.set_members([])
    assert not any("worker" in dict(labels) for _name, labels in samples(metrics))


MAX_SAMPLES_AT_ONCE = 6
"""For each worker, between two turns of others."""


def test_a_scrape_of_many_workers_lets_others_be_served_in_between_and_is_written_off_the_loop() -> None:
    workers = 1000
    registry = CollectorRegistry()
    metrics = Metrics(registry, lambda _model: True)
    index = PrefixIndex(10_000, 1_000)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
    fleet.set_members([WorkerAddress("http", f"w{number}", 80) for number in range(workers)])
    collector = FleetCollector(fleet, index, CacheMisses(), RetryBudget(0.2, 3), list, {})
    registry.register(collector)
    families = list(collector.collect())
    assert max(len(family.samples) for family in families) <= MAX_SAMPLES_AT_ONCE * workers
    turns = 0

    async def scrape() -> bytes:
        nonlocal turns
        scraping = asyncio.create_task(metrics.exposition())
        while not scraping.done():
            turns += 1
            await asyncio.sleep(0)
        return scraping.result()[0]

    assert asyncio.run(scrape()).count(b"warmroute_worker_in_flight{") == workers
    assert turns > len(families)


async def test_two_scrapes_at_once_are_both_whole() -> None:
    metrics = make_metrics()
    metrics.observe(make_record())
    first, second = await asyncio.gather(metrics.exposition(), metrics.exposition())
    assert first == second


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


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
