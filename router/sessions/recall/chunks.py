"""What of an item's text is searched as one: pieces short enough that a search finds the place, and that a small model reads
whole. Pure.
"""

from __future__ import annotations

import re

MAX_PIECE_CHARS = 300
"""A vector of more says what most of it is about, and loses the one sentence that is asked for (bench/README.md)."""
OVERLAP_CHARS = 60
"""A piece begins up to this much before the end of the one before, so that a sentence on a border is whole in one of them."""
MAX_PIECES = 128
"""Of one item. What is said behind them, beyond some 30,000 characters, is not found."""

_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n"), re.compile(r"\s+"))
"""Where a text may be cut, in the order of preference: paragraphs, sentences and lines, words."""


def pieces(text: str) -> list[str]:
    """In order, none of them empty and none longer than MAX_PIECE_CHARS; together all of the text, but for white space, as
    far as MAX_PIECES reach. Linear in the text."""
    found: list[str] = []
    start = 0
    while start < len(text) and len(found) < MAX_PIECES:
        end = _end(text, start)
        if piece := text[start:end].strip():
            found.append(piece)
        start = _next_start(text, start, end)
    return found


def _end(text: str, start: int) -> int:
    """After ``start``; in the last half of what a piece may hold, where there is a place to cut."""
    furthest = start + MAX_PIECE_CHARS
    if len(text) <= furthest:
        return len(text)
    for break_ in _BREAKS:
        cuts = [match.end() for match in break_.finditer(text, start + MAX_PIECE_CHARS // 2, furthest)]
        if cuts:
            return cuts[-1]
    return furthest


def _next_start(text: str, start: int, end: int) -> int:
    """After ``start``, and ``end`` at most."""
    if end >= len(text):
        return end
    earliest = max(end - OVERLAP_CHARS, start + 1)
    for break_ in _BREAKS[1:]:
        if match := break_.search(text, earliest, end):
            return match.end()
    return end
