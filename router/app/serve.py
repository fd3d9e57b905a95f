"""Composition root: configuration → objects → serving → drain. Only here are clocks, sockets and registries created."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import resource
import signal
import ssl
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from router.app.sessions import build_state
from router.app.status import describe, describe_workers
from router.config.schema import Config, ConfigError
from router.config.secrets import read_salt_secret
from router.config.serving import AdminConfig, LimitsConfig, ServerConfig, TracingConfig
from router.config.workers import FleetConfig
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.member import Member
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.core.tenants.memory import MemoryBudget
from router.core.tenants.tenant import EVERYBODY, make_caller
from router.policies import make_policy
from router.proxy.admission import Admission
from router.proxy.dispatch import Dispatcher
from router.proxy.metrics import Metrics, dispatch_rows, queue_rows, tenant_rows
from router.proxy.selection import WorkerSelector
from router.runtime import freed_memory
from router.runtime.background import Background
from router.runtime.logs import AUDIT
from router.runtime.metrics import Exposition, Table, background_rows
from router.runtime.steady_clock import SteadyClock
from router.server.admin import AdminPort
from router.server.audit import Audit
from router.server.auth import OpenGate
from router.server.certificate import Certificate
from router.server.client_server import ClientServer, Observers
from router.server.data import DataPort
from router.server.drain import StopSignals, drain
from router.server.failed_logins import FailedLogins
from router.server.key_connections import KeyConnections
from router.server.key_file import KeyFile
from router.server.listen import BACKLOG, listen, require_c_parser
from router.server.metrics import Cuts, admin_rows, certificate_rows, client_rows, key_rows, memory_rows, parsing_rows
from router.server.parsing.pool import Parsers
from router.server.status.feed import StatusFeed
from router.server.traced import traced
from router.sessions.metrics import SessionMetrics, context_rows, history_rows, recall_rows, turn_rows
from router.sessions.stores.metrics import store_rows, usage_rows
from router.sessions.tokens.build import open_counts
from router.sessions.tokens.metrics import TokenMetrics, count_rows
from router.sessions.views import Lookups
from router.sessions.window_sizes import WindowSizes
from router.tracing.build import Tracing, open_tracing, sending
from router.tracing.metrics import TraceCounts, trace_rows
from router.upstream.discovery import Source
from router.upstream.discovery.dns import DnsSource
from router.upstream.discovery.file import FileSource
from router.upstream.discovery.static import StaticSource
from router.upstream.exchange import Upstream
from router.upstream.fleet_sync import FleetSync
from router.upstream.metrics import StreamGaps, affinity_rows, fleet_rows, pool_rows, source_rows
from router.upstream.pool import Pool

log = logging.getLogger("warmroute")

SHUTDOWN_S = 0.5
"""For handlers that outlived the drain, before they are cancelled; and once more for them to end."""

OWN_DESCRIPTORS = 64
"""For files that are read anew, stores, and connections to workers, whoever connects here."""
ADMIN_CONNECTIONS = 64
"""Connections to the admin port, besides its viewers."""

SWITCH_S = 0.0005
"""How long the loop waits before it asks a parsing thread for the interpreter. Python's own 5 ms let two calls over a large
body run one after another, and add to the loop's stall."""


@dataclass(frozen=True, slots=True)
class Running:
    """A router that serves. Ports are the real ones, also where the configuration said 0."""

    url: str
    admin_url: str
    data: DataPort
    fleet: Fleet
    pool: Pool
    open_connections: Callable[[], int]
    """Clients' connections to the data port."""
    head_bytes: Callable[[], int]
    """Of their heads that are not whole."""
    stop_accepting: Callable[[], Awaitable[None]]
    """Close the data port's listener; connections stay."""
    keys: KeyFile | None
    """None where no keys are asked for."""


async def serve(config: Config, on_ready: Any = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: live requests end, new ones go elsewhere."""
    signals = StopSignals()
    async with running(config) as router:
        if router.keys is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, router.keys.wake)
        _calm_collector()
        freed_memory.keep_some()
        _allow_descriptors(config.limits.max_connections)
        sys.setswitchinterval(SWITCH_S)
        log.info("serving", extra={"url": router.url, "admin": router.admin_url})
        if on_ready is not None:
            on_ready(router)
        await signals.came.wait()
        server = config.server
        await drain(router.data, router.stop_accepting, signals.hurry, leave_s=server.leave_s, drain_s=server.drain_s)
    log.info("stopped")


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """A router, serving inside the block. Raises OSError when a port cannot be had, ConfigError for keys that are wrong."""
    require_c_parser()
    clock = time.monotonic  # finer than uvloop's own, which counts in milliseconds
    disable_created_metrics()  # type: ignore[no-untyped-call]
    index = PrefixIndex(config.index.max_blocks, _default_blocks(config))
    fleet = Fleet(_fleet_rules(config), index, notify=_log_health)
    registry = CollectorRegistry()
    metrics = Metrics(registry, fleet.catalog.knows)
    pool = Pool(config.fleet, config.timeouts, lambda address: fleet.signs(address, clock()))
    gaps, cuts = StreamGaps(fleet.catalog.knows), Cuts()
    registry.register(gaps)
    upstream = Upstream(pool, gaps.of)
    decisions: deque[Record] = deque(maxlen=config.admin.decisions)
    last_workers = LastWorkers(config.index.max_sessions)

    def observe(record: Record) -> None:
        decisions.append(record)
        metrics.observe(record)

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
        look_for_models=lambda: fleet_sync.look_for_models(),
    )
    audit = Audit(logging.getLogger(AUDIT))
    keys = (
        KeyFile(config.auth, audit, time.time, admission.limits.ledger.keep, config.limits.max_key_connections)
        if config.auth.asks_for_keys
        else None
    )
    gate = keys.gate if keys else OpenGate(make_caller(EVERYBODY, read_salt_secret(config.auth)))
    memory = MemoryBudget(config.limits.max_held_bytes, has_tenants=keys is not None)
    counts = await open_counts(config, fleet, upstream, TokenMetrics(registry, fleet.catalog.knows), clock)
    state_metrics = SessionMetrics(registry)
    lookups = Lookups(WindowSizes(fleet.catalog.window, clock), counts.total, counts.is_exact)
    state = await build_state(
        config,
        dispatcher,
        last_workers.set,
        fleet.learning.bytes_per_token,
        lookups,
        counts,
        clock,
        state_metrics,
    )
    data = DataPort(
        config.server,
        config.limits,
        dispatcher,
        fleet.catalog,
        clock,
        metrics.observe_refusal,
        gate,
        cuts.observe,
        memory,
        parsers,
        admission.limits,
        state.routes,
        resumes=config.resumption.max_attempts > 0,
    )
    about = {"version": version("warmroute"), "policy": config.policy.name}

    def date_of(at: float) -> str:
        return datetime.fromtimestamp(time.time() - (clock() - at), UTC).isoformat(timespec="seconds")

    def snapshot() -> dict[str, Any]:
        return about | describe(
            fleet, index, decisions, state, lambda: data.live, lambda: len(admission.queue), date_of
        )

    def sums() -> tuple[float, float, float]:
        return selector.misses.prompt_tokens, selector.misses.predicted_tokens, selector.misses.cached_tokens

    feed = StatusFeed(snapshot, sums, config.admin.max_viewers, clock, time.time)
    failed_logins = FailedLogins(clock)
    admin = AdminPort(
        config.admin.token,
        Exposition(registry, metrics.flush).read,
        lambda: describe_workers(fleet, index, date_of),
        decisions,
        feed,
        audit,
        failed_logins,
    )
    background = Background(clock)
    fleet_sync = FleetSync(
        _sources(config, lambda: fleet_sync.wake(), clock),
        fleet,
        pool,
        upstream,
        config,
        selector.use_ring,
        clock,
        background,
    )

    observers = Observers(cuts.observe, metrics.observe_refusal, data.new_request_id)
    trace_counts = TraceCounts()
    tracing = _open_tracing(config.tracing, fleet, clock, trace_counts)
    handle = data.handle if tracing is None else traced(data.handle, tracing.tracer)
    may_connect, may_administer = _connections_within(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1], config.limits.max_connections, config.admin.max_viewers
    )
    clients = ClientServer(handle, _limited_to(config.limits, may_connect), observers, data.key_connections)
    admins = ClientServer(admin.handle, _limited_to(config.limits, may_administer), observers, KeyConnections(0))

    certificate = _certificate(config.server)
    tls = certificate.context if certificate else None
    for rows in (
        dispatch_rows(dispatcher.budget, selector.misses, dispatcher.kept),
        queue_rows(admission),
        tenant_rows(admission, time.time),
        fleet_rows(fleet, index),
        affinity_rows(last_workers),
        pool_rows(pool),
        source_rows(fleet_sync),
        client_rows(data, clients, admins, cuts, config.limits),
        parsing_rows(parsers),
        memory_rows(memory),
        key_rows(keys, data, config.auth, config.limits),
        certificate_rows(certificate),
        admin_rows(admins, feed, failed_logins, audit, decisions),
        turn_rows(state.turns),
        history_rows(state.turns),
        store_rows(state.store, lambda: state.watch.is_up),
        usage_rows(state.store, lambda: state.watch.usage, admission.limits.ledger.accounts),
        context_rows(
            state.turns.context_window,
            config.context.max_waiting,
            lambda: keys.gate.keyring.rules if keys else (EVERYBODY,),
        ),
        recall_rows(state.turns.context_window, state.index.index, state.index.sqlite),
        count_rows(counts.known),
        trace_rows(trace_counts),
        background_rows(background),
    ):
        registry.register(Table(rows))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Info("warmroute_build", "Version and policy of the router.", registry=registry).info(about)
    async with (
        sending(tracing, config.tracing.flush_s),
        contextlib.aclosing(counts),
        state.working(background),
        _task(background, "status", feed.run),
        _task(background, "freed_memory", freed_memory.Trimmer().run),
        _task(background, "certificate", certificate.run) if certificate else contextlib.nullcontext(),
        _working(background, pool, fleet_sync, config.probes.timeout_s, audit, keys),
        contextlib.aclosing(parsers),
        _listening(background, clients, config, "server", config.server, tls) as site,
        _listening(background, admins, config, "admin", config.admin, None) as admin_site,
    ):
        yield Running(
            url=f"{'https' if tls else 'http'}://{_in_url(config.server.host)}:{site.port}",
            admin_url=f"http://{_in_url(config.admin.host)}:{admin_site.port}",
            data=data,
            fleet=fleet,
            pool=pool,
            open_connections=lambda: clients.open_connections,
            head_bytes=lambda: clients.head_bytes,
            stop_accepting=site.stop,
            keys=keys,
        )


def _certificate(server: ServerConfig) -> Certificate | None:
    return Certificate(server.tls_cert, server.tls_key, server.tls_reload_s) if server.tls_cert else None


@asynccontextmanager
async def _task(background: Background, name: str, run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    task = background.start(name, run)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _working(
    background: Background, pool: Pool, fleet_sync: FleetSync, first_look_s: float, audit: Audit, keys: KeyFile | None
) -> AsyncIterator[None]:
    """What runs beside the requests, and ends after them."""
    tasks = [background.start("sweep", pool.run), background.start("audit", audit.run)]
    if keys is not None:
        tasks.append(background.start("keys", keys.run))
    try:
        await fleet_sync.start(first_look_s)
        tasks.append(background.start("fleet_sync", fleet_sync.run))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet_sync.close()
        pool.close()


@dataclass(frozen=True, slots=True)
class _Site:
    port: int
    stop: Callable[[], Awaitable[None]]


@asynccontextmanager
async def _listening(
    background: Background,
    clients: ClientServer,
    config: Config,
    section: str,
    where: ServerConfig | AdminConfig,
    tls: ssl.SSLContext | None,
) -> AsyncIterator[_Site]:
    """``section``: of the configuration, which has ``where``. Raises ConfigError."""
    listener = listen(section, where)
    handshake_s = config.limits.head_timeout_s if tls else None
    server = await asyncio.get_running_loop().create_server(
        clients, sock=listener, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake_s
    )
    sweep = background.start("client_sweep", clients.run, f"port {listener.getsockname()[1]}")

    async def stop() -> None:
        server.close()

    try:
        yield _Site(listener.getsockname()[1], stop)
    finally:
        server.close()
        sweep.cancel()
        await asyncio.sleep(0)  # what was accepted already becomes a request
        clients.pre_shutdown()
        await clients.shutdown(SHUTDOWN_S)
        listener.close()


def _calm_collector() -> None:
    """Requests make no cycles, and a full collection walks the whole index: rarely is often enough."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 1_000)


def _connections_within(granted: int, max_connections: int, max_viewers: int) -> tuple[int, int]:
    """Connections to the data port and to the admin port: so many that descriptors are left for everything else, such as a file
    of keys from which one was revoked. ``granted``: descriptors that the system grants, or RLIM_INFINITY."""
    if granted == resource.RLIM_INFINITY:
        granted = sys.maxsize
    may_administer = max(min(ADMIN_CONNECTIONS + max_viewers, max_connections, granted // 4), 1)
    return max(min(max_connections, max(granted - OWN_DESCRIPTORS - may_administer, granted // 2)), 1), may_administer


def _limited_to(limits: LimitsConfig, max_connections: int) -> LimitsConfig:
    return msgspec.structs.replace(limits, max_connections=max_connections)


def _allow_descriptors(max_connections: int) -> None:
    """All that the system grants: the usual soft limit of 1,024 is a tenth of the connections that clients may have."""
    _, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
    if granted != resource.RLIM_INFINITY and granted <= max_connections:
        log.warning(
            "too few descriptors: fewer connections than limits.max_connections are taken",
            extra={"granted": granted, "max_connections": max_connections},
        )


def _open_tracing(
    config: TracingConfig, fleet: Fleet, clock: Callable[[], float], counts: TraceCounts
) -> Tracing | None:
    resource = {"service.version": version("warmroute"), "service.instance.id": str(uuid.uuid4())}
    return open_tracing(config, resource, fleet.catalog.knows, clock, time.time, counts)


def _sources(config: Config, on_change: Callable[[], None], clock: Callable[[], float]) -> list[Source]:
    fleet = config.fleet
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
        stale_load_s=config.load.stale_s,
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


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
