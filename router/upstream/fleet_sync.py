"""Keeps the fleet in step with its sources: adds and removes workers, starts a monitor for each, and builds the ring."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from router.config.schema import Config
from router.core.fleet.fleet import Fleet
from router.core.fleet.member import Member
from router.core.fleet.ring import Ring
from router.core.worker import WorkerAddress
from router.runtime.background import Background
from router.runtime.log_once import LogOnce
from router.upstream.discovery import LiveSource, Source, Unreadable
from router.upstream.exchange import Upstream
from router.upstream.health_check import WorkerMonitor
from router.upstream.pool import Pool

FRESH_S = 0.5
"""One refresh serves all requests for unlisted models that come within this time, whatever the models."""

log = logging.getLogger("warmroute.fleet")


class FleetSync:
    """Owns one monitoring task for each worker. ``use_ring`` takes each new ring, which is built off the loop."""

    def __init__(
        self,
        sources: Sequence[Source],
        fleet: Fleet,
        pool: Pool,
        upstream: Upstream,
        config: Config,
        use_ring: Callable[[Ring], None],
        clock: Callable[[], float],
        background: Background,
    ) -> None:
        self._background = background
        self._is_ring_old = False
        self._news = asyncio.Event()
        self._ring_due = asyncio.Event()
        self._live: list[asyncio.Task[None]] = []
        self.failures: Counter[str] = Counter(dict.fromkeys(sorted({source.kind for source in sources}), 0))
        """Reads of sources that failed, by the kind of source."""
        self.found: dict[str, int] = dict.fromkeys(self.failures, 0)
        """Workers that each kind of source named last."""
        self._sources = [(source, LogOnce()) for source in sources]
        self._fleet = fleet
        self._pool = pool
        self._upstream = upstream
        self._config = config
        self._use_ring = use_ring
        self._last: dict[int, Sequence[WorkerAddress]] = {}
        self._monitors: dict[Member, tuple[WorkerMonitor, asyncio.Task[None]]] = {}
        self._clock = clock
        self._refresh: asyncio.Task[None] | None = None
        self._refresh_due = 0.0

    async def start(self, at_most_s: float) -> None:
        """Find the workers and check each once, so that the first request does not come before the first reply. Takes
        ``at_most_s`` for the checks."""
        for source, _errors in self._sources:
            if isinstance(source, LiveSource):
                self._live.append(self._background.start("source", source.run, source.kind))
        await self.refresh()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                for monitor, _task in self._monitors.values():
                    await monitor.has_checked.wait()

    async def run(self) -> None:
        """Read the sources at intervals, and at once when one has news, until cancelled. Rings are built in a task of their
        own: a worker that has left gets no request from then on, however long a ring takes."""
        building = asyncio.create_task(self._renew_rings())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config.fleet.discovery_interval_s):
                        await self._news.wait()
                self._news.clear()
                await self._follow()
                if self._is_ring_old:
                    self._ring_due.set()
                if building.done():
                    await building  # raises its error
        finally:
            building.cancel()
            await asyncio.gather(building, return_exceptions=True)

    async def refresh_models(self) -> None:
        """Read each healthy worker's list of models now, since a client asks for a model that no worker lists. Requests that
        ask meanwhile share the refresh. It takes a probe's timeout at most."""
        if self._refresh is None or (self._refresh.done() and self._clock() >= self._refresh_due):
            self._refresh_due = self._clock() + FRESH_S
            self._refresh = asyncio.create_task(self._refresh_all_models(), name="refresh models")
        await asyncio.shield(self._refresh)

    async def _refresh_all_models(self) -> None:
        refreshes = [monitor.refresh_models() for monitor, _task in self._monitors.values()]
        await asyncio.gather(*refreshes, return_exceptions=True)

    def wake(self) -> None:
        """Read the sources now: one has news."""
        self._news.set()

    async def close(self) -> None:
        """Cancel all tasks, and wait for their end."""
        tasks = [*self._live, *(task for _monitor, task in self._monitors.values())]
        if self._refresh is not None:
            tasks.append(self._refresh)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Read the sources once and act on what changed, and on what an earlier call could not finish."""
        await self._follow()
        if self._is_ring_old:
            await self._renew_ring()

    async def _follow(self) -> None:
        came, left = self._fleet.set_members(await self._read())
        self._is_ring_old |= bool(came or left)
        for member in left:
            self._pool.forget(member.address)
            log.info("worker left", extra={"worker": member.name})
        for member in [member for member in self._monitors if member.removed]:
            self._monitors.pop(member)[1].cancel()
        for member in self._fleet.members():
            if member not in self._monitors:
                self._monitors[member] = self._start_monitor(member)

    async def _renew_rings(self) -> None:
        while True:
            await self._ring_due.wait()
            self._ring_due.clear()
            await self._renew_ring()

    async def _renew_ring(self) -> None:
        self._is_ring_old = False
        try:
            positions = {member.name: member.position for member in self._fleet.members()}
            self._use_ring(await asyncio.to_thread(Ring, positions))
        except BaseException:
            self._is_ring_old = True
            raise

    def _start_monitor(self, member: Member) -> tuple[WorkerMonitor, asyncio.Task[None]]:
        log.info("worker joined", extra={"worker": member.name, "url": member.address.url})
        config = self._config
        monitor = WorkerMonitor(
            member,
            self._fleet,
            self._upstream,
            config.probes,
            config.load,
            self._clock,
            has_worker_key=bool(config.fleet.worker_key),
        )
        return monitor, self._background.start("health_check", monitor.run, member.name)

    async def _read(self) -> list[WorkerAddress]:
        """The addresses of all sources. A source that cannot be read counts with its last addresses; each failure is counted,
        and logged once."""
        addresses: list[WorkerAddress] = []
        for number, (source, errors) in enumerate(self._sources):
            try:
                self._last[number] = await source.read()
                errors.succeeded()
            except Unreadable as error:
                self.failures[source.kind] += 1
                if errors.failed(str(error)):
                    log.warning("workers unreadable: the last known ones stay", extra={"error": str(error)})
            addresses.extend(self._last.get(number, ()))
        named: Counter[str] = Counter()
        for number, (source, _errors) in enumerate(self._sources):
            named[source.kind] += len(self._last.get(number, ()))
        self.found |= named
        return addresses

    @property
    def restarts(self) -> dict[str, int]:
        """Watches that broke, by the kind of source. A source that is not watched has none."""
        return {
            source.kind: source.restarts if isinstance(source, LiveSource) else 0 for source, _errors in self._sources
        }
