"""What is learnt of speed, and how soon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.fleet.rates import MAX_SECONDS_PER_TOKEN, MIN_SECONDS_PER_TOKEN, DecayedRatio, PrefillTimes, believed


def test_a_worker_that_showed_nothing_is_taken_for_the_fleets_mean() -> None:
    fleet = believed(10_000.0)
    assert PrefillTimes().seconds_per_token(fleet) == pytest.approx(1e-4)
    for tokens in (500.0, 2000.0, 8000.0) * 30:
        fleet.add(tokens, 0.01 + tokens / 50_000.0)
    assert PrefillTimes().seconds_per_token(fleet) == pytest.approx(1 / 50_000.0, rel=0.02)


def test_fixed_costs_are_not_taken_for_the_rate() -> None:
    fleet, worker = believed(10_000.0), PrefillTimes()
    for tokens in (300.0, 600.0, 4000.0) * 40:
        worker.add(tokens, 0.05 + tokens / 20_000.0)
        fleet.add(tokens, 0.05 + tokens / 20_000.0)
    assert worker.seconds_per_token(fleet) == pytest.approx(1 / 20_000.0, rel=0.02)


def test_a_slow_worker_among_fast_ones_is_found_out() -> None:
    fleet, slow = believed(10_000.0), PrefillTimes()
    for tokens in (1000.0, 4000.0) * 60:
        fleet.add(tokens, tokens / 60_000.0)
        fleet.add(tokens, tokens / 60_000.0)
        slow.add(tokens, tokens / 20_000.0)
    assert slow.seconds_per_token(fleet) > 2.5 / 60_000.0


@given(st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(1e-6, 1e4)), max_size=50))
def test_no_samples_make_a_worker_look_free_or_dead(samples: list[tuple[float, float]]) -> None:
    fleet, worker = believed(10_000.0), PrefillTimes()
    for tokens, seconds in samples:
        worker.add(tokens, seconds)
        fleet.add(tokens, seconds)
    assert MIN_SECONDS_PER_TOKEN <= worker.seconds_per_token(fleet) <= MAX_SECONDS_PER_TOKEN


def test_a_ratio_follows_the_newest_samples() -> None:
    ratio = DecayedRatio(4.0, 1.0)
    for _ in range(400):
        ratio.add(300.0, 100.0)
    assert ratio.value == pytest.approx(3.0, rel=0.001)
