"""The session store: whether it answers, how busy it is, and how much each tenant has stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from router.core.request.request import Tenant
from router.runtime.metrics import Row, counter, gauge
from router.sessions.stores.contract import Usage
from router.sessions.stores.opened import OpenedStore


def store_rows(store: OpenedStore, is_up: Callable[[], bool]) -> Iterable[Row]:
    return (
        gauge("store_up", "1 while the session store takes writes, else 0.", is_up),
        gauge("store_calls", "Calls to the session store in progress or waiting.", lambda: store.pending),
        gauge(
            "max_store_calls",
            "SQLite: most calls of one tenant in progress or waiting. Redis: connections; further calls wait for one.",
            lambda: store.max_pending,
        ),
        gauge(
            "store_waiting_calls",
            "Calls to the session store that wait because their tenant has as many in progress as it may.",
            lambda: sum(line.waiting for line in store.lines),
        ),
        counter(
            "store_crowded",
            "Calls to the session store that were refused with 429 because their tenant's own calls took too long.",
            lambda: sum(line.refused for line in store.lines),
        ),
        gauge(
            "store_breaker_state",
            "State of the circuit breaker before Redis: 0 closed, 1 trying, 2 open (calls fail at once).",
            lambda: store.redis.breaker_state if store.redis else 0,
        ),
        gauge(
            "store_may_evict",
            "1 if Redis may evict sessions when its memory is full: set its maxmemory-policy to noeviction.",
            lambda: store.redis is not None and store.redis.evictions.may_evict,
        ),
        counter(
            "store_evicted_keys",
            "Keys that Redis evicted since it started. Sessions may be among them.",
            lambda: store.redis.evictions.evicted_keys if store.redis else 0,
        ),
        *_journal_rows(store),
    )


def _journal_rows(store: OpenedStore) -> Iterable[Row]:
    journaled = store.journaled
    return (
        gauge(
            "write_behind_items",
            "Finished turns that wait in the journal for Redis.",
            lambda: journaled.waiting if journaled else 0,
        ),
        gauge(
            "write_behind_seconds",
            "Age of the oldest finished turn that waits in the journal for Redis.",
            lambda: journaled.lag_s if journaled else 0,
        ),
        gauge("journal_bytes", "Bytes in the journal.", lambda: journaled.journal.bytes if journaled else 0),
        gauge(
            "max_journal_bytes",
            "Most bytes in the journal (sessions.max_journal_bytes); when it is full, turns fail while Redis is away.",
            lambda: journaled.journal.max_bytes if journaled else 0,
        ),
    )


def usage_rows(
    store: OpenedStore, usage: Callable[[], Mapping[Tenant, Usage]], tenants: Collection[Tenant]
) -> Iterable[Row]:
    """``tenants``: those that have keys. No others are labels."""
    limits = store.limits

    def counts() -> Mapping[tuple[Tenant, str], int]:
        used = {tenant: usage().get(tenant, Usage()) for tenant in tenants}
        sessions = {(tenant, "sessions"): usage.sessions for tenant, usage in used.items()}
        return sessions | {(tenant, "responses"): usage.documents for tenant, usage in used.items()}

    return (
        gauge(
            "max_tenant_bytes",
            "Most bytes that a tenant may store (sessions.max_tenant_bytes).",
            lambda: limits.max_bytes,
        ),
        gauge(
            "max_tenant_sessions",
            "Most sessions that a tenant may store, conversations and chains of responses included, and most responses "
            "(sessions.max_tenant_sessions).",
            lambda: limits.max_sessions,
        ),
        gauge(
            "fullest_tenant_ratio",
            "Largest share of its storage limits that any tenant uses: bytes, sessions or responses. At 1 its turns are "
            "refused.",
            lambda: max(map(limits.used_ratio, usage().values()), default=0.0),
        ),
        gauge(
            "tenant_stored_bytes",
            "Bytes that the tenant has stored, roughly.",
            lambda: {tenant: usage().get(tenant, Usage()).bytes for tenant in tenants},
            "tenant",
        ),
        gauge(
            "tenant_stored",
            "Sessions (conversations and chains of responses included) and responses that the tenant has stored.",
            counts,
            "tenant",
            "kind",
        ),
    )
