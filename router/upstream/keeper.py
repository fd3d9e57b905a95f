"""Keeps the fleet true: reads the sources, adds and removes workers, builds the ring, and has each worker watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from router.background import Background
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
        background: Background,
    ) -> None:
        self._background = background
        self._complaints: dict[int, str] = {}
        """By source, why it could not be read the last time."""
        self._is_ring_old = False
        self.failures: Counter[str] = Counter(dict.fromkeys(sorted({source.kind for source in sources}), 0))
        """Looks at sources that failed, by the kind of source."""
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
        """Read the sources once and act on what changed. What an earlier call left undone, having failed, is made up for."""
        came, left = self._fleet.set_members(await self._read())
        self._is_ring_old |= bool(came or left)
        for member in left:
            self._pool.forget(member.address)
            log.info("worker left", extra={"worker": member.name})
        for member in [member for member in self._watched if member.removed]:
            self._watched.pop(member)[1].cancel()
        for member in self._fleet.members():
            if member not in self._watched:
                self._watched[member] = self._watch(member)
        if self._is_ring_old:
            positions = {member.name: member.position for member in self._fleet.members()}
            self._use_ring(await asyncio.to_thread(Ring, positions))
            self._is_ring_old = False

    def _watch(self, member: Member) -> tuple[WorkerWatch, asyncio.Task[None]]:
        log.info("worker joined", extra={"worker": member.name, "url": member.address.url})
        watch = WorkerWatch(member, self._fleet, self._upstream, self._settings, self._clock)
        return watch, self._background.start("watch", watch.run, member.name)

    async def _read(self) -> list[WorkerAddress]:
        """Of a source that cannot be read, what it said last. Each failure is counted, and told once."""
        addresses: list[WorkerAddress] = []
        for number, source in enumerate(self._sources):
            complaint = ""
            try:
                self._last[number] = await source.read()
            except Unreadable as error:
                complaint = str(error)
                self.failures[source.kind] += 1
            if complaint and complaint != self._complaints.get(number):
                log.warning("workers unreadable: the last known ones stay", extra={"error": complaint})
            self._complaints[number] = complaint
            addresses.extend(self._last.get(number, ()))
        return addresses
