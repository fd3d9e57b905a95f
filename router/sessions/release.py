"""Calls of the store that nobody waits for: claims are renewed, and given back with the places in lines. Each is made at once,
beside the requests; a store that is away is asked again for those that are given back, and for so many of them at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from router.sessions.stores.contract import Corrupt, Fenced, StoreUnavailable

log = logging.getLogger("warmroute.sessions")

CLOSING_S = 1.0
"""How long what is left to be given back may take when the router stops."""

AGAIN_S = 0.25
"""Between two attempts to give back what a store did not take."""

Call = Callable[[], Awaitable[None]]


class LeaseReleaser:
    """``waiting``: of what is given back, how much is asked again, never more than ``max_waiting``. ``given_up``: what was not
    given back at all, so that a lease or a place in a line ends by itself."""

    def __init__(self, clock: Callable[[], float], max_waiting: int) -> None:
        self._clock = clock
        self.max_waiting = max_waiting
        self.waiting = 0
        self.given_up = 0
        self.under_way: set[asyncio.Task[None]] = set()
        """Calls that are made now, too: each turn under way makes a few, and the store's deadlines end them."""

    def renew(self, call: Call) -> None:
        """One that is lost is noticed where its turn writes."""
        self._start(self._renew(call))

    def release_later(self, call: Call, within_s: float) -> None:
        """``within_s``: for how long a store that is away is asked again. What it was asked before it hung it does when it goes
        on, and then holds a claim that nobody knows of."""
        self._start(self._give_back(call, self._clock() + within_s))

    async def aclose(self) -> None:
        """Behind the last turn."""
        if self.under_way:
            _, late = await asyncio.wait(tuple(self.under_way), timeout=CLOSING_S)
            for task in late:
                task.cancel()

    def _start(self, call: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(call)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _renew(self, call: Call) -> None:
        if (why := await _attempt(call)) is not None:
            log.info("a claim was not renewed", extra={"why": str(why)})

    async def _give_back(self, call: Call, until: float) -> None:
        why = await _attempt(call)
        if isinstance(why, StoreUnavailable) and self.waiting < self.max_waiting:
            why = await self._again(call, why, until)
        if why is not None:
            self.given_up += 1
            log.info("a claim was not given back, and its lease will end", extra={"why": str(why)})

    async def _again(self, call: Call, why: Exception | None, until: float) -> Exception | None:
        self.waiting += 1
        try:
            while isinstance(why, StoreUnavailable) and self._clock() + AGAIN_S <= until:
                await asyncio.sleep(AGAIN_S)
                why = await _attempt(call)
        finally:
            self.waiting -= 1
        return why


async def _attempt(call: Call) -> Exception | None:
    """Why it came to nothing."""
    try:
        await call()
    except (StoreUnavailable, Corrupt, Fenced) as error:
        return error
    return None
