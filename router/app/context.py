"""Composition of what keeps histories within their windows: configuration → views, recall, and the janitor."""

from __future__ import annotations

from collections.abc import Callable

from router.config.schema import Config, ContextConfig, read_secret
from router.proxy.ports import Dispatch
from router.sessions.compactor import Janitor, JanitorSettings
from router.sessions.context.cache_costs import Economy
from router.sessions.context.view import Wishes
from router.sessions.context_metrics import ContextMetrics
from router.sessions.context_window import Counts, Upkeep
from router.sessions.histories import Histories
from router.sessions.notes import FleetWriter, NoteWriter
from router.sessions.planner import Planner
from router.sessions.recall.index import RecallIndex
from router.sessions.recaller import Recaller, RecallRules
from router.sessions.remote_notes import RemoteWriter
from router.sessions.views import ContextRules, Lookups, Views


def build_upkeep(
    config: Config,
    histories: Histories,
    planner: Planner,
    dispatch: Dispatch,
    index: RecallIndex,
    lookups: Lookups,
    counts: Counts,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    metrics: ContextMetrics,
) -> Upkeep:
    """Raises ConfigError."""
    context = config.context
    rules = ContextRules(
        wishes=Wishes(
            strategy=context.strategy,
            high_tokens=context.high_tokens,
            low_tokens=context.low_tokens,
            max_tokens=context.max_tokens,
        ),
        answer_tokens=context.answer_tokens,
        idle_s=context.idle_s,
        notes_tokens=context.notes_tokens,
        notes_price=context.notes_price,
    )
    views = Views(rules, histories, lookups, Economy(context.carry_price), wall_clock)
    recall = RecallRules(context.recall_tokens, context.recall_items, context.recall_timeout_s)
    recaller = Recaller(recall, index, planner.bytes_per_token, clock, metrics.observe_recall)
    histories.on_deleted = recaller.forget
    settings = JanitorSettings(
        max_waiting=context.max_waiting,
        work_s=context.notes_timeout_s,
        retry_s=context.notes_retry_s,
        notes_tokens=context.notes_tokens,
        source_tokens=context.notes_source_tokens,
        tokens_per_day=context.notes_tokens_per_day,
    )
    writer = _writer(context, planner, dispatch, clock, lookups.window)
    janitor = Janitor(settings, views, histories, writer, recaller, wall_clock, clock, metrics.observe_lag)
    return Upkeep(views, recaller, janitor, counts)


def _writer(
    context: ContextConfig,
    planner: Planner,
    dispatch: Dispatch,
    clock: Callable[[], float],
    window: Callable[[str], int],
) -> NoteWriter:
    """Raises ConfigError."""
    if context.notes_url:
        key = read_secret("context.notes_api_key", context.notes_api_key, context.notes_api_key_file)
        return RemoteWriter(context.notes_url, key.decode(), context.notes_model, context.notes_timeout_s)
    return FleetWriter(planner, dispatch, clock, context.notes_model, context.notes_price, context.carry_price, window)
