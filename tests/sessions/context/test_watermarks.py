"""Watermarks that are set are kept within what fits; the others are shares of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.context.watermarks import history_ceiling, set_watermarks


@given(st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 200_000))
def test_marks_are_in_order_and_fit(low: int, high: int, ceiling: int) -> None:
    watermarks = set_watermarks(low, high, ceiling)
    assert 0 <= watermarks.low <= watermarks.high <= watermarks.ceiling == ceiling


def test_marks_that_fit_are_as_wished() -> None:
    assert set_watermarks(3_000, 8_000, 30_000)[:2] == (3_000, 8_000)


@pytest.mark.parametrize(
    ("window", "budget", "beside", "answer", "ceiling"),
    [
        (10_000, 0, 1_000, 700, 8_000),
        (10_000, 5_000, 1_000, 700, 4_000),
        (0, 5_000, 1_000, 700, 4_000),
        (1_000, 0, 900, 700, 0),
    ],
)
def test_the_ceiling_is_what_window_and_budget_leave(
    window: int, budget: int, beside: int, answer: int, ceiling: int
) -> None:
    assert history_ceiling(window, budget, beside, answer) == ceiling


def test_a_window_that_nobody_knows_bounds_nothing() -> None:
    assert history_ceiling(0, 0, 1_000, 500) > 10**9


def test_marks_that_are_not_set_are_shares_of_the_ceiling() -> None:
    assert set_watermarks(0, 0, 40_000) == (10_000, 30_000, 40_000)
    assert set_watermarks(5_000, 0, 40_000)[:2] == (5_000, 30_000)


def test_a_high_mark_that_is_wished_alone_is_kept() -> None:
    assert set_watermarks(0, 8_000, 120_000) == (4_000, 8_000, 120_000)
    assert set_watermarks(0, 3_000, 1 << 40)[:2] == (1_500, 3_000)
