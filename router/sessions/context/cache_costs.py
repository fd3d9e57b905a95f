"""What carrying a history costs on this fleet, as turns teach it. Pure; the newest fifty or so turns count."""

from __future__ import annotations

from router.core.fleet.rates import DecayedRatio
from router.sessions.context.watermarks import TokenPrices

BELIEVED_GROWTH = 300.0
"""Tokens a turn, before there was one."""

BELIEVED_HITS = 0.95
"""Share of what earlier turns had that the workers' caches have."""

MAX_GROWTH = 8.0
"""Times what is believed, the most that one turn teaches: a single one that is huge is no rule."""

BELIEVED_TURNS = 10.0
"""Of a session."""


class CacheCosts:
    """``carry_price``: of a token that is sent and found in the cache, over that of one that is computed."""

    def __init__(self, carry_price: float) -> None:
        self._carry_price = carry_price
        self._growth = DecayedRatio(BELIEVED_GROWTH, 1.0)
        self._hits = DecayedRatio(BELIEVED_HITS * 10_000.0, 10_000.0)
        self._turns = DecayedRatio(BELIEVED_TURNS, 1.0)

    def on_turn(self, added_tokens: float, *, is_first: bool) -> None:
        self._growth.add(min(added_tokens, MAX_GROWTH * self.growth), 1.0)
        self._turns.add(1.0, 1.0 if is_first else 0.0)

    def on_prefix(self, earlier_tokens: float, cached_tokens: float) -> None:
        """Of a prompt, what earlier turns had, and how much of it was cached."""
        self._hits.add(min(cached_tokens, earlier_tokens), earlier_tokens)

    @property
    def growth(self) -> float:
        """Tokens that a turn adds."""
        return max(self._growth.value, 1.0)

    @property
    def further_turns(self) -> float:
        """Of a session that has had any number: sessions seem to end as if by lot, so the mean is what is to come, too."""
        return max(self._turns.value, 1.0)

    @property
    def hits(self) -> float:
        """Of what earlier turns had, the share that is found in caches."""
        return min(max(self._hits.value, 0.0), 1.0)

    def prices(self, notes: float = 0.0) -> TokenPrices:
        """In tokens computed. A token that is carried is computed again where it is missed."""
        return TokenPrices(1.0, self.hits * self._carry_price + (1.0 - self.hits), notes)
