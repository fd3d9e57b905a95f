"""Cuts the text of an item into pieces: short enough that a search finds the right one and a small model reads it whole. Pure.

The place of a piece in its session is the item's number, and in the last ``PIECE_BITS`` bits its position in the item. So a
range of places is a session, whole or up to an item.
"""

from __future__ import annotations

import re

MAX_PIECE_CHARS = 300
"""The vector of a longer text tells its main subject, and loses the one sentence that is asked for (bench/README.md)."""
OVERLAP_CHARS = 60
"""A piece begins up to this much before the end of the one before, so that a sentence on a border is whole in one of them."""
PIECE_BITS = 7
MAX_PIECES = 1 << PIECE_BITS
"""Pieces of one item. Text beyond them, after some 30,000 characters, is not found."""
MAX_NUMBER = (1 << 31 - PIECE_BITS) - 1
"""Greatest number of an item: its places are below 2**31."""

_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n"), re.compile(r"\s+"))
"""Where a text may be cut, in the order of preference: paragraphs, sentences and lines, words."""


def number_of(place: int) -> int:
    return place >> PIECE_BITS


def last_place(number: int) -> int:
    """Where the pieces of the item ``number`` end."""
    return (max(min(number, MAX_NUMBER), 0) << PIECE_BITS) + MAX_PIECES - 1


def pieces(text: str) -> list[str]:
    """In order, none empty and none longer than MAX_PIECE_CHARS. Together they are all of the text but for white space, as far
    as MAX_PIECES reach. Linear in the text."""
    found: list[str] = []
    start = 0
    while start < len(text) and len(found) < MAX_PIECES:
        end = _end(text, start)
        if piece := text[start:end].strip():
            found.append(piece)
        start = _next_start(text, start, end)
    return found


def _end(text: str, start: int) -> int:
    """After ``start``; in the second half of what a piece may hold if there is a place to cut."""
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
