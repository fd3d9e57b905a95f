"""One request, top to bottom: where it goes, what happens if that fails, and how its answer comes back.

    0  admission  the tenant's limits; room on some worker, or a wait for it
    1  facts      the fingerprint, what the index says of it, the session's last worker, the fleet as it stands
    2  ranking    the policy's, pure
    3  attempts   for worker in ranking: lease → send → first event; before it, the next worker
    4  relay      whole events flow to the client until the stream ends, fails, or the client is gone
    5  resume     a stream that broke goes on with the next worker
    6  after      the index and the rates learn; the record is observed

Nothing here knows HTTP servers or sockets: clients and workers are the Protocols of ``sides``. A reply that is not streamed
is held until it is whole, so that its worker may die at any moment; a stream is held until its first event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

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
from router.core.fleet.fleet import Member
from router.core.request.attempt import CannotConnect, ReplyTooLarge, WorkerDied, WorkerErred, WorkerSilent
from router.core.request.poison_guard import PoisonGuard
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd, Verdict, judge
from router.core.request.request import Request, Tenant
from router.core.request.retry import RetryBudget
from router.core.request.trace import Trace, trace_of
from router.core.tenants.memory import REPLY, MemoryFull
from router.core.tenants.quota import Reservation
from router.core.tenants.tenant import EVERYBODY, TenantRules
from router.proxy.ports import Admission, Client, Upstream
from router.proxy.resumption import CAUSES, Resumer, ResumptionRules
from router.proxy.selection import NO_MODEL, AttemptRefusal, WorkerSelector
from router.runtime.reference_cycles import untie_error
from router.wire.refusals import with_known_code
from router.wire.sse import DIALECTS, StreamFilter, Usage, read_error, read_usage
from router.wire.transcript import Transcript, TranscriptBudget

log = logging.getLogger("warmroute.dispatch")

T = TypeVar("T")

CLIENT_GONE = 499
"""nginx's status for a request whose client left before any of its answer was there; nobody is sent it."""


MAX_READ_HERE_BYTES = 1 << 20
"""Of an answer, to look for its usage: 2 ms at the most."""


class Read(Protocol):
    """Calls a pure function on bytes, where that holds nobody up. ``tenant``: on whose behalf."""

    async def __call__(self, tenant: Tenant, parse: Callable[[bytes], T], /, *pieces: bytes) -> T: ...


async def read_here(_tenant: Tenant, parse: Callable[[bytes], T], *pieces: bytes) -> T:
    return parse(b"".join(pieces))


async def look_nowhere() -> None:
    """Where no worker's list of models can be read anew."""


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """``max_deaths``: of workers under one request, one after another. ``max_kept_bytes``: of one stream, for its resumption;
    ``max_total_kept_bytes``: of all of them."""

    max_attempts: int
    max_deaths: int
    retry_ratio: float
    min_retries: int
    max_resumptions: int
    resumption_wait_s: float
    max_kept_bytes: int
    max_total_kept_bytes: int


@dataclass(slots=True)
class _Flight:
    """One request on its way."""

    request: Request
    client: Client
    record: Record
    transcript: Transcript | None
    """What the client has of a stream that others could go on with."""
    poison_guard: PoisonGuard


@dataclass(frozen=True, slots=True)
class _Break:
    """A stream that broke after its first event."""

    member: Member
    end: StreamEnd
    watch: StreamFilter


class Dispatcher:
    """One for the process; ``dispatch`` may run any number of times at once."""

    def __init__(
        self,
        settings: DispatchSettings,
        selector: WorkerSelector,
        upstream: Upstream,
        observe: Callable[[Record], None],
        clock: Callable[[], float],
        admission: Admission,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        read: Read = read_here,
        look_for_models: Callable[[], Awaitable[None]] = look_nowhere,
    ) -> None:
        """``read``: where large answers are read for what they cost. ``look_for_models``: reads the workers' lists anew."""
        self._read = read
        self._look_for_models = look_for_models
        self._settings = settings
        self._admission = admission
        self._selector = selector
        self._upstream = upstream
        self._observe = observe
        self._clock = clock
        self.budget = RetryBudget(settings.retry_ratio, settings.min_retries)
        self.kept = TranscriptBudget(settings.max_total_kept_bytes)
        rules = ResumptionRules(settings.max_resumptions, settings.resumption_wait_s)
        self._resumer = Resumer(rules, selector, upstream, self.budget, clock, sleep)

    async def dispatch(
        self, request: Request, client: Client, started_at: float, rules: TenantRules = EVERYBODY
    ) -> None:
        """Answer the client, or raise the RouterError that says why not. ``rules``: the tenant's who asks."""
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
        transcript = Transcript(self._settings.max_kept_bytes, self.kept) if request.is_resumable else None
        self.budget.on_request()
        reservation: Reservation | None = None
        is_foreseen = False
        try:
            reservation = self._admission.charge(request, rules)
            if reservation is not None and reservation.is_capped:
                request = self._admission.shortened(request, reservation)
            flight = _Flight(request, client, record, transcript, PoisonGuard(self._settings.max_deaths))
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
                record.delivered_tokens = record.tally.tokens(self._selector.fleet.bytes_per_token(request.model))
            record.tally = None
            if transcript is not None:
                transcript.clear()
            record.ended_at = self._clock()
            self._admission.settle(reservation, record)
            if is_foreseen:  # else the port counts it, as what nobody foresaw
                self._observe(record)

    async def _place(self, flight: _Flight, rules: TenantRules) -> _Break | None:
        """Where there is room, or will be soon; again, when those who were tried are gone and others may come, or were busy and
        may be less so. Raises Unavailable, ModelNotFound, WorkerError."""
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
                    untie_error(error)  # an attempt's frame may hold it
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
        """No worker lists the model: it may have been loaded a moment ago. The look is a wait as others are."""
        began_at = self._clock()
        await self._look_for_models()
        record.queued_s += self._clock() - began_at

    async def _attempt(self, flight: _Flight, facts: Facts, order: Sequence[int]) -> _Break | None:
        """Walk the ranking until a worker answers. Raises WorkerError, PoisonRequest, WorkersBusy, NoWorkerAvailable."""
        fleet = self._selector.fleet
        retries = 0
        refusal: AttemptRefusal | None = None
        tried: set[Member] = set()
        ranked = self._members(order)
        try:
            while len(tried) < self._settings.max_attempts:
                member = next((member for member in ranked if member not in tried and not member.removed), None)
                if member is None:
                    # Who was worth ranking failed since, and who was not, being ejected, may be all that is left.
                    if refusal is not None and refusal.cause == NO_MODEL and not fleet.serves(flight.request.model):
                        break
                    again = self._members(self._selector.rank(flight.request)[1].order)
                    if all(member in tried for member in again):
                        break
                    ranked = again
                    continue
                tried.add(member)
                if refusal is not None:
                    if not refusal.is_free:
                        if not self.budget.take(self._clock()):
                            refusal.error.retryable = False  # clients would do what the router must not
                            break
                        retries += 1
                    flight.record.retries.append(refusal.cause)
                trace = flight.record.trace
                outcome = await (
                    self._try(flight, flight.request, facts, member)
                    if trace is None
                    else self._try_traced(flight, trace, facts, member)
                )
                if not isinstance(outcome, AttemptRefusal):
                    return outcome
                if outcome.is_death:
                    flight.poison_guard.add(member.name, flight.record.chunks)
                    flight.poison_guard.check()
                refusal = outcome.or_sooner(refusal)
        finally:
            self.budget.retrying -= retries
        if refusal is not None and refusal.cause == NO_MODEL:
            raise refusal.error
        if refusal is None or fleet.eligible(flight.request.model).panic:
            raise NoWorkerAvailable("no worker is up", retry_after_s=1)
        raise refusal.error

    def _members(self, order: Sequence[int]) -> list[Member]:
        """As many as may be tried. Their positions can be others' when one of them has left."""
        return [self._selector.fleet.member(position) for position in order[: self._settings.max_attempts]]

    async def _try_traced(
        self, flight: _Flight, trace: Trace, facts: Facts, member: Member
    ) -> AttemptRefusal | _Break | None:
        """The same, noted; the worker is told the attempt's span as its parent."""
        record = flight.record
        attempt = trace.attempt(member.address, self._clock())
        request = msgspec.structs.replace(flight.request, traceparent=trace.traceparent(attempt.span_id))
        attempt.outcome = "cancelled"
        try:
            found = await self._try(flight, request, facts, member)
            attempt.outcome = found.cause if isinstance(found, AttemptRefusal) else record.outcome
            return found
        except WorkerError:
            attempt.outcome = ReplyTooLarge.cause
            raise
        except MemoryFull as full:
            attempt.outcome = full.code
            raise
        finally:
            attempt.ended_at = trace.phase_began_at = self._clock()
            if record.stream and record.first_byte_at > attempt.began_at:
                attempt.first_event_at = record.first_byte_at

    async def _try(
        self, flight: _Flight, request: Request, facts: Facts, member: Member
    ) -> AttemptRefusal | _Break | None:
        """One worker. None: the client has its answer, or is gone. Raises WorkerError for an answer that is too large, and
        MemoryFull, which is nobody's failure and no other worker's affair."""
        client, record = flight.client, flight.record
        selector = self._selector
        watch = record.tally = _watch(flight) if request.stream else None
        record.begin_attempt(member.name)
        had_one, record.was_sent = record.was_sent, True
        lease, cached = selector.send_to(member, request, facts)
        record.worker, record.predicted_cached_tokens = member.name, cached
        with lease, self._upstream.exchange(member.address) as exchange:
            refusal: AttemptRefusal | None
            try:
                # An answer that is held shows nothing before its end, however long that takes: it has a deadline of its own.
                patience_s = selector.first_event_s(member, facts, cached) if request.stream else None
                reply = await exchange.ask(request, watch, client.memory, patience_s)
                refusal = selector.on_answered(member, reply, request.model)
            except ReplyTooLarge:
                record.fail_attempt(ReplyTooLarge.cause)
                # Another worker's would be as large, and so would the same one's if it were asked again.
                raise WorkerError("the answer is too large: ask for less at once", retryable=False) from None
            except (WorkerDied, WorkerErred, WorkerSilent) as error:
                record.was_sent = had_one or not isinstance(error, CannotConnect)
                refusal = selector.on_failed(member, error)
            except MemoryFull as full:
                record.fail_attempt(full.code)
                raise
            else:
                record.was_sent = had_one or reply.status < 400
            if refusal is not None:
                record.fail_attempt(refusal.cause)
                client.memory.resize(REPLY, 0)
                selector.on_unanswered(request, lease)
                return refusal
            record.first_byte_at, record.status = self._clock(), reply.status
            if reply.is_stream and watch is not None:
                lease.on_first_token(record.first_byte_at)
                end = await exchange.relay(client, record)
                record.outcome, usage = end.value, watch.usage
                if end in CAUSES:
                    record.fail_attempt(CAUSES[end], broke=True)
                    return _Break(member, end, watch)
            else:
                if reply.status == 400:
                    reply = msgspec.structs.replace(reply, content=with_known_code(reply.body))
                end = StreamEnd.DONE
                usage = None
                if reply.status == 200:
                    whole = reply.content
                    usage = read_usage(whole) if isinstance(whole, bytes) else await self._read_large(request, whole)
                    if request.max_answer_tokens != 0 and not (usage and usage.output_tokens):
                        record.delivered_tokens = self._weigh(request, reply)
                await client.answer(reply, record)
                record.outcome = "ok" if reply.status < 400 else "client_error"
        if end is StreamEnd.TOO_LARGE:
            client.break_off(WorkerError("an event of the answer is larger than may be held"))
        selector.learn(request, facts, lease, record, usage)
        return None

    async def _read_large(self, request: Request, pieces: Sequence[bytes]) -> Usage | None:
        """As the worker counted."""
        if sum(map(len, pieces)) <= MAX_READ_HERE_BYTES:
            return read_usage(b"".join(pieces))
        return await self._read(request.tenant, read_usage, *pieces)

    def _weigh(self, request: Request, reply: Reply) -> float:
        """Where the worker did not count an answer, its tokens by its bytes."""
        return sum(map(len, reply.pieces)) / self._selector.fleet.bytes_per_token(request.model)

    async def _mend(self, flight: _Flight, broken: _Break) -> None:
        """Another worker goes on with the stream, or the client is told that nobody can."""
        member, end, watch = broken.member, broken.end, broken.watch
        request, client, record = flight.request, flight.client, flight.record
        if self._selector.on_stream_end(member, end, watch.error):
            flight.poison_guard.add(member.name, record.chunks)
        if watch.error and not watch.finished and judge(read_error(watch.error)[0]) is Verdict.ANSWER:
            record.outcome = "client_error"
            client.break_off_with(watch.error)  # whoever went on with it would say the same
            return
        error = WorkerError("the worker failed while it answered")
        try:
            if await self._resumer.resume(request, member, end, watch, client, record, flight.poison_guard):
                return
        except PoisonRequest as given_up:
            _note_given_up(record, given_up)
            untie_error(given_up)
            error = given_up
        client.break_off(error)


def _begin_trace(trace: Trace, record: Record, request: Request, now: float) -> Request:
    """What lies behind it; and the request with its place in the trace, of which a worker gets to know in any case."""
    trace.record = record
    trace.reach("prompt" if trace.phases else "receive", now)
    if trace.is_sampled:
        record.trace = trace
    return msgspec.structs.replace(request, traceparent=trace.traceparent(trace.span_id))


def _note_given_up(record: Record, error: PoisonRequest) -> None:
    record.given_up = True
    log.warning("request given up", extra={"request_id": record.request_id, "died": list(error.workers)})


def _watch(flight: _Flight) -> StreamFilter:
    """A stream's, for one attempt: what an earlier one began was never sent."""
    request, transcript = flight.request, flight.transcript
    if transcript is not None:
        transcript.clear()
    return StreamFilter(
        DIALECTS[request.route], hides_usage=request.hides_usage, hides_ids=request.hides_ids, transcript=transcript
    )
