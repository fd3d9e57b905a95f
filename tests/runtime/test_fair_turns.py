"""Tenants take turns at the store, and each waits for its own calls."""

from __future__ import annotations

import asyncio

import pytest

from router.core.request.request import Tenant
from router.runtime.fair_turns import FairTurns
from router.sessions.stores.contract import Crowded

ANN, BOB, EVE = Tenant("ann"), Tenant("bob"), Tenant("eve")


def turns(*, max_waiting: int = 3, max_wait_s: float = 10.0, max_calls: int = 2) -> FairTurns:
    return FairTurns(
        max_calls=max_calls, max_owner_calls=1, max_waiting=max_waiting, max_wait_s=max_wait_s, refuse=Crowded
    )


class Calls:
    """Calls that have their turn, in order, and end when they are told."""

    def __init__(self, line: FairTurns) -> None:
        self.line = line
        self.begun: list[Tenant] = []
        self._ends: list[asyncio.Event] = []

    async def start(self, owner: Tenant) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(owner))
        await asyncio.sleep(0)
        return task

    def let_end(self, number: int) -> None:
        self._ends[number].set()

    async def end(self, number: int) -> None:
        self.let_end(number)
        for _ in range(4):
            await asyncio.sleep(0)

    async def _call(self, owner: Tenant) -> None:
        async with self.line.of(owner):
            end = asyncio.Event()
            self.begun.append(owner)
            self._ends.append(end)
            await end.wait()


async def test_an_owner_waits_for_its_own_calls_and_another_does_not() -> None:
    calls = Calls(turns())
    tasks = [await calls.start(owner) for owner in (ANN, ANN, ANN, BOB)]
    assert calls.begun == [ANN, BOB]
    assert (calls.line.waiting, calls.line.waiting_of(ANN)) == (2, 2)
    for number in range(4):
        await calls.end(number)
    await asyncio.gather(*tasks)
    assert calls.line.waiting == 0


async def test_owners_that_wait_take_turns() -> None:
    calls = Calls(turns(max_calls=1))
    tasks = [await calls.start(owner) for owner in (ANN, ANN, ANN, BOB, BOB, EVE)]
    for number in range(6):
        await calls.end(number)
    await asyncio.gather(*tasks)
    assert calls.begun == [ANN, ANN, BOB, EVE, ANN, BOB]


async def test_a_line_that_is_full_refuses_its_owner_and_no_other() -> None:
    calls = Calls(turns(max_calls=1, max_waiting=1))
    tasks = [await calls.start(ANN), await calls.start(ANN)]
    with pytest.raises(Crowded, match="1 calls of the tenant wait"):
        await calls.line.take(ANN)
    assert calls.line.refused == 1
    tasks.append(await calls.start(BOB))
    for number in range(3):
        await calls.end(number)
    await asyncio.gather(*tasks)


async def test_a_call_that_waits_too_long_is_refused_and_leaves_the_line() -> None:
    calls = Calls(turns(max_wait_s=0.01))
    holding = await calls.start(ANN)
    with pytest.raises(Crowded, match=r"0\.01 s"):
        await calls.line.take(ANN)
    assert calls.line.waiting == 0
    await calls.end(0)
    await holding


@pytest.mark.parametrize("is_called", [False, True])
async def test_a_waiter_that_is_cancelled_passes_its_turn_on(is_called: bool) -> None:
    calls = Calls(turns(max_calls=1))
    holding, leaving, staying = [await calls.start(ANN) for _ in range(3)]
    if is_called:
        calls.let_end(0)
        await asyncio.sleep(0)  # its turn has come, and it has not gone on yet
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await calls.end(0)
    await holding
    await calls.end(1)
    await staying
    assert calls.begun == [ANN, ANN]
    assert calls.line.waiting == 0
