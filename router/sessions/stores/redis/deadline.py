"""A deadline that a blocked event loop does not bring forward.

It stands in for ``asyncio.timeout_at`` and for the timeouts of redis-py. Their timers fire as soon as a blocked loop runs
again, before the reply is read that came meanwhile, and so take a pause of the router for a failure of Redis.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

TICK_S = 0.025
"""Between two checks of whether the loop was blocked."""
HELD_UP_S = 0.01
"""A check that comes later than this shows that the loop was blocked."""
READING_S = 0.05
"""Time to read what came while the loop was blocked."""
MAX_EXTENSION_S = 5.0


class Deadline:
    """Raises TimeoutError at ``when``, by the loop's clock. The time for which the loop was blocked is added, up to
    ``MAX_EXTENSION_S``."""

    def __init__(self, when: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._when = when
        self._latest = when + MAX_EXTENSION_S
        self._timeout = asyncio.timeout(None)
        self._timer = self._look_at(min(self._loop.time() + TICK_S, when))

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _look_at(self, when: float) -> asyncio.TimerHandle:
        return self._loop.call_at(when, self._look, when)

    def _look(self, due: float) -> None:
        now = self._loop.time()
        if now - due > HELD_UP_S:
            self._when = min(max(self._when + now - due, now + READING_S), self._latest)
        if now < self._when:
            self._timer = self._look_at(min(now + TICK_S, self._when))
        else:
            self._timeout.reschedule(now)
