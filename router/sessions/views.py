"""Decides when a session's view changes: before a turn whose prompt does not fit, and after turns, by the compactor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.core.errors import ContextTooLong
from router.core.request.record import Record
from router.sessions.context.compaction import cut_view, find_cut
from router.sessions.context.history import History
from router.sessions.context.prompt import Prompt
from router.sessions.context.strategies import STRATEGIES, Traits
from router.sessions.context.view import ContextOverrides
from router.sessions.context.watermarks import Watermarks, history_ceiling, set_watermarks
from router.sessions.context_counts import ContextCounts
from router.sessions.histories import Histories
from router.sessions.planner import Ask, Plan

ANSWER_SHARE = 0.25
"""Of a window, the most that is left free for an answer whose length nobody bounds."""

CLEARLY, CLEARLY_BY_ESTIMATE = 1.5, 3.0
"""By how much a prompt passes its window before no worker is asked. What is near it a worker judges, whose count is right: a
picture's tokens are a guess, and an estimate's error is that of bytes per token."""


class ViewPlan(NamedTuple):
    """What the janitor is to keep: from ``high`` on the history is cut, down to ``low``. ``writes``: notes, which take long."""

    low: int
    high: int
    writes: bool = False


@dataclass(frozen=True, slots=True)
class ContextRules:
    """``overrides``: where neither request, session nor tenant has any. ``answer_tokens``: left free for an answer that its
    request does not bound."""

    overrides: ContextOverrides
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Lookups:
    """What is known elsewhere. ``window``: a model's, in tokens, 0: unknown. ``total``: of a prompt of that model, from the
    tokens counted of so many messages; ``is_exact``: those were counted."""

    window: Callable[[str], int]
    total: Callable[[str, int, int], int]
    is_exact: Callable[[str], bool]


class Views:
    """One for the process."""

    def __init__(self, rules: ContextRules, histories: Histories, lookups: Lookups) -> None:
        self.rules = rules
        self._histories = histories
        self._lookups = lookups
        self.cuts = 0
        """Histories that were cut in a turn that did not fit."""
        self.counts = ContextCounts()

    def traits(self, ask: Ask, history: History) -> Traits:
        return STRATEGIES[self._overrides(ask, history).strategy or "none"]

    def needs_cut(self, ask: Ask, history: History, plan: Plan) -> int | None:
        """Must the history be cut before this turn is sent? The tokens that the cut leaves; None: no, or no cut helps."""
        overrides = self._overrides(ask, history)
        if not STRATEGIES[overrides.strategy or "none"].cuts or not history.bodies:
            return None
        watermarks = self._watermarks(overrides, ask, history, plan.prompt)
        if history.tokens <= watermarks.ceiling or not self._can_fit(ask, history, plan.prompt):
            return None
        return watermarks.low

    def require_window(self, ask: Ask, prompt: Prompt) -> None:
        """Of what no cut made fit, or of which none was wished. Raises ContextTooLong."""
        if self.is_too_long(ask, prompt):
            window, total = self._lookups.window(ask.incoming.model), self._total(ask, prompt)
            raise ContextTooLong(
                f"the model's context has {window} tokens, and the prompt about {total}: send less, or let the session be cut",
                param="messages",
            )

    def is_too_long(self, ask: Ask, prompt: Prompt) -> bool:
        """Beyond doubt, for the model's window."""
        is_exact = self._lookups.is_exact(ask.incoming.model)
        bound = self._lookups.window(ask.incoming.model) * (CLEARLY if is_exact else CLEARLY_BY_ESTIMATE)
        return 0 < bound < self._total(ask, prompt)

    async def cut(self, history: History, low_tokens: int) -> bool:
        """Leave so many tokens, and say how many messages are left out. Where another cut it first, that cut holds.
        False: there is nowhere to cut. Raises StateUnavailable, SessionNotFound, SessionCorrupt."""
        cut = find_cut(history, low_tokens)
        if cut is None:
            return False
        is_ours = await self._histories.commit_view(history, cut_view(history, cut))
        self.cuts += is_ours  # not in one statement with the wait: others count meanwhile
        return True

    def cut_aside(self, history: History, low_tokens: int) -> History:
        """A copy that is cut, while the session stays as it is; the history itself where there is nowhere to cut."""
        cut = find_cut(history, low_tokens)
        if cut is None:
            return history
        self.cuts += 1
        aside = self._histories.aside(history)
        aside.use_view(cut_view(aside, cut), aside.epoch + 1)
        return aside

    def on_end(self, ask: Ask, history: History, plan: Plan, record: Record | None) -> ViewPlan | None:
        """A turn has ended. None: there is nothing to compact."""
        overrides = self._overrides(ask, history)
        strategy = overrides.strategy or "none"
        self.counts.on_end(strategy, ask, history, plan, record)
        traits = STRATEGIES[strategy]
        if not traits.cuts:
            return None
        watermarks = self._watermarks(overrides, ask, history, plan.prompt)
        summarizes = traits.summarizes and history.view.told < history.view.cut
        indexes = traits.recalls and history.indexed < history.view.cut.number
        is_high = history.tokens >= watermarks.high
        writes = summarizes or (traits.summarizes and is_high)
        return ViewPlan(watermarks.low, watermarks.high, writes) if is_high or summarizes or indexes else None

    def _overrides(self, ask: Ask, history: History) -> ContextOverrides:
        """The request's, else the session's, else the tenant's, else everybody's."""
        tenant = ask.caller.rules
        tenants = ContextOverrides(
            strategy=tenant.context_strategy,
            high_tokens=tenant.context_high_tokens,
            low_tokens=tenant.context_low_tokens,
            max_tokens=tenant.context_max_tokens,
        )
        return ask.overrides.over(history.view.overrides).over(tenants).over(self.rules.overrides)

    def _watermarks(self, overrides: ContextOverrides, ask: Ask, history: History, prompt: Prompt) -> Watermarks:
        model = ask.incoming.model
        beside = self._total(ask, prompt) - history.tokens
        window = self._lookups.window(model)
        ceiling = history_ceiling(window, overrides.max_tokens, beside, self._answer_tokens(ask, window))
        return set_watermarks(overrides.low_tokens, overrides.high_tokens, ceiling)

    def _total(self, ask: Ask, prompt: Prompt) -> int:
        """Its tokens, the template's among them."""
        return self._lookups.total(ask.incoming.model, prompt.tokens, len(prompt.messages))

    def _can_fit(self, ask: Ask, history: History, prompt: Prompt) -> bool:
        """Without any history, at least."""
        model, window = ask.incoming.model, self._lookups.window(ask.incoming.model)
        messages = len(prompt.messages) - len(history.preface) - len(history.bodies)
        beside = self._lookups.total(model, prompt.tokens - history.tokens, messages)
        return history_ceiling(window, 0, beside, self._answer_tokens(ask, window)) > 0

    def _answer_tokens(self, ask: Ask, window: int) -> int:
        params = ask.incoming.params
        asked = params.get("max_completion_tokens") or params.get("max_tokens")
        if isinstance(asked, int) and asked > 0:
            return asked
        return min(self.rules.answer_tokens, round(window * ANSWER_SHARE)) if window else self.rules.answer_tokens
