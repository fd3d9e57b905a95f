"""Keeps the fleet true: reads the sources, adds and removes workers, builds the ring, and has each worker watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from router.core.fleet import Fleet, Member
from router.core.ring import Ring
from router.core.worker import WorkerAddress
from router.upstream.discovery import Source, Unreadable
from router.upstream.exchange import Upstream
from router.upstream.pool import Pool
from router.upstream.watch import WatchSettings, WorkerWatch

log = logging.getLogger("warmroute.fleet")


class FleetKeeper:
    """Owns one task for each worker. ``use_ring`` takes each new ring; it is built off the loop."""

    def __init__(
        self,
        sources: Sequence[Source],
        fleet: Fleet,
        pool: Pool,
        upstream: Upstream,
        settings: WatchSettings,
        interval_s: float,
        use_ring: Callable[[Ring], None],
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._fleet = fleet
        self._pool = pool
        self._upstream = upstream
        self._settings = settings
        self._interval_s = interval_s
        self._use_ring = use_ring
        self._last: dict[int, Sequence[WorkerAddress]] = {}
        self._watched: dict[Member, tuple[WorkerWatch, asyncio.Task[None]]] = {}
        self._clock = clock

    async def start(self, at_most_s: float) -> None:
        """Find the workers and look at each once, so that the first request does not come before the first answer."""
        await self.refresh()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                for watch, _task in self._watched.values():
                    await watch.has_looked.wait()

    async def run(self) -> None:
        """Look at the sources again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.refresh()

    async def close(self) -> None:
        """Leave no task behind."""
        tasks = [task for _watch, task in self._watched.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Read the sources once and act on what changed."""
        came, left = self._fleet.set_members(await self._read())
        for member in left:
            self._watched.pop(member)[1].cancel()
            self._pool.forget(member.address)
            log.info("worker left", extra={"worker": member.name})
        if came or left:
            positions = {member.name: member.position for member in self._fleet.members()}
            self._use_ring(await asyncio.to_thread(Ring, positions))
        for member in came:
            log.info("worker joined", extra={"worker": member.name, "url": member.address.url})
            watch = WorkerWatch(member, self._fleet, self._upstream, self._settings, self._clock)
            self._watched[member] = watch, watched_task(watch.run(), f"watch {member.name}")

    async def _read(self) -> list[WorkerAddress]:
        addresses: list[WorkerAddress] = []
        for number, source in enumerate(self._sources):
            try:
                self._last[number] = await source.read()
            except Unreadable as error:
                log.warning("workers unreadable: the last known ones stay", extra={"error": str(error)})
            addresses.extend(self._last.get(number, ()))
        return addresses


def watched_task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that runs until it is cancelled. Whatever else ends it is logged, for nobody awaits it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report_end)
    return task


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task died", extra={"task": task.get_name()}, exc_info=error)
