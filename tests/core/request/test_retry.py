"""How many retries may be made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.request.retry import REFILL_S, SAVED_RETRIES, RetryBudget


def test_a_few_retries_are_allowed_however_quiet_it_is() -> None:
    budget = RetryBudget(0.2, 3)
    assert [budget.take(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.retrying == 3


def test_they_come_back_with_time_and_no_more_of_them() -> None:
    budget = RetryBudget(0.0, 3)
    assert sum(budget.take(0.0) for _ in range(9)) == 3
    assert sum(budget.take(REFILL_S / 3 + 0.001) for _ in range(9)) == 1
    assert sum(budget.take(10 * REFILL_S) for _ in range(9)) == 3


def test_requests_save_up_their_share_of_retries() -> None:
    budget = RetryBudget(0.25, 3)
    for _ in range(100):
        budget.on_request()
    assert sum(budget.take(0.0) for _ in range(100)) == 28


def test_what_is_saved_is_bounded() -> None:
    budget = RetryBudget(0.2, 3)
    for _ in range(100_000):
        budget.on_request()
    assert sum(budget.take(0.0) for _ in range(1000)) == SAVED_RETRIES == budget.most


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0.0, 0)
    for _ in range(1000):
        budget.on_request()
    assert not budget.take(1000.0)


@given(st.floats(0, 1), st.integers(0, 50), st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1)), max_size=30))
def test_retries_are_never_more_than_the_share_of_all_requests_and_the_minimum_for_each_refill(
    ratio: float, minimum: int, steps: list[tuple[int, float]]
) -> None:
    budget = RetryBudget(ratio, minimum)
    now, requests = 0.0, 0
    for count, pause in steps:
        now += pause
        for _ in range(count):
            budget.on_request()
        requests += count
        while budget.take(now):
            pass
        assert budget.retrying <= ratio * requests + minimum * (1 + now / REFILL_S) + 1e-6
