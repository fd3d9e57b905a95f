"""Marks: what the rule says is least, is least; and what is asked for is kept within what fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.context.watermarks import (
    TokenPrices,
    history_ceiling,
    is_worth_it,
    set_watermarks,
    square_root_watermark,
)


def cost_of_a_turn(high: float, low: int, growth: float, prices: TokenPrices) -> float:
    """As the module has it."""
    at_a_cut = (prices.write - prices.carry) * low + prices.notes
    return prices.carry * (high + low) / 2 + at_a_cut * growth / (high - low)


@given(st.integers(500, 20_000), st.floats(50, 2_000), st.floats(0.01, 0.5), st.floats(0, 5_000))
def test_no_other_mark_costs_less_than_the_square_root_rules(
    low: int, growth: float, carry: float, notes: float
) -> None:
    prices = TokenPrices(1.0, carry, notes)
    best = square_root_watermark(low, growth, low, prices)
    least = cost_of_a_turn(best, low, growth, prices)
    for factor in (0.8, 0.9, 1.1, 1.25):
        other = low + (best - low) * factor
        assert least <= cost_of_a_turn(other, low, growth, prices) * 1.0001


def test_the_rule_gives_the_published_figures() -> None:
    assert square_root_watermark(2_000, 337, 2_000, TokenPrices(1.0, 0.1, 0.0)) == pytest.approx(5_483, abs=5)


@given(
    st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 200_000), st.floats(1, 5_000), st.floats(0.001, 1.0)
)
def test_marks_are_in_order_and_fit(low: int, high: int, ceiling: int, growth: float, carry: float) -> None:
    watermarks = set_watermarks(low, high, ceiling, growth, TokenPrices(1.0, carry))
    assert 0 <= watermarks.low <= watermarks.high <= watermarks.ceiling == ceiling


def test_marks_that_fit_are_as_wished() -> None:
    assert set_watermarks(3_000, 8_000, 30_000, 340.0, TokenPrices(1.0, 0.1))[:2] == (3_000, 8_000)


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


def test_a_cold_prefix_is_cut_where_a_warm_one_is_carried_on() -> None:
    prices = TokenPrices(1.0, 0.1)
    assert not is_worth_it(500, 3_000, prices, 5.0, is_warm=True)
    assert is_worth_it(500, 3_000, prices, 5.0, is_warm=False)
    assert is_worth_it(10_000, 3_000, prices, 5.0, is_warm=True)
    assert not is_worth_it(0, 0, prices, 1e9, is_warm=False)


def test_notes_that_cost_more_than_they_spare_are_not_written() -> None:
    assert not is_worth_it(500, 0, TokenPrices(1.0, 0.1, notes=10_000.0), 5.0, is_warm=False)


def test_a_high_mark_that_is_wished_alone_is_kept() -> None:
    assert set_watermarks(0, 8_000, 120_000, 340.0, TokenPrices(1.0, 0.1)) == (4_000, 8_000, 120_000)
    assert set_watermarks(0, 3_000, 1 << 40, 340.0, TokenPrices(1.0, 0.1))[:2] == (1_500, 3_000)
