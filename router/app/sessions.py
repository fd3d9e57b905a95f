"""Composition of the stateful half: store, turns, context window and routes, from the configuration."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from router.app.context import build_context_window
from router.app.data_plane import DataPlane
from router.app.recall_index import OpenedIndex, open_index
from router.app.session_store import NO_STORE, open_store
from router.config.schema import Config
from router.core.tenants.tenant import EVERYBODY
from router.runtime.background import Background
from router.runtime.metrics import register
from router.runtime.steady_clock import SteadyClock
from router.server.bodies import body_limits
from router.server.key_file import KeyFile
from router.server.page_routes import PageRoutes
from router.sessions.api.conversations import ConversationPages
from router.sessions.api.openapi import describe_state
from router.sessions.api.responses import ResponsePages
from router.sessions.api.sessions import SessionPages
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.metrics import SessionMetrics, context_rows, history_rows, recall_rows, turn_rows
from router.sessions.planner import Planner
from router.sessions.recall.index import IndexUnavailable
from router.sessions.session_ids import SessionIds
from router.sessions.store_health import StoreHealth
from router.sessions.stores.contract import StoreUnavailable
from router.sessions.stores.metrics import store_rows, usage_rows
from router.sessions.stores.opened import OpenedStore
from router.sessions.tokens.counts import TokenCounts
from router.sessions.turns import Turns
from router.sessions.views import Lookups
from router.sessions.window_sizes import WindowSizes

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger("warmroute.sessions")

EXPIRY_S = 60.0
"""Time between two deletions of expired sessions, for stores that do not delete them on their own."""

SWEPT_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class SessionState:
    routes: PageRoutes | None
    """None if the router keeps no state."""
    turns: Turns
    histories: Histories
    store: OpenedStore
    watch: StoreHealth
    index: OpenedIndex
    compactors: int

    @asynccontextmanager
    async def working(self, background: Background) -> AsyncIterator[None]:
        """Inside the block the background tasks of sessions run."""
        tasks = [background.start("claims", self.turns.claims.run), background.start("store", self.watch.run)]
        compactor = self.turns.context_window.compactor
        tasks += [background.start("compactor", compactor.run) for _ in range(self.compactors)]
        tasks.append(background.start("compactor", partial(compactor.run, writes=False)))
        if self.store.journaled is not None:
            tasks.append(background.start("journal", self.store.journaled.run))
        if self.store.sweep is not None:
            tasks.append(background.start("expiry", partial(_sweep, partial(self.store.sweep, SWEPT_AT_ONCE))))
        if self.index.sweep is not None:
            tasks.append(background.start("recall_expiry", partial(_sweep, self.index.sweep)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.turns.claims.releaser.aclose()
            await self.histories.aclose()
            await self.index.aclose()


async def _sweep(sweep: Callable[[], Awaitable[object]]) -> None:
    """Until cancelled."""
    while True:
        try:
            await sweep()
        except (StoreUnavailable, IndexUnavailable) as error:
            log.warning("what has expired was not deleted", extra={"why": str(error)})
        await asyncio.sleep(EXPIRY_S)


async def build_state(
    config: Config,
    plane: DataPlane,
    counts: TokenCounts,
    keys: KeyFile | None,
    clock: Callable[[], float],
    registry: CollectorRegistry,
) -> SessionState:
    """Raises ConfigError."""
    sessions, dispatch = config.sessions, plane.dispatcher
    metrics = SessionMetrics(registry)
    wall_clock = SteadyClock(time.time, clock)
    opened = await open_store(sessions, clock, wall_clock)
    histories = Histories(
        opened.store,
        HistoryCache(sessions.max_cache_bytes),
        wall_clock,
        clock,
        metrics.observe_load,
        metrics.observe_size,
        sessions,
    )
    planner = Planner(histories, plane.fleet.learning.bytes_per_token, resumes=config.resumption.max_attempts > 0)
    index = await open_index(config, dispatch, clock, wall_clock)
    lookups = Lookups(WindowSizes(plane.fleet.catalog.window, clock), counts.total, counts.is_exact)
    context_window = build_context_window(
        config, histories, planner, dispatch, index.index, lookups, counts, clock, wall_clock, metrics
    )
    turns = Turns(
        sessions,
        histories,
        dispatch,
        plane.last_workers.set,
        planner,
        context_window,
        clock,
        metrics.overhead_of(opened.kind),
    )
    tidy = (*opened.tidy, *([index.sqlite.tidy] if index.sqlite is not None else ()))
    watch = StoreHealth(opened.store.ping, tidy, opened.count)
    register(
        registry,
        turn_rows(turns),
        history_rows(turns),
        store_rows(opened, lambda: watch.is_up),
        usage_rows(opened, lambda: watch.usage, plane.admission.limits.ledger.accounts),
        context_rows(
            context_window,
            lambda: keys.gate.keyring.rules if keys else (EVERYBODY,),
        ),
        recall_rows(context_window, index.index, index.sqlite),
    )
    routes = _routes(config, turns, SessionIds(opened.secret), wall_clock) if sessions.store != NO_STORE else None
    return SessionState(routes, turns, histories, opened, watch, index, config.context.compactors)


def _routes(config: Config, turns: Turns, session_ids: SessionIds, wall_clock: Callable[[], float]) -> PageRoutes:
    sessions = config.sessions
    limits = body_limits(config.limits)
    return PageRoutes(
        [
            SessionPages(turns, session_ids, limits, sessions),
            ResponsePages(turns, session_ids, limits, sessions, wall_clock),
            ConversationPages(turns, session_ids, limits, sessions, wall_clock),
        ],
        describe_state,
    )
