"""Sessions and their store as Prometheus sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core.request.request import Tenant
from router.runtime.series import counter
from router.sessions.store_health import StoreHealth
from router.sessions.stores.contract import Usage
from router.sessions.stores.opened import OpenedStore
from router.sessions.turns import Turns

OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0, 60.0)
ITEM_BUCKETS = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)
BYTE_BUCKETS = tuple(4**power for power in range(5, 14))
"""From a KiB to 64 MiB."""


class SessionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        overhead = Histogram(
            "warmroute_turn_overhead_seconds",
            "From a turn's request until it is dispatched: its body, its claim, its history, its prompt.",
            ("store",),
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self._overhead = overhead
        self._loads = Histogram(
            "warmroute_state_load_seconds",
            "What a history took: to fetch, for a turn with its claim, and to parse; tier memory: nothing of it was missing.",
            ("tier", "stage"),
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self._items = Histogram(
            "warmroute_session_items",
            "Items of a session, at the end of each of its turns.",
            buckets=ITEM_BUCKETS,
            registry=registry,
        )
        self._bytes = Histogram(
            "warmroute_session_bytes", "Their bytes, then.", buckets=BYTE_BUCKETS, registry=registry
        )
        self._children = {
            (tier, stage): self._loads.labels(tier, stage)
            for tier in ("memory", "store")
            for stage in ("fetch", "parse")
        }

    def overhead_of(self, store: str) -> Callable[[float], None]:
        observe: Callable[[float], None] = self._overhead.labels(store).observe
        return observe

    def observe_load(self, tier: str, stage: str, seconds: float) -> None:
        self._children[tier, stage].observe(seconds)

    def observe_size(self, items: int, item_bytes: int) -> None:
        self._items.observe(items)
        self._bytes.observe(item_bytes)


class SessionCollector(Collector):
    """``tenants``: those that have keys, and no others are labels."""

    def __init__(self, turns: Turns, store: OpenedStore, watch: StoreHealth, tenants: Collection[Tenant]) -> None:
        self._tenants = tenants
        self._turns = turns
        self._cache = turns.histories.cache
        self._store = store
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        counts = self._turns.counts
        yield counter("turns", "Turns that asked a model, by how they ended.", counts.turns, "door", "outcome")
        yield counter(
            "turn_conflicts", "Turns that met another of their session, by policy.", counts.conflicts, "policy"
        )
        yield counter(
            "turn_prefixes", "Turns behind others, by whether their prefix was cached.", counts.prefixes, "state"
        )
        breaks = {**counts.breaks, **self._turns.context_window.views.counts.breaks}
        yield counter(
            "prefix_breaks", "Turns whose prompt began otherwise, or was in no cache any more.", breaks, "cause"
        )
        yield CounterMetricFamily(
            "warmroute_fence_rejections", "Turns that lost their session.", counts.fence_rejections
        )
        yield CounterMetricFamily(
            "warmroute_spared_bytes", "Of prompts, what clients did not have to send.", counts.spared_bytes
        )
        yield CounterMetricFamily(
            "warmroute_resent_messages", "Messages sent again that sessions had.", counts.resent_messages
        )
        yield GaugeMetricFamily("warmroute_live_turns", "Turns under way.", len(self._turns.claims.live))
        releaser = self._turns.claims.releaser
        yield GaugeMetricFamily(
            "warmroute_give_backs", "Claims that a store which is away has yet to take back.", releaser.waiting
        )
        yield GaugeMetricFamily("warmroute_max_give_backs", "How many may wait for it.", releaser.max_waiting)
        yield CounterMetricFamily(
            "warmroute_given_up_claims", "Claims that were not given back: their leases ended.", releaser.given_up
        )
        histories = self._turns.histories
        yield CounterMetricFamily(
            "warmroute_full_sessions", "Turns and copies refused since a log is full.", histories.full
        )
        yield GaugeMetricFamily(
            "warmroute_max_session_items", "Entries that a log may have.", histories.bounds.max_entries
        )
        yield GaugeMetricFamily("warmroute_max_session_bytes", "Bytes that it may have.", histories.bounds.max_bytes)
        yield GaugeMetricFamily("warmroute_hot_sessions", "Histories in memory.", len(self._cache))
        yield GaugeMetricFamily("warmroute_hot_bytes", "What they take.", self._cache.bytes)
        yield GaugeMetricFamily("warmroute_max_hot_bytes", "What they may take.", self._cache.max_bytes)
        yield from self._collect_store()

    def _collect_store(self) -> Iterator[Metric]:
        store = self._store
        yield GaugeMetricFamily(
            "warmroute_store_up", "1 while the session store takes writes.", float(self._watch.is_up)
        )
        yield CounterMetricFamily(
            "warmroute_store_failures",
            "Calls that came to nothing, of turns and pages.",
            self._turns.histories.failures,
        )
        yield GaugeMetricFamily(
            "warmroute_store_calls", "Calls that the session store is at, or that wait for it.", store.pending
        )
        yield GaugeMetricFamily(
            "warmroute_max_store_calls",
            "How many there may be; with Redis how many are sent at once, for which others wait.",
            store.max_pending,
        )
        yield GaugeMetricFamily(
            "warmroute_store_waiting_calls",
            "Of those, calls that wait since their tenants have as many under way as they may.",
            sum(line.waiting for line in store.lines),
        )
        yield CounterMetricFamily(
            "warmroute_store_crowded",
            "Calls that were refused with 429 since their tenants' own calls were in the way for too long.",
            sum(line.refused for line in store.lines),
        )
        yield from self._collect_usage()
        state = store.redis.breaker_state if store.redis else 0
        yield GaugeMetricFamily(
            "warmroute_store_breaker_state",
            "Of the way to Redis: 0 closed, 1 trying, 2 open: calls fail at once.",
            state,
        )
        evictions = store.redis.evictions if store.redis else None
        yield GaugeMetricFamily(
            "warmroute_store_may_evict",
            "1 where Redis may throw sessions away when its memory is full: set its maxmemory-policy to noeviction.",
            float(evictions is not None and evictions.may_evict),
        )
        yield CounterMetricFamily(
            "warmroute_store_evicted_keys",
            "Keys that Redis has thrown away since it began, sessions perhaps among them.",
            evictions.evicted_keys if evictions is not None else 0,
        )
        journaled = store.journaled
        yield GaugeMetricFamily(
            "warmroute_write_behind_items",
            "Ends of turns that the store has yet to take.",
            journaled.waiting if journaled else 0,
        )
        yield GaugeMetricFamily(
            "warmroute_write_behind_seconds",
            "For how long the oldest of them has waited.",
            journaled.lag_s if journaled else 0,
        )
        yield GaugeMetricFamily(
            "warmroute_journal_bytes", "What the journal holds of them.", journaled.journal.bytes if journaled else 0
        )
        yield GaugeMetricFamily(
            "warmroute_max_journal_bytes", "What it may hold.", journaled.journal.max_bytes if journaled else 0
        )

    def _collect_usage(self) -> Iterator[Metric]:
        limits, usage = self._store.limits, self._watch.usage
        yield CounterMetricFamily(
            "warmroute_storage_refusals",
            "What was refused with storage_full, since its tenant has stored as much as it may.",
            self._turns.histories.refused_for_room,
        )
        yield GaugeMetricFamily("warmroute_max_tenant_bytes", "Bytes that a tenant may have stored.", limits.max_bytes)
        yield GaugeMetricFamily(
            "warmroute_max_tenant_sessions",
            "Sessions, conversations and chains that a tenant may have, and responses.",
            limits.max_sessions,
        )
        yield GaugeMetricFamily(
            "warmroute_fullest_tenant_ratio",
            "The largest share of its room that any tenant has used, in bytes, sessions or responses; at 1 it is refused.",
            max(map(limits.used_ratio, usage.values()), default=0.0),
        )
        stored = GaugeMetricFamily(
            "warmroute_tenant_stored_bytes", "What the tenant has stored, roughly.", labels=("tenant",)
        )
        counts = GaugeMetricFamily(
            "warmroute_tenant_stored",
            "How many sessions (conversations and chains among them) and responses the tenant has stored.",
            labels=("tenant", "kind"),
        )
        for tenant in self._tenants:
            has = usage.get(tenant, Usage())
            stored.add_metric((tenant,), has.bytes)
            counts.add_metric((tenant, "sessions"), has.sessions)
            counts.add_metric((tenant, "responses"), has.documents)
        yield from (stored, counts)
