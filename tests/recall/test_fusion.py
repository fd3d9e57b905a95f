from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.recall.fusion import fuse

RANKINGS = st.lists(st.lists(st.integers(1, 30), unique=True), min_size=1, max_size=4)


def test_what_both_rankings_have_comes_before_what_one_has_higher() -> None:
    assert fuse([[1, 3, 2], [4, 3, 5]], [1, 1], 10)[0] == 3


def test_a_ranking_of_more_weight_decides() -> None:
    assert fuse([[1], [2]], [1, 2], 10) == [2, 1]


def test_a_ranking_of_no_weight_says_nothing_of_the_order_of_others() -> None:
    assert fuse([[1, 2, 3], [3, 2, 1]], [1, 0], 10) == [1, 2, 3]


def test_of_equals_the_newer_comes_first() -> None:
    assert fuse([[1, 2], [2, 1], [7], [8]], [1, 1, 1, 1], 10) == [2, 1, 8, 7]


def test_only_a_numbers_best_place_counts() -> None:
    assert fuse([[1, 2, 2, 2]], [1], 10) == [1, 2]


def test_an_empty_ranking_changes_nothing() -> None:
    assert fuse([[5, 4], []], [1, 1], 10) == [5, 4]


@given(RANKINGS, st.integers(0, 40))
def test_each_number_comes_once_and_the_order_of_the_rankings_does_not_matter(
    rankings: list[list[int]], limit: int
) -> None:
    fused = fuse(rankings, [1.0] * len(rankings), limit)
    everything = {number for ranking in rankings for number in ranking}
    assert len(fused) == len(set(fused)) == min(limit, len(everything))
    assert set(fused) <= everything
    assert fuse(rankings[::-1], [1.0] * len(rankings), 10**6)[:limit] == fused


@given(st.lists(st.integers(1, 30), unique=True))
def test_one_ranking_alone_stays_as_it_is(ranking: list[int]) -> None:
    assert fuse([ranking], [1.0], len(ranking)) == ranking
