"""A random worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.fleet.facts import Facts
from router.policies.base import Ranking

if TYPE_CHECKING:
    from random import Random


class Uniform:
    """A uniform permutation of the eligible workers; configured as ``random``.

    Formula: none. Inputs: ``eligible`` alone. Parameters: none. Complexity: O(eligible).
    Wrong wherever anything is known of load or caches. It never herds, which makes it the floor to measure others against.
    """

    name = "random"
    reasons = frozenset({"lot"})

    def __init__(self, random: Random) -> None:
        self._random = random

    def rank(self, facts: Facts) -> Ranking:
        order = list(facts.eligible)
        self._random.shuffle(order)
        return Ranking(order, "lot")
