"""What keeping histories within their windows cost and spared, as metrics read it."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from router.core.request.record import Record
from router.core.tenants.tenant import ContextStrategy
from router.sessions.context.history import History, Sent
from router.sessions.planner import Ask, Plan

COLD_SHARE = 0.5
"""Of what earlier turns had, what must be cached of it for a prefix not to be broken."""


class ContextCounts:
    """``raw``, ``sent``: tokens of prompts as whole logs would make them, and as they were sent; by strategy."""

    def __init__(self) -> None:
        strategies = get_args(ContextStrategy)
        self.raw: Counter[str] = Counter(dict.fromkeys(strategies, 0))
        self.sent: Counter[str] = Counter(dict.fromkeys(strategies, 0))
        self.breaks: Counter[str] = Counter({"compaction": 0, "adapter_changed": 0, "moved": 0})
        """Turns whose prefix the worker did not have, by why, where that can be told."""
        self.recomputed_tokens = 0
        """Of prompts, what was computed anew because of a cut."""

    def on_end(self, strategy: ContextStrategy, ask: Ask, history: History, plan: Plan, record: Record | None) -> None:
        """The turn has ended, and is in the history."""
        prompt = plan.prompt
        self.sent[strategy] += prompt.tokens
        self.raw[strategy] += prompt.tokens + history.cut_tokens - history.preface_tokens
        worker = record.worker if record is not None else ""
        before, history.sent = history.sent, Sent(history.log.last_turn, ask.incoming.model, worker, prompt.shape)
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
