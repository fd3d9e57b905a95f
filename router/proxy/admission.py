"""Admission: whether a request may start now, has to wait for room on the workers, or is refused.

    has_room        the usual case: some worker of the model has room
    wait_for_room   in the fair queue, until a worker has room: 503 overloaded when that takes too long, or too many wait
    wait_for_warm   the ranking's first worker has no room, others have: a moment, if its cache is worth it
    wait_for_worker no worker is up: until one is, or 503
    wait_for_calm   the workers answered that they are busy: a pause, and another attempt

Nothing is polled: the fleet reports when a worker may have room, and as many requests are woken as there are seats. A seat is
kept for each of them until it has its lease, so that no other request takes it. Only workers that answer "busy" while the fleet
sees room are asked again after pauses, which get longer. Retries and resumptions are not admitted again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from router.config.routing import AdmissionConfig
from router.core.errors import (
    ModelUnavailable,
    NoWorkerAvailable,
    Overloaded,
    RouterError,
    Unavailable,
    WorkersBusy,
)
from router.core.fleet.facts import Facts
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import WorkerState
from router.core.fleet.member import Member
from router.core.fleet.seats import Seats, warm_wait_s
from router.core.request.record import Record
from router.core.request.request import Request
from router.core.tenants.queue import Drain, FairQueue, Waiter
from router.core.tenants.quota import INITIAL_COMPLETION_TOKENS
from router.core.tenants.tenant import EVERYBODY, TenantRules
from router.proxy.tenant_limits import TenantLimits

REFUSALS = ("rate_limit_exceeded", "budget_exceeded", "queue_full", "too_late", "no_worker")
"""Reasons of refusals: labels of the refusal counter."""

CALM_S = 0.5
"""The first pause before busy workers are asked again; it doubles each time for one request."""


@dataclass(slots=True, eq=False)
class _Waiter(Waiter):
    """``outcome``: None once a seat is kept for it, or the error of its refusal."""

    outcome: asyncio.Future[RouterError | None]
    seat: Member | None = None

    def end(self, error: RouterError | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(error)


class Admission:
    """One for the process. ``wall_clock``: Unix time, for budgets of a day."""

    def __init__(
        self,
        settings: AdmissionConfig,
        fleet: Fleet,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._settings = settings
        self._fleet = fleet
        self._clock = clock
        self._seats = Seats(fleet.figures, settings.max_worker_requests, settings.max_worker_prefill_tokens)
        self._warm: dict[Member, OrderedDict[_Waiter, None]] = {}
        self._drain = Drain(clock())
        self._pausing_bytes = 0
        self.pausing = 0
        """Requests that pause for busy workers. The bounds hold for them and the queue together."""
        self.queue: FairQueue[_Waiter] = FairQueue(settings.max_queued, settings.max_queued_bytes)
        self.refusals: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self.limits = TenantLimits(fleet, clock, wall_clock, self.refusals)

    def __repr__(self) -> str:
        return f"Admission({self.queue!r}, {self.warm_waiting()} wait for a warm worker, {self.pausing} pause)"

    # Room

    def has_room(self, model: str) -> bool:
        """True also if all workers of the model are ejected, and are tried all the same.
        Raises ModelNotFound, ModelUnavailable, NoWorkerAvailable."""
        eligible = self._fleet.catalog.eligible(model)
        return self._seats.first_free(eligible.positions) is not None or eligible.panic

    def has_seat(self, position: int) -> bool:
        return self._seats.is_free(position)

    def seated_first(self, order: Sequence[int]) -> Sequence[int]:
        """The ranking, with the best worker that has room moved to the front."""
        free = self._seats.first_free(order)
        return order if free is None else [free, *(position for position in order if position != free)]

    async def wait_for_room(self, request: Request, rules: TenantRules, record: Record) -> None:
        """Raises Overloaded; NoWorkerAvailable if no worker is up when the time is over."""
        at_most_s = self._settings.max_wait_s
        try:
            await self._wait_in_line(request, rules, record, at_most_s - record.queued_s)
        except TimeoutError:
            if not self._is_served(request.model):
                raise NoWorkerAvailable("no worker is up", retry_after_s=1) from None
            self.refusals["too_late"] += 1
            raise self._overloaded(f"no worker had room within {at_most_s:g} s", request.model) from None

    async def wait_for_worker(
        self, request: Request, rules: TenantRules, record: Record, error: NoWorkerAvailable | ModelUnavailable
    ) -> None:
        """``error``: why the request could not start. Raises it if no worker came up in time; Overloaded if too many wait."""
        try:
            await self._wait_in_line(request, rules, record, self._settings.no_worker_wait_s - record.queued_s)
        except TimeoutError:
            self.refusals["no_worker"] += 1
            raise error from None

    async def wait_for_warm(self, facts: Facts, order: Sequence[int], request: Request, record: Record) -> bool:
        """The ranking's first worker has no room. False: waiting for it is not worth it. True: time has passed, so rank anew.
        Meanwhile a seat is kept on the best worker that has room."""
        other = self._seats.first_free(order)
        at_most_s = 0.0 if other is None else warm_wait_s(facts, order[0], other, self._settings.warm_wait_s)
        if other is None or at_most_s <= 0.0:
            return False
        first, fallback = self._fleet.member(order[0]), self._fleet.member(other)
        waiter = self._waiter(request, EVERYBODY)
        turns = self._warm.setdefault(first, OrderedDict())
        turns[waiter] = None
        self._seats.keep(other)
        try:
            with suppress(TimeoutError):
                await self._outcome(waiter, record, at_most_s)
        finally:
            turns.pop(waiter, None)
            if not turns:
                self._warm.pop(first, None)
            self._release(fallback)
        return True

    async def wait_for_calm(self, request: Request, record: Record, busy: WorkersBusy, times_before: int) -> None:
        """A pause, at least as long as the shortest Retry-After of the workers. Raises ``busy`` if the request may not wait
        that long, or too many wait."""
        left_s = self._settings.max_wait_s - record.queued_s
        retry_after_s = float(busy.retry_after_s or 0)
        if left_s <= 0.0 or retry_after_s > left_s:
            self.refusals["too_late"] += 1
            raise busy
        if not self._may_pause(len(request.body)):
            self.refusals["queue_full"] += 1
            raise busy
        began_at = self._clock()
        self.pausing += 1
        self._pausing_bytes += len(request.body)
        try:
            await self._sleep(min(max(retry_after_s, CALM_S * 2.0**times_before), left_s))
        finally:
            self.pausing -= 1
            self._pausing_bytes -= len(request.body)
            _note_wait(record, began_at, self._clock())

    def _may_pause(self, body_bytes: int) -> bool:
        """A pause displaces no waiting request."""
        is_short = len(self.queue) + self.pausing < self._settings.max_queued
        return is_short and self.queue.bytes + self._pausing_bytes + body_bytes <= self._settings.max_queued_bytes

    def warm_waiting(self) -> int:
        return sum(map(len, self._warm.values()))

    # Waiting, and being woken

    async def _wait_in_line(self, request: Request, rules: TenantRules, record: Record, at_most_s: float) -> None:
        """Wait until a seat is kept for the request. Raises Overloaded, TimeoutError."""
        if at_most_s <= 0.0:
            raise TimeoutError
        if not self.queue:
            self._drain.begin(self._clock())
        waiter = self._waiter(request, rules)
        for displaced in self.queue.push(waiter):
            self.refusals["queue_full"] += 1
            displaced.end(self._overloaded("too many requests wait already", displaced.model))
        try:
            await self._outcome(waiter, record, at_most_s)
        finally:
            self.queue.remove(waiter)
            self._listen()

    async def _outcome(self, waiter: _Waiter, record: Record, at_most_s: float) -> None:
        """Frees the kept seat when the waiter resumes. Nothing is awaited until its lease is taken, so the seat cannot be
        lost."""
        self._listen()
        began_at = self._clock()
        try:
            async with asyncio.timeout(at_most_s):
                error = await waiter.outcome
            if error is not None:
                raise error
        finally:
            _note_wait(record, began_at, self._clock())
            if waiter.seat is not None:
                self._release(waiter.seat)

    def _waiter(self, request: Request, rules: TenantRules) -> _Waiter:
        account = self.limits.ledger.accounts.get(rules.tenant)
        completion_tokens = account.mean_completion_tokens if account else INITIAL_COMPLETION_TOKENS
        return _Waiter(
            model=request.model,
            tenant=rules.tenant,
            priority=rules.priority,
            share=rules.share,
            tokens=self.limits.prompt_tokens(request) + completion_tokens,
            body_bytes=len(request.body),
            outcome=asyncio.get_running_loop().create_future(),
        )

    def _overloaded(self, message: str, model: str) -> Overloaded:
        return Overloaded(message, retry_after_s=self._drain.retry_after_s(self.queue.waiting(model), self._clock()))

    def _listen(self) -> None:
        is_waited_for = bool(self.queue or self._warm)
        self._fleet.on_capacity = self._fill if is_waited_for else None
        self._fleet.on_probe_ok = self._try if is_waited_for else None

    def _release(self, member: Member) -> None:
        """Waiters are served from the next loop iteration on: by then the request of this seat has its lease on some worker."""
        self._seats.release(member.position)
        asyncio.get_running_loop().call_soon(self._fill, member)

    def _fill(self, member: Member) -> None:
        """A worker that is up may have room: wake a request for each seat, first those that wait for this very worker."""
        if member.removed or member.state is not WorkerState.UP:
            return
        for waiter in self._warm.get(member, ()):
            if self.has_seat(member.position) and not waiter.outcome.done():
                self._seat(waiter, member)
        while self.has_seat(member.position) and (next_waiter := self.queue.pop(member.models)) is not None:
            if not next_waiter.outcome.done():
                self._drain.leave(self._clock())
                self._seat(next_waiter, member)
        self._listen()

    def _try(self, member: Member) -> None:
        """An ejected worker answered a probe: it gets requests that no other worker can serve, one at a time."""
        if member.removed or not self._seats.is_idle(member.position):
            return
        waiter = self.queue.pop([model for model in member.models if not self._is_served(model)])
        if waiter is not None and not waiter.outcome.done():
            self._seat(waiter, member)
        self._listen()

    def _seat(self, waiter: _Waiter, member: Member) -> None:
        self._seats.keep(member.position)
        waiter.seat = member
        waiter.end(None)

    def _is_served(self, model: str) -> bool:
        """True if a worker that is up serves it."""
        try:
            return not self._fleet.catalog.eligible(model).panic
        except Unavailable:
            return False


def _note_wait(record: Record, began_at: float, now: float) -> None:
    record.queued_s += now - began_at
    if record.trace is not None:
        record.trace.reach("wait", now)
