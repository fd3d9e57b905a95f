"""Consistent hashing on the anchor, with or without bounded loads."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from router.core.fleet.facts import Facts
from router.policies.base import Ranking
from router.policies.ring_order import order_eligible

MIN_CAP = 4.0
"""Least bound in requests, so that a quiet fleet does not move its keys."""


class PrefixRingParameters(Struct, frozen=True):
    ring_bound: Annotated[
        float,
        Meta(ge=0, le=100, description="prefix_ring: most load over the mean, 1.25 for a quarter more; 0: unbounded."),
    ] = 1.25


class PrefixRing:
    """The anchor's ring order; workers over their bound come last.

    Formula: ``cap = max(4, c · (total + 1) / n)`` over the ``n`` eligible workers, where ``total`` counts requests in flight
    from all replicas (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2018). Workers with
    ``in_flight + foreign_in_flight < cap`` in ring order, then the others by their load.
    Inputs: ``anchor``, ``ring``, ``in_flight``, ``foreign_in_flight``, ``eligible``.
    Parameters: ``ring_bound`` c, default 1.25; 0 for plain consistent hashing, without a bound.
    Complexity: O(n · log n) ring steps, for the whole order.
    Wrong when requests differ much in length (a bound in requests says little about tokens), when workers differ in speed,
    and, unbounded, when one anchor is hot. Needs no state: replicas agree, and a restart costs nothing.
    """

    name = "prefix_ring"
    reasons = frozenset({"ring", "over_bound"})

    def __init__(self, parameters: PrefixRingParameters) -> None:
        self._bound = parameters.ring_bound

    def rank(self, facts: Facts) -> Ranking:
        order = order_eligible(facts)
        if not self._bound:
            return Ranking(order, "ring")
        own, foreign = facts.fleet.in_flight, facts.fleet.foreign_in_flight
        loads = {position: own[position] + foreign[position] for position in order}
        cap = max(MIN_CAP, self._bound * (sum(loads.values()) + 1) / len(order))
        first = order[0]
        # A stable sort keeps ring order among all that are within the bound.
        order.sort(key=lambda position: loads[position] if loads[position] >= cap else 0)
        return Ranking(order, "ring" if order[0] == first else "over_bound")
