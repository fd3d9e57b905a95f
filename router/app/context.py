"""Composition of what keeps histories within their windows: configuration → views, recall, and the janitor."""

from __future__ import annotations

from collections.abc import Callable

from router.config.schema import Config, ContextConfig, read_secret
from router.proxy.ports import Dispatch
from router.sessions.compactor import Compactor, CompactorSettings
from router.sessions.context.view import ContextOverrides
from router.sessions.context_metrics import ContextMetrics
from router.sessions.context_window import ContextWindow, Counts
from router.sessions.histories import Histories
from router.sessions.planner import Planner
from router.sessions.recall.index import RecallIndex
from router.sessions.recaller import Recaller, RecallRules
from router.sessions.remote_summaries import RemoteSummaryWriter
from router.sessions.summaries import FleetSummaryWriter, SummaryWriter
from router.sessions.views import ContextRules, Lookups, Views


def build_context_window(
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
) -> ContextWindow:
    """Raises ConfigError."""
    context = config.context
    rules = ContextRules(
        overrides=ContextOverrides(
            strategy=context.strategy,
            high_tokens=context.high_tokens,
            low_tokens=context.low_tokens,
            max_tokens=context.max_tokens,
        ),
        answer_tokens=context.answer_tokens,
    )
    views = Views(rules, histories, lookups)
    recall = RecallRules(context.recall_tokens, context.recall_items, context.recall_timeout_s)
    recaller = Recaller(recall, index, planner.bytes_per_token, clock, metrics.observe_recall)
    histories.on_deleted = recaller.forget
    settings = CompactorSettings(
        max_waiting=context.max_waiting,
        work_s=context.summary_timeout_s,
        retry_s=context.summary_retry_s,
        summary_tokens=context.summary_tokens,
        source_tokens=context.summary_source_tokens,
        tokens_per_day=context.summary_tokens_per_day,
    )
    writer = _writer(context, planner, dispatch, clock, lookups.window)
    compactor = Compactor(settings, views, histories, writer, recaller, wall_clock, clock, metrics.observe_lag)
    return ContextWindow(views, recaller, compactor, counts)


def _writer(
    context: ContextConfig,
    planner: Planner,
    dispatch: Dispatch,
    clock: Callable[[], float],
    window: Callable[[str], int],
) -> SummaryWriter:
    """Raises ConfigError."""
    if context.summary_url:
        key = read_secret("context.summary_api_key", context.summary_api_key, context.summary_api_key_file)
        return RemoteSummaryWriter(context.summary_url, key.decode(), context.summary_model, context.summary_timeout_s)
    return FleetSummaryWriter(planner, dispatch, clock, context.summary_model, window)
