"""Who may start now: a tenant's own limits first, then room on the workers. Whoever may not is told so, or waits its turn.

    visit           a request of a route that keeps state: counted, or 429
    charge          the tenant's limits, at once: passes, or 429
    has_room        the way that nearly all go: some worker of the model has room, and nothing is waited for
    wait_for_room   in the fair queue, until a worker has room: 503 overloaded when that takes too long, or too many wait
    wait_for_warm   the ranking's first has none, others have: a moment, if its cache is worth it
    wait_for_worker nobody is up: until somebody is, or 503
    wait_for_calm   the workers themselves said that they are busy: a pause, and another turn
    settle          what it took in the end

Nothing is polled: the fleet tells when a worker may have room, and as many are woken as there are seats. A seat is kept for
each until it has its lease, so that nobody takes it in between. Only of workers that call themselves busy while the fleet
believes that they have room nobody can tell when they have; they are asked again, ever more seldom. Retries and resumptions
do not come here.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from router.core.errors import (
    ModelUnavailable,
    NoWorkerAvailable,
    Overloaded,
    RouterError,
    TenantLimited,
    Unavailable,
    WorkersBusy,
)
from router.core.fleet.facts import Facts
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import WorkerState
from router.core.fleet.member import Member
from router.core.fleet.seats import Seats, warm_wait_s
from router.core.request.record import Record
from router.core.request.request import NO_TENANT, Request
from router.core.tenants.queue import Drain, FairQueue, Waiter
from router.core.tenants.quota import INITIAL_COMPLETION_TOKENS, Asked, Ledger, Reservation
from router.core.tenants.tenant import EVERYBODY, TenantRules
from router.wire.requests import with_shorter_answers

REFUSALS = ("rate_limit_exceeded", "budget_exceeded", "queue_full", "too_late", "no_worker")
"""Why a request may be refused here: labels of the refusal counter."""

PROMPT_MARGIN, TEMPLATE_TOKENS = 1.5, 256
"""By how much a prompt may be longer than its bytes let expect."""

CALM_S = 0.5
"""The shortest pause before workers that are busy are asked again; twice as long each time, for one request."""


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """``max_worker_…``: 0 for any number. Seconds and bytes as named."""

    max_worker_requests: int
    max_worker_prefill_tokens: int
    max_queued: int
    max_queued_bytes: int
    max_wait_s: float
    no_worker_wait_s: float
    warm_wait_s: float


@dataclass(slots=True, eq=False)
class _Waiter(Waiter):
    """``outcome``: None once a seat is kept for it, or why it is refused."""

    outcome: asyncio.Future[RouterError | None]
    seat: Member | None = None

    def end(self, error: RouterError | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(error)


class Admission:
    """One for the process. ``wall_clock``: Unix time, for budgets of a day."""

    def __init__(
        self,
        settings: AdmissionSettings,
        fleet: Fleet,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._sleep = sleep
        self._settings = settings
        self._fleet = fleet
        self._clock = clock
        self._wall_clock = wall_clock
        self._seats = Seats(fleet.figures, settings.max_worker_requests, settings.max_worker_prefill_tokens)
        self._warm: dict[Member, OrderedDict[_Waiter, None]] = {}
        self._drain = Drain(clock())
        self._pausing_bytes = 0
        self.pausing = 0
        """Requests that wait for busy workers; they and the queue are bounded together."""
        self.queue: FairQueue[_Waiter] = FairQueue(settings.max_queued, settings.max_queued_bytes)
        self.ledger = Ledger()
        self.refusals: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))

    # A tenant's limits

    @contextmanager
    def visit(self, rules: TenantRules) -> Iterator[None]:
        """A request that need not ask a worker. Raises RateLimited."""
        if rules.tenant == NO_TENANT:
            yield
            return
        account = self.ledger.account(rules)
        with self._counting_refusals():
            account.enter(rules, self._clock())
        try:
            yield
        finally:
            account.leave()

    def charge(self, request: Request, rules: TenantRules) -> Reservation | None:
        """None where nobody can be told apart. Raises RateLimited, BudgetExceeded."""
        if rules.tenant == NO_TENANT:
            return None
        with self._counting_refusals():
            account = self.ledger.account(rules)
            reservation = account.reserve(rules, self._asked(request), self._clock(), self._wall_clock())
        if reservation.is_capped and not self._may_be_shortened(request, reservation):
            return account.reserve_all(reservation)
        return reservation

    def _asked(self, request: Request) -> Asked:
        """A prompt leaves no more of the model's window than the rest of it to an answer for which nobody set a limit."""
        if not request.route.spec.is_charged:
            return Asked(0.0, 0.0, is_entered=request.is_entered)
        prompt_tokens = self._prompt_tokens(request)
        if request.max_answer_tokens is not None:
            most = float(request.max_answer_tokens)
        else:
            window = self._fleet.catalog.window(request.model)
            most = max(1.0, window - prompt_tokens) if window else math.inf
        return Asked(prompt_tokens, most * request.answers, request.answers, request.is_entered)

    def _may_be_shortened(self, request: Request, reservation: Reservation) -> bool:
        """Where the client set no limit of its own, one is set only where it surely fits into the window beside the prompt:
        workers refuse what does not."""
        if request.max_answer_tokens is not None:
            return True
        prompt_tokens = PROMPT_MARGIN * reservation.asked.prompt_tokens + TEMPLATE_TOKENS
        return prompt_tokens + reservation.most_of_each <= self._fleet.catalog.window(request.model)

    def shortened(self, request: Request, reservation: Reservation) -> Request:
        """The request, asking the worker for no more tokens than are reserved for it."""
        reservation.account.totals.shortened += 1
        return with_shorter_answers(request, reservation.most_of_each)

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except TenantLimited as limited:
            self.refusals[limited.code] += 1
            raise

    def settle(self, reservation: Reservation | None, record: Record) -> None:
        if reservation is not None:
            reservation.account.settle(reservation, record, self._clock())

    def _prompt_tokens(self, request: Request) -> float:
        return request.fingerprint.prompt_bytes / self._fleet.learning.bytes_per_token(request.model)

    # Room

    def has_room(self, model: str) -> bool:
        """True also where all who serve it are ejected, and are tried all the same.
        Raises ModelNotFound, ModelUnavailable, NoWorkerAvailable."""
        eligible = self._fleet.catalog.eligible(model)
        return self._seats.first_free(eligible.positions) is not None or eligible.panic

    def has_seat(self, position: int) -> bool:
        return self._seats.is_free(position)

    def seated_first(self, order: Sequence[int]) -> Sequence[int]:
        """As ranked, but for the best that has room, which comes first."""
        free = self._seats.first_free(order)
        return order if free is None else [free, *(position for position in order if position != free)]

    async def wait_for_room(self, request: Request, rules: TenantRules, record: Record) -> None:
        """Raises Overloaded; NoWorkerAvailable where nobody is up any more when its time is over."""
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
        """``error``: why it could not start. Raises it when nobody came up in time; Overloaded when too many wait."""
        try:
            await self._wait_in_line(request, rules, record, self._settings.no_worker_wait_s - record.queued_s)
        except TimeoutError:
            self.refusals["no_worker"] += 1
            raise error from None

    async def wait_for_warm(self, facts: Facts, order: Sequence[int], request: Request, record: Record) -> bool:
        """The ranking's first has no room. False: waiting for it is of no use. True: time has passed, and the ranking is old.
        Meanwhile a seat is kept on the best that has room."""
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
        """A pause, at least as long as the worker wished that wants to be asked again the soonest. Raises ``busy`` where that
        is longer than the request may still wait, or too many wait."""
        left_s = self._settings.max_wait_s - record.queued_s
        wished_s = float(busy.retry_after_s or 0)
        if left_s <= 0.0 or wished_s > left_s:
            self.refusals["too_late"] += 1
            raise busy
        if not self._may_pause(len(request.body)):
            self.refusals["queue_full"] += 1
            raise busy
        began_at = self._clock()
        self.pausing += 1
        self._pausing_bytes += len(request.body)
        try:
            await self._sleep(min(max(wished_s, CALM_S * 2.0**times_before), left_s))
        finally:
            self.pausing -= 1
            self._pausing_bytes -= len(request.body)
            _note_wait(record, began_at, self._clock())

    def _may_pause(self, body_bytes: int) -> bool:
        """A pause displaces nobody."""
        is_short = len(self.queue) + self.pausing < self._settings.max_queued
        return is_short and self.queue.bytes + self._pausing_bytes + body_bytes <= self._settings.max_queued_bytes

    def warm_waiting(self) -> int:
        return sum(map(len, self._warm.values()))

    # Waiting, and being woken

    async def _wait_in_line(self, request: Request, rules: TenantRules, record: Record, at_most_s: float) -> None:
        """Until a seat is kept for it. Raises Overloaded, TimeoutError."""
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
        """Its seat is released as soon as it goes on: it takes its lease before anybody else is asked."""
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
        account = self.ledger.accounts.get(rules.tenant)
        completion_tokens = account.mean_completion_tokens if account else INITIAL_COMPLETION_TOKENS
        return _Waiter(
            model=request.model,
            tenant=rules.tenant,
            priority=rules.priority,
            share=rules.share,
            tokens=self._prompt_tokens(request) + completion_tokens,
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
        """The seat is looked at again behind whatever runs now: by then its request has a lease, here or elsewhere."""
        self._seats.release(member.position)
        asyncio.get_running_loop().call_soon(self._fill, member)

    def _fill(self, member: Member) -> None:
        """A worker that is up may have room: as many as it has seats for are woken, those first who were let in already."""
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
        """An ejected worker seems to be alive: it is worth a request of those whom nobody else serves, one at a time."""
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
        """By a worker that is up."""
        try:
            return not self._fleet.catalog.eligible(model).panic
        except Unavailable:
            return False


def _note_wait(record: Record, began_at: float, now: float) -> None:
    record.queued_s += now - began_at
    if record.trace is not None:
        record.trace.reach("wait", now)
