"""Seats are never lost, and tenants take turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.fair_turns import FairTurns
from router.core.request import Tenant

TENANTS = [Tenant(name) for name in "abc"]


def test_a_tenant_with_one_waiter_comes_before_the_second_of_another() -> None:
    turns: FairTurns[str] = FairTurns(1)
    assert turns.take()
    for tenant, waiter in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
        turns.wait(Tenant(tenant), waiter)
    assert [turns.give_back() for _ in range(5)] == ["a1", "b1", "a2", "a3", None]
    assert turns.taken == 0


@given(
    st.integers(1, 3), st.lists(st.tuples(st.sampled_from(["come", "leave", "end"]), st.integers(0, 2)), max_size=60)
)
def test_seats_are_taken_by_those_at_work_and_nobody_waits_while_one_is_free(
    seats: int, steps: list[tuple[str, int]]
) -> None:
    turns: FairTurns[int] = FairTurns(seats)
    waiting: list[tuple[Tenant, int]] = []
    at_work = 0
    for number, (step, at) in enumerate(steps):
        if step == "come" and turns.take():
            at_work += 1
        elif step == "come":
            waiting.append((TENANTS[at], number))
            turns.wait(*waiting[-1])
        elif step == "leave" and waiting:
            turns.leave(*waiting.pop(at % len(waiting)))
        elif step == "end" and at_work:
            called = turns.give_back()
            at_work -= called is None
            waiting = [each for each in waiting if each[1] != called]
        assert (turns.taken, len(turns)) == (at_work, len(waiting))
        assert at_work == seats or not waiting
