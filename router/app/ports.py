"""Composition of the ports: clients' and operators' connections, keys, the status page, traces."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from router.app.data_plane import DataPlane
from router.app.sessions import SessionState
from router.app.status import describe, describe_workers
from router.config.schema import Config
from router.config.secrets import read_salt_secret
from router.config.serving import AdminConfig, LimitsConfig, ServerConfig
from router.core.tenants.memory import MemoryBudget
from router.core.tenants.tenant import EVERYBODY, make_caller
from router.runtime.background import Background
from router.runtime.metrics import Exposition, register
from router.server.admin import AdminPort
from router.server.audit import Audit
from router.server.auth import OpenGate
from router.server.certificate import Certificate
from router.server.client_server import ClientServer, ConnectionHooks
from router.server.data import DataPort
from router.server.failed_logins import FailedLogins
from router.server.key_connections import KeyConnections
from router.server.key_file import KeyFile
from router.server.listen import BACKLOG, listen
from router.server.metrics import Cuts, admin_rows, certificate_rows, client_rows, key_rows, memory_rows
from router.server.status.feed import StatusFeed
from router.server.traced import traced
from router.tracing.build import Tracing, open_tracing, sending
from router.tracing.metrics import TraceCounts, trace_rows

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SHUTDOWN_S = 0.5
"""Time for handlers that outlived the drain, before they are cancelled, and again for them to end."""

OWN_DESCRIPTORS = 64
"""Descriptors kept for files, stores and connections to workers, however many clients connect."""

ADMIN_CONNECTIONS = 64
"""Connections to the admin port, in addition to its viewers."""


@dataclass(frozen=True, slots=True)
class Site:
    port: int
    """The real port, also if the configuration says 0."""
    stop: Callable[[], Awaitable[None]]
    """Close the listener; connections stay."""


@dataclass(frozen=True, slots=True)
class Ports:
    config: Config
    data: DataPort
    clients: ClientServer
    admins: ClientServer
    certificate: Certificate | None
    feed: StatusFeed
    tracing: Tracing | None

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"

    @asynccontextmanager
    async def working(self, background: Background) -> AsyncIterator[None]:
        """Inside the block traces are sent, the status page collects samples, and a renewed certificate is loaded."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(sending(self.tracing))
            await stack.enter_async_context(background.running("status", self.feed.run))
            if self.certificate:
                await stack.enter_async_context(background.running("certificate", self.certificate.run))
            yield

    @asynccontextmanager
    async def listening(self, background: Background) -> AsyncIterator[tuple[Site, Site]]:
        """The port for clients, and the admin port. Raises ConfigError."""
        tls = self.certificate.context if self.certificate else None
        head_timeout_s = self.config.limits.head_timeout_s
        async with (
            _listening(background, self.clients, "server", self.config.server, tls, head_timeout_s) as site,
            _listening(background, self.admins, "admin", self.config.admin, None, head_timeout_s) as admin_site,
        ):
            yield site, admin_site


def open_keys(config: Config, audit: Audit, plane: DataPlane) -> KeyFile | None:
    """None if no keys are required. Raises ConfigError."""
    if not config.auth.asks_for_keys:
        return None
    return KeyFile(config.auth, audit, time.time, plane.admission.limits.ledger.keep, config.limits.max_key_connections)


def build_ports(
    config: Config,
    plane: DataPlane,
    state: SessionState,
    audit: Audit,
    keys: KeyFile | None,
    clock: Callable[[], float],
    registry: CollectorRegistry,
) -> Ports:
    """Raises ConfigError, and OSError for the certificate."""
    memory = MemoryBudget(config.limits.max_held_bytes, has_tenants=keys is not None)
    cuts = Cuts()
    data = DataPort(
        config.server,
        config.limits,
        plane.dispatcher,
        plane.fleet.catalog,
        clock,
        plane.metrics.observe_refusal,
        keys.gate if keys else OpenGate(make_caller(EVERYBODY, read_salt_secret(config.auth))),
        cuts.observe,
        memory,
        plane.parsers,
        plane.admission.limits,
        state.routes,
        resumes=config.resumption.max_attempts > 0,
    )
    feed = _status_feed(config, plane, state, data, clock)
    failed_logins = FailedLogins(clock)
    admin = AdminPort(
        config.admin.token,
        Exposition(registry, plane.metrics.flush).read,
        lambda: describe_workers(plane.fleet, plane.index, _date_of(clock)),
        plane.decisions,
        feed,
        audit,
        failed_logins,
    )
    trace_counts = TraceCounts()
    tracing = _open_tracing(config, plane, clock, trace_counts)
    handle = data.handle if tracing is None else traced(data.handle, tracing.tracer)
    may_connect, may_administer = connections_within(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1], config.limits.max_connections, config.admin.max_viewers
    )
    hooks = ConnectionHooks(cuts.observe, plane.metrics.observe_refusal, data.new_request_id)
    clients = ClientServer(handle, _limited_to(config.limits, may_connect), hooks, data.key_connections)
    admins = ClientServer(admin.handle, _limited_to(config.limits, may_administer), hooks, KeyConnections(0))
    server = config.server
    certificate = Certificate(server.tls_cert, server.tls_key) if server.tls_cert else None
    register(
        registry,
        client_rows(data, clients, admins, cuts, config.limits),
        memory_rows(memory),
        key_rows(keys, data, config.limits),
        certificate_rows(certificate),
        admin_rows(admins, feed, failed_logins, audit, plane.decisions),
        trace_rows(trace_counts),
    )
    return Ports(config, data, clients, admins, certificate, feed, tracing)


def _status_feed(
    config: Config, plane: DataPlane, state: SessionState, data: DataPort, clock: Callable[[], float]
) -> StatusFeed:
    about = {"version": version("warmroute"), "policy": config.policy.name}
    misses = plane.selector.misses

    def snapshot() -> dict[str, Any]:
        shown = describe(
            plane.fleet,
            plane.index,
            plane.decisions,
            state,
            lambda: data.live,
            lambda: len(plane.admission.queue),
            _date_of(clock),
        )
        return about | shown

    def sums() -> tuple[float, float, float]:
        return misses.prompt_tokens, misses.predicted_tokens, misses.cached_tokens

    return StatusFeed(snapshot, sums, config.admin.max_viewers, clock, time.time)


def _date_of(clock: Callable[[], float]) -> Callable[[float], str]:
    """Turns a time of the clock into a date."""
    return lambda at: datetime.fromtimestamp(time.time() - (clock() - at), UTC).isoformat(timespec="seconds")


def _open_tracing(config: Config, plane: DataPlane, clock: Callable[[], float], counts: TraceCounts) -> Tracing | None:
    about = {"service.version": version("warmroute"), "service.instance.id": str(uuid.uuid4())}
    return open_tracing(config.tracing, about, plane.fleet.catalog.knows, clock, time.time, counts)


@asynccontextmanager
async def _listening(
    background: Background,
    clients: ClientServer,
    section: str,
    where: ServerConfig | AdminConfig,
    tls: ssl.SSLContext | None,
    head_timeout_s: float,
) -> AsyncIterator[Site]:
    """``section``: name of the section ``where``, for errors. Raises ConfigError."""
    listener = listen(section, where)
    handshake_s = head_timeout_s if tls else None
    server = await asyncio.get_running_loop().create_server(
        clients, sock=listener, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake_s
    )
    sweep = background.start("client_sweep", clients.run, f"port {listener.getsockname()[1]}")

    async def stop() -> None:
        server.close()

    try:
        yield Site(listener.getsockname()[1], stop)
    finally:
        server.close()
        sweep.cancel()
        await asyncio.sleep(0)  # what was accepted already becomes a request
        clients.pre_shutdown()
        await clients.shutdown(SHUTDOWN_S)
        listener.close()


def connections_within(granted: int, max_connections: int, max_viewers: int) -> tuple[int, int]:
    """Most connections to the data port and to the admin port. They leave descriptors for everything else, such as reading the
    file of keys. ``granted``: descriptors that the system grants, or RLIM_INFINITY."""
    if granted == resource.RLIM_INFINITY:
        granted = sys.maxsize
    may_administer = max(min(ADMIN_CONNECTIONS + max_viewers, max_connections, granted // 4), 1)
    return max(min(max_connections, max(granted - OWN_DESCRIPTORS - may_administer, granted // 2)), 1), may_administer


def _limited_to(limits: LimitsConfig, max_connections: int) -> LimitsConfig:
    return msgspec.structs.replace(limits, max_connections=max_connections)
