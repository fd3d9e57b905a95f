"""One worker's answer to a request: asked for, judged, and relayed or handed over whole.

A reply that is not streamed is held until it is whole, so that its worker may die at any moment; a stream is held until its
first event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from router.core.errors import WorkerError
from router.core.fleet.facts import Facts
from router.core.fleet.member import Lease, Member
from router.core.request.attempt import CannotConnect, ReplyTooLarge, WorkerDied, WorkerErred, WorkerSilent
from router.core.request.reply import Reply, StreamEnd
from router.core.request.request import Request, Tenant
from router.core.tenants.memory import REPLY, MemoryFull
from router.proxy.flight import CAUSES, Break, Flight
from router.proxy.ports import Exchange, Upstream
from router.proxy.selection import AttemptRefusal, WorkerSelector
from router.wire.dialects import DIALECTS
from router.wire.refusals import with_known_code
from router.wire.sse import StreamFilter
from router.wire.usage import Usage, read_usage

T = TypeVar("T")

MAX_READ_HERE_BYTES = 1 << 20
"""Largest answer that is searched for its usage on the loop: 2 ms at the most."""


class Read(Protocol):
    """Calls a pure function on bytes where that delays no other request. ``tenant``: on whose behalf."""

    async def __call__(self, tenant: Tenant, parse: Callable[[bytes], T], /, *pieces: bytes) -> T: ...


async def read_here(_tenant: Tenant, parse: Callable[[bytes], T], *pieces: bytes) -> T:
    return parse(b"".join(pieces))


class Delivery:
    """One for the process."""

    def __init__(self, selector: WorkerSelector, upstream: Upstream, clock: Callable[[], float], read: Read) -> None:
        self._selector = selector
        self._upstream = upstream
        self._clock = clock
        self._read = read

    async def attempt(
        self, flight: Flight, facts: Facts, member: Member, request: Request
    ) -> AttemptRefusal | Break | None:
        """``request``: as this worker gets it. None: the client has its answer, or is gone. Raises WorkerError for an answer
        that is too large, and MemoryFull; neither is asked of another worker."""
        client, record, selector = flight.client, flight.record, self._selector
        stream_filter = record.tally = _filter_for(flight) if request.stream else None
        record.begin_attempt(member.name)
        lease, cached = selector.send_to(member, request, facts)
        record.worker, record.predicted_cached_tokens = member.name, cached
        with lease, self._upstream.exchange(member.address) as exchange:
            # An answer that is held shows nothing before its end, however long that takes: it has a deadline of its own.
            patience_s = selector.first_event_s(member, facts, cached) if request.stream else None
            reply = await self._ask(flight, request, exchange, lease, stream_filter, patience_s)
            if isinstance(reply, AttemptRefusal):
                return reply
            record.first_byte_at, record.status = self._clock(), reply.status
            if record.trace is not None and request.stream:
                record.trace.on_first_event(record.first_byte_at)
            if reply.is_stream and stream_filter is not None:
                lease.on_first_token(record.first_byte_at)
                end = await exchange.relay(client, record)
                record.outcome, usage = end.value, stream_filter.usage
                if end in CAUSES:
                    record.fail_attempt(CAUSES[end], broke=True)
                    return Break(member, end, stream_filter)
            else:
                end, usage = StreamEnd.DONE, await self._hand_over(flight, reply)
        if end is StreamEnd.TOO_LARGE:
            client.break_off(WorkerError("an event of the answer is larger than may be held"))
        selector.learn(request, facts, lease, record, usage)
        return None

    async def _ask(
        self,
        flight: Flight,
        request: Request,
        exchange: Exchange,
        lease: Lease,
        stream_filter: StreamFilter | None,
        patience_s: float | None,
    ) -> Reply | AttemptRefusal:
        """Raises WorkerError, MemoryFull."""
        record, memory, member = flight.record, flight.client.memory, lease.member
        had_one, record.was_sent = record.was_sent, True
        try:
            reply = await exchange.ask(request, stream_filter, memory, patience_s)
            refusal = self._selector.on_answered(member, reply, request.model)
        except ReplyTooLarge:
            record.fail_attempt(ReplyTooLarge.cause)
            # Another worker's would be as large, and so would the same one's if it were asked again.
            raise WorkerError("the answer is too large: ask for less at once", retryable=False) from None
        except (WorkerDied, WorkerErred, WorkerSilent) as error:
            record.was_sent = had_one or not isinstance(error, CannotConnect)
            refusal = self._selector.on_failed(member, error)
        except MemoryFull as full:
            record.fail_attempt(full.code)
            raise
        else:
            record.was_sent = had_one or reply.status < 400
            if refusal is None:
                return reply
        record.fail_attempt(refusal.cause)
        memory.resize(REPLY, 0)
        self._selector.on_unanswered(request, lease)
        return refusal

    async def _hand_over(self, flight: Flight, reply: Reply) -> Usage | None:
        """A whole reply to the client; returns what the worker counted."""
        request, record = flight.request, flight.record
        if reply.status == 400:
            reply = msgspec.structs.replace(reply, content=with_known_code(reply.body))
        usage = None
        if reply.status == 200:
            whole = reply.content
            usage = read_usage(whole) if isinstance(whole, bytes) else await self._read_large(request, whole)
            if request.max_answer_tokens != 0 and not (usage and usage.output_tokens):
                bytes_per_token = self._selector.fleet.learning.bytes_per_token(request.model)
                record.delivered_tokens = sum(map(len, reply.pieces)) / bytes_per_token
        await flight.client.answer(reply, record)
        record.outcome = "ok" if reply.status < 400 else "client_error"
        return usage

    async def _read_large(self, request: Request, pieces: Sequence[bytes]) -> Usage | None:
        if sum(map(len, pieces)) <= MAX_READ_HERE_BYTES:
            return read_usage(b"".join(pieces))
        return await self._read(request.tenant, read_usage, *pieces)


def _filter_for(flight: Flight) -> StreamFilter:
    """For one attempt: what an earlier one began was never sent."""
    request, transcript = flight.request, flight.transcript
    if transcript is not None:
        transcript.clear()
    return StreamFilter(
        DIALECTS[request.route], hides_usage=request.hides_usage, hides_ids=request.hides_ids, transcript=transcript
    )
