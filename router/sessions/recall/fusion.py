"""Fuses several rankings into one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 10.0
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): the greater it is, the less the first
places weigh above the next. The paper has 60, for long rankings; ours are short."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the two rankings; one of weight 0 is not made. The defaults did best in bench/recall.py."""

    words: float = 3.0
    """For an item with all words of the query. An item with a share of them gets the square of the share: a query in other
    words shares a few words with many items that mean something else."""
    meaning: float = 1.0


DEFAULT_WEIGHTS = Weights()


def fuse(rankings: Sequence[Sequence[tuple[int, float]]], limit: int) -> list[int]:
    """At most ``limit`` numbers, best first. ``rankings``: of ``(number, weight)``, each best first; a ranking that is unsure
    of a number gives it less weight. A number gets ``weight / (SMOOTHING + place)`` from each ranking, for its best place
    there, from 1. Among equals the greater number, which is newer, comes first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        first = dict(reversed(ranking))
        for place, number in enumerate(dict.fromkeys(number for number, _ in ranking), 1):
            scores[number] = scores.get(number, 0.0) + first[number] / (SMOOTHING + place)
    return sorted(scores, key=lambda number: (-scores[number], -number))[:limit]
