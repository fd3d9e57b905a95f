"""How many retries the whole router may have under way, so that a failing fleet is not also flooded."""

from __future__ import annotations


class RetryBudget:
    """A share of the live requests, and never less than ``minimum``.

    A death's retry is outside it: the dead worker does none of that work, so nothing is done twice.
    """

    def __init__(self, ratio: float, minimum: int) -> None:
        self._ratio = ratio
        self._minimum = minimum
        self.live = 0
        self.retrying = 0

    @property
    def limit(self) -> int:
        return max(self._minimum, int(self._ratio * self.live))

    def take(self) -> bool:
        """One more retry, if there is room; give it back by ``retrying -= 1`` when its request ends."""
        if self.retrying >= self.limit:
            return False
        self.retrying += 1
        return True
