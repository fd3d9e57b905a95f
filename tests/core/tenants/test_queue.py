"""Who goes next, and who must go: fairness, bounds, and that nobody is lost or doubled."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.core.request.request import Tenant
from router.core.tenants.queue import Drain, FairQueue, Waiter

ALL = frozenset("mno")


def waiter(
    tenant: str = "a", *, model: str = "m", tokens: float = 1.0, size: int = 1, priority: int = 0, share: float = 1.0
) -> Waiter:
    return Waiter(model, Tenant(tenant), priority, share, tokens, size)


def make_queue(max_requests: int = 1000, max_bytes: int = 1000) -> FairQueue[Waiter]:
    return FairQueue(max_requests, max_bytes)


def fill(queue: FairQueue[Waiter], *waiters: Waiter) -> None:
    for each in waiters:
        assert queue.push(each) == []


def served(queue: FairQueue[Waiter], times: int) -> str:
    return "".join(each.tenant for each in (queue.pop(ALL) for _ in range(times)) if each is not None)


def test_one_tenants_requests_go_in_the_order_they_came() -> None:
    queue, waiters = make_queue(), [waiter(tokens=tokens) for tokens in (5, 1, 3)]
    fill(queue, *waiters)
    assert [queue.pop(ALL) for _ in range(4)] == [*waiters, None]


def test_two_tenants_take_turns_however_many_one_of_them_sent_first() -> None:
    queue = make_queue()
    fill(queue, *(waiter("a") for _ in range(6)), waiter("b"), waiter("b"))
    assert served(queue, 5) == "ababa"


def test_turns_count_tokens_and_not_requests() -> None:
    queue = make_queue()
    fill(queue, *(waiter("a", tokens=300) for _ in range(4)), *(waiter("b", tokens=100) for _ in range(9)))
    assert Counter(served(queue, 8)) == {"a": 2, "b": 6}


def test_a_double_share_is_served_twice_as_much() -> None:
    queue = make_queue()
    fill(queue, *(waiter("a", share=2.0) for _ in range(9)), *(waiter("b") for _ in range(9)))
    assert Counter(served(queue, 9)) == {"a": 6, "b": 3}


def test_a_higher_priority_goes_first_whatever_the_shares() -> None:
    queue = make_queue()
    fill(queue, waiter("a", share=100), waiter("b", priority=1), waiter("b", priority=1), waiter("c", priority=-1))
    assert served(queue, 4) == "bbac"


def test_who_was_away_comes_in_turn_and_has_saved_nothing_up() -> None:
    queue = make_queue()
    fill(queue, *(waiter("a") for _ in range(20)))
    served(queue, 10)
    fill(queue, *(waiter("b") for _ in range(10)))
    assert Counter(served(queue, 6)) == {"a": 3, "b": 3}


def test_who_leaves_and_comes_back_is_not_served_anew_before_the_others() -> None:
    queue = make_queue()
    fill(queue, waiter("a", tokens=10), *(waiter("b") for _ in range(20)))
    assert served(queue, 1) == "a"
    fill(queue, waiter("a", tokens=10))
    assert served(queue, 11) == "b" * 10 + "a"


def test_nobody_waits_behind_a_model_that_has_no_room() -> None:
    queue = make_queue()
    fill(queue, waiter("a", model="m", priority=9), waiter("b", model="n"))
    found = queue.pop({"n"})
    assert found is not None
    assert found.tenant == "b"
    assert queue.pop({"n"}) is None
    assert queue.waiting("m") == 1


def test_models_that_share_workers_take_turns() -> None:
    queue = make_queue()
    fill(queue, *(waiter("a", model="m") for _ in range(3)), *(waiter("b", model="n") for _ in range(3)))
    assert served(queue, 4) == "abab"


def test_the_highest_priority_goes_first_among_models_too() -> None:
    queue = make_queue()
    fill(queue, waiter("a", model="m"), waiter("b", model="n", priority=1), waiter("b", model="n", priority=1))
    assert served(queue, 3) == "bba"


def test_a_full_queue_gives_up_the_longest_tenants_newest_for_anothers_newcomer() -> None:
    queue, long = make_queue(max_requests=3), [waiter("a") for _ in range(3)]
    fill(queue, *long)
    assert queue.push(waiter("b")) == [long[-1]]
    assert (queue.waiting_of(Tenant("a")), queue.waiting_of(Tenant("b"))) == (2, 1)


def test_a_full_queue_refuses_the_longest_tenants_own_newcomer() -> None:
    queue, newcomer = make_queue(max_requests=3), waiter("a")
    fill(queue, waiter("a"), waiter("a"), waiter("b"))
    assert queue.push(newcomer) == [newcomer]


def test_among_equals_the_newcomer_goes() -> None:
    queue, newcomer = make_queue(max_requests=2), waiter("b")
    fill(queue, waiter("a"), waiter("b"))
    assert queue.push(newcomer) == [newcomer]
    third = waiter("c")
    assert queue.push(third) == [third]


def test_a_lower_priority_makes_place_for_a_higher_one_and_never_the_other_way_round() -> None:
    queue, low = make_queue(max_requests=1), waiter("a")
    fill(queue, low)
    assert queue.push(waiter("b", priority=1)) == [low]
    assert queue.push(low) == [low]


def test_large_bodies_make_place_for_small_ones() -> None:
    queue, large = make_queue(max_bytes=100), waiter("a", size=90)
    fill(queue, large, waiter("b", size=5))
    assert queue.push(waiter("b", size=10)) == [large]
    assert queue.bytes == 15


def test_a_body_larger_than_the_bound_displaces_nobody() -> None:
    queue, huge = make_queue(max_bytes=10), waiter("b", size=11, share=100.0)
    fill(queue, waiter("a", size=10))
    assert queue.push(huge) == [huge]
    assert len(queue) == 1


def test_where_nobody_may_wait_all_are_refused() -> None:
    queue, each = make_queue(max_requests=0), waiter()
    assert queue.push(each) == [each]
    assert len(queue) == 0


TOKENS = st.integers(1, 5000)


@given(
    st.lists(TOKENS, min_size=1, max_size=40),
    st.lists(TOKENS, min_size=1, max_size=40),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_two_that_both_wait_are_served_alike_but_for_one_request(
    own: list[int], others: list[int], share: float
) -> None:
    queue = make_queue(max_bytes=10_000)
    fill(queue, *(waiter("a", tokens=tokens, share=share) for tokens in own))
    fill(queue, *(waiter("b", tokens=tokens) for tokens in others))
    had = {"a": 0.0, "b": 0.0}
    while queue.waiting_of(Tenant("a")) and queue.waiting_of(Tenant("b")):
        each = queue.pop(ALL)
        assert each is not None
        had[each.tenant] += each.tokens / each.share
        assert abs(had["a"] - had["b"]) <= max(max(own) / share, max(others)) + 1e-6


class EveryOrder(RuleBasedStateMachine):
    """Whatever is pushed, popped, removed and displaced: each is in the queue once, or has left it once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue(max_requests=8, max_bytes=60)
        self.inside: list[Waiter] = []

    @rule(
        tenant=st.sampled_from("abc"),
        model=st.sampled_from("mno"),
        tokens=TOKENS,
        size=st.integers(0, 70),
        priority=st.integers(0, 2),
    )
    def push(self, tenant: str, model: str, tokens: int, size: int, priority: int) -> None:
        newcomer = waiter(tenant, model=model, tokens=tokens, size=size, priority=priority)
        displaced = self.queue.push(newcomer)
        assert len(set(displaced)) == len(displaced)
        self.inside.append(newcomer)
        for each in displaced:
            self.inside.remove(each)

    @rule(models=st.sets(st.sampled_from("mno")))
    def pop(self, models: set[str]) -> None:
        found, able = self.queue.pop(models), [each for each in self.inside if each.model in models]
        assert (found is None) == (not able)
        if found is not None:
            assert found.priority == max(each.priority for each in able)
            self.inside.remove(found)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.inside))
        assert self.queue.remove(gone)
        assert not self.queue.remove(gone)
        self.inside.remove(gone)

    @invariant()
    def is_bounded_and_complete(self) -> None:
        queue = self.queue
        assert len(queue) == len(self.inside) <= queue.max_requests
        assert queue.bytes == sum(each.body_bytes for each in self.inside) <= queue.max_bytes
        assert Counter(each.model for each in self.inside) == Counter({model: queue.waiting(model) for model in ALL})


TestEveryOrder = EveryOrder.TestCase


@pytest.mark.parametrize(("waiting", "every_s", "expected"), [(1, 0.1, 1), (10, 0.5, 6), (1000, 1.0, 60)])
def test_when_to_come_back_is_how_long_the_queue_takes_to_drain(waiting: int, every_s: float, expected: int) -> None:
    drain = Drain(0.0)
    for number in range(1, 50):
        drain.leave(number * every_s)
    assert drain.retry_after_s(waiting, 49 * every_s) == expected


def test_a_queue_that_stands_still_is_not_believed_to_move() -> None:
    drain = Drain(0.0)
    drain.leave(0.1)
    assert drain.retry_after_s(3, 10.1) == 31


def test_quiet_times_say_nothing_of_how_fast_a_queue_drains() -> None:
    drain = Drain(0.0)
    drain.begin(1000.0)
    drain.leave(1000.5)
    assert drain.retry_after_s(2, 1000.5) == 2
