"""Which waiting request is next when workers have room, and which is displaced when too many wait. Pure: times are passed in,
and nothing here wakes a task.

    models      one queue each, so that no request waits behind requests for other workers
    └ bands     one for each priority, strictly the highest first: a lower one may wait until its deadline
      └ lines   one for each tenant, the least served first: expected tokens over the tenant's share
        └ waiters, first come, first served

Lines are start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996). It needs no quantum. Between
two tenants that both wait, tokens served over share differ by at most one request. A tenant that comes back starts where the
least served stands, so absence earns nothing. The served tokens are forgotten when no request waits for the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import chain, count
from typing import Generic, TypeVar

from router.core.request.request import Tenant


@dataclass(slots=True, eq=False)
class Waiter:
    """One request that waits. ``tokens``: its expected cost, > 0. ``share``: its tenant's weight, > 0."""

    model: str
    tenant: Tenant
    priority: int
    share: float
    tokens: float
    body_bytes: int


W = TypeVar("W", bound=Waiter)


class FairQueue(Generic[W]):
    """All waiters of all models. Each is in it once: from ``push`` until ``pop`` or ``remove``, or until it is displaced.

    A waiter costs O(log tenants); a push into a full queue costs O(tenants).
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.bytes = 0
        self._size = 0
        self._models: OrderedDict[str, _ModelQueue[W]] = OrderedDict()
        """The model that was served the longest ago is first."""
        self._tenants: dict[Tenant, _Held[W]] = {}

    def __repr__(self) -> str:
        return f"FairQueue({self._size} of {self.max_requests} requests, {self.bytes} of {self.max_bytes} bytes)"

    def __len__(self) -> int:
        return self._size

    def waiting(self, model: str) -> int:
        queue = self._models.get(model)
        return 0 if queue is None else queue.size

    def waiting_of(self, tenant: Tenant) -> int:
        held = self._tenants.get(tenant)
        return 0 if held is None else len(held.waiters)

    def push(self, waiter: W) -> list[W]:
        """Returns the waiters that are displaced, perhaps this one. While the queue is too full, the newest waiter goes of the
        tenant that has the lowest priority, and then the largest part of the bounds over its share. So no tenant fills the
        queue for others."""
        if waiter.body_bytes > self.max_bytes:
            return [waiter]
        self._models.setdefault(waiter.model, _ModelQueue()).push(waiter)
        held = self._tenants.setdefault(waiter.tenant, _Held())
        held.waiters[waiter] = None
        held.bytes += waiter.body_bytes
        self.bytes += waiter.body_bytes
        self._size += 1
        displaced = []
        while self._size > self.max_requests or self.bytes > self.max_bytes:
            displaced.append(self._least_entitled(held))
            self.remove(displaced[-1])
        return displaced

    def pop(self, models: Container[str]) -> W | None:
        """The next waiter for one of ``models``: of the highest priority, then of the model that was served the longest ago."""
        first: str | None = None
        highest = 0
        for model, queue in self._models.items():
            if model in models and (first is None or queue.priority > highest):
                first, highest = model, queue.priority
        if first is None:
            return None
        waiter = self._models[first].pop()
        self._models.move_to_end(first)
        self._forget(waiter)
        return waiter

    def remove(self, waiter: W) -> bool:
        """False if it did not wait."""
        held = self._tenants.get(waiter.tenant)
        if held is None or waiter not in held.waiters:
            return False
        self._models[waiter.model].remove(waiter)
        self._forget(waiter)
        return True

    def _forget(self, waiter: W) -> None:
        held = self._tenants[waiter.tenant]
        del held.waiters[waiter]
        held.bytes -= waiter.body_bytes
        self.bytes -= waiter.body_bytes
        self._size -= 1
        if not held.waiters:
            del self._tenants[waiter.tenant]
        if not self._models[waiter.model].size:
            del self._models[waiter.model]

    def _least_entitled(self, newcomer: _Held[W]) -> W:
        """Among equals, the newcomer."""
        candidates = (held for held in chain((newcomer,), self._tenants.values()) if held.waiters)
        return max(candidates, key=self._burden).newest

    def _burden(self, held: _Held[W]) -> tuple[int, float]:
        newest = held.newest
        part = max(len(held.waiters) / self.max_requests, held.bytes / self.max_bytes) if self.max_requests else 0.0
        return -newest.priority, part / newest.share


@dataclass(slots=True)
class _Held(Generic[W]):
    """One tenant's waiters for all models."""

    waiters: OrderedDict[W, None] = field(default_factory=OrderedDict)
    bytes: int = 0

    @property
    def newest(self) -> W:
        return next(reversed(self.waiters))


@dataclass(slots=True)
class _Line(Generic[W]):
    """One tenant's waiters in one band. ``start``: the virtual time at which the next one is due."""

    tenant: Tenant
    start: float
    waiters: OrderedDict[W, None] = field(default_factory=OrderedDict)


class _Band(Generic[W]):
    """Each line is in the heap once, by its start. A line without waiters stays until its start is reached: its tenant was
    served ahead of the others, and would be served ahead again if it were forgotten."""

    __slots__ = ("_heap", "_lines", "_now", "_numbers", "size")

    def __init__(self) -> None:
        self._lines: dict[Tenant, _Line[W]] = {}
        self._heap: list[tuple[float, int, _Line[W]]] = []
        self._now = 0.0
        self._numbers: Iterator[int] = count()
        self.size = 0

    def push(self, waiter: W) -> None:
        line = self._lines.get(waiter.tenant)
        if line is None:
            line = self._lines[waiter.tenant] = _Line(waiter.tenant, self._now)
            heappush(self._heap, (line.start, next(self._numbers), line))
        line.waiters[waiter] = None
        self.size += 1

    def pop(self) -> W:
        """Expects at least one waiter."""
        while not (line := self._heap[0][2]).waiters:
            heappop(self._heap)
            del self._lines[line.tenant]
        waiter, _ = line.waiters.popitem(last=False)
        self._now = line.start
        line.start += waiter.tokens / waiter.share
        heapreplace(self._heap, (line.start, next(self._numbers), line))
        self.size -= 1
        return waiter

    def remove(self, waiter: W) -> None:
        del self._lines[waiter.tenant].waiters[waiter]
        self.size -= 1


class _ModelQueue(Generic[W]):
    __slots__ = ("_bands", "size")

    def __init__(self) -> None:
        self._bands: dict[int, _Band[W]] = {}
        self.size = 0

    @property
    def priority(self) -> int:
        """The highest of its waiters. Expects at least one."""
        return max(priority for priority, band in self._bands.items() if band.size)

    def push(self, waiter: W) -> None:
        self._bands.setdefault(waiter.priority, _Band()).push(waiter)
        self.size += 1

    def pop(self) -> W:
        self.size -= 1
        return self._bands[self.priority].pop()

    def remove(self, waiter: W) -> None:
        self._bands[waiter.priority].remove(waiter)
        self.size -= 1


class Drain:
    """How fast a queue gets shorter, for the Retry-After of a refused request."""

    MIN_S, MAX_S = 1, 60
    NEWEST = 0.1
    """Weight of the newest interval in the mean."""

    __slots__ = ("_interval_s", "_left_at")

    def __init__(self, now: float) -> None:
        self._left_at = now
        self._interval_s: float | None = None

    def begin(self, now: float) -> None:
        """The queue was empty: the time since the last departure is not counted."""
        self._left_at = now

    def leave(self, now: float) -> None:
        """One waiter was admitted."""
        elapsed_s = now - self._left_at
        mean_s = self._interval_s
        self._interval_s = elapsed_s if mean_s is None else mean_s + self.NEWEST * (elapsed_s - mean_s)
        self._left_at = now

    def retry_after_s(self, waiting: int, now: float) -> int:
        """Whole seconds until ``waiting`` requests will have been admitted, 1 … 60. While the queue stands still, they grow."""
        interval_s = max(self._interval_s or 0.0, now - self._left_at)
        return max(self.MIN_S, min(self.MAX_S, int(waiting * interval_s) + 1))
