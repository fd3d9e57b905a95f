"""Bytes cut at any places: what a codec must not notice."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st


def cuts(most: int = 12) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 400), max_size=most)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Never an empty piece, as sockets never give one."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(ends)]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
