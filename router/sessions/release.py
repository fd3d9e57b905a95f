"""Calls of the store that no turn waits for: renewals of claims, and releases of claims and of places in lines. Each call is
made at once. If the store is away, releases are repeated, up to a bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from router.sessions.stores.contract import Corrupt, Fenced, StoreUnavailable

log = logging.getLogger("warmroute.sessions")

CLOSING_S = 1.0
"""Longest time for the last releases when the router stops."""

REPEAT_S = 0.25
"""Pause between two attempts to release."""

MAX_WAITING = 1000
"""Releases that wait until a store that is away answers; other leases end by themselves."""

Call = Callable[[], Awaitable[None]]


class LeaseReleaser:
    """``waiting``: releases that are being repeated, at most ``max_waiting``. ``given_up``: releases that failed for good, so
    that a lease or a place in a line ends by itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.max_waiting = MAX_WAITING
        self.waiting = 0
        self.given_up = 0
        self.under_way: set[asyncio.Task[None]] = set()
        """Calls under way, with those that are made for the first time. The store's deadlines bound them."""

    def renew(self, call: Call) -> None:
        """A claim that is lost is noticed when its turn writes."""
        self._start(self._renew(call))

    def release_later(self, call: Call, within_s: float) -> None:
        """``within_s``: how long the release is repeated. A store that hung may still execute an earlier call when it resumes,
        and so create a claim that nobody owns: hence the repetition."""
        self._start(self._release(call, self._clock() + within_s))

    async def aclose(self) -> None:
        """After the last turn."""
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

    async def _release(self, call: Call, until: float) -> None:
        why = await _attempt(call)
        if isinstance(why, StoreUnavailable) and self.waiting < self.max_waiting:
            why = await self._repeat(call, why, until)
        if why is not None:
            self.given_up += 1
            log.info("a claim was not released; it ends with its lease", extra={"why": str(why)})

    async def _repeat(self, call: Call, why: Exception | None, until: float) -> Exception | None:
        self.waiting += 1
        try:
            while isinstance(why, StoreUnavailable) and self._clock() + REPEAT_S <= until:
                await asyncio.sleep(REPEAT_S)
                why = await _attempt(call)
        finally:
            self.waiting -= 1
        return why


async def _attempt(call: Call) -> Exception | None:
    """The error; None: the call was made."""
    try:
        await call()
    except (StoreUnavailable, Corrupt, Fenced) as error:
        return error
    return None
