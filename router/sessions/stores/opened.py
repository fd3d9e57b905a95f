"""A session store with all that stands in front of it."""

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
    """``store``: with all that stands in front of it. ``secret``: what sessions' keys are made of."""

    kind: str
    """A label: sqlite, redis, memory."""
    store: Store
    secret: bytes
    journaled: JournaledStore | None = None
    redis: RedisStore | None = None
    sqlite: SqliteStore | None = None
    limits: OwnerLimits = DEFAULT_LIMITS
    """Of each tenant."""

    @property
    def pending(self) -> int:
        """Calls that it is at, or that wait for it."""
        known = self.sqlite or self.redis
        return known.pending if known is not None else 0

    @property
    def max_pending(self) -> int:
        """How many a tenant may have at SQLite; how many connections to Redis there are, for which others wait."""
        if self.sqlite is not None:
            return self.sqlite.max_pending
        return self.redis.max_connections if self.redis is not None else 0

    @property
    def tidy(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """To be called now and then."""
        known = self.sqlite or self.redis
        return () if known is None else (known.tidy,)

    @property
    def count(self) -> Callable[[], Awaitable[Mapping[Tenant, Usage]]] | None:
        """What each tenant has."""
        known = self.sqlite or self.redis
        return known.usage if known is not None else None

    @property
    def lines(self) -> Sequence[FairTurns]:
        """In which calls wait for their tenants' turns."""
        if self.sqlite is not None:
            return self.sqlite.writes, self.sqlite.reads
        return (self.redis.calls,) if self.redis is not None else ()

    @property
    def sweep(self) -> Callable[[int], Awaitable[int]] | None:
        """Deletes what has expired; None where the store does that itself."""
        return self.sqlite.sweep if self.sqlite is not None else None
