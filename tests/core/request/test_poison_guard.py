"""When a request is taken for what kills its workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.errors import PoisonRequest
from router.core.request.poison_guard import PROGRESS_CHUNKS, PoisonGuard
from router.core.worker import WorkerName

A, B, C = map(WorkerName, "abc")


def is_given_up(deaths: PoisonGuard) -> bool:
    try:
        deaths.check()
    except PoisonRequest:
        return True
    return False


def test_a_request_is_given_up_at_as_many_deaths_as_are_allowed() -> None:
    deaths = PoisonGuard(3)
    found = []
    for worker in (A, B, C):
        deaths.add(worker, 0)
        found.append(is_given_up(deaths))
    assert found == [False, False, True]


def test_who_gave_up_can_say_under_whom() -> None:
    deaths = PoisonGuard(2)
    for worker in (B, A):
        deaths.add(worker, 0)
    with pytest.raises(PoisonRequest, match="2 workers died") as raised:
        deaths.check()
    assert raised.value.workers == (B, A)
    assert not raised.value.retryable


def test_one_worker_that_comes_back_and_dies_again_counts_again() -> None:
    deaths = PoisonGuard(2)
    for _ in range(2):
        deaths.add(A, 0)
    assert is_given_up(deaths)


def test_a_stream_that_went_on_well_since_begins_to_count_anew_with_the_death_behind_it() -> None:
    deaths = PoisonGuard(2)
    deaths.add(A, 0)
    deaths.add(B, PROGRESS_CHUNKS)
    assert deaths.workers == (B,)
    deaths.add(C, 2 * PROGRESS_CHUNKS - 1)
    assert is_given_up(deaths)


@given(st.lists(st.integers(0, 3 * PROGRESS_CHUNKS), max_size=20), st.integers(1, 5))
def test_it_is_given_up_exactly_where_so_many_follow_one_another_without_progress(steps: list[int], most: int) -> None:
    deaths, chunks, run = PoisonGuard(most), 0, 0
    for step in steps:
        chunks += step
        run = 1 if step >= PROGRESS_CHUNKS else run + 1
        deaths.add(A, chunks)
        assert is_given_up(deaths) is (run >= most)
