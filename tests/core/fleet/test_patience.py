"""What of a worker's silence is work: by its polls alone, whatever they say."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.fleet.load import LoadReport
from router.core.fleet.patience import Signs, Silence, Work, may_wait_s

STREAMING = Silence(lasted_s=60.0, allowed_s=60.0, queued_s=0.0)
UNANSWERED = Silence(lasted_s=30.0, allowed_s=30.0, queued_s=300.0)
AT_WORK = Signs(running=1, waiting=0, moved_since_s=0.5, still_s=0.0, fresh_s=4.0)


@pytest.mark.parametrize("silence", [STREAMING, UNANSWERED])
def test_a_worker_whose_counters_rise_is_waited_for_until_its_poll_is_old(silence: Silence) -> None:
    assert may_wait_s(silence, AT_WORK) == AT_WORK.fresh_s
    assert may_wait_s(silence, AT_WORK._replace(running=0, waiting=1)) == AT_WORK.fresh_s


@pytest.mark.parametrize(
    "signs",
    [
        None,
        AT_WORK._replace(running=0),
        AT_WORK._replace(moved_since_s=inf, still_s=inf),
        AT_WORK._replace(moved_since_s=60.1),
        AT_WORK._replace(moved_since_s=61.0, still_s=60.0),
        AT_WORK._replace(waiting=3, moved_since_s=inf, still_s=inf),
    ],
    ids=["no poll", "idle", "never counted", "before the silence", "still", "others wait"],
)
def test_a_stream_of_a_worker_that_shows_no_work_is_given_up_at_its_deadline(signs: Signs | None) -> None:
    assert may_wait_s(STREAMING, signs) == 0.0


def test_a_worker_is_given_up_one_deadline_after_its_counters_stopped() -> None:
    silence = STREAMING._replace(lasted_s=100.0)
    stopped = AT_WORK._replace(moved_since_s=60.0, still_s=58.0)
    assert may_wait_s(silence, stopped) == 2.0
    assert may_wait_s(silence._replace(lasted_s=102.0), stopped._replace(moved_since_s=62.0, still_s=60.0)) == 0.0


def test_a_request_without_an_event_waits_where_requests_wait_and_nothing_runs() -> None:
    compiling = Signs(running=0, waiting=1, moved_since_s=inf, still_s=inf, fresh_s=4.0)
    assert may_wait_s(UNANSWERED._replace(lasted_s=500.0), compiling) == 4.0


def test_behind_requests_that_show_no_work_it_waits_no_longer_than_any_first_event_may_take() -> None:
    stuck = Signs(running=2, waiting=1, moved_since_s=inf, still_s=inf, fresh_s=4.0)
    assert may_wait_s(UNANSWERED, stuck) == 4.0
    assert may_wait_s(UNANSWERED._replace(lasted_s=299.0), stuck) == 1.0
    assert may_wait_s(UNANSWERED._replace(lasted_s=300.0), stuck) == 0.0


def a_report(tokens: float | None, running: int = 1) -> LoadReport:
    return LoadReport(running, 0, 0.5, None, None, None, tokens)


def test_counters_moved_no_earlier_than_the_poll_before_was_asked() -> None:
    work = Work()
    work.on_poll(a_report(10.0), 1.0, 1.25)
    work.on_poll(a_report(10.0), 2.0, 2.25)
    assert work.signs(3.0, 5.0) == Signs(1, 0, inf, inf, 4.25)
    work.on_poll(a_report(11.0), 3.0, 3.25)
    work.on_poll(a_report(11.0, running=4), 4.0, 4.25)
    assert work.signs(5.0, 5.0) == Signs(4, 0, 3.0, 1.0, 4.25)


@pytest.mark.parametrize("tokens", [[None, None], [10.0, None], [None, 10.0], [10.0, 3.0]])
def test_a_worker_that_counts_nothing_or_counts_anew_has_not_moved(tokens: list[float | None]) -> None:
    work = Work()
    for at, count in enumerate(tokens):
        work.on_poll(a_report(count), float(at), float(at))
    found = work.signs(2.0, 5.0)
    assert found is not None
    assert found.moved_since_s == inf


def test_an_old_poll_says_nothing() -> None:
    work = Work()
    assert work.signs(0.0, 5.0) is None
    work.on_poll(a_report(10.0), 1.0, 1.1)
    assert work.signs(6.1, 5.0) is not None
    assert work.signs(6.2, 5.0) is None


SECONDS = st.floats(0.0, 1e6)


@given(
    st.builds(Silence, SECONDS, SECONDS, SECONDS),
    st.builds(Signs, st.integers(0, 9), st.integers(0, 9), SECONDS, SECONDS, SECONDS),
)
def test_the_signs_are_looked_at_again_before_they_are_old(silence: Silence, signs: Signs) -> None:
    assert 0.0 <= may_wait_s(silence, signs) <= signs.fresh_s
