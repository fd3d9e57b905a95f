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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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
from router.config.schema import (
    AdminConfig,
    Config,
    ConfigError,
    FleetConfig,
    LimitsConfig,
    ServerConfig,
    TracingConfig,
    read_salt_secret,
)
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.catalog import MAX_KNOWN_MODELS
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
from router.proxy.admission import Admission, AdmissionSettings
from router.proxy.admission_metrics import AdmissionCollector
from router.proxy.dispatch import Dispatcher, DispatchSettings
from router.proxy.metrics import (
    AuthCollector,
    BackgroundCollector,
    CertificateCollector,
    FleetCollector,
    MemoryCollector,
    Metrics,
)
from router.proxy.selection import WorkerSelector
from router.runtime import memory_trim
from router.runtime.background import Background
from router.runtime.logs import AUDIT
from router.runtime.steady_clock import SteadyClock
from router.server.admin import AdminPort
from router.server.audit import Audit
from router.server.auth import OpenGate
from router.server.certificate import Certificate
from router.server.client_server import ClientServer, ConnectionHooks
from router.server.data import DataPort
from router.server.drain import StopSignals, drain
from router.server.failed_logins import MAX_ADDRESSES, FailedLogins
from router.server.key_connections import KeyConnections
from router.server.key_file import KeyFile
from router.server.listen import BACKLOG, listen, require_c_parser
from router.server.parsing.pool import Parsers
from router.server.status.feed import StatusFeed
from router.server.traced import traced
from router.sessions.context_metrics import ContextCollector, ContextMetrics, SqliteIndexCollector
from router.sessions.metrics import SessionCollector, SessionMetrics
from router.sessions.tokens.build import open_counts
from router.sessions.tokens.metrics import TokenMetrics
from router.sessions.views import Lookups
from router.sessions.window_sizes import WindowSizes
from router.tracing.build import Tracing, open_tracing, sending
from router.tracing.metrics import TraceCounts, TracingCollector
from router.upstream.connection import Limits
from router.upstream.discovery import Source
from router.upstream.discovery.dns import DnsSource
from router.upstream.discovery.file import FileSource
from router.upstream.discovery.static import StaticSource
from router.upstream.exchange import Upstream
from router.upstream.fleet_sync import FleetSync
from router.upstream.health_check import MonitorSettings
from router.upstream.pool import Pool, PoolSettings, worker_tls_context

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
        memory_trim.keep_some()
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
    pool = Pool(_pool_settings(config), lambda address: fleet.signs(address, clock()))
    upstream = Upstream(pool, metrics.gaps)
    decisions: deque[Record] = deque(maxlen=config.admin.decisions)
    last_workers = LastWorkers(config.index.max_sessions)

    def observe(record: Record) -> None:
        decisions.append(record)
        metrics.observe(record)

    policy = make_policy(config.policy.name, config.policy, random.Random(config.policy.seed))  # noqa: S311  # lots, not secrets
    selector = WorkerSelector(fleet, index, last_workers, policy, clock, config.timeouts.min_first_event_s)
    admission = Admission(_admission_settings(config), fleet, clock, SteadyClock(time.time, clock))
    parsers = Parsers(config.limits.max_parsing_bodies, config.limits.max_body_bytes)
    dispatcher = Dispatcher(
        _dispatch_settings(config),
        selector,
        upstream,
        observe,
        clock,
        admission,
        read=parsers.run,
        look_for_models=lambda: fleet_sync.refresh_models(),
    )
    audit = Audit(logging.getLogger(AUDIT))
    keys = (
        KeyFile(config.auth, audit, time.time, admission.ledger.keep, config.limits.max_key_connections)
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
        ContextMetrics(registry),
    )
    data = DataPort(
        config.server,
        config.limits,
        dispatcher,
        fleet.catalog,
        clock,
        metrics.observe_refusal,
        gate,
        metrics.observe_cut,
        memory,
        parsers,
        admission,
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
        metrics.exposition,
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
        _monitor_settings(config),
        config.fleet.discovery_interval_s,
        selector.use_ring,
        clock,
        background,
    )

    hooks = ConnectionHooks(metrics.observe_cut, metrics.observe_refusal, data.new_request_id)
    trace_counts = TraceCounts()
    tracing = _open_tracing(config.tracing, fleet, clock, trace_counts)
    handle = data.handle if tracing is None else traced(data.handle, tracing.tracer)
    may_connect, may_administer = _connections_within(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1], config.limits.max_connections, config.admin.max_viewers
    )
    clients = ClientServer(handle, _limited_to(config.limits, may_connect), hooks, data.key_connections)
    admins = ClientServer(admin.handle, _limited_to(config.limits, may_administer), hooks, KeyConnections(0))

    def sizes() -> Iterable[tuple[str, str, float]]:
        yield "open_worker_connections", "Connections to workers.", pool.open_connections
        yield (
            "overdue_requests",
            "Requests whose worker is silent beyond its deadline, and waited for since it shows that it is at work.",
            pool.overdue,
        )
        yield (
            "worker_reads_waiting",
            "Large reads from workers that wait for their share of the loop.",
            len(pool.scheduler),
        )
        yield "known_models", "Models whose names are remembered, served now or once.", len(fleet.catalog)
        yield "max_known_models", "How many names may be remembered that nobody serves.", MAX_KNOWN_MODELS
        yield "client_connections", "Clients' connections to the data port.", clients.open_connections
        yield "max_client_connections", "How many there may be.", may_connect
        yield "peak_key_connections", "Connections that show the API key which most show.", data.key_connections.peak
        yield "max_key_connections", "How many may show one key; 0: any number.", config.limits.max_key_connections
        yield "max_keys", "API keys that may be listed.", config.auth.max_keys
        yield "remembered_sessions", "Sessions whose last worker is remembered.", len(last_workers)
        yield "max_remembered_sessions", "How many may be.", config.index.max_sessions
        yield "remembered_decisions", "Decisions that the admin port shows.", len(decisions)
        yield "max_remembered_decisions", "How many it may show.", config.admin.decisions
        yield (
            "audit_waiting_lines",
            "Lines of the audit log that are counted, and written within a second.",
            audit.waiting,
        )
        yield "resumption_kept_bytes", "Kept of streams for their resumption.", dispatcher.kept.bytes
        yield "resumption_max_kept_bytes", "How much may be kept.", dispatcher.kept.max_bytes
        yield "warm_waits", "Requests that wait for the one worker that is warm.", admission.warm_waiting()
        yield "busy_waits", "Requests that wait for workers which say that they are busy.", admission.pausing
        yield "live_requests", "Requests under way.", data.live
        yield "known_token_counts", "Texts whose tokens are remembered.", len(counts.known)
        yield "max_known_token_counts", "How many may be.", counts.known.max_size
        yield "status_viewers", "Who look at the status page.", feed.viewers
        yield "max_status_viewers", "How many may.", feed.max_viewers
        yield "head_bytes", "Heads of requests that are not whole yet.", clients.head_bytes + admins.head_bytes
        yield "max_head_bytes", "Most bytes that those heads may have together.", config.limits.max_total_head_bytes
        yield "parsing_waiting", "Costly bodies that wait for a process to read them.", parsers.turns.waiting
        yield "parsing_processes", "Processes that read costly bodies.", parsers.processes
        yield "max_parsing_processes", "Most processes that may read bodies.", parsers.max_processes
        yield "admin_connections", "Connections to the admin port.", admins.open_connections
        yield "max_admin_connections", "How many there may be.", may_administer
        yield (
            "admin_wrong_tokens",
            "Addresses that showed the admin port a wrong token a moment ago.",
            failed_logins.addresses,
        )
        yield "max_admin_wrong_tokens", "How many of them are remembered.", MAX_ADDRESSES

    registry.register(FleetCollector(fleet, index, selector.misses, dispatcher.budget, sizes, pool.rejected_replies))
    registry.register(AdmissionCollector(admission.queue, admission.ledger, admission.refusals, time.time))
    registry.register(AuthCollector(keys))
    registry.register(MemoryCollector(memory))
    registry.register(SessionCollector(state.turns, state.store, state.watch, admission.ledger.accounts))
    registry.register(
        ContextCollector(
            state.turns.context_window,
            state.index.index,
            config.context.max_waiting,
            lambda: keys.gate.keyring.rules if keys else (EVERYBODY,),
        )
    )
    if state.index.sqlite is not None:
        registry.register(SqliteIndexCollector(state.index.sqlite))
    registry.register(BackgroundCollector(background.failures, fleet_sync))
    registry.register(TracingCollector(trace_counts))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Info("warmroute_build", "What is running.", registry=registry).info(about)
    certificate = _certificate(config.server)
    registry.register(CertificateCollector(lambda: certificate.failures if certificate else 0))
    tls = certificate.context if certificate else None
    async with (
        sending(tracing, config.tracing.flush_s),
        contextlib.aclosing(counts),
        state.working(background),
        _task(background, "status", feed.run),
        _task(background, "memory_trim", memory_trim.Trimmer().run),
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
        sources.append(DnsSource(fleet.workers_dns, fleet.dns_timeout_s))
    if fleet.workers_kubernetes:
        sources.append(_kubernetes(fleet, on_change, clock))
    return sources


def _kubernetes(fleet: FleetConfig, on_change: Callable[[], None], clock: Callable[[], float]) -> Source:
    """Raises ConfigError."""
    try:
        from router.upstream.discovery.kubernetes import KubernetesSettings, KubernetesSource
    except ImportError:
        raise ConfigError(
            f"fleet.workers_kubernetes={fleet.workers_kubernetes!r}: needs the package of warmroute[kubernetes]"
        ) from None
    namespace, _, rest = fleet.workers_kubernetes.partition("/")
    service, _, port = rest.partition(":")
    settings = KubernetesSettings(
        namespace=namespace,
        service=service,
        port=port,
        kubeconfig=fleet.kubeconfig,
        watch_s=fleet.kubernetes_watch_s,
        resync_s=fleet.kubernetes_resync_s,
        timeout_s=fleet.kubernetes_timeout_s,
    )
    return KubernetesSource(settings, on_change, clock, random.Random())  # noqa: S311  # pauses, not secrets


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


def _dispatch_settings(config: Config) -> DispatchSettings:
    retries, resumption = config.retries, config.resumption
    return DispatchSettings(
        max_attempts=retries.max_attempts,
        max_deaths=retries.max_deaths,
        retry_ratio=retries.budget_ratio,
        min_retries=retries.min_budget,
        max_resumptions=resumption.max_attempts,
        resumption_wait_s=resumption.wait_s,
        max_kept_bytes=resumption.max_kept_bytes,
        max_total_kept_bytes=resumption.max_total_kept_bytes,
    )


def _admission_settings(config: Config) -> AdmissionSettings:
    admission = config.admission
    return AdmissionSettings(
        max_worker_requests=admission.max_worker_requests,
        max_worker_prefill_tokens=admission.max_worker_prefill_tokens,
        max_queued=admission.max_queued,
        max_queued_bytes=admission.max_queued_bytes,
        max_wait_s=admission.max_wait_s,
        no_worker_wait_s=admission.no_worker_wait_s,
        warm_wait_s=admission.warm_wait_s,
    )


def _pool_settings(config: Config) -> PoolSettings:
    timeouts, fleet = config.timeouts, config.fleet
    limits = Limits(
        max_reply_bytes=timeouts.max_reply_bytes,
        max_event_bytes=timeouts.max_event_bytes,
        first_event_s=timeouts.first_event_s,
        event_gap_s=timeouts.event_gap_s,
        answer_s=timeouts.answer_s,
        silence_s=timeouts.silence_s,
    )
    return PoolSettings(
        limits=limits,
        connect_s=timeouts.connect_s,
        idle_s=fleet.idle_s,
        max_idle=fleet.max_idle_connections,
        worker_key=fleet.worker_key,
        tls=worker_tls_context(fleet.ca_file, fleet.client_cert, fleet.client_key),
    )


def _monitor_settings(config: Config) -> MonitorSettings:
    probes, load = config.probes, config.load
    return MonitorSettings(
        probe_interval_s=probes.interval_s,
        ill_interval_s=probes.ill_interval_s,
        models_interval_s=probes.models_interval_s,
        probe_timeout_s=probes.timeout_s,
        load_interval_s=load.poll_interval_s,
        load_timeout_s=load.timeout_s,
        has_worker_key=bool(config.fleet.worker_key),
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
