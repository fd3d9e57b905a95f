"""A deadline that a loop which was held up does not bring forward."""

from __future__ import annotations

import asyncio
from types import TracebackType

HELD_UP_S = 0.01
"""A timer that fires later than that tells of a loop that was held up."""
READING_S = 0.05
"""What came meanwhile is still to be read: so long it may take."""
MAX_EXTENSION_S = 5.0


class Deadline:
    """As ``asyncio.timeout_at``, where the loop runs. Where it was held up when the time came, the reply may be here and
    unread: then there is a little more time, again and again, up to ``MAX_EXTENSION_S``."""

    def __init__(self, when: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._latest = when + MAX_EXTENSION_S
        self._timeout = asyncio.timeout(None)
        self._timer = self._loop.call_at(when, self._on_due, when)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _on_due(self, when: float) -> None:
        now = self._loop.time()
        if now - when > HELD_UP_S and now < self._latest:
            self._timer = self._loop.call_at(now + READING_S, self._on_due, now + READING_S)
        else:
            self._timeout.reschedule(now)
