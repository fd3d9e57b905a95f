"""Passages by the words that they share with a query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

K1, B = 1.2, 0.75
"""Okapi BM25's usual parameters (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009): how much longer
passages count less."""


def rank(postings: Sequence[Sequence[tuple[int, int]]], passages: int) -> list[tuple[float, int]]:
    """``postings``: for each word of the query the passages that have it, as ``(passage, size)``; ``passages``: how many
    there are in all. ``(score, passage)``, best first; of equals the newest, whose number is greatest.

    The formula, with a word counted once in a passage however often it stands there: the sum over the words of
    ``log(1 + (n - df + 0.5) / (df + 0.5)) * (K1 + 1) / (1 + K1 * (1 - B + B * size / mean_size))``, where df of the n passages
    have the word. So a word that is everywhere
    weighs next to nothing, and a rare one decides. The mean is that of the passages given.
    """
    sizes = {passage: size for found in postings for passage, size in found}
    mean_size = max(sum(sizes.values()) / max(len(sizes), 1), 1)
    scores: dict[int, float] = {}
    for found in postings:
        weight = log(1 + (max(passages - len(found), 0) + 0.5) / (len(found) + 0.5)) * (K1 + 1)
        for passage, size in found:
            gain = weight / (1 + K1 * (1 - B + B * size / mean_size))
            scores[passage] = scores.get(passage, 0.0) + gain
    return sorted(((score, passage) for passage, score in scores.items()), reverse=True)
