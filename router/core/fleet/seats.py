"""How much room each worker has, and how long it is worth waiting for one that has none. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from router.core.fleet.facts import Facts
from router.core.fleet.figures import Figures


class Seats:
    """A worker has room while it has fewer requests than ``max_requests``: our leases, others' requests, and seats that are
    kept for requests which wait no longer but hold no lease yet. And while fewer tokens than ``max_prefill_tokens`` wait
    there for their prefill; a kept seat is a prefill of unknown length, and so keeps others away. Leases may exceed both:
    retries ask nobody. 0 stands for any number."""

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
        """Of this router's requests none is there, nor about to be."""
        return not self._view.in_flight[position] and position not in self._kept

    def keep(self, position: int) -> None:
        """To be released once the request holds a lease, wherever it went, or is gone."""
        self._kept[position] = self._kept.get(position, 0) + 1

    def release(self, position: int) -> None:
        kept = self._kept.pop(position) - 1
        if kept:
            self._kept[position] = kept


def warm_wait_s(facts: Facts, first: int, other: int, most_s: float) -> float:
    """How long to wait for ``first`` while ``other`` has room: no longer than the prefill that its cache saves takes there.
    Seconds, 0 … ``most_s``."""
    matches, seconds_per_token = facts.matches, facts.fleet.seconds_per_token
    missing_first = facts.prompt_tokens - min(matches.tokens(first), facts.prompt_tokens)
    missing_other = facts.prompt_tokens - min(matches.tokens(other), facts.prompt_tokens)
    saved_s = missing_other * seconds_per_token[other] - missing_first * seconds_per_token[first]
    return max(0.0, min(most_s, saved_s))
