"""Composition of one request's way: the fleet and its sources, the index, the policy, admission, dispatch."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from router.config.schema import Config, ConfigError
from router.config.workers import FleetConfig
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.member import Member
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.policies import make_policy
from router.proxy.admission import Admission
from router.proxy.dispatch import Dispatcher
from router.proxy.metrics import Metrics, dispatch_rows, queue_rows, tenant_rows
from router.proxy.selection import WorkerSelector
from router.runtime.background import Background
from router.runtime.metrics import register
from router.runtime.steady_clock import SteadyClock
from router.server.metrics import parsing_rows
from router.server.parsing.pool import Parsers
from router.upstream.discovery import Source
from router.upstream.discovery.dns import DnsSource
from router.upstream.discovery.file import FileSource
from router.upstream.discovery.static import StaticSource
from router.upstream.exchange import Upstream
from router.upstream.fleet_sync import FleetSync
from router.upstream.metrics import StreamGaps, affinity_rows, fleet_rows, pool_rows, source_rows
from router.upstream.pool import Pool

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STALE_LOAD_S = 5.0
"""Age after which a worker's load figures are no longer used."""

log = logging.getLogger("warmroute")


@dataclass(frozen=True, slots=True)
class DataPlane:
    fleet: Fleet
    index: PrefixIndex
    last_workers: LastWorkers
    pool: Pool
    upstream: Upstream
    selector: WorkerSelector
    admission: Admission
    parsers: Parsers
    dispatcher: Dispatcher
    fleet_sync: FleetSync
    metrics: Metrics
    decisions: deque[Record]
    """The last requests, the newest at the end."""

    @asynccontextmanager
    async def working(self, background: Background, first_look_s: float) -> AsyncIterator[None]:
        """Inside the block the router follows the fleet. ``first_look_s``: time for the first probe of each worker."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.pool.close)
            stack.push_async_callback(self.fleet_sync.close)
            await stack.enter_async_context(background.running("sweep", self.pool.run))
            await self.fleet_sync.start(first_look_s)
            await stack.enter_async_context(background.running("fleet_sync", self.fleet_sync.run))
            stack.push_async_callback(self.parsers.aclose)
            yield


def build_data_plane(
    config: Config, background: Background, clock: Callable[[], float], registry: CollectorRegistry
) -> DataPlane:
    """Raises ConfigError, and OSError for certificates."""
    index = PrefixIndex(config.index.max_blocks, _default_blocks(config))
    fleet = Fleet(_fleet_rules(config), index, notify=_log_health)
    metrics, gaps = Metrics(registry, fleet.catalog.knows), StreamGaps(fleet.catalog.knows)
    decisions: deque[Record] = deque(maxlen=config.admin.decisions)

    def observe(record: Record) -> None:
        decisions.append(record)
        metrics.observe(record)

    pool = Pool(config.fleet, config.timeouts, lambda address: fleet.signs(address, clock()))
    upstream = Upstream(pool, gaps.of)
    last_workers = LastWorkers(config.index.max_sessions)
    policy = make_policy(config.policy.name, config.policy, random.Random(config.policy.seed))  # noqa: S311  # lots, not secrets
    selector = WorkerSelector(fleet, index, last_workers, policy, clock, config.timeouts.min_first_event_s)
    admission = Admission(config.admission, fleet, clock, SteadyClock(time.time, clock))
    parsers = Parsers(config.limits.max_parsing_bodies, config.limits.max_body_bytes)
    dispatcher = Dispatcher(
        config.retries,
        config.resumption,
        selector,
        upstream,
        observe,
        clock,
        admission,
        read=parsers.run,
        look_for_models=lambda: fleet_sync.refresh_models(),
    )
    sources = _sources(config.fleet, lambda: fleet_sync.wake(), clock)
    fleet_sync = FleetSync(sources, fleet, pool, upstream, config, selector.use_ring, clock, background)
    registry.register(gaps)
    register(
        registry,
        dispatch_rows(dispatcher.budget, selector.misses, dispatcher.kept),
        queue_rows(admission),
        tenant_rows(admission, time.time),
        fleet_rows(fleet, index),
        affinity_rows(last_workers),
        pool_rows(pool),
        source_rows(fleet_sync),
        parsing_rows(parsers),
    )
    return DataPlane(
        fleet,
        index,
        last_workers,
        pool,
        upstream,
        selector,
        admission,
        parsers,
        dispatcher,
        fleet_sync,
        metrics,
        decisions,
    )


def _sources(fleet: FleetConfig, on_change: Callable[[], None], clock: Callable[[], float]) -> list[Source]:
    sources: list[Source] = []
    if fleet.workers:
        sources.append(StaticSource(fleet.workers))
    if fleet.workers_file:
        sources.append(FileSource(Path(fleet.workers_file)))
    if fleet.workers_dns:
        sources.append(DnsSource(fleet.workers_dns))
    if fleet.workers_kubernetes:
        sources.append(_kubernetes(fleet, on_change, clock))
    return sources


def _kubernetes(fleet: FleetConfig, on_change: Callable[[], None], clock: Callable[[], float]) -> Source:
    """Raises ConfigError."""
    try:
        from router.upstream.discovery.kubernetes import KubernetesSource
    except ImportError:
        raise ConfigError(
            f"fleet.workers_kubernetes={fleet.workers_kubernetes!r}: needs the package of warmroute[kubernetes]"
        ) from None
    return KubernetesSource(fleet, on_change, clock, random.Random())  # noqa: S311  # pauses, not secrets


def _default_blocks(config: Config) -> int:
    return int(config.index.default_worker_tokens * config.policy.initial_bytes_per_token / BLOCK_BYTES)


def _fleet_rules(config: Config) -> FleetRules:
    probes = config.probes
    return FleetRules(
        health=HealthRules(probes.failures, probes.ejection_s, probes.max_ejection_s, probes.slow_start_s),
        initial_prefill_rate=config.policy.initial_prefill_rate,
        initial_bytes_per_token=config.policy.initial_bytes_per_token,
        stale_load_s=STALE_LOAD_S,
        default_cache_tokens=config.index.default_worker_tokens,
        declared_models=frozenset(config.fleet.models),
    )


def _log_health(member: Member) -> None:
    fields = {"worker": member.name, "url": member.address.url}
    if member.state is WorkerState.ASLEEP:
        log.info("worker is asleep: its cache is empty", extra=fields)
    elif member.health.state is WorkerState.EJECTED:
        causes = {cause.value: times for cause, times in member.health.ejections.items()}
        log.warning("worker ejected", extra={**fields, "ejections": causes})
    else:
        log.info("worker is up", extra=fields)
