"""Resumption: when a stream breaks after its first event, another worker continues it, and the client sees no seam.

    1  plan      the request and what the client has of its answer: may another worker continue it?
    2  rank      the fleet as it is now, without the workers that failed
    3  seam      where the old answer ends; if that is not certain, the candidate's own tokenizer is asked
    4  ask       for the rest of the answer, held back until its first text is known to be the answer's and not the prompt's
    5  relay     as any stream; it may break, too

Attempts and time are bounded. A stream that cannot be completed ends with an error event, never with a clean end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from router.config.routing import ResumptionConfig
from router.core.errors import NoWorkerAvailable, Overloaded, PoisonRequest, RouterError, Unavailable
from router.core.fleet.facts import Facts
from router.core.fleet.member import Member
from router.core.request.attempt import (
    AttemptFailed,
    Failure,
    ReplyTooLarge,
    WorkerDied,
    WorkerErred,
    WorkerSilent,
)
from router.core.request.poison_guard import PoisonGuard
from router.core.request.record import Record, Resumption, ResumptionOutcome
from router.core.request.reply import Reply, StreamEnd, Verdict, judge
from router.core.request.request import Request
from router.core.request.retry import RetryBudget
from router.core.tenants.memory import MemoryFull
from router.core.worker import WorkerName
from router.proxy.attempts import Attempts
from router.proxy.broken_stream import finish, plan, rest_of
from router.proxy.flight import CAUSES, Break, Flight
from router.proxy.ports import Client, Exchange, Upstream
from router.proxy.selection import AttemptRefusal, WorkerSelector
from router.wire.continuation import (
    Asked,
    Seam,
    SeamFinder,
    Unsafe,
    has_one_answer,
)
from router.wire.continued import ContinuedFilter, leaks
from router.wire.dialects import read_error
from router.wire.transcript import Delivered

log = logging.getLogger("warmroute.resumption")

LOOK_AGAIN_S, MAX_LOOK_AGAIN_S = 0.05, 1.0
"""Pause before the fleet is asked again while no worker is up: doubled each time, up to the second value."""

TEXT_OF_S = 5.0
"""How long a worker may take to turn ids into text."""


class _Refused(Exception):
    def __init__(self, refusal: AttemptRefusal) -> None:
        super().__init__(refusal.cause)
        self.refusal = refusal


class _Text(msgspec.Struct):
    prompt: str


@dataclass(slots=True)
class _Stream:
    """One client's stream on its way from worker to worker."""

    request: Request
    asked: Asked
    delivered: Delivered
    client: Client
    record: Record
    poison_guard: PoisonGuard
    cause: Failure
    broke_at: float
    failed: set[WorkerName] = field(default_factory=set)
    """Workers that are not asked again while there are others."""


class Resumer:
    """One for the process."""

    def __init__(
        self,
        config: ResumptionConfig,
        selector: WorkerSelector,
        upstream: Upstream,
        budget: RetryBudget,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._selector = selector
        self._upstream = upstream
        self._budget = budget
        self._clock = clock
        self._sleep = sleep

    async def resume(self, flight: Flight, broken: Break) -> bool:
        """True: the client's stream has ended, well or because of the client. False, or PoisonRequest: the caller has to break
        it off."""
        request, record, guard = flight.request, flight.record, flight.poison_guard
        member, cause, broke_at = broken.member, CAUSES[broken.end], self._clock()
        try:
            if broken.stream_filter.finished and has_one_answer(msgspec.json.decode(request.body)):
                finish(flight, broken)
                record.outcome = StreamEnd.DONE.value
                record.resumptions.append(Resumption(cause, ResumptionOutcome.FINISHED))
                return True
            guard.check()
            asked, delivered = plan(flight, broken)
            stream = _Stream(request, asked, delivered, flight.client, record, guard, cause, broke_at, {member.name})
            return await self._go_on(stream)
        except PoisonRequest:
            record.resumptions.append(Resumption(cause, ResumptionOutcome.FAILED))
            raise
        except Unsafe as unsafe:
            outcome, reason = ResumptionOutcome.UNSAFE, unsafe.reason
        except RouterError as error:
            outcome, reason = ResumptionOutcome.FAILED, error.code
        record.resumptions.append(Resumption(cause, outcome))
        fields = {"request_id": request.request_id, "worker": member.name, "cause": cause, "reason": reason}
        log.warning("stream not resumed", extra=fields)
        return False

    async def _go_on(self, stream: _Stream) -> bool:
        """Raises Unsafe, RouterError."""
        most, guard, record = self._config.max_attempts, stream.poison_guard, stream.record
        is_free = True  # one resumption is outside any budget
        with Attempts(most, self._budget, guard, record, self._clock, is_resumption=True) as attempts:
            while attempts.are_left:
                member, facts = await self._next(stream)
                if not attempts.begin(is_free=is_free):
                    raise Overloaded("too many retries are under way", retry_after_s=1)
                outcome = await attempts.run(member, stream.request, partial(self._try, stream, member, facts))
                if isinstance(outcome, AttemptRefusal):
                    is_free = outcome.is_free
                    attempts.made -= outcome.cause is Failure.CONNECT  # the time for waiting is the bound
                elif outcome not in CAUSES:
                    return outcome is not StreamEnd.TOO_LARGE
                else:
                    stream.cause, stream.broke_at = CAUSES[outcome], self._clock()
                    is_free = outcome is StreamEnd.DIED
                    guard.check()
                stream.failed.add(member.name)
        raise NoWorkerAvailable("no worker could go on with the answer", retry_after_s=1)

    async def _next(self, stream: _Stream) -> tuple[Member, Facts]:
        """The next worker in the policy's order of the present fleet. Raises Unavailable, ModelNotFound."""
        pause_s = LOOK_AGAIN_S
        while True:
            with contextlib.suppress(Unavailable):
                facts, ranking = self._selector.rank(stream.request)
                for member in map(self._selector.fleet.member, ranking.order):
                    if member.name not in stream.failed:
                        return member, facts
            if self._clock() - stream.broke_at >= self._config.wait_s:
                raise NoWorkerAvailable("no worker could go on with the answer", retry_after_s=1)
            await self._sleep(pause_s)
            pause_s = min(2.0 * pause_s, MAX_LOOK_AGAIN_S)
            stream.failed.clear()  # a worker that failed may be back

    async def _try(self, stream: _Stream, member: Member, facts: Facts, given: Request) -> AttemptRefusal | StreamEnd:
        """``given``: the stream's request, as this worker gets it. Raises Unsafe, MemoryFull."""
        record = stream.record
        record.begin_attempt(member.name)
        try:
            end = await self._continue(stream, given, member, facts)
        except (WorkerDied, WorkerErred, WorkerSilent) as error:
            refusal = self._selector.on_failed(member, error)
        except _Refused as refused:
            refusal = refused.refusal
        except ReplyTooLarge:
            record.fail_attempt(ReplyTooLarge.cause)
            raise Unsafe("too_large") from None
        except (Unsafe, MemoryFull) as error:
            record.fail_attempt("unsafe" if isinstance(error, Unsafe) else error.code)
            raise
        else:
            record.outcome = end.value
            if end in CAUSES:
                record.fail_attempt(CAUSES[end], broke=True)
            return end
        record.fail_attempt(refusal.cause)
        return refusal

    async def _continue(self, stream: _Stream, given: Request, member: Member, facts: Facts) -> StreamEnd:
        """Raises AttemptFailed, _Refused, Unsafe, MemoryFull: until the relay begins the client has seen nothing of it."""
        seam = await self._find_seam(stream, member) if stream.delivered.has_ids else None
        if member.removed:  # while it was asked for the seam: its position may be another's
            raise _Refused(
                AttemptRefusal(NoWorkerAvailable("the worker left", retry_after_s=1), Failure.LEFT, is_free=True)
            )
        request = rest_of(given, stream.asked, stream.delivered, seam, member.max_model_len(given.model))
        stream_filter = ContinuedFilter(stream.asked, stream.delivered.copy(), seam)
        stream.record.tally = stream_filter
        lease, cached = self._selector.send_to(member, stream.request, facts)
        with lease, self._upstream.exchange(member.address) as exchange:
            try:
                reply = await exchange.ask(
                    request, stream_filter, stream.client.memory, self._selector.first_event_s(member, facts, cached)
                )
                await self._require_rest(stream, member, reply, stream_filter)
                exchange.require_unbroken()
            except (AttemptFailed, _Refused):
                self._selector.on_unanswered(stream.request, lease)
                if stream_filter.unsafe:
                    raise Unsafe(stream_filter.unsafe) from None
                raise
            lease.on_first_token(self._clock())
            return await self._relay(
                stream, member, exchange, stream_filter, ResumptionOutcome.EXACT if seam else ResumptionOutcome.TEXT
            )

    async def _require_rest(
        self, stream: _Stream, member: Member, reply: Reply, stream_filter: ContinuedFilter
    ) -> None:
        """Check that the reply is the rest of the answer. Raises AttemptFailed, _Refused, Unsafe."""
        if (refusal := self._selector.on_answered(member, reply, stream.request.model)) is not None:
            raise _Refused(refusal)
        if not reply.is_stream:
            raise Unsafe("refused")
        if stream_filter.first_ids and leaks(
            stream_filter.first_text, await self._text_of(stream, member, stream_filter.first_ids)
        ):
            raise Unsafe("leak")

    async def _relay(
        self,
        stream: _Stream,
        member: Member,
        exchange: Exchange,
        stream_filter: ContinuedFilter,
        outcome: ResumptionOutcome,
    ) -> StreamEnd:
        """Raises Unsafe."""
        record = stream.record
        record.worker = member.name
        now = self._clock()
        record.resumptions.append(Resumption(stream.cause, outcome, now - stream.broke_at))
        if record.trace is not None:
            record.trace.on_first_event(now)
        stream.delivered = stream_filter.delivered
        end = await exchange.relay(stream.client, record)
        if stream_filter.unsafe:
            raise Unsafe(stream_filter.unsafe)
        if end in CAUSES and self._selector.on_stream_end(member, end, stream_filter.error):
            stream.poison_guard.add(member.name, record.chunks)
        if end in CAUSES and stream_filter.finished:
            stream.client.end_stream(stream_filter.rest())
            record.resumptions.append(Resumption(CAUSES[end], ResumptionOutcome.FINISHED))
            end = StreamEnd.DONE
        elif stream_filter.error and judge(read_error(stream_filter.error)[0]) is Verdict.ANSWER:
            raise Unsafe("refused")  # the worker is well, but the request cannot go on
        if end is StreamEnd.DONE:
            self._selector.remember(stream.request, member, record, stream_filter.usage)
        return end

    async def _find_seam(self, stream: _Stream, member: Member) -> Seam:
        if not stream.delivered.text:
            return Seam(0)
        finder = SeamFinder(stream.asked, stream.delivered)
        while (ids := finder.question) is not None:
            finder.hear(await self._text_of(stream, member, ids))
        return finder.seam

    async def _text_of(self, stream: _Stream, member: Member, ids: list[int]) -> str:
        """The text of ids by this worker's tokenizer. Raises AttemptFailed, _Refused, Unsafe."""
        body = msgspec.json.encode({"model": stream.request.model, "tokens": ids})
        with self._upstream.exchange(member.address) as exchange:
            reply = await exchange.post("/detokenize", body, TEXT_OF_S)
        if (refusal := self._selector.on_answered(member, reply, stream.request.model)) is not None:
            raise _Refused(refusal)
        try:
            return msgspec.json.decode(reply.body, type=_Text).prompt
        except msgspec.DecodeError:
            raise Unsafe("seam") from None
