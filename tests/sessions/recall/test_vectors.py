from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.recall.vectors import nearest, pack
from tests.sessions.recall.contract import unit

VECTORS = st.lists(
    st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
    .filter(lambda v: sum(x * x for x in v) > 0.01)
    .map(unit),
    min_size=1,
    max_size=20,
)


def test_the_nearest_comes_first() -> None:
    block = pack([3, 5, 9], [unit([1, 0]), unit([1, 1]), unit([0, 1])])
    assert nearest([block], unit([1, 0.1]), 0, 100, 3) == [3, 5, 9]
    assert nearest([block], unit([0, 1]), 0, 100, 2) == [9, 5]


def test_of_equals_the_newest_comes_first() -> None:
    assert nearest([pack([1, 2], [[1, 0]] * 2), pack([7], [[1, 0]])], [1, 0], 0, 100, 3) == [7, 2, 1]


def test_only_places_within_the_bounds_are_found() -> None:
    block = pack(range(1, 9), [[1.0, 0.0]] * 8)
    assert nearest([block], [1, 0], 3, 6, 100) == [6, 5, 4, 3]
    assert nearest([block], [1, 0], 9, 6, 100) == []


def test_nothing_is_nearest_among_nothing() -> None:
    assert nearest([], [1, 0], 0, 100, 5) == []


def test_vectors_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="size"):
        nearest([pack([1], [[1, 0]])], [1, 0, 0], 0, 100, 5)


@given(VECTORS)
def test_each_of_the_found_is_as_near_as_it_should_be_but_for_a_rounding(vectors: list[list[float]]) -> None:
    query, *_ = vectors
    exact = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors]
    found = nearest([pack(range(len(vectors)), vectors)], query, 0, 100, 100)
    assert sorted(found) == list(range(len(vectors)))
    assert all(exact[one] >= exact[next_] - 0.02 for one, next_ in pairwise(found))
