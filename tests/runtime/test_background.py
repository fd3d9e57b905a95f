"""Tasks beside the requests: none dies unseen, and each begins again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from router.runtime.background import MAX_PAUSE_S, STEADY_S, Background


class Bench:
    """A background whose pauses take no time, and a task that fails as often as it is told."""

    def __init__(self, failures: int, *, lasts_s: float = 0.0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.background = Background(lambda: self.now, self._sleep)
        self.left = failures
        self.lasts_s = lasts_s
        self.begun = 0
        self.held = asyncio.Event()

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def work(self) -> None:
        self.begun += 1
        self.now += self.lasts_s
        if self.left:
            self.left -= 1
            raise ValueError("nobody foresaw this")
        self.held.set()
        await asyncio.Event().wait()


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_fails_begins_again_and_each_failure_is_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(3)
    task = bench.background.start("health_check", bench.work, "w-1")
    await bench.held.wait()
    assert bench.begun == 4
    assert {task: times for task, times in bench.background.failures.items() if times} == {"health_check": 3}
    told = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(told) == 3
    assert {(each.task, each.of) for each in told} == {("health_check", "w-1")}  # type: ignore[attr-defined]
    assert all(each.exc_info[1].__traceback__ is not None for each in told)  # type: ignore[index,union-attr]
    await stop(task)


async def test_pauses_grow_up_to_a_bound() -> None:
    bench = Bench(12)
    task = bench.background.start("sweep", bench.work)
    await bench.held.wait()
    assert bench.pauses[:3] == [0.1, 0.2, 0.4]
    assert bench.pauses[-1] == max(bench.pauses) == MAX_PAUSE_S
    await stop(task)


async def test_a_task_that_ran_well_for_long_pauses_no_longer_than_at_first() -> None:
    bench = Bench(4, lasts_s=STEADY_S)
    task = bench.background.start("sweep", bench.work)
    await bench.held.wait()
    assert bench.pauses == [0.1] * 4
    await stop(task)


async def test_a_task_that_is_cancelled_ends_and_is_no_failure() -> None:
    bench = Bench(0)
    task = bench.background.start("sweep", bench.work)
    await bench.held.wait()
    await stop(task)
    assert bench.begun == 1
    assert not any(bench.background.failures.values())


async def test_what_a_task_cancels_within_itself_does_not_end_it() -> None:
    bench = Bench(0)

    async def cancelled_once() -> None:
        if not bench.pauses:
            raise asyncio.CancelledError
        await bench.work()

    task = bench.background.start("keys", cancelled_once)
    await bench.held.wait()
    assert bench.background.failures["keys"] == 1
    await stop(task)


async def test_a_task_that_is_done_does_not_begin_again() -> None:
    bench = Bench(0)

    async def nothing() -> None:
        bench.begun += 1

    await bench.background.start("keys", nothing)
    assert (bench.begun, bench.pauses) == (1, [])
