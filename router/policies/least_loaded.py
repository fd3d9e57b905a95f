"""The worker with the fewest requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.core.fleet.facts import Facts
from router.policies.base import Ranking
from router.policies.load_order import measure_load

if TYPE_CHECKING:
    from random import Random


class LeastLoaded:
    """Ascending by requests in flight. Equal ones are in random order, so that an idle fleet uses all its workers.

    Formula: ``(in_flight + foreign_in_flight + 1) · slowdown``. Inputs: those three and ``eligible``.
    Parameters: none. Complexity: O(eligible · log eligible).
    Wrong when prompts share prefixes (it ignores caches), when requests differ much in length (a queue of one may be a
    queue of 100,000 tokens), and, with several replicas, between polls: all of them see the same worker idle.
    """

    name = "least_loaded"
    reasons = frozenset({"load"})

    def __init__(self, random: Random) -> None:
        self._random = random

    def rank(self, facts: Facts) -> Ranking:
        order = list(facts.eligible)
        self._random.shuffle(order)
        order.sort(key=measure_load(facts.fleet))
        return Ranking(order, "load")
