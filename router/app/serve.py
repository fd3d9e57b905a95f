"""Composition root: configuration → objects → serving → drain. Only here are clocks, sockets and registries created."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from router.app.data_plane import build_data_plane
from router.app.ports import build_ports, open_keys
from router.app.sessions import build_state
from router.config.schema import Config
from router.core.fleet.fleet import Fleet
from router.runtime import memory_trim
from router.runtime.background import Background
from router.runtime.logs import AUDIT
from router.runtime.metrics import background_rows, register
from router.server.audit import Audit
from router.server.data import DataPort
from router.server.drain import StopSignals, drain
from router.server.key_file import KeyFile
from router.server.listen import require_c_parser
from router.sessions.tokens.build import open_counts
from router.sessions.tokens.metrics import TokenMetrics, count_rows
from router.upstream.pool import Pool

log = logging.getLogger("warmroute")

SWITCH_S = 0.0005
"""Time after which the event loop asks a thread for the interpreter. Python's default of 5 ms lets two calls over a large body
run one after another, which stalls the loop for longer."""


@dataclass(frozen=True, slots=True)
class Running:
    """A router that serves. The URLs have the real ports, also if the configuration says 0."""

    url: str
    admin_url: str
    data: DataPort
    fleet: Fleet
    pool: Pool
    open_connections: Callable[[], int]
    """Open client connections to the data port."""
    head_bytes: Callable[[], int]
    """Bytes of their incomplete request heads."""
    stop_accepting: Callable[[], Awaitable[None]]
    """Closes the data port's listener; connections stay."""
    keys: KeyFile | None
    """None if no keys are required."""


async def serve(config: Config, on_ready: Any = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains: live requests end, and new ones go to other routers."""
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
    """A router that serves inside the block. Raises ConfigError and OSError."""
    require_c_parser()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    clock = time.monotonic  # finer than uvloop's own, which counts in milliseconds
    registry = CollectorRegistry()
    background = Background(clock)
    plane = build_data_plane(config, background, clock, registry)
    audit = Audit(logging.getLogger(AUDIT))
    keys = open_keys(config, audit, plane)
    token_metrics = TokenMetrics(registry, plane.fleet.catalog.knows)
    counts = await open_counts(config, plane.fleet, plane.upstream, token_metrics, clock)
    state = await build_state(config, plane, counts, keys, clock, registry)
    ports = build_ports(config, plane, state, audit, keys, clock, registry)
    register(registry, count_rows(counts.known), background_rows(background))
    _register_process(registry, config)
    async with contextlib.AsyncExitStack() as stack:
        start = stack.enter_async_context
        await start(contextlib.aclosing(counts))
        await start(state.working(background))
        await start(ports.working(background))
        await start(background.running("memory_trim", memory_trim.Trimmer().run))
        await start(background.running("audit", audit.run))
        if keys is not None:
            await start(background.running("keys", keys.run))
        await start(plane.working(background, config.probes.timeout_s))
        site, admin_site = await start(ports.listening(background))
        yield Running(
            url=f"{ports.scheme}://{_in_url(config.server.host)}:{site.port}",
            admin_url=f"http://{_in_url(config.admin.host)}:{admin_site.port}",
            data=ports.data,
            fleet=plane.fleet,
            pool=plane.pool,
            open_connections=lambda: ports.clients.open_connections,
            head_bytes=lambda: ports.clients.head_bytes,
            stop_accepting=site.stop,
            keys=keys,
        )


def _register_process(registry: CollectorRegistry, config: Config) -> None:
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    about = {"version": version("warmroute"), "policy": config.policy.name}
    Info("warmroute_build", "Version and policy of the router.", registry=registry).info(about)


def _calm_collector() -> None:
    """Requests leave no reference cycles, and a full collection walks the whole index, so collections are rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 1_000)


def _allow_descriptors(max_connections: int) -> None:
    """Raises the soft limit to what the system grants: the usual 1,024 is a tenth of the allowed client connections."""
    _, granted = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, granted))
    if granted != resource.RLIM_INFINITY and granted <= max_connections:
        log.warning(
            "too few descriptors: fewer connections than limits.max_connections are taken",
            extra={"granted": granted, "max_connections": max_connections},
        )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
