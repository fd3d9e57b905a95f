"""Composition of the stateful half: configuration → store, turns and the pages that clients meet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from router.app.context import build_context_window
from router.app.recall_index import OpenedIndex, open_index
from router.app.session_store import NO_STORE, open_store
from router.config.schema import Config
from router.core.request.request import SessionKey
from router.core.worker import WorkerName
from router.proxy.ports import Dispatch
from router.runtime.background import Background
from router.runtime.steady_clock import SteadyClock
from router.server.bodies import body_limits
from router.server.page_routes import PageRoutes
from router.sessions.api.conversations import ConversationPages
from router.sessions.api.openapi import describe_state
from router.sessions.api.responses import ResponsePages
from router.sessions.api.rules import SessionRules
from router.sessions.api.sessions import SessionPages
from router.sessions.claimer import TurnSettings
from router.sessions.context_metrics import ContextMetrics
from router.sessions.context_window import Counts
from router.sessions.histories import Histories, LogBounds
from router.sessions.history_cache import HistoryCache
from router.sessions.metrics import SessionMetrics
from router.sessions.names import Names
from router.sessions.planner import Planner
from router.sessions.recall.index import IndexUnavailable
from router.sessions.store_health import StoreHealth
from router.sessions.stores.contract import StoreUnavailable
from router.sessions.stores.opened import OpenedStore
from router.sessions.turns import Turns
from router.sessions.views import Lookups

log = logging.getLogger("warmroute.sessions")

EXPIRY_S = 60.0
"""Between two sweeps for what has expired, where the store does not do that itself."""

SWEPT_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class SessionState:
    routes: PageRoutes | None
    """None where no state is kept."""
    turns: Turns
    histories: Histories
    store: OpenedStore
    watch: StoreHealth
    index: OpenedIndex
    janitors: int

    @asynccontextmanager
    async def working(self, background: Background) -> AsyncIterator[None]:
        """What runs beside the requests, and ends after them."""
        tasks = [background.start("claims", self.turns.claims.run), background.start("store", self.watch.run)]
        compactor = self.turns.context_window.compactor
        tasks += [background.start("compactor", compactor.run) for _ in range(self.janitors)]
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
    dispatch: Dispatch,
    remember_worker: Callable[[SessionKey, WorkerName], None],
    bytes_per_token: Callable[[str], float],
    lookups: Lookups,
    counts: Counts,
    clock: Callable[[], float],
    metrics: SessionMetrics,
    context_metrics: ContextMetrics,
) -> SessionState:
    """Raises ConfigError."""
    sessions = config.sessions
    wall_clock = SteadyClock(time.time, clock)
    opened = await open_store(sessions, clock, wall_clock)
    cache = HistoryCache(sessions.max_hot_bytes)
    bounds = LogBounds(sessions.max_entries, sessions.max_session_bytes)
    histories = Histories(opened.store, cache, wall_clock, clock, metrics.observe_load, metrics.observe_size, bounds)
    settings = TurnSettings(
        lease_s=sessions.lease_s,
        max_wait_s=sessions.max_wait_s,
        max_waiting=sessions.max_waiting,
        max_give_backs=sessions.max_give_backs,
    )
    planner = Planner(histories, bytes_per_token, resumes=config.resumption.max_attempts > 0)
    index = await open_index(config, dispatch, clock, wall_clock)
    context_window = build_context_window(
        config, histories, planner, dispatch, index.index, lookups, counts, clock, wall_clock, context_metrics
    )
    observe = metrics.overhead_of(opened.kind)
    turns = Turns(settings, histories, dispatch, remember_worker, planner, context_window, clock, observe)
    rules = SessionRules(
        session_s=sessions.lifetime_s,
        response_s=sessions.response_lifetime_s,
        conversation_s=sessions.conversation_lifetime_s,
        on_busy=sessions.on_busy,
        stateless_fallback=sessions.stateless_fallback,
    )
    names = Names(opened.secret)
    limits = body_limits(config.limits)
    routes = PageRoutes(
        [
            SessionPages(turns, names, limits, rules),
            ResponsePages(turns, names, limits, rules, wall_clock),
            ConversationPages(turns, names, limits, rules, wall_clock),
        ],
        describe_state,
    )
    kept = routes if sessions.store != NO_STORE else None
    tidy = (*opened.tidy, *([index.sqlite.tidy] if index.sqlite is not None else ()))
    watch = StoreHealth(opened.store.ping, tidy, opened.count)
    return SessionState(kept, turns, histories, opened, watch, index, config.context.janitors)
