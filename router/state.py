"""Composition of the stateful half: configuration → store, turns and the pages that clients meet."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router.background import Background
from router.config import Config, SessionsConfig
from router.core.request import SessionKey
from router.core.worker import WorkerName
from router.server.data import body_limits
from router.server.session_pages import SessionPages
from router.server.state import StateRoutes
from router.sessions.histories import Histories
from router.sessions.hot import HotHistories
from router.sessions.memory import MemoryStore
from router.sessions.names import Names
from router.sessions.rules import StateRules
from router.sessions.store import Store
from router.sessions.turns import Dispatch, Turns, TurnSettings

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class State:
    routes: StateRoutes
    turns: Turns
    histories: Histories

    @asynccontextmanager
    async def working(self, background: Background) -> AsyncIterator[None]:
        """What runs beside the requests, and ends after them."""
        renewals = background.start("claims", self.turns.claims.run)
        try:
            yield
        finally:
            renewals.cancel()
            await asyncio.gather(renewals, return_exceptions=True)
            await self.histories.aclose()


def build_state(
    config: Config,
    dispatch: Dispatch,
    remember_worker: Callable[[SessionKey, WorkerName], None],
    bytes_per_token: Callable[[str], float],
    clock: Callable[[], float],
    observe_overhead: Callable[[float], None],
) -> State:
    """Raises ConfigError."""
    sessions = config.sessions
    store = _open_store(sessions, clock)
    histories = Histories(store, HotHistories(sessions.max_hot_bytes), time.time)
    settings = TurnSettings(
        lease_s=sessions.lease_s,
        max_wait_s=sessions.max_wait_s,
        max_waiting=sessions.max_waiting,
        resumes=config.resumption.max_attempts > 0,
    )
    turns = Turns(settings, histories, dispatch, remember_worker, bytes_per_token, clock, observe_overhead)
    rules = StateRules(
        session_s=sessions.lifetime_s,
        response_s=sessions.response_lifetime_s,
        conversation_s=sessions.conversation_lifetime_s,
        on_busy=sessions.on_busy,
        stateless_fallback=sessions.stateless_fallback,
    )
    names = Names(_secret(sessions))
    routes = StateRoutes([SessionPages(turns, names, body_limits(config.limits), rules)])
    return State(routes, turns, histories)


def _open_store(_sessions: SessionsConfig, clock: Callable[[], float]) -> Store:
    return MemoryStore(clock, time.time)


def _secret(sessions: SessionsConfig) -> bytes:
    return sessions.secret.encode() or secrets.token_bytes(SECRET_BYTES)
