"""Composition of the context window: views, recall and the compactor, from the configuration."""

from __future__ import annotations

from collections.abc import Callable

from router.config.context import ContextConfig
from router.config.schema import Config
from router.config.secrets import read_secret
from router.proxy.ports import Dispatch
from router.sessions.compactor import Compactor
from router.sessions.context_window import ContextWindow, Counts
from router.sessions.histories import Histories
from router.sessions.metrics import SessionMetrics
from router.sessions.planner import Planner
from router.sessions.recall.index import RecallIndex
from router.sessions.recaller import Recaller
from router.sessions.remote_summaries import RemoteSummaryWriter
from router.sessions.summaries import FleetSummaryWriter, SummaryWriter
from router.sessions.views import Lookups, Views


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
    metrics: SessionMetrics,
) -> ContextWindow:
    """Raises ConfigError."""
    context = config.context
    views = Views(context, histories, lookups)
    recaller = Recaller(context, index, planner.bytes_per_token, clock, metrics.observe_recall)
    histories.on_deleted = recaller.forget
    writer = _writer(context, planner, dispatch, clock, lookups.window)
    compactor = Compactor(context, views, histories, writer, recaller, wall_clock, clock, metrics.observe_lag)
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
