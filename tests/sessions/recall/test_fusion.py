from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.sessions.recall.fusion import fuse

WEIGHED = st.tuples(st.integers(1, 30), st.floats(0.01, 3))
RANKINGS = st.lists(st.lists(WEIGHED, unique_by=lambda weighed: weighed[0]), min_size=1, max_size=2)


def alike(*numbers: int) -> list[tuple[int, float]]:
    return [(number, 1.0) for number in numbers]


def test_what_both_rankings_have_comes_before_what_one_has_higher() -> None:
    assert fuse([alike(1, 3, 2), alike(4, 3, 5)], 10)[0] == 3


def test_a_number_of_more_weight_comes_first() -> None:
    assert fuse([[(1, 1)], [(2, 2)]], 10) == [2, 1]


def test_numbers_of_no_weight_change_nothing_in_the_order_of_others() -> None:
    assert fuse([alike(1, 2, 3), [(3, 0), (2, 0), (1, 0)]], 10) == [1, 2, 3]


def test_of_equals_the_newer_comes_first() -> None:
    assert fuse([alike(1, 2), alike(2, 1), alike(7), alike(8)], 10) == [2, 1, 8, 7]


def test_only_a_numbers_best_place_counts() -> None:
    assert fuse([[(1, 1), (2, 0.9), (2, 9), (2, 9)]], 10) == [1, 2]


def test_an_empty_ranking_changes_nothing() -> None:
    assert fuse([alike(5, 4), []], 10) == [5, 4]


@given(RANKINGS, st.integers(0, 40))
def test_each_number_comes_once_and_the_order_of_the_rankings_does_not_matter(
    rankings: list[list[tuple[int, float]]], limit: int
) -> None:
    fused = fuse(rankings, limit)
    everything = {number for ranking in rankings for number, _ in ranking}
    assert len(fused) == len(set(fused)) == min(limit, len(everything))
    assert set(fused) <= everything
    assert fuse(rankings[::-1], 10**6)[:limit] == fused


@given(st.lists(st.integers(1, 30), unique=True))
def test_one_ranking_alone_stays_as_it_is(ranking: list[int]) -> None:
    assert fuse([alike(*ranking)], len(ranking)) == ranking
