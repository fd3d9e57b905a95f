"""What is known of the store while nobody asks it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router.core.request.request import Tenant
from router.sessions.store_health import StoreHealth
from router.sessions.stores.contract import Full, Usage

ANN = Tenant("ann")


class FakeStore:
    def __init__(self) -> None:
        self.is_full = False
        self.tidied = 0

    async def ping(self) -> None:
        if self.is_full:
            raise Full("no room")

    async def tidy(self) -> None:
        await self.ping()
        self.tidied += 1

    async def usage(self) -> Mapping[Tenant, Usage]:
        return {ANN: Usage(1, 2, 3)}


async def test_a_store_that_takes_no_writes_is_not_up_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    watch = StoreHealth(store.ping, (store.tidy,), store.usage)
    store.is_full = True
    for _ in range(3):
        await watch.check()
    assert [watch.is_up] == [False]
    assert caplog.messages == ["the session store takes no writes"]
    assert watch.usage == {ANN: Usage(1, 2, 3)}
    store.is_full = False
    await watch.check()
    assert [watch.is_up] == [True]
    assert store.tidied == 1
