"""What turns did, as metrics read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import get_args

from router.core.request.record import Record
from router.sessions.context.entry import Kind
from router.sessions.context.history import History
from router.sessions.context.messages import split_system
from router.sessions.planner import ApiName, Ask, Plan

OUTCOMES = ("ok", "repeated", "refused", "failed", "lost")


@dataclass(slots=True)
class TurnCounts:
    turns: dict[tuple[str, str], int] = field(
        default_factory=lambda: dict.fromkeys(product(get_args(ApiName), OUTCOMES), 0)
    )
    """By door and outcome."""
    conflicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("queue", "reject", "fork"), 0))
    prefixes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("warm", "cold", "unknown"), 0))
    """Was what earlier turns had computed still cached?"""
    breaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("system_changed", "tools_changed"), 0))
    fence_rejections: int = 0
    spared_bytes: int = 0
    """Of what workers were sent, what clients did not have to send."""
    resent_messages: int = 0

    def count_news(self, ask: Ask, history: History, plan: Plan) -> None:
        """What a turn brought, of which nothing counts yet in ``history``."""
        own = [draft for draft in plan.drafts if draft.kind is Kind.MESSAGE]
        if ask.incoming.resends:
            self.resent_messages += len(split_system(ask.incoming.messages)[1]) - len(own)
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
