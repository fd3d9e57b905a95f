"""One request, top to bottom: which worker gets it, what happens if that fails, and how its answer comes back.

    0  admission  the tenant's limits; room on some worker, or a wait for it
    1  facts      the fingerprint, its match in the index, the session's last worker, the fleet as it stands
    2  ranking    the policy's, pure
    3  attempts   for worker in ranking: lease → send → first event; on a failure before it, the next worker
    4  relay      whole events flow to the client until the stream ends, fails, or the client is gone
    5  resume     the next worker continues a stream that broke
    6  after      the index and the rates learn; the record is observed

Nothing here knows HTTP servers or sockets: clients and workers are the Protocols of ``ports``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from router.config.routing import ResumptionConfig, RetriesConfig
from router.core.errors import (
    ModelNotFound,
    ModelUnavailable,
    NoWorkerAvailable,
    PoisonRequest,
    RouterError,
    WorkerError,
    WorkersBusy,
)
from router.core.fleet.facts import Facts
from router.core.fleet.member import Member
from router.core.request.attempt import Failure
from router.core.request.poison_guard import PoisonGuard
from router.core.request.record import Record
from router.core.request.reply import StreamEnd, Verdict, judge
from router.core.request.request import Request
from router.core.request.retry import RetryBudget
from router.core.request.trace import Trace, trace_of
from router.core.tenants.quota import Reservation
from router.core.tenants.tenant import EVERYBODY, TenantRules
from router.proxy.admission import Admission
from router.proxy.attempts import Attempts
from router.proxy.delivery import Delivery, Read, read_here
from router.proxy.flight import Break, Flight
from router.proxy.ports import Client, Upstream
from router.proxy.resumption import Resumer
from router.proxy.selection import AttemptRefusal, WorkerSelector
from router.runtime.reference_cycles import untie_error
from router.wire.dialects import read_error
from router.wire.transcript import Transcript, TranscriptBudget

log = logging.getLogger("warmroute.dispatch")

CLIENT_GONE = 499
"""nginx's status for a request whose client left before its answer began. It stands in records only."""


MAX_KEPT_BYTES = 4 << 20
"""Kept of one stream for its resumption, beyond its newest 64 KiB."""


async def look_nowhere() -> None:
    """For a fleet whose lists of models cannot be read anew."""


class Dispatcher:
    """One for the process; ``dispatch`` may run any number of times at once."""

    def __init__(
        self,
        retries: RetriesConfig,
        resumption: ResumptionConfig,
        selector: WorkerSelector,
        upstream: Upstream,
        observe: Callable[[Record], None],
        clock: Callable[[], float],
        admission: Admission,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        read: Read = read_here,
        look_for_models: Callable[[], Awaitable[None]] = look_nowhere,
    ) -> None:
        """``read``: parses large answers for their usage. ``look_for_models``: reads the workers' lists of models anew."""
        self._look_for_models = look_for_models
        self._retries = retries
        self._admission = admission
        self._selector = selector
        self._delivery = Delivery(selector, upstream, clock, read)
        self._observe = observe
        self._clock = clock
        self.budget = RetryBudget(retries.budget_ratio, retries.min_budget)
        self.kept = TranscriptBudget(resumption.max_total_kept_bytes)
        self._resumer = Resumer(resumption, selector, upstream, self.budget, clock, sleep)

    def __repr__(self) -> str:
        return f"Dispatcher({self._selector.policy.name}, {self._selector.fleet!r}, {self.budget!r})"

    async def dispatch(
        self, request: Request, client: Client, started_at: float, rules: TenantRules = EVERYBODY
    ) -> None:
        """Answer the client, or raise the RouterError that says why not. ``rules``: the client's tenant's."""
        record = Record(
            route=request.route,
            model=request.model,
            policy=self._selector.policy.name,
            request_id=request.request_id,
            stream=request.stream,
            started_at=started_at,
        )
        if (trace := trace_of(request.request_id)) is not None:
            request = _begin_trace(trace, record, request, self._clock())
        transcript = Transcript(MAX_KEPT_BYTES, self.kept) if request.is_resumable else None
        self.budget.on_request()
        reservation: Reservation | None = None
        is_foreseen = False
        try:
            reservation = self._admission.limits.charge(request, rules)
            if reservation is not None and reservation.is_capped:
                request = self._admission.limits.shortened(request, reservation)
            flight = Flight(request, client, record, transcript, PoisonGuard(self._retries.max_deaths))
            broken = await self._place(flight, rules)
            if broken is not None:
                await self._mend(flight, broken)
            is_foreseen = True
        except RouterError as error:
            is_foreseen = True
            record.status, record.outcome = error.status, error.code
            error.is_counted = True
            if isinstance(error, PoisonRequest):
                _note_given_up(record, error)
            raise
        except asyncio.CancelledError:
            is_foreseen = True
            record.status, record.outcome = record.status or CLIENT_GONE, StreamEnd.CLIENT_GONE.value
            raise
        finally:
            if record.tally is not None and not record.completion_tokens:
                record.delivered_tokens = record.tally.tokens(
                    self._selector.fleet.learning.bytes_per_token(request.model)
                )
            record.tally = None
            if transcript is not None:
                transcript.clear()
            record.ended_at = self._clock()
            self._admission.limits.settle(reservation, record)
            if is_foreseen:  # the port counts other errors
                self._observe(record)

    async def _place(self, flight: Flight, rules: TenantRules) -> Break | None:
        """Find a worker with room, or wait for one; and again, if all that were tried are gone or busy.
        Raises Unavailable, ModelNotFound, WorkerError."""
        request, record, admission = flight.request, flight.record, self._admission
        is_patient, has_looked, times_busy = True, False, 0
        while True:
            try:
                if not admission.has_room(request.model):
                    await admission.wait_for_room(request, rules, record)
                facts, ranking = self._selector.rank(request)
                order = ranking.order
                if not admission.has_seat(order[0]):
                    if is_patient and await admission.wait_for_warm(facts, order, request, record):
                        is_patient = False
                        continue
                    order = admission.seated_first(order)
                record.reason = ranking.reason
                record.first_choice = self._selector.fleet.member(ranking.order[0]).name
                record.decided_at = self._clock()
                if record.trace is not None:
                    record.trace.reach("decide", record.decided_at)
                return await self._attempt(flight, facts, order)
            except (ModelNotFound, ModelUnavailable, NoWorkerAvailable) as error:
                if not has_looked and not isinstance(error, NoWorkerAvailable):
                    has_looked = True
                    untie_error(error)  # an attempt's frame may refer to it
                    await self._look_again(record)
                elif isinstance(error, ModelNotFound):
                    raise
                else:
                    await admission.wait_for_worker(request, rules, record, error)
            except WorkersBusy as busy:
                await admission.wait_for_calm(request, record, busy, times_busy)
                untie_error(busy)
                times_busy += 1

    async def _look_again(self, record: Record) -> None:
        """No worker lists the model, which may have been loaded a moment ago. Reading the lists counts as queueing."""
        began_at = self._clock()
        await self._look_for_models()
        record.queued_s += self._clock() - began_at

    async def _attempt(self, flight: Flight, facts: Facts, order: Sequence[int]) -> Break | None:
        """Walk the ranking until a worker answers. Raises WorkerError, PoisonRequest, WorkersBusy, NoWorkerAvailable."""
        request, record = flight.request, flight.record
        refusal: AttemptRefusal | None = None
        ranked, tried = self._members(order), set[Member]()
        with Attempts(self._retries.max_attempts, self.budget, flight.poison_guard, record, self._clock) as attempts:
            while attempts.are_left and (member := self._next(request, ranked, tried, refusal)) is not None:
                tried.add(member)
                if not attempts.begin(is_free=refusal is None or refusal.is_free):
                    refusal = refusal and refusal.for_good()
                    break
                if refusal is not None:
                    record.retries.append(refusal.cause)
                outcome = await attempts.run(member, request, partial(self._delivery.attempt, flight, facts, member))
                if not isinstance(outcome, AttemptRefusal):
                    return outcome
                refusal = outcome.or_sooner(refusal)
        if refusal is not None and refusal.cause is Failure.NO_MODEL:
            raise refusal.error
        if refusal is None or self._selector.fleet.catalog.eligible(request.model).panic:
            raise NoWorkerAvailable("no worker is up", retry_after_s=1)
        raise refusal.error

    def _next(
        self, request: Request, ranked: list[Member], tried: set[Member], refusal: AttemptRefusal | None
    ) -> Member | None:
        """The best worker that was not tried. When all were, the fleet is ranked anew into ``ranked``: workers that were
        ejected before may be all that is left."""
        if (member := _untried(ranked, tried)) is not None:
            return member
        if (
            refusal is not None
            and refusal.cause is Failure.NO_MODEL
            and not self._selector.fleet.catalog.serves(request.model)
        ):
            return None
        ranked[:] = self._members(self._selector.rank(request)[1].order)
        return _untried(ranked, tried)

    def _members(self, order: Sequence[int]) -> list[Member]:
        """As many as may be tried. Members, since a position belongs to another worker after one has left."""
        return [self._selector.fleet.member(position) for position in order[: self._retries.max_attempts]]

    async def _mend(self, flight: Flight, broken: Break) -> None:
        """Another worker continues the stream, or the client gets an error event."""
        member, event, client, record = broken.member, broken.stream_filter.error, flight.client, flight.record
        if self._selector.on_stream_end(member, broken.end, event):
            flight.poison_guard.add(member.name, record.chunks)
        if event and not broken.stream_filter.finished and judge(read_error(event)[0]) is Verdict.ANSWER:
            record.outcome = "client_error"
            client.break_off_with(event)  # another worker would say the same
            return
        error = WorkerError("the worker failed while it answered")
        try:
            if await self._resumer.resume(flight, broken):
                return
        except PoisonRequest as given_up:
            _note_given_up(record, given_up)
            untie_error(given_up)
            error = given_up
        client.break_off(error)


def _untried(ranked: Sequence[Member], tried: set[Member]) -> Member | None:
    return next((member for member in ranked if member not in tried and not member.removed), None)


def _begin_trace(trace: Trace, record: Record, request: Request, now: float) -> Request:
    """Close the phase before dispatch. Returns the request with ``traceparent`` set, also if the trace is not sampled."""
    trace.record = record
    trace.reach("prompt" if trace.phases else "receive", now)
    if trace.is_sampled:
        record.trace = trace
    return msgspec.structs.replace(request, traceparent=trace.traceparent(trace.span_id))


def _note_given_up(record: Record, error: PoisonRequest) -> None:
    record.given_up = True
    log.warning("request given up", extra={"request_id": record.request_id, "died": list(error.workers)})
