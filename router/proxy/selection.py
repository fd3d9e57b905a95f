"""Selects workers, and learns from answers: a request's facts and ranking, and the lesson of each answer and each failure.

Requests are sent elsewhere. Every call is synchronous and ends in microseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from router.core.errors import ModelNotFound, RouterError, WorkerError, WorkersBusy, WorkerTimeout
from router.core.fleet.affinity import LastWorkers
from router.core.fleet.capacity import NEAR
from router.core.fleet.facts import Facts
from router.core.fleet.fleet import Fleet
from router.core.fleet.member import Lease, Member
from router.core.fleet.ring import Ring
from router.core.index.cache_use import CacheMisses
from router.core.index.fingerprint import BLOCK_BYTES
from router.core.index.prefix_index import PrefixIndex
from router.core.request.attempt import CannotConnect, Failure, WorkerDied, WorkerErred, WorkerSilent, WorkerSlow
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd, Verdict, judge
from router.core.request.request import Request
from router.policies.base import Policy, Ranking
from router.wire.dialects import read_error, says_engine_died
from router.wire.refusals import says_no_model
from router.wire.usage import Usage

log = logging.getLogger("warmroute.fleet")

SOON_S, FEW_TOKENS = 1.0, 64
"""A request that ended within this time, with an answer of less than a block, is not recorded in the index a second time."""

MISJUDGED, MISJUDGED_TOKENS = 0.1, 1024
"""A hit is misjudged if it is smaller than predicted by more than this share and these tokens. Smaller differences are
rounding: workers count in their own blocks, and compute at least one token of a prompt anew."""

UNREPORTED_HITS = 5
"""Expected hits without a count after which a worker is logged as one that reports none. One is not enough: vLLM leaves the
count out for a miss, too, and some expectations are wrong."""

PATIENCE = 10.0
"""A first token may take this many times its expected time; until then a worker is slow, and not ill."""


class AttemptRefusal(NamedTuple):
    """Why an attempt on one worker failed. ``is_free``: the next attempt costs nothing of the retry budget. ``is_death``: the
    worker had the request, and died."""

    error: RouterError
    cause: Failure
    is_free: bool
    is_death: bool = False

    def or_sooner(self, before: AttemptRefusal | None) -> AttemptRefusal:
        """This refusal or the one before: the sooner retry of two busy workers, and else the newer. A worker without the model
        says nothing of the others."""
        if before is not None and self.cause is Failure.NO_MODEL:
            return before
        if before is None or not before.cause is self.cause is Failure.BUSY:
            return self
        return min(self, before, key=lambda refusal: refusal.error.retry_after_s or 0)

    def for_good(self) -> AttemptRefusal:
        """Clients that retried now would do what the router must not, so the error says that a retry cannot help."""
        return self._replace(error=type(self.error)(self.error.message, retryable=False))


class WorkerSelector:
    """One for the process."""

    def __init__(
        self,
        fleet: Fleet,
        index: PrefixIndex,
        last_workers: LastWorkers,
        policy: Policy,
        clock: Callable[[], float],
        min_first_event_s: float,
    ) -> None:
        self.fleet = fleet
        self.index = index
        self.policy = policy
        self._last_workers = last_workers
        self._clock = clock
        self._min_first_event_s = min_first_event_s
        self._ring = Ring({})
        self.misses = CacheMisses()

    def use_ring(self, ring: Ring) -> None:
        """The membership changed; a ring is replaced as a whole."""
        self._ring = ring

    def rank(self, request: Request) -> tuple[Facts, Ranking]:
        """Raises ModelNotFound, ModelUnavailable, NoWorkerAvailable."""
        facts = self._facts(request)
        return facts, self.policy.rank(facts)

    def _facts(self, request: Request) -> Facts:
        fleet = self.fleet
        eligible = fleet.catalog.eligible(request.model)
        now = self._clock()
        fleet.refresh_slowdowns(now)
        fleet.drain_foreign(now)
        bytes_per_token = fleet.learning.bytes_per_token(request.model)
        prompt_tokens = request.fingerprint.prompt_bytes / bytes_per_token
        last = self._last_workers.get(request.session) if request.session is not None else None
        return Facts(
            fleet=fleet.figures,
            eligible=eligible.positions,
            prompt_tokens=prompt_tokens,
            earlier_tokens=request.earlier_bytes / bytes_per_token,
            anchor=request.anchor,
            ring=self._ring,
            matches=self.index.match(request.fingerprint, prompt_tokens),
            session_worker=None if last is None else fleet.position_of(last),
        )

    def send_to(self, member: Member, request: Request, facts: Facts) -> tuple[Lease, float]:
        """The request goes to ``member``. Returns the lease, to be entered, and the tokens that are expected to be cached."""
        cached = min(facts.matches.tokens(member.position), facts.prompt_tokens)
        lease = self.fleet.lease(
            member.position, facts.prompt_tokens - cached, self._clock(), shows_first_token=request.stream
        )
        lease.recorded = self.index.record(member.position, request.fingerprint)
        return lease, cached

    def first_event_s(self, member: Member, facts: Facts, cached: float) -> float:
        """How long a stream's first event may take if the worker shows no work meanwhile."""
        view, position = facts.fleet, member.position
        queued = view.queued_prefill_tokens[position] + view.foreign_prefill_tokens[position]
        tokens = max(queued, 0.0) + facts.prompt_tokens - cached
        return self._min_first_event_s + PATIENCE * tokens * view.seconds_per_token[position]

    # Health

    def on_answered(self, member: Member, reply: Reply, model: str) -> AttemptRefusal | None:
        """None if the reply is an answer for the client. A busy worker and a client's mistake do not count for its health: the
        engine is not involved."""
        now = self._clock()
        verdict = judge(reply.status)
        if verdict is Verdict.BUSY:
            return AttemptRefusal(
                WorkersBusy("all workers are busy", retry_after_s=_retry_after(reply)), Failure.BUSY, is_free=True
            )
        if verdict is Verdict.FAILED:
            self._heed(member, member.health.on_error_answer(now))
            is_death = says_engine_died(reply.body)
            return AttemptRefusal(
                WorkerError("the workers answered with errors"), Failure.ERROR, is_free=False, is_death=is_death
            )
        if reply.status == 404 and says_no_model(reply.body, model):
            self.fleet.disown(member, model)
            return AttemptRefusal(ModelNotFound.of(model), Failure.NO_MODEL, is_free=True)
        if reply.status < 400:
            self._heed(member, member.health.on_success(now))
        return None

    def on_failed(self, member: Member, error: WorkerDied | WorkerErred | WorkerSilent) -> AttemptRefusal:
        now = self._clock()
        if isinstance(error, WorkerDied):
            self._heed(member, member.health.on_death(now))
            is_death = not isinstance(error, CannotConnect)
            return AttemptRefusal(
                WorkerError("the workers did not answer"), error.cause, is_free=True, is_death=is_death
            )
        if isinstance(error, WorkerErred):
            self._heed(member, member.health.on_error_answer(now))
            return AttemptRefusal(WorkerError("the workers answered with errors"), error.cause, is_free=False)
        if not isinstance(error, WorkerSlow):
            self._heed(member, member.health.on_timeout(now))
        return AttemptRefusal(WorkerTimeout("the workers did not answer in time"), error.cause, is_free=False)

    def on_stream_end(self, member: Member, end: StreamEnd, error: bytes) -> bool:
        """``error``: the worker's error event, or empty. True if the worker died."""
        health, now = member.health, self._clock()
        if end is StreamEnd.DIED:
            self._heed(member, health.on_death(now))
            return True
        if end is StreamEnd.SILENT:
            self._heed(member, health.on_timeout(now))
        elif end is StreamEnd.ERRED and judge(read_error(error)[0]) is Verdict.FAILED:
            self._heed(member, health.on_error_answer(now))
            return says_engine_died(error)
        return False

    def on_unanswered(self, request: Request, lease: Lease) -> None:
        """The prompt was not computed there after all."""
        self.index.withdraw(lease.member.position, request.fingerprint, lease.recorded)

    def _heed(self, member: Member, has_changed: bool) -> None:
        if has_changed:
            self.fleet.on_health_changed(member)

    # Learning

    def learn(self, request: Request, facts: Facts, lease: Lease, record: Record, usage: Usage | None) -> None:
        """Learn from the worker's own counts: tokens per byte, its rate, and what its cache had evicted."""
        member = lease.member
        if request.session is not None:
            self._last_workers.set(request.session, member.name)
        self._touch(member, request, 0 if usage is None else usage.output_tokens, record)
        if usage is None or record.outcome != "ok":
            return
        record.prompt_tokens = usage.prompt_tokens
        record.completion_tokens = usage.output_tokens
        fleet, index = self.fleet, self.index
        if usage.prompt_tokens > 0 and request.fingerprint.hashes:
            fleet.learning.learn_bytes_per_token(request.model, request.fingerprint.prompt_bytes, usage.prompt_tokens)
        # Shares of the prompt are compared, since the number of its tokens was an estimate, too.
        per_estimate = usage.prompt_tokens / max(facts.prompt_tokens, 1.0)
        predicted = record.predicted_cached_tokens * per_estimate
        reported = record.actual_cached_tokens = self._reported_cached(member, request, usage, predicted)
        cached = predicted if reported is None else reported
        was_held = cached >= predicted * (1.0 - MISJUDGED) - MISJUDGED_TOKENS
        if reported is not None:
            if predicted > MISJUDGED_TOKENS and fleet.learning.learns_capacity(member):
                held_share = min(reported, predicted) / max(usage.prompt_tokens, 1)
                self._learn_capacity(request, facts, lease, held_share, was_held=was_held)
            self._account(member, usage.prompt_tokens, facts.matches.most * per_estimate, predicted, reported)
        if not was_held:
            index.forget_older(member.position, facts.matches.last_used(member.position))
        if request.stream:
            fleet.learning.learn_rate(lease, usage.prompt_tokens - cached)

    def _learn_capacity(
        self, request: Request, facts: Facts, lease: Lease, held_share: float, *, was_held: bool
    ) -> None:
        """Learn from the age of the deepest expected block that was held: a cache evicts a prompt's end before its beginning.
        ``held_share``: of the prompt, whose own blocks are the newest in the index by now. Blocks sent since then count, too,
        so the estimate is rather high while much is under way."""
        position, own = lease.member.position, len(request.fingerprint.hashes)
        rest = own - held_share * own
        floor = int(rest + NEAR * lease.member.cache_blocks) if was_held else 0  # what was held shows nothing below
        age = self.index.age(position, facts.matches.last_used(position), floor)
        self.fleet.learning.learn_capacity(lease.member, age - rest, was_held=was_held)

    def _reported_cached(self, member: Member, request: Request, usage: Usage, predicted: float) -> int | None:
        """The worker's count of cached tokens; None if it reports none. vLLM may leave out a count of 0, so a missing count
        means 0 once the worker has reported one on the route. A worker that never reports one is logged once."""
        if usage.cached_tokens is not None:
            member.reports_cached.add(request.route)
            return usage.cached_tokens
        if request.route in member.reports_cached:
            return 0
        if predicted > MISJUDGED_TOKENS and not member.reports_cached:
            member.unreported_hits += 1
            if member.unreported_hits == UNREPORTED_HITS:
                log.warning(
                    "a worker reports no cached tokens: start it with --enable-prompt-tokens-details",
                    extra={"worker": member.name, "url": member.address.url},
                )
        return None

    def _touch(self, member: Member, request: Request, output_tokens: int, record: Record) -> None:
        """The request has ended: its prompt's blocks are the newest on the worker, followed by whole blocks of the answer. If
        it ended soon, they are nearly the newest already."""
        if member.removed:  # its position may be another's
            return
        if output_tokens < FEW_TOKENS and self._clock() - record.decided_at < SOON_S:
            return
        output_bytes = int(output_tokens * self.fleet.learning.bytes_per_token(request.model))
        self.index.record(member.position, request.fingerprint, output_bytes if output_bytes >= BLOCK_BYTES else 0)

    def _account(self, member: Member, prompt: int, best: float, predicted: float, actual: int) -> None:
        """Account for what the cache saved, and why it did not save the rest, in the worker's own tokens."""
        self.misses.add(prompt, best, predicted, actual)
        reuse = member.reuse
        reuse.prompt_tokens += prompt
        reuse.cached_tokens += actual
        reuse.saved_s += actual * self.fleet.figures.seconds_per_token[member.position]

    def remember(self, request: Request, member: Member, record: Record, usage: Usage | None) -> None:
        """A resumed stream ended on ``member``. Its cached tokens and its time say nothing of prompts that begin there."""
        if request.session is not None:
            self._last_workers.set(request.session, member.name)
        if usage is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.output_tokens


def _retry_after(reply: Reply) -> int:
    """The worker's Retry-After in seconds, if it is a sane number; else 1."""
    text = reply.headers.get(b"retry-after", b"")
    return min(max(int(text), 1), 3600) if text.isdigit() and len(text) < 6 else 1
