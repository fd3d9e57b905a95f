"""Turns of sessions, and how histories are kept within their models' windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Histogram

from router.core.tenants.tenant import TenantRules
from router.runtime.metrics import Row, counter, gauge
from router.sessions.context_window import ContextWindow
from router.sessions.recall.index import MeasuredIndex
from router.sessions.recall.sqlite import SqliteIndex
from router.sessions.turns import Turns

OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0, 60.0)
ITEM_BUCKETS = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)
BYTE_BUCKETS = tuple(4**power for power in range(5, 14))
"""From a KiB to 64 MiB."""
RECALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
LAG_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class SessionMetrics:
    """Histograms that turns, searches and compactions observe as they happen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        add = partial(Histogram, registry=registry)
        self._overhead = add(
            "warmroute_turn_overhead_seconds",
            "Time from a turn's request until it is dispatched: its body, its claim, its history and its prompt.",
            ("store",),
            buckets=OVERHEAD_BUCKETS,
        )
        loads = add(
            "warmroute_state_load_seconds",
            "Time to get a session's history, by stage (fetch includes a turn's claim) and by tier (memory: the router had all "
            "of it).",
            ("tier", "stage"),
            buckets=OVERHEAD_BUCKETS,
        )
        self._loads = {
            (tier, stage): loads.labels(tier, stage) for tier in ("memory", "store") for stage in ("fetch", "parse")
        }
        self._items = add(
            "warmroute_session_items", "Items of a session at the end of each of its turns.", buckets=ITEM_BUCKETS
        )
        self._bytes = add(
            "warmroute_session_bytes", "Bytes of a session at the end of each of its turns.", buckets=BYTE_BUCKETS
        )
        recall = add(
            "warmroute_recall_duration_seconds",
            "Time of a search for items that are no longer in a session's prompt.",
            buckets=RECALL_BUCKETS,
        )
        lag = add(
            "warmroute_compaction_lag_seconds",
            "Time from the turn that passed the high mark until its session's history is cut. The summary is included.",
            buckets=LAG_BUCKETS,
        )
        self.observe_recall: Callable[[float], None] = recall.observe
        self.observe_lag: Callable[[float], None] = lag.observe

    def overhead_of(self, store: str) -> Callable[[float], None]:
        observe: Callable[[float], None] = self._overhead.labels(store).observe
        return observe

    def observe_load(self, tier: str, stage: str, seconds: float) -> None:
        self._loads[tier, stage].observe(seconds)

    def observe_size(self, items: int, item_bytes: int) -> None:
        self._items.observe(items)
        self._bytes.observe(item_bytes)


def turn_rows(turns: Turns) -> Iterable[Row]:
    counts, releaser = turns.counts, turns.claims.releaser
    return (
        counter("turns", "Turns by API and outcome.", lambda: counts.turns, "api", "outcome"),
        counter(
            "turn_conflicts",
            "Turns that came while another turn of their session was in progress, by what they did then.",
            lambda: counts.conflicts,
            "policy",
        ),
        counter(
            "turn_prefixes",
            "Turns after a session's first, by whether the worker had the earlier turns in its cache.",
            lambda: counts.prefixes,
            "state",
        ),
        counter(
            "prefix_breaks",
            "Turns whose prompt no cache could serve, by cause: the prompt began differently, or the worker was another.",
            lambda: {**counts.breaks, **turns.context_window.views.counts.breaks},
            "cause",
        ),
        counter(
            "fence_rejections", "Turns that lost their session to another router.", lambda: counts.fence_rejections
        ),
        counter(
            "spared_bytes",
            "Bytes of prompts that clients did not have to send because the session held them.",
            lambda: counts.spared_bytes,
        ),
        counter(
            "resent_messages",
            "Messages that clients sent again though the session held them.",
            lambda: counts.resent_messages,
        ),
        gauge("live_turns", "Turns in progress.", lambda: len(turns.claims.live)),
        gauge(
            "waiting_releases",
            "Claims on sessions that the router will release when the store answers again.",
            lambda: releaser.waiting,
        ),
        gauge("max_waiting_releases", "Most claims that may wait to be released.", lambda: releaser.max_waiting),
        counter(
            "abandoned_claims",
            "Claims on sessions that the router could not release; they ended with their lease.",
            lambda: releaser.given_up,
        ),
    )


def history_rows(turns: Turns) -> Iterable[Row]:
    histories = turns.histories
    cache, config = histories.cache, histories.config
    return (
        counter(
            "full_sessions",
            "Turns and copies that were refused because the session's log is full.",
            lambda: histories.full,
        ),
        gauge(
            "max_session_items", "Most entries of a session's log (sessions.max_entries).", lambda: config.max_entries
        ),
        gauge(
            "max_session_bytes",
            "Most bytes of a session's log (sessions.max_session_bytes).",
            lambda: config.max_session_bytes,
        ),
        gauge("cached_sessions", "Sessions whose history is in memory.", lambda: len(cache)),
        gauge("session_cache_bytes", "Bytes of the histories in memory.", lambda: cache.bytes),
        gauge(
            "max_session_cache_bytes",
            "Most bytes of the histories in memory (sessions.max_cache_bytes).",
            lambda: cache.max_bytes,
        ),
        counter("store_failures", "Calls to the session store that failed.", lambda: histories.failures),
        counter(
            "storage_refusals",
            "Requests that were refused with storage_full because their tenant has stored as much as it may.",
            lambda: histories.refused_for_room,
        ),
    )


def context_rows(window: ContextWindow, tenants: Callable[[], Sequence[TenantRules]]) -> Iterable[Row]:
    """``tenants``: those that are configured."""
    views, compactor, counts = window.views, window.compactor, window.views.counts

    def budgets() -> Mapping[str, float]:
        left = {rules.tenant: compactor.budget.left(rules) for rules in tenants()}
        return {tenant: tokens for tenant, tokens in left.items() if tokens is not None}

    return (
        counter(
            "context_raw_tokens",
            "Tokens that prompts of turns would have if whole histories were sent, by strategy.",
            lambda: counts.raw,
            "strategy",
        ),
        counter(
            "context_sent_tokens",
            "Tokens of the prompts of turns as sent, by strategy.",
            lambda: counts.sent,
            "strategy",
        ),
        counter(
            "compactions",
            "Histories that the compactor looked at or a turn cut, by result.",
            lambda: {**compactor.results, "ceiling": views.cuts},
            "result",
        ),
        counter(
            "recomputed_tokens",
            "Prompt tokens that workers computed again because a history was cut.",
            lambda: counts.recomputed_tokens,
        ),
        counter(
            "janitor_tokens",
            "Tokens that summaries used, as models counted them, by kind.",
            lambda: compactor.tokens,
            "kind",
        ),
        gauge("compactions_waiting", "Sessions that wait for the compactor.", lambda: compactor.waiting),
        gauge(
            "max_compactions_waiting", "Most sessions that may wait for the compactor.", lambda: compactor.max_waiting
        ),
        gauge(
            "tenant_summary_tokens_left",
            "Tokens that summaries of the tenant's sessions may still use until midnight UTC.",
            budgets,
            "tenant",
        ),
    )


def recall_rows(window: ContextWindow, index: MeasuredIndex, sqlite: SqliteIndex | None) -> Iterable[Row]:
    """``sqlite``: the index, where it has a bound."""
    rows = (
        counter(
            "recalls",
            "Searches for items that are no longer in a session's prompt, by outcome.",
            lambda: window.recaller.results,
            "outcome",
        ),
        counter(
            "recalls_by_words_alone",
            "Searches by words alone, because the embedding of the question was not there in time.",
            lambda: index.searches_without_meaning,
        ),
        gauge("recall_calls", "Calls to the recall index in progress or waiting.", lambda: index.pending),
        gauge("max_recall_calls", "Most calls to the recall index in progress or waiting.", lambda: index.max_pending),
        counter(
            "recall_index_failures",
            "Updates of the recall index that failed; the session's next turn tries again.",
            lambda: window.recaller.index_failures,
        ),
    )
    if sqlite is None:
        return rows
    return (
        *rows,
        gauge(
            "recall_bytes",
            "Bytes of texts and vectors in the recall index, as of this router's last change.",
            lambda: sqlite.bytes,
        ),
        gauge(
            "max_recall_bytes",
            "Most bytes of texts and vectors in the recall index (context.max_recall_bytes).",
            lambda: sqlite.max_bytes,
        ),
        counter(
            "recall_evictions",
            "Sessions and pieces that the recall index dropped because it, or their session, was full, by kind.",
            lambda: sqlite.evicted,
            "kind",
        ),
    )
