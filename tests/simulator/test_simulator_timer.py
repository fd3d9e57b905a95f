"""Both alarms ring once, never early, and only for the time that was set last."""

import asyncio
import time
from collections.abc import Callable

import pytest

from router.simulator.timer import Alarm, _KernelAlarm, _LoopAlarm, make_alarm


@pytest.mark.parametrize("kind", [_LoopAlarm, _KernelAlarm, make_alarm])
async def test_an_alarm_rings_once_and_not_before_its_time(kind: Callable[[Callable[[], None]], Alarm]) -> None:
    rung: list[float] = []
    done = asyncio.Event()

    def ring() -> None:
        rung.append(time.monotonic())
        done.set()

    alarm = kind(ring)
    alarm.set(time.monotonic() + 3_600)
    due_s = time.monotonic() + 0.002
    alarm.set(due_s)
    async with asyncio.timeout(10):
        await done.wait()
    assert len(rung) == 1
    assert rung[0] >= due_s
    done.clear()
    alarm.set(time.monotonic() - 1)
    async with asyncio.timeout(10):
        await done.wait()
    alarm.set(time.monotonic() + 3_600)
    alarm.set(None)
    alarm.close()
    alarm.close()
    assert len(rung) == 2
