"""Whether the store takes writes, and how much each owner has in it: checked now and then, so that both are known without any
turn. Each check also overwrites what was deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from router.core.request.request import Tenant
from router.sessions.recall.index import IndexUnavailable
from router.sessions.stores.contract import Corrupt, StoreUnavailable, Usage

log = logging.getLogger("warmroute.sessions")

CHECK_S = 2.0
"""Pause between two checks."""


class StoreHealth:
    """``run`` must be running. ``ping``: the store's. ``tidy``: the store's and the index's. ``count``: the store's."""

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        tidy: Sequence[Callable[[], Awaitable[None]]] = (),
        count: Callable[[], Awaitable[Mapping[Tenant, Usage]]] | None = None,
    ) -> None:
        self._ping = ping
        self._tidy = tidy
        self._count = count
        self.is_up = True
        """The store took a write when it was last asked."""
        self.usage: Mapping[Tenant, Usage] = {}
        """How much each owner had at the last check."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_S)

    async def check(self) -> None:
        try:
            await self._ping()
        except (StoreUnavailable, Corrupt) as error:
            if self.is_up:
                log.warning("the session store takes no writes", extra={"why": str(error)})
            self.is_up = False
        else:
            if not self.is_up:
                log.info("the session store takes writes again")
            self.is_up = True
        for work in (*self._tidy, self._take_count):
            try:
                await work()
            except (StoreUnavailable, Corrupt, IndexUnavailable) as error:
                if self.is_up:
                    log.info("the session store was not tidied", extra={"why": str(error)})

    async def _take_count(self) -> None:
        if self._count is not None:
            self.usage = await self._count()
