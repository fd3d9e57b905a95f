"""Runs the router's background tasks. A task that ends by an error has a defect of the router: the error is logged and
counted, and the task begins again after a pause. This module never decides what a task does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger("warmroute.background")

PAUSE_S, MAX_PAUSE_S = 0.1, 10.0
"""Pause before a task begins again. It doubles each time."""

STEADY_S = 60.0
"""After a run of this length the pause is the shortest again."""

TASKS = (
    "sweep",
    "client_sweep",
    "memory_trim",
    "fleet_sync",
    "source",
    "health_check",
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
"""All tasks. Label values of the failure counter."""


class Background:
    """One for the process. The caller of ``start`` owns the task, and cancels it in the end."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self.failures: Counter[str] = Counter(dict.fromkeys(TASKS, 0))

    def start(self, task: str, work: Callable[[], Awaitable[None]], of: str = "") -> asyncio.Task[None]:
        """Start a task. ``task`` is one of TASKS. ``work`` is called for each run, and the task is done when it returns.
        ``of`` names the task's object in logs."""
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
