"""How long a silent worker is waited for."""

from __future__ import annotations

from router.core.fleet.patience import Signs
from router.core.request.attempt import WorkerSilent, WorkerSlow
from router.upstream.silence import Silence

AT_WORK = Signs(running=1, waiting=0, moved_since_s=0.5, still_s=0.0, fresh_s=4.0)


def begun(longest_s: float = 50.0) -> Silence:
    silence = Silence()
    silence.begin(100.0, 10.0, 10.0, longest_s)
    return silence


def test_a_worker_that_shows_no_work_is_silent() -> None:
    silence = begun()
    assert not silence.is_overdue(110.0)
    assert silence.is_overdue(110.5)
    assert type(silence.extend(110.5, None)) is WorkerSilent


def test_a_worker_at_work_is_waited_for_up_to_the_longest_silence() -> None:
    silence = begun()
    assert silence.extend(110.5, AT_WORK) is None
    assert silence.due_at == 114.5
    assert silence.extend(149.0, AT_WORK) is None
    assert silence.due_at == 150.0
    assert type(silence.extend(150.0, AT_WORK)) is WorkerSlow


def test_a_request_that_may_not_wait_ends_at_once_though_the_worker_is_at_work() -> None:
    assert type(begun(longest_s=0.0).extend(110.5, AT_WORK)) is WorkerSlow


def test_each_read_begins_a_new_silence() -> None:
    silence = begun()
    silence.begin_stream(105.0, 2.0)
    assert silence.due_at == 107.0
    silence.hear(106.0)
    assert silence.due_at == 108.0
