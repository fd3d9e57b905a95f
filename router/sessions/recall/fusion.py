"""How several rankings of the same things become one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 10.0
"""How little a place at the very top weighs more than the next ones: the constant of reciprocal rank fusion (Cormack, Clarke
and Buettcher, SIGIR 2009). They have 60, for long rankings; of ours few are read."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the two rankings in what is found; one of weight 0 is not made. They are those that did best in bench/recall.py."""

    words: float = 3.0
    """Of an item that has all words of the query. One with a share of them gets the share's square of it: who asks in
    other words shares a few with many items that mean something else."""
    meaning: float = 1.0


DEFAULT_WEIGHTS = Weights()


def fuse(rankings: Sequence[Sequence[tuple[int, float]]], limit: int) -> list[int]:
    """At most ``limit`` numbers, best first. ``rankings``: of ``(number, weight)``, each best first; a ranking that happens to
    be unsure of a number gives it less weight. Each gives a number ``weight / (SMOOTHING + place)``, places from 1, and only
    its best place in a ranking counts. Of equals the greater number, which is the newer one, comes first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        first = dict(reversed(ranking))
        for place, number in enumerate(dict.fromkeys(number for number, _ in ranking), 1):
            scores[number] = scores.get(number, 0.0) + first[number] / (SMOOTHING + place)
    return sorted(scores, key=lambda number: (-scores[number], -number))[:limit]
