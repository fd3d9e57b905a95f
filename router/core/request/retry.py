"""How many retries the whole router may make, so that a failing fleet is not also flooded."""

from __future__ import annotations

SAVED_RETRIES = 100
"""What quiet times may save up: enough for all whom one failing worker hits at once before it is ejected."""

REFILL_S = 10.0
"""Seconds in which ``minimum`` retries come back whatever the traffic, so that a quiet router can still retry."""


class RetryBudget:
    """A share of all requests, and ``minimum`` besides. A bound on retries under way alone would let a few requests, one after
    the other, try every worker.

    A death's retry is outside it: the dead worker does none of that work, so nothing is done twice.
    """

    def __init__(self, ratio: float, minimum: int) -> None:
        self._ratio = ratio
        self._minimum = minimum
        self._refilled_at = 0.0
        self.most = float(max(minimum, SAVED_RETRIES if ratio else 0))
        self.left = float(minimum)
        self.retrying = 0
        """Retries under way."""

    def on_request(self) -> None:
        """Each saves up its share of a retry."""
        self.left = min(self.most, self.left + self._ratio)

    def take(self, now: float) -> bool:
        """One more retry, if one is left; when its request ends, ``retrying -= 1``."""
        refill = self._minimum * min(now - self._refilled_at, REFILL_S) / REFILL_S
        self._refilled_at = now
        self.left = max(self.left, min(self.left + refill, self._minimum))
        if self.left < 1.0:
            return False
        self.left -= 1.0
        self.retrying += 1
        return True
