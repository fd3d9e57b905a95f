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
    """``base``: the store itself. ``store``: with encryption and journal. ``secret``: sessions' keys are made with it."""

    kind: str
    """Label in metrics: sqlite, redis or memory."""
    base: SqliteStore | RedisStore
    store: Store
    secret: bytes
    journaled: JournaledStore | None = None
    limits: OwnerLimits = DEFAULT_LIMITS
    """For each tenant."""

    @property
    def redis(self) -> RedisStore | None:
        return self.base if isinstance(self.base, RedisStore) else None

    @property
    def pending(self) -> int:
        """Calls under way and waiting."""
        return self.base.pending

    @property
    def max_pending(self) -> int:
        """SQLite: calls that a tenant may have pending. Redis: connections, for which more calls wait."""
        return self.base.max_pending

    @property
    def tidy(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Calls for ``StoreHealth`` to make now and then."""
        return (self.base.tidy,)

    @property
    def count(self) -> Callable[[], Awaitable[Mapping[Tenant, Usage]]]:
        """Counts what each tenant has stored."""
        return self.base.usage

    @property
    def lines(self) -> Sequence[FairTurns]:
        """Queues in which calls wait for other calls of their tenant."""
        return self.base.lines

    @property
    def sweep(self) -> Callable[[int], Awaitable[int]] | None:
        """Deletes what has expired; None: the store does that itself."""
        return self.base.sweep if isinstance(self.base, SqliteStore) else None
