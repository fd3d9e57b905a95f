"""The state table of one worker's health, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.core.fleet.health import Cause, Health, HealthRules, WorkerState

RULES = HealthRules(failures=3, ejection_s=1.0, max_ejection_s=8.0, slow_start_s=10.0)


def make_up(now: float = 0.0) -> Health:
    health = Health(RULES)
    assert health.on_probe_answered(now)
    return health


def test_a_worker_starts_unproven_and_is_up_once_a_probe_answers() -> None:
    health = Health(RULES)
    assert health.state is WorkerState.STARTING
    assert health.on_probe_answered(1.0)
    assert health.state.value == "up"
    assert health.slowdown(1.0) == 1.0


def test_failed_probes_do_not_eject_what_never_was_up() -> None:
    health = Health(RULES)
    assert not any(health.on_probe_failed(now) for now in range(10))
    assert health.state is WorkerState.STARTING


def test_what_failed_before_it_was_up_does_not_count_once_it_is() -> None:
    health = Health(RULES)
    for now in range(10):
        health.on_probe_failed(now)
    health.on_probe_answered(10.0)
    assert not health.on_probe_failed(11.0)
    assert not health.on_error_answer(11.0)
    assert health.state.value == "up"


def test_probes_that_fail_now_and_then_do_not_eject() -> None:
    health = make_up()
    for now in range(100):
        assert not health.on_probe_failed(now)
        assert not health.on_probe_answered(now)


def test_probes_that_answer_do_not_hide_requests_that_fail() -> None:
    """A worker that drains answers /health with 200 and every request with 500."""
    health = make_up()
    ejected = []
    for now in range(3):
        health.on_probe_answered(now)
        ejected.append(health.on_error_answer(now))
    assert ejected == [False, False, True]


def test_requests_that_succeed_do_not_hide_probes_that_fail() -> None:
    health = make_up()
    ejected = []
    for now in range(3):
        health.on_success(now)
        ejected.append(health.on_probe_failed(now))
    assert ejected == [False, False, True]


def test_a_return_starts_all_counts_anew() -> None:
    health = make_up()
    for count in (health.on_error_answer, health.on_error_answer, health.on_probe_failed, health.on_probe_failed):
        count(0.0)
    health.on_death(0.0)
    health.on_probe_answered(1.0)
    assert not health.on_error_answer(1.0)
    assert not health.on_probe_failed(1.0)


def test_one_death_ejects() -> None:
    health = make_up()
    assert health.on_death(5.0)
    assert health.state is WorkerState.EJECTED
    assert health.ejected_until == 6.0
    assert health.ejections == {Cause.DIED: 1}


@pytest.mark.parametrize(
    ("event", "cause"),
    [("on_error_answer", Cause.ERRORS), ("on_probe_failed", Cause.PROBE)],
)
def test_other_failures_eject_when_there_are_enough_in_a_row(event: str, cause: Cause) -> None:
    health = make_up()
    assert [getattr(health, event)(1.0) for _ in range(3)] == [False, False, True]
    assert health.ejections == {cause: 1}


def test_two_timeouts_in_a_row_eject_since_each_cost_a_client_all_its_patience() -> None:
    health = make_up()
    assert [health.on_timeout(1.0) for _ in range(2)] == [False, True]
    assert health.ejections == {Cause.TIMEOUT: 1}


def test_a_success_between_failures_starts_the_count_anew() -> None:
    health = make_up()
    health.on_error_answer(1.0)
    health.on_error_answer(1.0)
    health.on_success(1.0)
    assert not health.on_error_answer(1.0)


def test_a_probe_brings_a_worker_back_only_when_its_time_is_over() -> None:
    health = make_up()
    health.on_death(0.0)
    assert not health.on_probe_answered(0.9)
    assert health.on_probe_answered(1.0)
    assert health.state is WorkerState.UP


def test_a_request_that_succeeds_brings_it_back_at_once() -> None:
    health = make_up()
    health.on_death(0.0)
    assert health.on_success(0.1)
    assert health.state is WorkerState.UP


def test_ejections_double_up_to_the_longest_and_begin_anew_after_a_long_good_time() -> None:
    health = make_up()
    now, lengths = 0.0, []
    for _ in range(5):
        health.on_death(now)
        lengths.append(health.ejected_until - now)
        now = health.ejected_until
        health.on_probe_answered(now)
    assert lengths == [1.0, 2.0, 4.0, 8.0, 8.0]
    now += 32.1
    health.on_death(now)
    assert health.ejected_until - now == pytest.approx(1.0)


def test_a_lone_worker_that_dies_and_answers_for_days_is_still_ejected_for_the_longest_time_only() -> None:
    health = make_up()
    for _ in range(3000):
        assert health.on_death(0.0)
        assert health.ejected_until <= 8.0
        health.on_success(0.0)


def test_failures_while_ejected_do_not_lengthen_the_ejection() -> None:
    health = make_up()
    health.on_death(0.0)
    assert not health.on_death(0.5)
    assert health.ejected_until == 1.0


def test_a_returned_worker_gets_its_share_back_little_by_little() -> None:
    health = make_up()
    health.on_death(0.0)
    health.on_probe_answered(1.0)
    assert [health.slowdown(1.0 + s) for s in (0.0, 5.0, 10.0)] == [10.0, 2.0, 1.0]


@given(st.lists(st.tuples(st.sampled_from(["probe", "death", "error", "fail"]), st.floats(0.0, 3.0))))
def test_no_probe_shortens_an_ejection(events: list[tuple[str, float]]) -> None:
    health = make_up()
    now = 0.0
    for event, pause in events:
        now += pause
        was_ejected, until = health.state is WorkerState.EJECTED, health.ejected_until
        if event == "probe":
            health.on_probe_answered(now)
            assert not (was_ejected and now < until) or health.state is WorkerState.EJECTED
        else:
            {"death": health.on_death, "error": health.on_error_answer, "fail": health.on_probe_failed}[event](now)
        assert health.ejected_until - now <= RULES.max_ejection_s + 1e-9


class HealthMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order: nobody is up within an ejection unless a request succeeded there."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(RULES)
        self.now = 0.0
        self.has_succeeded = False
        """Since it was last ejected."""

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(event=st.sampled_from(["probe_answered", "probe_failed", "error_answer", "timeout", "death"]))
    def meet(self, event: str) -> None:
        before = self.health.state
        changed = getattr(self.health, f"on_{event}")(self.now)
        assert changed is (self.health.state is not before)
        if self.health.state is WorkerState.EJECTED and changed:
            self.has_succeeded = False

    @rule()
    def succeed(self) -> None:
        was_ejected = self.health.state is WorkerState.EJECTED
        assert self.health.on_success(self.now) is was_ejected
        self.has_succeeded = True

    @invariant()
    def nobody_is_up_within_an_ejection(self) -> None:
        is_early = self.now < self.health.ejected_until
        assert not (self.health.state is WorkerState.UP and is_early) or self.has_succeeded

    @invariant()
    def an_ejection_is_never_longer_than_the_longest(self) -> None:
        assert self.health.ejected_until - self.now <= RULES.max_ejection_s

    @invariant()
    def a_slowdown_is_never_a_speed_up(self) -> None:
        assert 1.0 <= self.health.slowdown(self.now) <= 10.0


TestHealthMachine = HealthMachine.TestCase
TestHealthMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
