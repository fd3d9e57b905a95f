"""How many retries may be under way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.retry import RetryBudget


def test_a_few_retries_are_allowed_however_quiet_it_is() -> None:
    budget = RetryBudget(0.2, 3)
    budget.live = 1
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    assert budget.retrying == 3


def test_retries_grow_with_the_live_requests() -> None:
    budget = RetryBudget(0.2, 3)
    budget.live = 100
    assert budget.limit == 20
    assert sum(budget.take() for _ in range(100)) == 20


def test_a_retry_that_ended_makes_room_for_another() -> None:
    budget = RetryBudget(0.0, 1)
    assert budget.take()
    assert not budget.take()
    budget.retrying -= 1
    assert budget.take()


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0.0, 0)
    budget.live = 1000
    assert not budget.take()


@given(st.floats(0, 1), st.integers(0, 50), st.lists(st.integers(0, 300), max_size=30))
def test_no_more_are_under_way_than_the_larger_of_share_and_minimum(
    ratio: float, minimum: int, loads: list[int]
) -> None:
    budget = RetryBudget(ratio, minimum)
    for live in loads:
        budget.live = live
        before = budget.retrying
        assert budget.take() is (before < max(minimum, int(ratio * live)))
