"""What routing knows and learns: a request's facts and ranking, and what each answer and each failure teaches.

No request is carried here; dispatch does that. Every call is synchronous and ends in microseconds.
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
from router.core.request.attempt import CannotConnect, WorkerDied, WorkerErred, WorkerSilent, WorkerSlow
from router.core.request.record import Record
from router.core.request.reply import Reply, StreamEnd, Verdict, judge
from router.core.request.request import Request
from router.policies.base import Policy, Ranking
from router.wire.refusals import says_no_model
from router.wire.sse import Usage, read_error, says_engine_died

log = logging.getLogger("warmroute.fleet")

SOON_S, FEW_TOKENS = 1.0, 64
"""A request that ended so soon, with an answer of less than a block, is not noted a second time in the index."""

MISJUDGED, MISJUDGED_TOKENS = 0.1, 1024
"""A hit smaller than predicted by more than this share and, beyond it, so many tokens is more than a matter of rounding:
workers count in blocks of their own, and compute at least one token of a prompt anew."""

UNTOLD_HITS = 5
"""So many hits are expected of a worker that never tells what was cached, before it is told of. vLLM leaves the count out for a
miss, too, and some expectations are wrong."""

PATIENCE = 10.0
"""A first token may take so many times as long as is expected of it; before that a worker is slow, and not ill."""


BUSY = "busy"
"""The cause of a refusal that says nothing of the worker but that it has no room."""


NO_MODEL = "no_model"
"""The cause of a refusal by a worker that does not serve a model of its list: the list is old."""


class AttemptRefusal(NamedTuple):
    """Why one worker did not do. ``is_free``: trying the next costs nothing of the retry budget. ``is_death``: the worker had
    the request, and died."""

    error: RouterError
    cause: str
    is_free: bool
    is_death: bool = False

    def or_sooner(self, before: AttemptRefusal | None) -> AttemptRefusal:
        """Of two workers that are busy, the one that may be asked again sooner; else this. A worker that has not got the model
        says nothing of the others."""
        if before is not None and self.cause == NO_MODEL:
            return before
        if before is None or not before.cause == self.cause == BUSY:
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
        """The request goes there: a lease, to be entered, and the tokens that are expected to be cached."""
        cached = min(facts.matches.tokens(member.position), facts.prompt_tokens)
        lease = self.fleet.lease(
            member.position, facts.prompt_tokens - cached, self._clock(), shows_first_token=request.stream
        )
        lease.recorded = self.index.record(member.position, request.fingerprint)
        return lease, cached

    def first_event_s(self, member: Member, facts: Facts, cached: float) -> float:
        """How long a stream's first event may take where the worker shows no work meanwhile."""
        view, position = facts.fleet, member.position
        queued = view.queued_prefill_tokens[position] + view.foreign_prefill_tokens[position]
        tokens = max(queued, 0.0) + facts.prompt_tokens - cached
        return self._min_first_event_s + PATIENCE * tokens * view.seconds_per_token[position]

    # What answers and failures say of a worker's health

    def on_answered(self, member: Member, reply: Reply, model: str) -> AttemptRefusal | None:
        """Is this an answer for the client? Neither being busy nor a client's mistake says anything of a worker's health: both
        are answered without its engine."""
        now = self._clock()
        verdict = judge(reply.status)
        if verdict is Verdict.BUSY:
            return AttemptRefusal(
                WorkersBusy("all workers are busy", retry_after_s=_retry_after(reply)), BUSY, is_free=True
            )
        if verdict is Verdict.FAILED:
            self._heed(member, member.health.on_error_answer(now))
            is_death = says_engine_died(reply.body)
            return AttemptRefusal(
                WorkerError("the workers answered with errors"), "error", is_free=False, is_death=is_death
            )
        if reply.status == 404 and says_no_model(reply.body, model):
            self.fleet.disown(member, model)
            return AttemptRefusal(ModelNotFound.of(model), NO_MODEL, is_free=True)
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
        """``error``: the event by which the worker said that it failed, if it did. True if the worker died."""
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

    # What answers teach

    def learn(self, request: Request, facts: Facts, lease: Lease, record: Record, usage: Usage | None) -> None:
        """What the worker's own counts teach: tokens per byte, its rate, and what its cache no longer held."""
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
        # The share of the prompt that was predicted is compared, not the tokens: how many those are was an estimate, too.
        per_estimate = usage.prompt_tokens / max(facts.prompt_tokens, 1.0)
        predicted = record.predicted_cached_tokens * per_estimate
        told = record.actual_cached_tokens = self._told_cached(member, request, usage, predicted)
        cached = predicted if told is None else told
        was_held = cached >= predicted * (1.0 - MISJUDGED) - MISJUDGED_TOKENS
        if told is not None:
            if predicted > MISJUDGED_TOKENS and fleet.learning.learns_capacity(member):
                held_share = min(told, predicted) / max(usage.prompt_tokens, 1)
                self._learn_capacity(request, facts, lease, held_share, was_held=was_held)
            self._account(member, usage.prompt_tokens, facts.matches.most * per_estimate, predicted, told)
        if not was_held:
            index.forget_older(member.position, facts.matches.last_used(member.position))
        if request.stream:
            fleet.learning.learn_rate(lease, usage.prompt_tokens - cached)

    def _learn_capacity(
        self, request: Request, facts: Facts, lease: Lease, held_share: float, *, was_held: bool
    ) -> None:
        """By the age of the deepest block that was still held, of those that were expected: a cache drops a prompt's end before
        its beginning. ``held_share``: of the prompt, whose own blocks are the newest in the index by now. What was sent since
        the prompt was counts, too, so that the estimate is rather high where much is under way."""
        position, own = lease.member.position, len(request.fingerprint.hashes)
        rest = own - held_share * own
        floor = int(rest + NEAR * lease.member.cache_blocks) if was_held else 0  # what was held shows nothing below
        age = self.index.age(position, facts.matches.last_used(position), floor)
        self.fleet.learning.learn_capacity(lease.member, age - rest, was_held=was_held)

    def _told_cached(self, member: Member, request: Request, usage: Usage, predicted: float) -> int | None:
        """What the worker told of the prompt's cached tokens. vLLM may leave a count of 0 out, so nothing means 0 once the
        worker told a count on the route. One that never tells any is logged once."""
        if usage.cached_tokens is not None:
            member.tells_cached.add(request.route)
            return usage.cached_tokens
        if request.route in member.tells_cached:
            return 0
        if predicted > MISJUDGED_TOKENS and not member.tells_cached:
            member.untold_hits += 1
            if member.untold_hits == UNTOLD_HITS:
                log.warning(
                    "a worker does not tell how much of a prompt was cached: start it with --enable-prompt-tokens-details",
                    extra={"worker": member.name, "url": member.address.url},
                )
        return None

    def _touch(self, member: Member, request: Request, output_tokens: int, record: Record) -> None:
        """The prompt's blocks are the newest on the worker, now that it ended, and whole blocks of the answer lie behind. Where
        it ended soon, they are the newest already, or nearly so."""
        if member.removed:  # its position may be another's
            return
        if output_tokens < FEW_TOKENS and self._clock() - record.decided_at < SOON_S:
            return
        output_bytes = int(output_tokens * self.fleet.learning.bytes_per_token(request.model))
        self.index.record(member.position, request.fingerprint, output_bytes if output_bytes >= BLOCK_BYTES else 0)

    def _account(self, member: Member, prompt: int, best: float, predicted: float, actual: int) -> None:
        """Of what the cache spared, and why it did not spare the rest. In the worker's own tokens."""
        self.misses.add(prompt, best, predicted, actual)
        reuse = member.reuse
        reuse.prompt_tokens += prompt
        reuse.cached_tokens += actual
        reuse.saved_s += actual * self.fleet.figures.seconds_per_token[member.position]

    def remember(self, request: Request, member: Member, record: Record, usage: Usage | None) -> None:
        """The session ended there on another's behalf. What was cached of its prompt, and how long it took, says nothing of
        prompts that begin there."""
        if request.session is not None:
            self._last_workers.set(request.session, member.name)
        if usage is not None:
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.output_tokens


def _retry_after(reply: Reply) -> int:
    """Seconds, as the worker wished, if it named a sane number; else 1."""
    text = reply.headers.get(b"retry-after", b"")
    return min(max(int(text), 1), 3600) if text.isdigit() and len(text) < 6 else 1
