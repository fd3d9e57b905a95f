"""The anchor's ring order, for the policies that follow it or break ties by it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from router.core.fleet.facts import Facts


def walk_eligible(facts: Facts) -> Iterator[int]:
    """Eligible positions in ring order from the anchor, each once, lazily.

    A worker that joined after the ring was built is not on it, and so not in the walk.
    """
    return filter(frozenset(facts.eligible).__contains__, facts.ring.walk(facts.anchor))


def take_eligible(facts: Facts, count: int) -> list[int]:
    """The first ``count`` eligible positions in ring order, or all if there are fewer."""
    return list(islice(walk_eligible(facts), count))


def order_eligible(facts: Facts) -> list[int]:
    """All eligible positions: those on the ring in its order, then the others ascending."""
    order = list(walk_eligible(facts))
    if len(order) < len(facts.eligible):
        order += sorted(set(facts.eligible).difference(order))
    return order
