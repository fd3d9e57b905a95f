"""After turns, cuts histories that have reached their high watermark, summarises what was cut, and makes it searchable.

No turn waits for it. It changes views by compare and set and never the log, so that it cannot lose an item. A replica that
writes a summary says so in the view; if it dies, others take over when its time is up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace

from router.config.context import ContextConfig
from router.core.errors import RouterError
from router.sessions.context.compaction import Source, cut_view, find_cut, place_of, source_of, with_summary
from router.sessions.context.cut_points import Cut
from router.sessions.context.history import History
from router.sessions.context.summaries import reject
from router.sessions.context.view import START, LogPosition, Segment, View, Work
from router.sessions.histories import Histories
from router.sessions.planner import TurnRequest
from router.sessions.recaller import Recaller
from router.sessions.stores.contract import Sid
from router.sessions.summaries import SummaryWriter, Written
from router.sessions.summary_budget import SummaryBudget
from router.sessions.views import ViewPlan, Views

log = logging.getLogger("warmroute.sessions")

ATTEMPTS = 4
"""Attempts to commit a summary while others change the view."""

MIN_SHRINKING, MIN_SUMMARY_TOKENS = 4, 16
"""A summary is asked to be a quarter of its source at most, and may always have so many tokens."""


MAX_WAITING = 10_000
"""Sessions that may wait. A further one is compacted after its next turn."""

MAX_SOURCE_TOKENS = 32_000
"""Most tokens that one summary is made of. The next summary is made of the rest."""


class CompactionJob(NamedTuple):
    """A session to compact after a turn. ``sid``: where the turn went on, which may be a copy."""

    sid: Sid
    request: TurnRequest
    view_plan: ViewPlan
    wanted_at: float


class Result(StrEnum):
    """Results of a job: labels of the compaction counter."""

    CUT = "cut"
    SUMMARIZED = "summarized"
    """Cut, with a summary."""
    PENDING = "pending"
    """There is a summary, which the next cut shows."""
    NOTHING = "nothing"
    RACED = "raced"
    STALE = "stale"
    DROPPED = "dropped"
    FAILED = "failed"
    OVER_BUDGET = "over_budget"
    REJECTED_EMPTY = "rejected_empty"
    REJECTED_REFUSAL = "rejected_refusal"
    REJECTED_LONGER = "rejected_longer"
    REJECTED_UNFINISHED = "rejected_unfinished"


COMMITTED = frozenset((Result.CUT, Result.SUMMARIZED, Result.PENDING))


class SummaryPlan(NamedTuple):
    """``cut``: the one to make; None: what is summarised was cut before. ``upto``: the last item of the cut. ``question``: the
    item that the cut keeps. ``max_tokens``: of the summary."""

    cut: Cut | None
    upto: LogPosition
    question: LogPosition
    source: Source
    max_tokens: int

    @property
    def price(self) -> int:
        """Most tokens that it can cost, about."""
        return self.source.tokens + self.max_tokens


class Compactor:
    """One for the process. ``run`` may run several times at once, and once without writing, so that slow summaries hold up no
    cut."""

    def __init__(
        self,
        config: ContextConfig,
        views: Views,
        histories: Histories,
        writer: SummaryWriter,
        recaller: Recaller,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        observe_lag: Callable[[float], None],
    ) -> None:
        self._config = config
        self.max_waiting = MAX_WAITING
        self._views = views
        self._histories = histories
        self._writer = writer
        self._recaller = recaller
        self._wall_clock = wall_clock
        self._clock = clock
        self._observe_lag = observe_lag
        self.jobs: dict[Sid, CompactionJob] = {}
        """Jobs that wait, by session."""
        self.at_work: set[Sid] = set()
        self._news = asyncio.Event()
        self.budget = SummaryBudget(config.summary_tokens_per_day, wall_clock)
        self.results: Counter[str] = Counter(dict.fromkeys(Result, 0))
        self.tokens: Counter[str] = Counter({"prompt": 0, "summary": 0})

    @property
    def waiting(self) -> int:
        return len(self.jobs)

    def submit(self, sid: Sid, request: TurnRequest, view_plan: ViewPlan) -> None:
        if sid not in self.jobs and len(self.jobs) >= self.max_waiting:
            self.results[Result.DROPPED] += 1
            return
        self.jobs[sid] = CompactionJob(sid, request, view_plan, self._clock())
        self._news.set()

    async def run(self, *, writes: bool = True) -> None:
        """Until cancelled. ``writes``: also jobs that need a summary."""
        while True:
            sid = next((sid for sid in self.jobs if self._may_begin(sid, writes=writes)), None)
            if sid is None:
                self._news.clear()
                await self._news.wait()
                continue
            job = self.jobs.pop(sid)
            self.at_work.add(sid)
            try:
                await self.do(job)
            finally:
                self.at_work.discard(sid)
                self._news.set()

    def _may_begin(self, sid: Sid, *, writes: bool) -> bool:
        return sid not in self.at_work and (writes or not self.jobs[sid].view_plan.writes)

    async def do(self, job: CompactionJob) -> None:
        """One job, to its end. A failure is counted, and the session is tried again after another turn."""
        try:
            result = await self._do(job)
        except RouterError as error:
            result = Result.FAILED
            log.warning("a history was not cut", extra={"why": error.message, "code": error.code})
        self.results[result] += 1
        if result in COMMITTED:
            self._observe_lag(self._clock() - job.wanted_at)

    async def _do(self, job: CompactionJob) -> Result:
        owner = job.request.caller.rules.tenant
        history, _ = await self._histories.load(job.sid, owner)
        traits = self._views.traits(job.request, history)
        result = Result.NOTHING
        if traits.summarizes:
            result = await self._summarize(job, history)
        elif (cut := _due_cut(job.view_plan, history)) is not None:
            is_ours = await self._histories.commit_view(history, cut_view(history, cut))
            result = Result.CUT if is_ours else Result.RACED
        if traits.recalls:
            await self._recaller.catch_up(history)
        return result

    async def _summarize(self, job: CompactionJob, history: History) -> Result:
        """Plan, reserve, write, commit."""
        plan = self._plan(job, history)
        if plan is None:
            return Result.NOTHING
        if plan.cut is not None and plan.source.upto < plan.upto:
            # Too much for one request: the history is cut now, and summarised part by part.
            if not await self._histories.commit_view(history, cut_view(history, plan.cut)):
                return Result.RACED
            plan = plan._replace(source=self._source(job, history, plan.source.upto, plan.max_tokens))
        work = await self._reserve(job, history, plan)
        if isinstance(work, Result):
            return work
        written = await self._write(job, history, plan)
        if isinstance(written, Result):
            await self._postpone(job, history, work)
            return written
        source = plan.source
        segment = Segment(source.since, source.upto, written.text, written.tokens, source.head)
        return await self._commit(history, segment, plan.question)

    def _plan(self, job: CompactionJob, history: History) -> SummaryPlan | None:
        """The items that a cut removes now, or those that were cut before without a summary. None: there are none."""
        low, upto, question = job.view_plan.low, history.view.cut, START
        if (cut := _due_cut(job.view_plan, history)) is not None:
            upto = place_of(history, cut)
            question = cut.question.place if cut.question is not None else START
        if upto <= history.view.summarized_upto:
            return None
        max_tokens = min(self._config.summary_tokens, max(low // MIN_SHRINKING, MIN_SUMMARY_TOKENS))
        return SummaryPlan(cut, upto, question, self._source(job, history, upto, max_tokens), max_tokens)

    def _source(self, job: CompactionJob, history: History, upto: LogPosition, max_tokens: int) -> Source:
        room = min(MAX_SOURCE_TOKENS, self._writer.room(job.request, history, max_tokens))
        return source_of(history, upto, low_tokens=job.view_plan.low, max_tokens=room)

    async def _reserve(self, job: CompactionJob, history: History, plan: SummaryPlan) -> Work | Result:
        """The tenant's budget for it, and the work among replicas."""
        left = self.budget.left(job.request.caller.rules)
        if left is not None and left < plan.price:
            return Result.OVER_BUDGET
        now, before = self._wall_clock(), history.view.work
        if before is not None and now < before.until:
            return Result.RACED  # another replica writes, or the last attempt failed a short time ago
        failures = before.failures if before is not None else 0
        work = Work(secrets.token_hex(8), plan.source.upto, now + self._config.summary_timeout_s, failures)
        if not await self._histories.commit_view(history, replace(history.view, work=work)):
            return Result.RACED
        self.budget.spend(job.request.caller.rules, plan.price)  # before another job asks
        return work

    async def _write(self, job: CompactionJob, history: History, plan: SummaryPlan) -> Written | Result:
        """The budget is charged what it cost, in place of what was reserved."""
        source, rules = plan.source, job.request.caller.rules
        max_tokens = min(plan.max_tokens, max(source.tokens // MIN_SHRINKING, MIN_SUMMARY_TOKENS))
        try:
            async with asyncio.timeout(self._config.summary_timeout_s):
                written = await self._writer.write(job.request, history, source, max_tokens)
        except (RouterError, TimeoutError) as error:
            log.warning("no summary was written", extra={"why": str(error) or "it took too long"})
            self.budget.spend(rules, -plan.price)
            return Result.FAILED
        self.tokens["prompt"] += written.prompt_tokens
        self.tokens["summary"] += written.tokens
        why = reject(written.text, written.tokens, source.tokens, is_whole=written.is_whole)
        self.budget.spend(rules, (0 if why else written.prompt_tokens + written.tokens) - plan.price)
        return Result(f"rejected_{why}") if why else written

    async def _postpone(self, job: CompactionJob, history: History, work: Work) -> None:
        """Leave the view as it is, and say when to try again."""
        failures = work.failures + 1
        until = self._wall_clock() + self._config.summary_retry_s * 2.0 ** min(failures - 1, 10)
        for _ in range(ATTEMPTS):
            view = history.view
            if view.work is None or view.work.token != work.token:
                return  # another took over, or the session is another
            if await self._histories.commit_view(
                history, replace(view, work=replace(work, until=until, failures=failures))
            ):
                return
            history, _ = await self._histories.load(job.sid, history.owner)

    async def _commit(self, history: History, segment: Segment, question: LogPosition) -> Result:
        generation = history.generation
        for _ in range(ATTEMPTS):
            view: View | None = with_summary(history, segment, question)
            if view is None or history.generation != generation:
                return Result.STALE
            if await self._histories.commit_view(history, view):
                return Result.PENDING if view.pending else Result.SUMMARIZED
            history, _ = await self._histories.load(Sid(history.sid), history.owner)
        return Result.RACED


def _due_cut(view_plan: ViewPlan, history: History) -> Cut | None:
    """None: the history is short, or another replica has cut it since the turn."""
    return find_cut(history, view_plan.low) if history.tokens >= view_plan.high else None
