"""Passages by the words that they share with a query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

K1, B = 1.2, 0.75
"""Okapi BM25's usual parameters (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009): how much less longer
passages count."""


def rank(postings: Sequence[Sequence[tuple[int, int]]], passages: int) -> list[tuple[int, float]]:
    """``postings``: for each word of the query the passages that have it, as ``(passage, size)``; ``passages``: how many there
    are in all. ``(passage, share)``, best first, where ``share``, of 0 to 1, says how much of the query is in the passage: of
    its words, each weighed by its rarity. Of equals the newest, whose number is greatest, comes first.

    BM25 with each word counted once in a passage, however often it stands there: the order is that of
    ``share / (1 + K1 * (1 - B + B * size / mean))``, and a word that df of the n passages have weighs
    ``log(1 + (n - df + 0.5) / (df + 0.5))``. So one that is everywhere weighs next to nothing, and a rare one decides. The mean
    is that of the sizes given.
    """
    sizes = {passage: size for found in postings for passage, size in found}
    weights = dict.fromkeys(sizes, 0.0)
    total = 0.0
    for found in postings:
        rarity = log(1 + (max(passages - len(found), 0) + 0.5) / (len(found) + 0.5))
        total += rarity
        for passage, _ in found:
            weights[passage] += rarity
    mean = max(sum(sizes.values()) / max(len(sizes), 1), 1)
    scored = [(weight / (1 + K1 * (1 - B + B * sizes[passage] / mean)), passage) for passage, weight in weights.items()]
    return [(passage, weights[passage] / total) for _, passage in sorted(scored, reverse=True)]
