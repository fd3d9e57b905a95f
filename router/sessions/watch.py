"""Whether the store answers: it is asked now and then, so that this is known also while no turn comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from router.sessions.store import Corrupt, StoreUnavailable

log = logging.getLogger("warmroute.sessions")

LOOK_S = 2.0
"""Between two looks."""


class StoreWatch:
    """``run`` must be running. ``ping``: the store's."""

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        self._ping = ping
        self.is_up = True
        """It answered when it was last asked."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        try:
            await self._ping()
        except (StoreUnavailable, Corrupt) as error:
            if self.is_up:
                log.warning("the session store does not answer", extra={"why": str(error)})
            self.is_up = False
        else:
            self.is_up = True
