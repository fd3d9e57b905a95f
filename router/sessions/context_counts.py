"""Counts of what keeping histories within their windows costs and spares, for metrics."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from router.core.request.record import Record
from router.core.tenants.tenant import ContextStrategy
from router.sessions.context.history import History, Sent
from router.sessions.planner import Plan, TurnRequest

COLD_SHARE = 0.5
"""A prefix is broken if less than this share of it was cached."""


class ContextCounts:
    """``raw``: tokens of prompts with whole logs. ``sent``: tokens of prompts as they were sent. Both by strategy."""

    def __init__(self) -> None:
        strategies = get_args(ContextStrategy)
        self.raw: Counter[str] = Counter(dict.fromkeys(strategies, 0))
        self.sent: Counter[str] = Counter(dict.fromkeys(strategies, 0))
        self.breaks: Counter[str] = Counter({"compaction": 0, "adapter_changed": 0, "moved": 0})
        """Turns whose prefix the worker lacked, by cause, where that is known."""
        self.recomputed_tokens = 0
        """Tokens of prompts that were computed anew because of a cut."""

    def on_end(
        self, strategy: ContextStrategy, request: TurnRequest, history: History, plan: Plan, record: Record | None
    ) -> None:
        """Counts a turn that has ended and is in the history."""
        prompt = plan.prompt
        self.sent[strategy] += prompt.tokens
        self.raw[strategy] += prompt.tokens + history.cut_tokens - history.preface_tokens
        worker = record.worker if record is not None else ""
        before, history.sent = history.sent, Sent(history.log.last_turn, request.incoming.model, worker, prompt.shape)
        if before is not None and record is not None and record.actual_cached_tokens is not None:
            self._count_break(before, history.sent, plan, record.prompt_tokens, record.actual_cached_tokens)

    def _count_break(self, before: Sent, now: Sent, plan: Plan, prompt_tokens: int, cached_tokens: int) -> None:
        if now.shape != before.shape:
            self.breaks["compaction"] += 1
            own = sum(draft.tokens for draft in plan.drafts)
            self.recomputed_tokens += max(prompt_tokens - cached_tokens - own, 0)
        elif cached_tokens < COLD_SHARE * plan.prompt.earlier_tokens(prompt_tokens):
            if now.model != before.model:
                self.breaks["adapter_changed"] += 1
            elif now.worker != before.worker:
                self.breaks["moved"] += 1
