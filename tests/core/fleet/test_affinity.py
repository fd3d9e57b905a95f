"""The worker of each session's last turn."""

from __future__ import annotations

from router.core.fleet.affinity import LastWorkers
from router.core.request.request import SessionKey
from router.core.worker import WorkerName


def remember(last: LastWorkers, *sessions: int) -> None:
    for session in sessions:
        last.set(SessionKey(session), WorkerName(f"w-{session}"))


def known(last: LastWorkers, *sessions: int) -> list[bool]:
    return [last.get(SessionKey(session)) is not None for session in sessions]


def test_the_last_turns_worker_counts() -> None:
    last = LastWorkers(10)
    assert last.get(SessionKey(1)) is None
    for name in ("w-a", "w-b"):
        last.set(SessionKey(1), WorkerName(name))
    assert last.get(SessionKey(1)) == "w-b"
    assert len(last) == 1


def test_the_session_without_a_turn_for_longest_is_forgotten_first() -> None:
    last = LastWorkers(2)
    remember(last, 1, 2, 1, 3)
    assert known(last, 1, 2, 3) == [True, False, True]


def test_there_are_never_more_than_the_bound() -> None:
    last = LastWorkers(5)
    remember(last, *range(1000))
    assert len(last) == 5
