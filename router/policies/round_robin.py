"""Workers take turns."""

from __future__ import annotations

from bisect import bisect_left

from router.core.fleet.facts import Facts
from router.policies.base import Ranking


class RoundRobin:
    """The next eligible position after a counter, then those after it, cyclically.

    Formula: ``start = calls mod n``; order ``start, start + 1, …`` over the fleet's positions, only eligible ones.
    Inputs: ``eligible`` and the fleet's size. Parameters: none. Complexity: O(eligible).
    Wrong when requests differ much in cost, when workers differ in speed, and whenever prompts share prefixes: it spreads
    one conversation over all workers. The counter is this replica's own, so several replicas do not take turns together.
    """

    name = "round_robin"
    reasons = frozenset({"turn"})

    def __init__(self) -> None:
        self._next = 0

    def rank(self, facts: Facts) -> Ranking:
        eligible = facts.eligible
        split = bisect_left(eligible, self._next) % len(eligible)
        self._next = (eligible[split] + 1) % len(facts.fleet.names)
        return Ranking([*eligible[split:], *eligible[:split]], "turn")
