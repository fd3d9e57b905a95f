"""A session store with encryption and journal in front of it, and its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from router.core.request.request import Tenant
from router.runtime.fair_turns import FairTurns
from router.sessions.stores.contract import DEFAULT_LIMITS, OwnerLimits, Store, Usage
from router.sessions.stores.redis import RedisStore
from router.sessions.stores.sqlite import SqliteStore
from router.sessions.stores.write_behind import JournaledStore


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """``store``: with encryption and journal. ``secret``: sessions' keys are made with it."""

    kind: str
    """Label in metrics: sqlite, redis or memory."""
    store: Store
    secret: bytes
    journaled: JournaledStore | None = None
    redis: RedisStore | None = None
    sqlite: SqliteStore | None = None
    limits: OwnerLimits = DEFAULT_LIMITS
    """For each tenant."""

    @property
    def pending(self) -> int:
        """Calls under way and waiting."""
        known = self.sqlite or self.redis
        return known.pending if known is not None else 0

    @property
    def max_pending(self) -> int:
        """SQLite: calls that a tenant may have pending. Redis: connections, for which more calls wait."""
        if self.sqlite is not None:
            return self.sqlite.max_pending
        return self.redis.max_connections if self.redis is not None else 0

    @property
    def tidy(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Calls for ``StoreHealth`` to make now and then."""
        known = self.sqlite or self.redis
        return () if known is None else (known.tidy,)

    @property
    def count(self) -> Callable[[], Awaitable[Mapping[Tenant, Usage]]] | None:
        """Counts what each tenant has stored."""
        known = self.sqlite or self.redis
        return known.usage if known is not None else None

    @property
    def lines(self) -> Sequence[FairTurns]:
        """Queues in which calls wait for other calls of their tenant."""
        if self.sqlite is not None:
            return self.sqlite.writes, self.sqlite.reads
        return (self.redis.calls,) if self.redis is not None else ()

    @property
    def sweep(self) -> Callable[[int], Awaitable[int]] | None:
        """Deletes what has expired; None: the store does that itself."""
        return self.sqlite.sweep if self.sqlite is not None else None
