"""Ranks pieces of text by the words that they share with a query. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import log


def rank(postings: Sequence[Sequence[int]], pieces: int) -> list[tuple[int, float]]:
    """``postings``: for each word of the query, the pieces that have it; ``pieces``: the number of all pieces. Returns
    ``(piece, share)``, best first. ``share``, from 0 to 1, is how much of the query the piece has. Among equals the piece of
    the greatest number, the newest, comes first.

    A word that df of n pieces have weighs ``log(1 + (n - df + 0.5) / (df + 0.5))``, as in BM25 (Robertson and Zaragoza, "The
    Probabilistic Relevance Framework", 2009): a common word weighs almost nothing, and a rare one decides. The other half of
    BM25 is left out, by which a word counts less in a longer text and more where it is repeated: all pieces are short, and
    bench/recall.py found no more with it.
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
