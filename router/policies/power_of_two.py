"""The less loaded of two random workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.fleet.facts import Facts
from router.policies.base import Ranking
from router.policies.load_order import measure_load

if TYPE_CHECKING:
    from random import Random


class PowerOfTwo:
    """A random permutation whose first two are in order of load.

    Formula: of two drawn workers the one of less ``(in_flight + foreign_in_flight + 1) · slowdown`` comes first.
    Inputs: those three and ``eligible``. Parameters: none. Complexity: O(eligible) for the permutation, O(1) comparisons.
    Mitzenmacher, "The power of two choices in randomized load balancing", 2001: the longest queue shrinks exponentially
    against one choice, and stale load herds far less than with the least of all.
    Wrong when prompts share prefixes: it ignores caches.
    """

    name = "power_of_two"
    reasons = frozenset({"drawn"})

    def __init__(self, random: Random) -> None:
        self._random = random

    def rank(self, facts: Facts) -> Ranking:
        order = list(facts.eligible)
        self._random.shuffle(order)
        order[:2] = sorted(order[:2], key=measure_load(facts.fleet))
        return Ranking(order, "drawn")
