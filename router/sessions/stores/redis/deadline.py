"""A deadline that a loop which was held up does not bring forward."""

from __future__ import annotations

import asyncio
from types import TracebackType

TICK_S = 0.025
"""Between two looks at whether the loop is held up."""
HELD_UP_S = 0.01
"""A timer that fires later than that tells of it."""
READING_S = 0.05
"""What came while the loop was held up is still to be read: so long it may take."""
MAX_EXTENSION_S = 5.0


class Deadline:
    """As ``asyncio.timeout_at``, by the time in which the loop ran: what it was held up is added, up to
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
