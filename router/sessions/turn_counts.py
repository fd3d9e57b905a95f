"""Counts of turns, for metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import get_args

from router.core.request.record import Record
from router.sessions.context.entry import Kind
from router.sessions.context.history import History
from router.sessions.context.messages import split_system
from router.sessions.planner import ApiName, Plan, TurnRequest


class TurnOutcome(StrEnum):
    """How a turn ended: a label of metrics."""

    OK = "ok"
    REPEATED = "repeated"
    """Answered again from the log."""
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    """Answered without its history, since the store was away."""


@dataclass(slots=True)
class TurnCounts:
    turns: dict[tuple[str, str], int] = field(
        default_factory=lambda: dict.fromkeys(product(get_args(ApiName), TurnOutcome), 0)
    )
    """By API and outcome."""
    conflicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("queue", "reject", "fork"), 0))
    prefixes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("warm", "cold", "unknown"), 0))
    """Turns by whether the workers still had the prefix cached."""
    breaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("system_changed", "tools_changed"), 0))
    fence_rejections: int = 0
    spared_bytes: int = 0
    """Bytes that workers were sent and clients were not asked for."""
    resent_messages: int = 0

    def count_news(self, request: TurnRequest, history: History, plan: Plan) -> None:
        """Counts what a turn adds, before it counts in ``history``."""
        own = [draft for draft in plan.drafts if draft.kind is Kind.MESSAGE]
        if request.incoming.resends:
            self.resent_messages += len(split_system(request.incoming.messages)[1]) - len(own)
        kinds = {draft.kind for draft in plan.drafts}
        self.breaks["system_changed"] += Kind.SYSTEM in kinds and history.log.system.number > 0
        self.breaks["tools_changed"] += Kind.TOOLS in kinds and history.log.tools.number > 0

    def count_prefix(self, plan: Plan, record: Record | None) -> None:
        if record is None or not plan.prompt.earlier_bytes or not record.prompt_tokens:
            return
        if record.actual_cached_tokens is None:
            self.prefixes["unknown"] += 1
        else:
            earlier_tokens = plan.prompt.earlier_tokens(record.prompt_tokens)
            self.prefixes["warm" if record.actual_cached_tokens * 2 >= earlier_tokens else "cold"] += 1
