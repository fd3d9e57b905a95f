"""The retry budget of the whole router, so that retries do not flood a failing fleet."""

from __future__ import annotations

SAVED_RETRIES = 100
"""Most retries that quiet times save up: enough for all requests that one failing worker hits before it is ejected."""

REFILL_S = 10.0
"""Seconds in which ``minimum`` retries come back whatever the traffic, so that a quiet router can still retry."""


class RetryBudget:
    """Retries as a share of all requests, and ``minimum`` besides. A bound on retries under way alone would let a few requests
    try every worker, one after another.

    The retry after a death is outside the budget: the dead worker does none of the work, so nothing is done twice.
    """

    def __init__(self, ratio: float, minimum: int) -> None:
        self._ratio = ratio
        self._minimum = minimum
        self._refilled_at = 0.0
        self.most = float(max(minimum, SAVED_RETRIES if ratio else 0))
        self.left = float(minimum)
        self.retrying = 0
        """Retries under way."""

    def __repr__(self) -> str:
        return f"RetryBudget({self.left:.1f} of {self.most:.0f} left, {self.retrying} under way)"

    def on_request(self) -> None:
        """Each saves up its share of a retry."""
        self.left = min(self.most, self.left + self._ratio)

    def take(self, now: float) -> bool:
        """False if no retry is left. Do ``retrying -= 1`` when the request ends."""
        refill = self._minimum * min(now - self._refilled_at, REFILL_S) / REFILL_S
        self._refilled_at = now
        self.left = max(self.left, min(self.left + refill, self._minimum))
        if self.left < 1.0:
            return False
        self.left -= 1.0
        self.retrying += 1
        return True
