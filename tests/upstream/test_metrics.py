"""The fleet as Prometheus sees it: read when it asks, a family at a time."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import WorkerAddress
from router.runtime.metrics import MAX_LABEL_VALUES, Exposition, Table
from router.upstream.metrics import GAP_BUCKETS, StreamGaps, fleet_rows


def make_fleet() -> tuple[Fleet, Table]:
    index = PrefixIndex(10_000, 1_000)
    fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, 100_000), index)
    return fleet, Table(fleet_rows(fleet, index))


def values(table: Table | StreamGaps) -> dict[tuple[str, ...], float]:
    """By a sample's name and its labels' values."""
    return {
        (sample.name, *sample.labels.values()): sample.value for family in table.collect() for sample in family.samples
    }


def test_the_fleet_is_read_when_prometheus_asks() -> None:
    fleet, table = make_fleet()
    fleet.set_members([WorkerAddress("http", host, 80) for host in "ab"])
    well, ill = fleet.members()
    for member in (well, ill):
        member.health.on_probe_answered(0.0)
    ill.health.on_death(1.0)
    with fleet.lease(well.position, 300.0, 1.0, shows_first_token=True):
        found = values(table)
    for member, state in ((well, "up"), (ill, "ejected")):
        states = ("starting", "up", "ejected", "asleep")
        assert [each for each in states if found["warmroute_worker_state", member.name, each]] == [state]
    name = well.name
    assert found["warmroute_worker_in_flight", name] == found["warmroute_worker_requests_total", name] == 1
    assert found["warmroute_worker_queued_prefill_tokens", name] == 300
    assert found["warmroute_worker_prefill_rate", name] == 10_000
    assert found["warmroute_prefix_index_blocks", name] == 0
    assert found["warmroute_prefix_index_max_blocks", name] == 390
    assert found["warmroute_worker_ejections_total", ill.name, "died"] == 1
    assert found["warmroute_worker_ejections_total", name, "died"] == 0


def test_a_worker_that_left_is_no_series_any_more() -> None:
    fleet, table = make_fleet()
    fleet.set_members([WorkerAddress("http", "a", 80)])
    (member,) = fleet.members()
    assert any(member.name in key for key in values(table))
    fleet.set_members([])
    assert not any(member.name in key for key in values(table))


MAX_SAMPLES_AT_ONCE = 6
"""For each worker, between two turns of others."""


def test_a_scrape_of_many_workers_lets_others_be_served_in_between_and_is_written_off_the_loop() -> None:
    workers = 1000
    fleet, table = make_fleet()
    registry = CollectorRegistry()
    registry.register(table)
    fleet.set_members([WorkerAddress("http", f"w{number}", 80) for number in range(workers)])
    families = list(table.collect())
    assert max(len(family.samples) for family in families) <= MAX_SAMPLES_AT_ONCE * workers
    turns = 0

    async def scrape() -> bytes:
        nonlocal turns
        scraping = asyncio.create_task(Exposition(registry, lambda: None).read())
        while not scraping.done():
            turns += 1
            await asyncio.sleep(0)
        return scraping.result()[0]

    assert asyncio.run(scrape()).count(b"warmroute_worker_in_flight{") == workers
    assert turns > len(families)


def test_gaps_fall_into_their_buckets() -> None:
    gaps = StreamGaps(lambda _model: True)
    observe = gaps.of("m")
    for gap in (0.001, 0.012, 99.0):
        observe(gap)
    found = values(gaps)
    bounds = (*map(str, GAP_BUCKETS[:3]), "+Inf")
    assert [found["warmroute_inter_chunk_seconds_bucket", "m", bound] for bound in bounds] == [1, 1, 2, 3]


def test_gaps_of_names_that_clients_make_up_and_of_too_many_models_are_others() -> None:
    gaps = StreamGaps(lambda model: model.startswith("known"))
    for number in range(MAX_LABEL_VALUES + 5):
        gaps.of(f"made-up-{number}")(0.01)
        gaps.of(f"known-{number}")(0.01)
    found = values(gaps)
    models = {key[1] for key in found}
    assert "other" in models
    assert len(models) <= MAX_LABEL_VALUES
    assert found["warmroute_inter_chunk_seconds_count", "other"] > MAX_LABEL_VALUES
