"""One request, top to bottom: where it goes, what happens if that fails, and how its answer comes back.

    1  facts      the fingerprint, what the index says of it, the session's last worker, the fleet as it stands
    2  ranking    the policy's, pure
    3  attempts   for worker in ranking: lease → send → first event; before it, the next worker
    4  relay      whole events flow to the client until the stream ends, fails, or the client is gone
    5  after      the index and the rates learn; the record is observed

Nothing here knows HTTP servers or sockets: clients and workers are the Protocols below. A reply that is not streamed is
held until it is whole, so that its worker may die at any moment; a stream is held until its first event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from router.core.affinity import LastWorkers
from router.core.attempt import ReplyTooLarge, WorkerDied, WorkerSilent
from router.core.errors import NoWorkerAvailable, Overloaded, RouterError, WorkerError, WorkerTimeout
from router.core.facts import Facts
from router.core.fingerprint import BLOCK_BYTES, NO_PROMPT
from router.core.fleet import Fleet, Lease, Member
from router.core.prefix_index import PrefixIndex
from router.core.record import Record
from router.core.reply import Reply, StreamEnd
from router.core.request import Request
from router.core.retry import RetryBudget
from router.core.ring import Ring
from router.core.worker import WorkerAddress
from router.policies.base import Policy
from router.wire.sse import DIALECTS, EventWatch, Usage, read_usage

CLIENT_GONE = 499
"""nginx's status for a request whose client left before any of its answer was there; nobody is sent it."""


class Exchange(Protocol):
    """One request to one worker; leaving its context gives the connection back, or ends the worker's work on it."""

    async def ask(self, request: Request, watch: EventWatch | None) -> Reply:
        """Raises AttemptFailed."""
        ...

    async def relay(self, client: Client, record: Record) -> StreamEnd:
        """Splice the stream into the client's connection until one of them ends it."""
        ...


class Upstream(Protocol):
    def exchange(self, worker: WorkerAddress) -> AbstractContextManager[Exchange]: ...


class Client(Protocol):
    """Whoever asked. Being cancelled is how dispatch learns that it is gone."""

    is_chunked: bool

    async def answer(self, reply: Reply, record: Record) -> None:
        """A whole reply."""
        ...

    def stream_head(self, reply: Reply, record: Record) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...

    def is_full(self) -> bool: ...

    async def drained(self) -> bool: ...

    def break_off(self, error: RouterError) -> None:
        """The stream cannot go on: say so in an event, and abort, so that nobody takes it for a whole answer."""
        ...


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    max_attempts: int
    retry_ratio: float
    min_retries: int


MISJUDGED, MISJUDGED_TOKENS = 0.1, 1024
"""A hit smaller than predicted by more than this share and, beyond it, so many tokens is more than a matter of rounding:
workers count in blocks of their own, and compute at least one token of a prompt anew."""


class _Refusal(NamedTuple):
    """Why one worker did not do. ``is_free``: trying the next costs nothing of the retry budget."""

    error: RouterError
    cause: str
    is_free: bool


class Dispatcher:
    """Holds what routing learns. One for the process; ``dispatch`` may run any number of times at once."""

    def __init__(
        self,
        settings: DispatchSettings,
        fleet: Fleet,
        index: PrefixIndex,
        last_workers: LastWorkers,
        policy: Policy,
        upstream: Upstream,
        observe: Callable[[Record], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._index = index
        self._last_workers = last_workers
        self._policy = policy
        self._upstream = upstream
        self._observe = observe
        self._clock = clock
        self.budget = RetryBudget(settings.retry_ratio, settings.min_retries)
        self._ring = Ring({})

    def use_ring(self, ring: Ring) -> None:
        """The membership changed; a ring is replaced as a whole."""
        self._ring = ring

    async def dispatch(self, request: Request, client: Client, started_at: float) -> None:
        """Answer the client, or raise the RouterError that says why not."""
        record = Record(
            route=request.route,
            model=request.model,
            policy=self._policy.name,
            request_id=request.request_id,
            stream=request.stream,
            started_at=started_at,
        )
        self.budget.live += 1
        try:
            facts = self._facts(request)
            ranking = self._policy.rank(facts)
            record.reason = ranking.reason
            record.decided_at = self._clock()
            await self._attempt(request, facts, ranking.order, client, record)
        except RouterError as error:
            record.status, record.outcome = error.status, error.code
            raise
        except asyncio.CancelledError:
            record.status, record.outcome = record.status or CLIENT_GONE, StreamEnd.CLIENT_GONE.value
            raise
        finally:
            self.budget.live -= 1
            record.ended_at = self._clock()
            self._observe(record)

    def _facts(self, request: Request) -> Facts:
        fleet = self._fleet
        eligible = fleet.eligible(request.model)
        now = self._clock()
        fleet.refresh_slowdowns(now)
        fleet.drain_foreign(now)
        bytes_per_token = fleet.bytes_per_token(request.model)
        prompt_tokens = request.fingerprint.prompt_bytes / bytes_per_token
        last = self._last_workers.get(request.session) if request.session is not None else None
        return Facts(
            fleet=fleet.view,
            eligible=eligible.positions,
            prompt_tokens=prompt_tokens,
            earlier_tokens=request.earlier_bytes / bytes_per_token,
            anchor=request.anchor,
            ring=self._ring,
            matches=self._index.match(request.fingerprint, prompt_tokens),
            session_worker=None if last is None else fleet.position_of(last),
        )

    async def _attempt(
        self, request: Request, facts: Facts, order: Sequence[int], client: Client, record: Record
    ) -> None:
        """Walk the ranking until a worker answers. Raises WorkerError, WorkerTimeout, Overloaded, NoWorkerAvailable."""
        retries = 0
        refusal: _Refusal | None = None
        try:
            for member in [self._fleet.member(position) for position in order[: self._settings.max_attempts]]:
                if member.removed:
                    continue  # it left while another was tried, and its position may be another's by now
                if refusal is not None:
                    if not refusal.is_free:
                        if not self.budget.take():
                            break
                        retries += 1
                    record.retries.append(refusal.cause)
                refusal = await self._try(request, facts, member, client, record)
                if refusal is None:
                    return
        finally:
            self.budget.retrying -= retries
        if refusal is None or self._fleet.eligible(request.model).panic:
            raise NoWorkerAvailable("no worker is up", retry_after_s=1)
        raise refusal.error

    async def _try(
        self, request: Request, facts: Facts, member: Member, client: Client, record: Record
    ) -> _Refusal | None:
        """One worker. None: the client has its answer."""
        cached = min(facts.matches.tokens(member.position), facts.prompt_tokens)
        uncached = facts.prompt_tokens - cached
        record.attempts += 1
        record.worker, record.predicted_cached_tokens = member.name, cached
        now = self._clock()
        watch = EventWatch(DIALECTS[request.route], hides_usage=request.hides_usage) if request.stream else None
        lease = self._fleet.lease(member.position, uncached, now, shows_first_token=request.stream)
        with lease, self._upstream.exchange(member.address) as exchange:
            self._index.record(member.position, request.fingerprint)
            refusal: _Refusal | None
            try:
                reply = await exchange.ask(request, watch)
                refusal = self._on_answered(member, reply)
            except ReplyTooLarge:
                raise WorkerError("the answer is too large") from None  # another worker's would be, too
            except (WorkerDied, WorkerSilent) as error:
                refusal = self._on_failed(member, error)
            if refusal is not None:
                held = int(len(request.fingerprint.hashes) * cached / max(facts.prompt_tokens, 1.0))
                self._index.correct(member.position, request.fingerprint, held)
                return refusal
            record.first_byte_at, record.status = self._clock(), reply.status
            if reply.is_stream:
                lease.on_first_token(record.first_byte_at)
                await self._relay(exchange, client, record, member)
                usage = watch.usage if watch else None
            else:
                usage = read_usage(reply.body) if reply.status == 200 else None
                await client.answer(reply, record)
                record.outcome = "ok" if reply.status < 400 else "client_error"
        self._learn(request, facts, lease, record, usage)
        return None

    def _on_answered(self, member: Member, reply: Reply) -> _Refusal | None:
        """Is this an answer for the client? Neither being busy nor a client's mistake says anything of a worker's health: both
        are answered without its engine."""
        now = self._clock()
        if reply.status in (429, 503):
            return _Refusal(
                Overloaded("all workers are busy", retry_after_s=_retry_after(reply)), "busy", is_free=False
            )
        if reply.status >= 500 or reply.status in (401, 403):  # the worker refuses the router's key, not the client's
            self._heed(member, member.health.on_error_answer(now))
            return _Refusal(WorkerError("the workers answered with errors"), "error", is_free=False)
        if reply.status < 400:
            self._heed(member, member.health.on_success(now))
        return None

    def _on_failed(self, member: Member, error: WorkerDied | WorkerSilent) -> _Refusal:
        now = self._clock()
        if isinstance(error, WorkerDied):
            self._heed(member, member.health.on_death(now))
            return _Refusal(WorkerError("the workers did not answer"), error.cause, is_free=True)
        self._heed(member, member.health.on_timeout(now))
        return _Refusal(WorkerTimeout("the workers did not answer in time"), error.cause, is_free=False)

    def _heed(self, member: Member, has_changed: bool) -> None:
        if has_changed:
            self._fleet.on_health_changed(member)

    async def _relay(self, exchange: Exchange, client: Client, record: Record, member: Member) -> None:
        end = await exchange.relay(client, record)
        record.outcome = end.value
        if end in (StreamEnd.FAILED, StreamEnd.ERRED):
            health, now = member.health, self._clock()
            self._heed(member, health.on_death(now) if end is StreamEnd.FAILED else health.on_error_answer(now))
            client.break_off(WorkerError("the worker failed while it answered"))

    def _learn(self, request: Request, facts: Facts, lease: Lease, record: Record, usage: Usage | None) -> None:
        """What the worker's own counts teach: tokens per byte, its rate, and what its cache no longer held."""
        member = lease.member
        if request.session is not None:
            self._last_workers.set(request.session, member.name)
        if usage is None or record.outcome != "ok":
            return
        record.prompt_tokens = usage.prompt_tokens
        record.actual_cached_tokens = usage.cached_tokens
        fleet, index = self._fleet, self._index
        if usage.prompt_tokens > 0 and request.fingerprint.hashes:
            fleet.learn_bytes_per_token(request.model, request.fingerprint.prompt_bytes, usage.prompt_tokens)
        # The share of the prompt that was predicted is compared, not the tokens: how many those are was an estimate, too.
        predicted = record.predicted_cached_tokens * usage.prompt_tokens / max(facts.prompt_tokens, 1.0)
        cached = predicted if usage.cached_tokens is None else usage.cached_tokens
        if cached < predicted * (1.0 - MISJUDGED) - MISJUDGED_TOKENS:
            index.forget_older(member.position, facts.matches.last_used(member.position))
        if request.stream:
            fleet.learn_rate(lease, usage.prompt_tokens - cached)
        output_bytes = int(usage.output_tokens * fleet.bytes_per_token(request.model))
        if output_bytes >= BLOCK_BYTES:
            index.record(member.position, NO_PROMPT, output_bytes)


def _retry_after(reply: Reply) -> int:
    """Seconds, as the worker wished, if it named a sane number; else 1."""
    text = reply.headers.get(b"retry-after", b"")
    return min(max(int(text), 1), 3600) if text.isdigit() and len(text) < 6 else 1
