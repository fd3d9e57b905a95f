"""Decides when a session's view changes: before a turn whose prompt does not fit, and after turns, by the compactor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.config.context import ContextConfig
from router.core.errors import ContextTooLong
from router.core.request.record import Record
from router.sessions.context.compaction import cut_view, find_cut
from router.sessions.context.history import History
from router.sessions.context.prompt import Prompt
from router.sessions.context.strategies import STRATEGIES, Traits
from router.sessions.context.view import ContextOverrides
from router.sessions.context.watermarks import Watermarks, history_ceiling, set_watermarks
from router.sessions.context_counts import ContextCounts
from router.sessions.copying import copy_aside
from router.sessions.histories import Histories
from router.sessions.planner import Plan, TurnRequest

ANSWER_SHARE = 0.25
"""Largest share of a window that is left free for an answer whose length the request does not bound."""

TOO_LONG_RATIO, TOO_LONG_RATIO_BY_ESTIMATE = 1.5, 3.0
"""Times the window that a prompt must have to be refused without asking a worker, by exact counts and by estimates. A worker
counts right, and so it judges prompts that are near its window."""


class ViewPlan(NamedTuple):
    """Watermarks for the compactor. ``writes``: a summary is due, which takes long."""

    low: int
    high: int
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Lookups:
    """Figures from elsewhere. ``window``: a model's, in tokens; 0: unknown. ``total``: tokens of a prompt of a model, from the
    counted tokens and the number of its messages. ``is_exact``: the model's tokens are counted, not estimated."""

    window: Callable[[str], int]
    total: Callable[[str, int, int], int]
    is_exact: Callable[[str], bool]


class Views:
    """One for the process."""

    def __init__(self, config: ContextConfig, histories: Histories, lookups: Lookups) -> None:
        self._answer_tokens_default = config.answer_tokens
        self._defaults = ContextOverrides(
            strategy=config.strategy,
            high_tokens=config.high_tokens,
            low_tokens=config.low_tokens,
            max_tokens=config.max_tokens,
        )
        self._histories = histories
        self._lookups = lookups
        self.cuts = 0
        """Histories that were cut before a turn that did not fit."""
        self.counts = ContextCounts()

    def traits(self, request: TurnRequest, history: History) -> Traits:
        return STRATEGIES[self._overrides(request, history).strategy or "none"]

    def needs_cut(self, request: TurnRequest, history: History, plan: Plan) -> int | None:
        """The tokens that a cut must leave before this turn is sent; None: it needs no cut, or none helps."""
        overrides = self._overrides(request, history)
        if not STRATEGIES[overrides.strategy or "none"].cuts or not history.bodies:
            return None
        watermarks = self._watermarks(overrides, request, history, plan.prompt)
        if history.tokens <= watermarks.ceiling or not self._can_fit(request, history, plan.prompt):
            return None
        return watermarks.low

    def require_window(self, request: TurnRequest, prompt: Prompt) -> None:
        """Raises ContextTooLong."""
        if self.is_too_long(request, prompt):
            window, total = self._lookups.window(request.incoming.model), self._total(request, prompt)
            raise ContextTooLong(
                f"the model's context has {window} tokens, and the prompt about {total}: send less, or set a context strategy "
                "that cuts the session",
                param="messages",
            )

    def is_too_long(self, request: TurnRequest, prompt: Prompt) -> bool:
        """True for a prompt that is beyond doubt too long for the model's window."""
        is_exact = self._lookups.is_exact(request.incoming.model)
        bound = self._lookups.window(request.incoming.model) * (
            TOO_LONG_RATIO if is_exact else TOO_LONG_RATIO_BY_ESTIMATE
        )
        return 0 < bound < self._total(request, prompt)

    async def cut(self, history: History, low_tokens: int) -> bool:
        """Cuts down to so many tokens, and says in the prompt how many messages are left out. If another cut it first, that cut
        holds. False: there is nowhere to cut. Raises StateUnavailable, SessionNotFound, SessionCorrupt."""
        cut = find_cut(history, low_tokens)
        if cut is None:
            return False
        is_ours = await self._histories.commit_view(history, cut_view(history, cut))
        self.cuts += is_ours  # a statement of its own: others count during the wait
        return True

    def cut_aside(self, history: History, low_tokens: int) -> History:
        """A copy that is cut, while the session stays as it is. The history itself, if there is nowhere to cut."""
        cut = find_cut(history, low_tokens)
        if cut is None:
            return history
        self.cuts += 1
        aside = copy_aside(self._histories, history)
        aside.use_view(cut_view(aside, cut), aside.epoch + 1)
        return aside

    def on_end(self, request: TurnRequest, history: History, plan: Plan, record: Record | None) -> ViewPlan | None:
        """A turn has ended. None: there is nothing to compact."""
        overrides = self._overrides(request, history)
        strategy = overrides.strategy or "none"
        self.counts.on_end(strategy, request, history, plan, record)
        traits = STRATEGIES[strategy]
        if not traits.cuts:
            return None
        watermarks = self._watermarks(overrides, request, history, plan.prompt)
        summarizes = traits.summarizes and history.view.summarized_upto < history.view.cut
        indexes = traits.recalls and history.indexed < history.view.cut.number
        is_high = history.tokens >= watermarks.high
        writes = summarizes or (traits.summarizes and is_high)
        return ViewPlan(watermarks.low, watermarks.high, writes) if is_high or summarizes or indexes else None

    def _overrides(self, request: TurnRequest, history: History) -> ContextOverrides:
        """The overrides of the request, else of the session, of the tenant, and of the configuration."""
        tenant = request.caller.rules
        tenants = ContextOverrides(
            strategy=tenant.context_strategy,
            high_tokens=tenant.context_high_tokens,
            low_tokens=tenant.context_low_tokens,
            max_tokens=tenant.context_max_tokens,
        )
        return request.overrides.over(history.view.overrides).over(tenants).over(self._defaults)

    def _watermarks(
        self, overrides: ContextOverrides, request: TurnRequest, history: History, prompt: Prompt
    ) -> Watermarks:
        model = request.incoming.model
        beside = self._total(request, prompt) - history.tokens
        window = self._lookups.window(model)
        ceiling = history_ceiling(window, overrides.max_tokens, beside, self._answer_tokens(request, window))
        return set_watermarks(overrides.low_tokens, overrides.high_tokens, ceiling)

    def _total(self, request: TurnRequest, prompt: Prompt) -> int:
        """Tokens of the prompt with its template."""
        return self._lookups.total(request.incoming.model, prompt.tokens, len(prompt.messages))

    def _can_fit(self, request: TurnRequest, history: History, prompt: Prompt) -> bool:
        """True if the prompt would fit without any history."""
        model, window = request.incoming.model, self._lookups.window(request.incoming.model)
        messages = len(prompt.messages) - len(history.preface) - len(history.bodies)
        beside = self._lookups.total(model, prompt.tokens - history.tokens, messages)
        return history_ceiling(window, 0, beside, self._answer_tokens(request, window)) > 0

    def _answer_tokens(self, request: TurnRequest, window: int) -> int:
        params = request.incoming.params
        asked = params.get("max_completion_tokens") or params.get("max_tokens")
        if isinstance(asked, int) and asked > 0:
            return asked
        return min(self._answer_tokens_default, round(window * ANSWER_SHARE)) if window else self._answer_tokens_default
