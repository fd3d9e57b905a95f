"""The stores that keep the promise of ``router.sessions.stores.contract``, each with a clock that tests can move.

A new one is one line in ``STORES``. Its times need not be exact: nothing here or in the tests comes closer than half a second
to the end of a lease, a lifetime or a place in the line.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from router.core.request.request import Tenant
from router.runtime.sqlite_thread import IN_MEMORY
from router.sessions.stores.contract import Append, Begin, Begun, OwnerLimits, Sid, Store, Usage
from router.sessions.stores.encrypted import EncryptedStore
from router.sessions.stores.redis import RedisLimits, RedisStore
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores import redis_clock
from tests.sessions.stores.memory import MemoryStore
from tests.sessions.stores.redis_servers import RedisProcess, running

OWNER, STRANGER = Tenant("ann"), Tenant("bob")
LEASE_S, LIFETIME_S = 15.0, 601.0
LIMITS = OwnerLimits(max_sessions=200, max_bytes=64 << 20)


class Advance(Protocol):
    async def __call__(self, seconds: float) -> None:
        """So much time passes for the store: its clock moves, or what it holds grows older."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """A store that is empty, or that never saw the sessions of this trial."""

    store: Store
    advance: Advance
    unix_time: Callable[[], float]
    usage: Callable[[], Awaitable[Mapping[Tenant, Usage]]]


class Sweeping(Protocol):
    async def sweep(self, limit: int) -> int: ...

    async def usage(self) -> Mapping[Tenant, Usage]: ...


async def swept(store: Sweeping) -> Mapping[Tenant, Usage]:
    """What owners have, once what has expired is gone."""
    await store.sweep(1000)
    return await store.usage()


class Clocks:
    """A monotonic clock and Unix time that stand still until they are moved."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return 500.0 + self.passed_s

    def unix_time(self) -> float:
        return 1_700_000_000.0 + self.passed_s

    async def advance(self, seconds: float) -> None:
        self.passed_s += seconds


@asynccontextmanager
async def model_trial(directory: Path) -> AsyncIterator[Trial]:
    del directory
    clocks = Clocks()
    store = MemoryStore(clocks.monotonic, clocks.unix_time, LIMITS)
    yield Trial(store, clocks.advance, clocks.unix_time, partial(swept, store))
    await store.close()


@asynccontextmanager
async def redis_trial(directory: Path) -> AsyncIterator[Trial]:
    del directory
    with running() as server:
        async with redis_trial_on(server) as trial:
            yield trial


@asynccontextmanager
async def redis_trial_on(server: RedisProcess) -> AsyncIterator[Trial]:
    """One that is used by nobody else, and emptied first."""
    server.ask("FLUSHALL")
    store = RedisStore.from_url(server.url, RedisLimits(deadline_s=10, owner=LIMITS), time.monotonic)

    async def advance(seconds: float) -> None:
        redis_clock.advance(server, seconds)

    async def usage() -> Mapping[Tenant, Usage]:
        await store.tidy()
        return {OWNER: Usage(), **await store.usage()}

    yield Trial(store, advance, time.time, usage)
    await store.close()


@asynccontextmanager
async def sqlite_trial(directory: Path) -> AsyncIterator[Trial]:
    async with sqlite_trial_at(directory / "sessions" / "of.db") as trial:
        yield trial


@asynccontextmanager
async def memory_trial(directory: Path) -> AsyncIterator[Trial]:
    del directory
    async with sqlite_trial_at(IN_MEMORY) as trial:
        yield trial


@asynccontextmanager
async def sqlite_trial_at(path: Path) -> AsyncIterator[Trial]:
    clocks = Clocks()
    store = await SqliteStore.open(path, clocks.monotonic, clocks.unix_time, boot="this", limits=LIMITS)
    yield Trial(store, clocks.advance, clocks.unix_time, partial(swept, store))
    await store.close()


@asynccontextmanager
async def sealed_trial(directory: Path) -> AsyncIterator[Trial]:
    async with model_trial(directory) as trial:
        yield replace(trial, store=EncryptedStore(trial.store, b"a secret of the tests"))


STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[Trial]]] = {
    "model": model_trial,
    "memory": memory_trial,
    "redis": redis_trial,
    "sqlite": sqlite_trial,
    "sealed": sealed_trial,
}
"""By name: opens a store of its own for one trial. The directory is the trial's, and empty."""

_tokens = itertools.count(1)


def asks(sid: Sid, **changes: Any) -> Begin:
    """A turn that wants to begin, under a token that nobody had."""
    plain = Begin(sid=sid, owner=OWNER, token=f"token-{next(_tokens)}", lease_s=LEASE_S, lifetime_s=LIFETIME_S)
    return msgspec.structs.replace(plain, **changes)


def more(sid: Sid, begun: Begun, *entries: bytes, ends: bool = False, **changes: Any) -> Append:
    plain = Append(
        sid=sid,
        owner=OWNER,
        generation=begun.generation,
        fence=begun.fence,
        turn=begun.turn,
        entries=entries,
        ends=ends,
        lifetime_s=LIFETIME_S,
    )
    return msgspec.structs.replace(plain, **changes)
