"""Tasks that run beside the requests for as long as the router does. What ends one that nobody cancelled is a mistake of
ours: it is told and counted, and the task begins again behind a pause. Never decides what a task does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger("warmroute.background")

PAUSE_S, MAX_PAUSE_S = 0.1, 10.0
"""Before a task begins again; twice as long each time."""

STEADY_S = 60.0
"""A task that ran for so long has done with whatever ended it before."""

TASKS = (
    "sweep",
    "client_sweep",
    "freed_memory",
    "fleet_sync",
    "source",
    "watch",
    "keys",
    "certificate",
    "audit",
    "claims",
    "journal",
    "expiry",
    "recall_expiry",
    "store",
    "compactor",
    "status",
)
"""What there is: labels of the failure counter."""


class Background:
    """One for the process. Who starts a task owns it, and cancels it in the end."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self.failures: Counter[str] = Counter(dict.fromkeys(TASKS, 0))

    def start(self, task: str, work: Callable[[], Awaitable[None]], of: str = "") -> asyncio.Task[None]:
        """``task``: one of TASKS. ``work`` is called for each beginning; when it returns, it is done. ``of``: whose it is."""
        return asyncio.create_task(self._keep(task, work, of), name=f"{task} {of}".strip())

    @asynccontextmanager
    async def running(self, task: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """The task, for as long as the block takes."""
        running = self.start(task, work)
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _keep(self, task: str, work: Callable[[], Awaitable[None]], of: str) -> None:
        pause_s = PAUSE_S
        while True:
            began_at = self._clock()
            (error,) = await asyncio.gather(work(), return_exceptions=True)
            if error is None:
                return
            if self._clock() - began_at >= STEADY_S:
                pause_s = PAUSE_S
            self.failures[task] += 1
            log.error("a background task failed", extra={"task": task, "of": of, "again_in_s": pause_s}, exc_info=error)
            await self._sleep(pause_s)
            pause_s = min(2.0 * pause_s, MAX_PAUSE_S)
