"""When a session's view changes: in a turn whose prompt does not fit, or whose prefix is in no cache anyway; and behind turns,
where the janitor does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from router.core.errors import ContextTooLong
from router.core.index.fingerprint import Fingerprint
from router.core.request.record import Record
from router.sessions.context.cache_costs import CacheCosts
from router.sessions.context.compaction import cut_view, find_cut
from router.sessions.context.history import History
from router.sessions.context.prompt import Prompt
from router.sessions.context.strategies import STRATEGIES, Traits
from router.sessions.context.view import ContextOverrides
from router.sessions.context.watermarks import Watermarks, history_ceiling, is_worth_it, set_watermarks
from router.sessions.context_counts import ContextCounts
from router.sessions.histories import Histories
from router.sessions.planner import Ask, Plan

ANSWER_SHARE = 0.25
"""Of a window, the most that is left free for an answer whose length nobody bounds."""

CLEARLY, CLEARLY_BY_ESTIMATE = 1.5, 3.0
"""By how much a prompt passes its window before no worker is asked. What is near it a worker judges, whose count is right: a
picture's tokens are a guess, and an estimate's error is that of bytes per token."""

COLD_SHARE = 0.2
"""Of what earlier turns had: with less of it cached, the rest is not worth sparing."""

Why = Literal["ceiling", "cold"]


class Due(NamedTuple):
    """A cut that must be made, or may be for nothing. ``low``: what it is to leave."""

    why: Why
    low: int


class ViewPlan(NamedTuple):
    """What the janitor is to keep: from ``high`` on the history is cut, down to ``low``. ``writes``: notes, which take long."""

    low: int
    high: int
    writes: bool = False


@dataclass(frozen=True, slots=True)
class ContextRules:
    """``overrides``: where neither request, session nor tenant has any. ``answer_tokens``: left free for an answer that its
    request does not bound; ``summary_tokens``: most of one cut's notes, and ``summary_price`` of one of them."""

    overrides: ContextOverrides
    answer_tokens: int
    idle_s: float
    """Seconds without a turn, from which on it is worth asking whether the prefix is still cached."""
    summary_tokens: int
    summary_price: float


@dataclass(frozen=True, slots=True)
class Lookups:
    """What is known elsewhere. ``window``: a model's, in tokens, 0: unknown. ``total``: of a prompt of that model, from the
    tokens counted of so many messages; ``is_exact``: those were counted. ``cached``: tokens of a prompt that some worker is
    believed to have."""

    window: Callable[[str], int]
    total: Callable[[str, int, int], int]
    is_exact: Callable[[str], bool]
    cached: Callable[[str, Fingerprint], float]


class Views:
    """One for the process."""

    def __init__(
        self,
        rules: ContextRules,
        histories: Histories,
        lookups: Lookups,
        cache_costs: CacheCosts,
        wall_clock: Callable[[], float],
    ) -> None:
        self.rules = rules
        self.cache_costs = cache_costs
        self._histories = histories
        self._lookups = lookups
        self._wall_clock = wall_clock
        self.cuts: Counter[str] = Counter({"ceiling": 0, "cold": 0})
        self.counts = ContextCounts()

    def traits(self, ask: Ask, history: History) -> Traits:
        return STRATEGIES[self._overrides(ask, history).strategy or "none"]

    def wants_cut(self, ask: Ask, history: History, plan: Plan) -> Due | None:
        """Must the history be cut before this turn is sent, or may it be for nothing? O(1) for short histories."""
        overrides = self._overrides(ask, history)
        if not STRATEGIES[overrides.strategy or "none"].cuts or not history.bodies:
            return None
        watermarks = self._watermarks(overrides, ask, history, plan.prompt)
        if history.tokens > watermarks.ceiling:
            return Due("ceiling", watermarks.low) if self._can_fit(ask, history, plan.prompt) else None
        freed = history.tokens - watermarks.low
        prices, further = self.cache_costs.prices(), self.cache_costs.further_turns
        is_cold = freed > 0 and self._is_cold(ask, history, plan.prompt)
        is_worth = is_cold and is_worth_it(freed, watermarks.low, prices, further, is_warm=False)
        return Due("cold", watermarks.low) if is_worth else None

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

    async def cut(self, history: History, due: Due) -> bool:
        """To the low mark, with word of how much is left out; or as another wished who came before. False: there is nowhere to
        cut. Raises StateUnavailable, SessionNotFound, SessionCorrupt."""
        cut = find_cut(history, due.low)
        if cut is None:
            return False
        is_ours = await self._histories.commit_view(history, cut_view(history, cut))
        self.cuts[due.why] += is_ours  # not in one statement with the wait: others count meanwhile
        return True

    def cut_aside(self, history: History, due: Due) -> History:
        """The same of a copy: the session stays as it is. The history itself, where there is nowhere to cut."""
        cut = find_cut(history, due.low)
        if cut is None:
            return history
        self.cuts[due.why] += 1
        aside = self._histories.aside(history)
        aside.use_view(cut_view(aside, cut), aside.epoch + 1)
        return aside

    def on_end(self, ask: Ask, history: History, plan: Plan, record: Record | None) -> ViewPlan | None:
        """A turn has ended: learn from it. None: the janitor has nothing to do here."""
        self.cache_costs.on_turn(history.log.tokens_of(history.log.last_turn), is_first=plan.prompt.earlier_bytes == 0)
        if record is not None and record.actual_cached_tokens is not None and plan.prompt.earlier_bytes:
            self.cache_costs.on_prefix(plan.prompt.earlier_tokens(record.prompt_tokens), record.actual_cached_tokens)
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
        notes = (
            self.rules.summary_tokens * self.rules.summary_price
            if STRATEGIES[overrides.strategy or "none"].summarizes
            else 0.0
        )
        return set_watermarks(
            overrides.low_tokens,
            overrides.high_tokens,
            ceiling,
            self.cache_costs.growth,
            self.cache_costs.prices(notes),
        )

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

    def _is_cold(self, ask: Ask, history: History, prompt: Prompt) -> bool:
        """Only whoever sent the turn before knows what it did to caches."""
        if history.sent is None or history.sent.turn != history.log.last_turn:
            return False
        if self._wall_clock() - history.items[-1].at < self.rules.idle_s:
            return False
        cached = self._lookups.cached(ask.incoming.model, prompt.fingerprint)
        return cached < COLD_SHARE * history.tokens
