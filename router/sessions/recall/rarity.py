"""Pieces of text by the words that they share with a query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log


def rank(postings: Sequence[Sequence[int]], pieces: int) -> list[tuple[int, float]]:
    """``postings``: for each word of the query the pieces that have it; ``pieces``: how many there are in all. ``(piece,
    share)``, best first, where ``share``, of 0 to 1, says how much of the query is in the piece. Of equals the newest, whose
    number is greatest, comes first.

    A word that df of the n pieces have weighs ``log(1 + (n - df + 0.5) / (df + 0.5))``, as in BM25 (Robertson and Zaragoza,
    "The Probabilistic Relevance Framework", 2009): one that is everywhere next to nothing, and a rare one decides. BM25's other
    half, that a word counts less in a longer text, and more where it stands several times, is left out: all pieces are
    short, and bench/recall.py found no more with it.
    """
    weights: dict[int, float] = {}
    total = 0.0
    for found in postings:
        rarity = log(1 + (max(pieces - len(found), 0) + 0.5) / (len(found) + 0.5))
        total += rarity
        for piece in found:
            weights[piece] = weights.get(piece, 0.0) + rarity
    ranked = sorted(weights, key=lambda piece: (-weights[piece], -piece))
    return [(piece, weights[piece] / total) for piece in ranked]
