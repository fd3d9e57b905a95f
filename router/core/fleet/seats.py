"""The room of each worker, and how long it is worth waiting for a worker without room. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from router.core.fleet.facts import Facts
from router.core.fleet.figures import Figures


class Seats:
    """A worker has room while it has fewer requests than ``max_requests``, and fewer tokens than ``max_prefill_tokens`` wait
    there for their prefill. 0 stands for any number.

    Requests are our leases, those of others, and seats kept for requests that wait no longer but hold no lease yet. A kept seat
    is a prefill of unknown length, so while there is one, no more is admitted by tokens. Retries ignore both limits.
    """

    __slots__ = ("_kept", "_max_prefill_tokens", "_max_requests", "_view")

    def __init__(self, view: Figures, max_requests: int, max_prefill_tokens: int = 0) -> None:
        self._view = view
        self._max_requests = max_requests or sys.maxsize
        self._max_prefill_tokens = max_prefill_tokens
        self._kept: dict[int, int] = {}

    def is_free(self, position: int) -> bool:
        view = self._view
        kept = self._kept.get(position, 0) if self._kept else 0
        if view.in_flight[position] + view.foreign_in_flight[position] + kept >= self._max_requests:
            return False
        if not self._max_prefill_tokens:
            return True
        queued = view.queued_prefill_tokens[position] + view.foreign_prefill_tokens[position]
        return not kept and queued < self._max_prefill_tokens

    def first_free(self, order: Sequence[int]) -> int | None:
        for position in order:
            if self.is_free(position):
                return position
        return None

    def is_idle(self, position: int) -> bool:
        """True if no request of this router is there, or about to be."""
        return not self._view.in_flight[position] and position not in self._kept

    def keep(self, position: int) -> None:
        """Release it once the request holds a lease on any worker, or is gone."""
        self._kept[position] = self._kept.get(position, 0) + 1

    def release(self, position: int) -> None:
        kept = self._kept.pop(position) - 1
        if kept:
            self._kept[position] = kept


def warm_wait_s(facts: Facts, first: int, other: int, most_s: float) -> float:
    """Seconds to wait for ``first`` while ``other`` has room, 0 … ``most_s``: no longer than the prefill time that the cache of
    ``first`` saves."""
    matches, seconds_per_token = facts.matches, facts.fleet.seconds_per_token
    missing_first = facts.prompt_tokens - min(matches.tokens(first), facts.prompt_tokens)
    missing_other = facts.prompt_tokens - min(matches.tokens(other), facts.prompt_tokens)
    saved_s = missing_other * seconds_per_token[other] - missing_first * seconds_per_token[first]
    return max(0.0, min(most_s, saved_s))
