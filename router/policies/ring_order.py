"""The anchor's ring order, for the policies that follow it or break ties by it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from router.core.fleet.facts import Facts


def walk_eligible(facts: Facts) -> Iterator[int]:
    """Eligible positions from the anchor on, each once, lazily.

    A worker that joined after the ring was built is not on it, and so not in the walk.
    """
    return filter(frozenset(facts.eligible).__contains__, facts.ring.walk(facts.anchor))


def take_eligible(facts: Facts, count: int) -> list[int]:
    """The first ``count`` of them, fewer where the ring has fewer."""
    return list(islice(walk_eligible(facts), count))


def order_eligible(facts: Facts) -> list[int]:
    """All of them in ring order; after them, ascending, the eligible workers that are not on the ring."""
    order = list(walk_eligible(facts))
    if len(order) < len(facts.eligible):
        order += sorted(set(facts.eligible).difference(order))
    return order
