"""The queue and the tenants' accounts as Prometheus sees them, read when it asks. Tenants are those that have keys, and no
others are labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.tenants.queue import FairQueue
from router.core.tenants.quota import Ledger
from router.runtime.series import counter


class AdmissionCollector(Collector):
    """``refusals``: by reason. ``wall_clock``: Unix time, which says what day it is."""

    def __init__(
        self, queue: FairQueue[Any], ledger: Ledger, refusals: Mapping[str, int], wall_clock: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._refusals = refusals
        self._wall_clock = wall_clock

    def collect(self) -> Iterator[Metric]:
        queue = self._queue
        for name, description, value in (
            ("queue_depth", "Requests that wait for room or for a worker.", len(queue)),
            ("queue_max", "How many may wait.", queue.max_requests),
            ("queue_bytes", "Bodies of those that wait.", queue.bytes),
            ("queue_max_bytes", "How many bytes of bodies may wait.", queue.max_bytes),
        ):
            gauge = GaugeMetricFamily(f"warmroute_{name}", description)
            gauge.add_metric((), value)
            yield gauge
        yield counter("admission_refusals", "Requests that were not let in, by reason.", self._refusals, "reason")
        yield from self._collect_tenants()

    def _collect_tenants(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "warmroute_tenant_in_flight", "The tenant's requests under way or waiting.", labels=("tenant",)
        )
        queued = GaugeMetricFamily("warmroute_tenant_queued", "Of those, how many wait.", labels=("tenant",))
        requests = CounterMetricFamily(
            "warmroute_tenant_requests", "The tenant's requests that have ended.", labels=("tenant",)
        )
        tokens = CounterMetricFamily(
            "warmroute_tenant_tokens",
            "Tokens of the tenant's requests as workers counted them; cached ones are among the prompt's.",
            labels=("tenant", "kind"),
        )
        shortened = CounterMetricFamily(
            "warmroute_tenant_shortened",
            "Requests whose worker was asked for a shorter answer than the client wanted: the tenant's limit was near. Raise "
            "the limit if that is not meant.",
            labels=("tenant",),
        )
        left = GaugeMetricFamily(
            "warmroute_tenant_day_tokens_left",
            "Of the tenant's budget, what is left until midnight UTC.",
            labels=("tenant", "kind"),
        )
        budget = GaugeMetricFamily(
            "warmroute_tenant_day_tokens", "The tenant's budget of a day.", labels=("tenant", "kind")
        )
        wall_s = self._wall_clock()
        for tenant, account in self._ledger.accounts.items():
            in_flight.add_metric((tenant,), account.in_flight)
            queued.add_metric((tenant,), self._queue.waiting_of(tenant))
            totals = account.totals
            requests.add_metric((tenant,), totals.requests)
            shortened.add_metric((tenant,), totals.shortened)
            for kind, count in (
                ("prompt", totals.prompt_tokens),
                ("cached", totals.cached_tokens),
                ("completion", totals.completion_tokens),
            ):
                tokens.add_metric((tenant, kind), count)
            for kind, amount, limit in account.day_tokens(wall_s):
                left.add_metric((tenant, kind), amount)
                budget.add_metric((tenant, kind), limit)
        yield from (in_flight, queued, requests, tokens, shortened, left, budget)
