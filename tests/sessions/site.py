"""Two replicas that have nothing in common but a store, whichever, and a session that both of them serve and keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.compactor import CompactionJob
from router.sessions.context.compaction import Source
from router.sessions.context.history import History
from router.sessions.context.view import START
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.planner import TurnRequest
from router.sessions.stores.contract import Sid, Store
from router.sessions.stores.encrypted import EncryptedStore
from router.sessions.stores.redis import RedisLimits, RedisStore
from router.sessions.stores.sqlite import SqliteStore
from router.sessions.summaries import Written
from tests.sessions.desk import ACME, FakeDispatch, Points, Replica, contents, user
from tests.sessions.kept_histories import FakeWriter
from tests.sessions.stores.contract import Clocks
from tests.sessions.stores.memory import MemoryStore

LONG = "x" * 400
"""About 100 tokens; so is its answer."""

WORK_S, RETRY_S = 60.0, 10.0
"""How long notes may take, and when they are tried again; see ``upkeep_of``."""


async def two_ways(name: str, directory: Path, redis_url: str) -> tuple[Store, Store]:
    """To one store of that name, as two processes have them. ``redis_url``: of a server, where one is needed."""
    clocks = Clocks()
    if name == "redis":
        one, two = (RedisStore.from_url(redis_url, RedisLimits(deadline_s=10), clocks.monotonic) for _ in range(2))
        return one, two
    if name == "sqlite":
        path = directory / "sessions.db"
        first = await SqliteStore.open(path, clocks.monotonic, clocks.unix_time, boot="this")
        return first, await SqliteStore.open(path, clocks.monotonic, clocks.unix_time, boot="this")
    if name == "memory":
        store = await SqliteStore.open(IN_MEMORY, clocks.monotonic, clocks.unix_time, boot="this")
        return store, store
    model = MemoryStore(clocks.monotonic, clocks.unix_time)
    secret = b"a secret of the tests"
    return (EncryptedStore(model, secret), EncryptedStore(model, secret)) if name == "sealed" else (model, model)


class PointedCalls:
    """All methods of a Store, each of which comes by a point before and behind it."""

    def __init__(self, store: Store, points: Points) -> None:
        self._store = store
        self._points = points

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        async def pointed(*args: Any, **named: Any) -> Any:
            await self._points.come_by(f"before {name}")
            answer = await call(*args, **named)
            await self._points.come_by(f"behind {name}")
            return answer

        return pointed


class BusyWriter(FakeWriter):
    """Lets others go on while it writes."""

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().write(request, history, source, max_tokens)


class Site:
    """One session that is in two replicas' hands, each with a way of its own to the store."""

    def __init__(self, stores: tuple[Store, Store]) -> None:
        self.stores = stores
        self.now = 1_700_000_000.0
        self.sid = Sid(token_hex(16))

    def again(self) -> Site:
        """Another session in the same store."""
        return Site(self.stores)

    def replica(self, which: int, writer: FakeWriter, points: Points | None = None, **more: Any) -> Replica:
        """``points``: that its calls of the store come by."""
        store = self.stores[which]
        if points is not None:
            store = cast(Store, PointedCalls(store, points))
        overrides = {"strategy": "summary", "high_tokens": 1000, "low_tokens": 510, **more}
        own = Points()
        return Replica(store, FakeDispatch(own), own, lambda: self.now, writer=writer, **overrides)

    async def pile_up(self, replica: Replica, turns: int = 6) -> CompactionJob:
        """Turns, and what the compactor has to do behind them."""
        for number in range(turns):
            await replica.take(user(f"{number} {LONG}"), sid=self.sid)
        return self.job(replica)

    def job(self, replica: Replica) -> CompactionJob:
        return replica.turns.context_window.compactor.jobs.pop(self.sid)

    async def history(self) -> History:
        """As a replica reads it that knows nothing."""
        fresh = Histories(self.stores[0], HistoryCache(1 << 20), lambda: self.now)
        return (await fresh.load(self.sid, ACME.rules.tenant))[0]

    async def require_whole(self, turns: int) -> History:
        """Everything that was said is in the log, in its order; every item is sent or told of, and none twice."""
        history = await self.history()
        assert [item.number for item in history.items] == list(range(1, 2 * turns + 1))
        said = contents(history)
        assert said[1::2] == [f"to {text}" for text in said[::2]]
        assert history.bodies == [item.body for item in history.items if item.place > history.view.cut]
        since = START
        for segment in history.view.ready:
            assert segment.since == since < segment.upto
            since = segment.upto
        told = [item.place <= since for item in history.items]
        assert told.count(False) == len(history.bodies) + history.view.omitted
        return history


@asynccontextmanager
async def opened(name: str, directory: Path, redis_url: str) -> AsyncIterator[Site]:
    stores = await two_ways(name, directory, redis_url)
    async with AsyncExitStack() as stack:
        for store in stores:
            stack.push_async_callback(store.close)
        yield Site(stores)


def results(replica: Replica) -> dict[str, int]:
    """Results of the replica's compaction jobs, with their numbers."""
    return {result: count for result, count in replica.turns.context_window.compactor.results.items() if count}
