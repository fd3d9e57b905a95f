"""A wall clock that is put wrong for a moment ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.runtime.steady_clock import BELIEVED_AFTER_S, JUMP_S, SteadyClock
from router.sessions.stores.contract import EMPTY, Sid
from router.sessions.stores.sqlite import SqliteStore
from tests.sessions.stores.contract import OWNER

SID = Sid("sid")


class Clocks:
    def __init__(self) -> None:
        self.now = 50.0
        self.ahead_s = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.ahead_s


def test_it_goes_with_the_wall_clock_and_with_its_small_steps() -> None:
    clocks = Clocks()
    steady = SteadyClock(clocks.wall, clocks.monotonic)
    for passed_s, step_s in ((1.0, 0.0), (100_000.0, 0.0), (1.0, JUMP_S - 1), (1.0, -7200.0)):
        clocks.now += passed_s
        clocks.ahead_s += step_s
        assert steady() == clocks.wall()


def test_a_jump_ahead_is_told_once_and_believed_after_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    steady = SteadyClock(clocks.wall, clocks.monotonic)
    before = steady()
    clocks.ahead_s += 1e6
    assert steady() == before
    clocks.now += BELIEVED_AFTER_S - 1
    assert steady() == before + BELIEVED_AFTER_S - 1
    clocks.now += 1
    assert steady() == clocks.wall()
    assert len(caplog.messages) == 1


def test_there_and_back_is_nothing() -> None:
    clocks = Clocks()
    steady = SteadyClock(clocks.wall, clocks.monotonic)
    before = steady()
    for step_s in (1e6, -1e6, 1e6):
        clocks.ahead_s += step_s
        clocks.now += 10
        steady()
    assert steady() == before + 30


async def test_a_sweep_under_a_clock_that_jumped_deletes_nothing(tmp_path: Path) -> None:
    clocks = Clocks()
    store = await SqliteStore.open(
        tmp_path / "a.db", clocks.monotonic, SteadyClock(clocks.wall, clocks.monotonic), boot="this"
    )
    assert await store.create(SID, OWNER, entries=(b"1",), attributes=b"", turns=1, lifetime_s=600.0)
    clocks.ahead_s += 1e6
    assert await store.sweep(10) == 0
    assert await store.load(SID, OWNER, EMPTY) is not None
    clocks.now += 601
    assert await store.sweep(10) == 1
    await store.close()
