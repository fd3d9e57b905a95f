"""Bounds what summaries cost each tenant in a day. Counts this replica's alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules

DAY_S = 86_400.0


class SummaryBudget:
    """``default``: tokens a day for a tenant without a bound of its own; 0: any number."""

    def __init__(self, default: int, wall_clock: Callable[[], float]) -> None:
        self._default = default
        self._wall_clock = wall_clock
        self._day = 0
        self._spent: Counter[Tenant] = Counter()

    def left(self, rules: TenantRules) -> int | None:
        """Tokens; None: any number."""
        day = int(self._wall_clock() // DAY_S)
        if day != self._day:
            self._day = day
            self._spent.clear()
        bound = rules.summary_tokens_per_day or self._default
        return bound - self._spent[rules.tenant] if bound else None

    def spend(self, rules: TenantRules, tokens: int) -> None:
        self._spent[rules.tenant] += tokens
