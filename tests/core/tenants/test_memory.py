"""A budget for what is held: bounded in all and by tenant, and nothing of it is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request.request import NO_TENANT, Tenant
from router.core.tenants.memory import BODY, KINDS, REPLY, MemoryBudget, MemoryFull

A, B = Tenant("a"), Tenant("b")


def test_one_tenant_leaves_half_of_the_budget_to_others() -> None:
    budget = MemoryBudget(100)
    budget.hold(A).grow(BODY, 50)
    with pytest.raises(MemoryFull, match="your other requests"):
        budget.hold(A).grow(BODY, 1)
    budget.hold(B).grow(BODY, 25)
    assert budget.refusals[BODY] == 1


@pytest.mark.parametrize(("owner", "most"), [(A, 50), (NO_TENANT, 100)])
def test_a_request_that_can_never_fit_is_not_told_to_try_again(owner: Tenant, most: int) -> None:
    budget = MemoryBudget(100)
    holding = budget.hold(owner)
    holding.grow(BODY, 10)
    holding.grow(REPLY, most - 10)
    with pytest.raises(MemoryFull, match="than one client may ever hold") as refused:
        holding.grow(REPLY, 1)
    assert (refused.value.retry_after_s, refused.value.retryable) == (None, False)
    assert budget.bytes == most


def test_clients_without_a_tenant_share_the_whole_budget() -> None:
    budget = MemoryBudget(100)
    budget.hold(NO_TENANT).grow(BODY, 100)
    with pytest.raises(MemoryFull, match="as much for its clients"):
        budget.hold(NO_TENANT).grow(REPLY, 1)


def test_what_was_refused_was_not_taken() -> None:
    budget = MemoryBudget(100)
    holding = budget.hold(A)
    holding.grow(REPLY, 40)
    with pytest.raises(MemoryFull):
        holding.resize(REPLY, 60)
    assert (holding[REPLY], budget.bytes, budget.held_by(A)) == (40, 40, 40)


Step = tuple[int, str, int]
STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS), st.integers(0, 70)), max_size=40)


@given(STEPS)
def test_the_budget_is_the_sum_of_its_holdings_and_never_over_its_bound(steps: list[Step]) -> None:
    budget = MemoryBudget(100)
    holdings = [budget.hold(tenant) for tenant in (A, A, B, NO_TENANT)]
    for at, kind, count in steps:
        try:
            holdings[at].resize(kind, count)
        except MemoryFull:
            assert holdings[at][kind] < count
        assert budget.bytes == sum(holding[kind] for holding in holdings for kind in KINDS) <= 100
        assert all(count >= 0 for count in budget.by_kind.values())
    for holding in holdings:
        holding.release()
    assert (budget.bytes, budget.held_by(A), set(budget.by_kind.values())) == (0, 0, {0})
