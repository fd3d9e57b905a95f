"""When calls to a server that does not answer are refused, and when it is tried again."""

from __future__ import annotations

from router.runtime.breaker import Breaker, BreakerState, Patience

PATIENCE = Patience(max_failures=3, min_pause_s=0.25, max_pause_s=1.0)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(PATIENCE)
    for _ in range(3):
        assert breaker.admits(at)
        breaker.failed(at)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert breaker.state(0.1) is BreakerState.OPEN
    assert not breaker.admits(0.1)


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker(PATIENCE)
    for _ in range(10):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state(0) is BreakerState.CLOSED
    assert breaker.admits(0)


def test_after_the_pause_one_call_at_a_time_goes_through() -> None:
    breaker = opened()
    assert breaker.state(0.25) is BreakerState.HALF_OPEN
    assert breaker.admits(0.25)
    assert not breaker.admits(0.25)
    assert not breaker.admits(99)


def test_a_success_closes_it() -> None:
    breaker = opened()
    assert breaker.admits(0.25)
    breaker.succeeded()
    assert breaker.state(0.25) is BreakerState.CLOSED
    assert breaker.admits(0.25)
    assert breaker.admits(0.25)


def test_pauses_double_up_to_their_bound() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(4):
        pause = next(tick / 100 for tick in range(1, 1000) if breaker.state(now + tick / 100) is BreakerState.HALF_OPEN)
        pauses.append(pause)
        now += pause
        assert breaker.admits(now)
        breaker.failed(now)
    assert pauses == [0.25, 0.5, 1.0, 1.0]


def test_after_a_recovery_pauses_are_short_again() -> None:
    breaker = opened()
    assert breaker.admits(0.25)
    breaker.failed(0.25)
    assert breaker.admits(0.75)
    breaker.succeeded()
    for _ in range(3):
        breaker.failed(1.0)
    assert not breaker.admits(1.24)
    assert breaker.admits(1.25)


def test_late_failures_of_older_calls_do_not_prolong_the_pause() -> None:
    breaker = opened()
    breaker.failed(0.2)
    breaker.failed(0.24)
    assert breaker.admits(0.25)


def test_who_leaves_while_trying_lets_the_next_try() -> None:
    breaker = opened()
    assert breaker.admits(0.25)
    breaker.abandoned()
    assert breaker.state(0.25) is BreakerState.HALF_OPEN
    assert breaker.admits(0.25)
