"""How several rankings of the same things become one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

SMOOTHING = 60.0
"""How little a place at the very top weighs more than the next ones: the constant of reciprocal rank fusion (Cormack, Clarke
and Buettcher, SIGIR 2009)."""


def fuse(rankings: Sequence[Sequence[int]], weights: Sequence[float], limit: int) -> list[int]:
    """At most ``limit`` numbers, best first. Each ranking gives a number ``weight / (SMOOTHING + place)``, places from 1;
    only a number's best place in a ranking counts. Of equals the greater number, which is the newer one, comes first."""
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for place, number in enumerate(dict.fromkeys(ranking), 1):
            scores[number] = scores.get(number, 0.0) + weight / (SMOOTHING + place)
    return sorted(scores, key=lambda number: (-scores[number], -number))[:limit]
