"""Behind the turns: histories that have passed their high mark are cut, notes are written on what goes, and what went is made
searchable. No turn waits for it, and nothing that it does can lose an item: it changes views, by compare and set, and never
the log. Who dies at it leaves a mark in the view that others pass over when its time is up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from router.core.errors import RouterError
from router.core.request.request import Tenant
from router.core.tenants.tenant import TenantRules
from router.sessions.context.compaction import Source, cut_view, find_cut, place_of, source_of, with_notes
from router.sessions.context.cut_points import Cut
from router.sessions.context.history import History
from router.sessions.context.summaries import reject
from router.sessions.context.view import START, LogPosition, Segment, View, Work
from router.sessions.histories import Histories
from router.sessions.planner import Ask
from router.sessions.stores.contract import Sid
from router.sessions.summaries import SummaryWriter, Written
from router.sessions.views import ViewPlan, Views

log = logging.getLogger("warmroute.sessions")

ATTEMPTS = 4
"""To commit notes, while turns cut the history and others wish things of the session."""

DAY_S = 86_400.0

LEAST_SHRINKING, LEAST_SUMMARY_TOKENS = 4, 16
"""Notes are asked to be a quarter of what they stand for, at the most: longer ones are refused, or spare little."""


@dataclass(frozen=True, slots=True)
class CompactorSettings:
    """``max_waiting``: sessions; beyond, one is looked at behind its next turn. ``work_s``: how long notes may take before
    others may try. ``retry_s``: after notes that came to nothing; twice as long each time. ``tokens_per_day``: of prompts and
    notes, for a tenant that has no bound of its own; 0: any number."""

    max_waiting: int
    work_s: float
    retry_s: float
    summary_tokens: int
    source_tokens: int
    """Most that one request for notes tells of; the rest is told of by the next."""
    tokens_per_day: int


class CompactionJob(NamedTuple):
    """A session to be looked at, behind a turn. ``sid``: its own, where the turn went on in a copy."""

    sid: Sid
    ask: Ask
    view_plan: ViewPlan
    wanted_at: float


class Indexer(Protocol):
    async def catch_up(self, history: History) -> None:
        """With what left the prompt. Fails nothing."""
        ...


class Budget:
    """Tokens of a day, by tenant. Of this replica."""

    def __init__(self, default: int, wall_clock: Callable[[], float]) -> None:
        self._default = default
        self._wall_clock = wall_clock
        self._day = 0
        self._spent: Counter[Tenant] = Counter()

    def left(self, rules: TenantRules) -> int | None:
        """None: any number."""
        day = int(self._wall_clock() // DAY_S)
        if day != self._day:
            self._day = day
            self._spent.clear()
        bound = rules.summary_tokens_per_day or self._default
        return bound - self._spent[rules.tenant] if bound else None

    def spend(self, rules: TenantRules, tokens: int) -> None:
        self._spent[rules.tenant] += tokens


class Compactor:
    """One for the process; ``run`` may run several times at once, and once for what takes no notes: nothing that is slow holds
    that up."""

    def __init__(
        self,
        settings: CompactorSettings,
        views: Views,
        histories: Histories,
        writer: SummaryWriter,
        indexer: Indexer,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        observe_lag: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self._views = views
        self._histories = histories
        self._writer = writer
        self._indexer = indexer
        self._wall_clock = wall_clock
        self._clock = clock
        self._observe_lag = observe_lag
        self._waiting: dict[Sid, CompactionJob] = {}
        self._at_work: set[Sid] = set()
        self._news = asyncio.Event()
        self.budget = Budget(settings.tokens_per_day, wall_clock)
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self.tokens: Counter[str] = Counter({"prompt": 0, "notes": 0})

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, sid: Sid, ask: Ask, view_plan: ViewPlan) -> None:
        if sid not in self._waiting and len(self._waiting) >= self._settings.max_waiting:
            self.results["dropped"] += 1
            return
        self._waiting[sid] = CompactionJob(sid, ask, view_plan, self._clock())
        self._news.set()

    async def run(self, *, writes: bool = True) -> None:
        """Until cancelled. ``writes``: also those chores that take notes."""
        while True:
            sid = next((sid for sid in self._waiting if self._may_begin(sid, writes=writes)), None)
            if sid is None:
                self._news.clear()
                await self._news.wait()
                continue
            job = self._waiting.pop(sid)
            self._at_work.add(sid)
            try:
                await self.do(job)
            finally:
                self._at_work.discard(sid)
                self._news.set()

    def _may_begin(self, sid: Sid, *, writes: bool) -> bool:
        return sid not in self._at_work and (writes or not self._waiting[sid].view_plan.writes)

    async def do(self, job: CompactionJob) -> None:
        """One chore, wholly. What goes wrong is counted, and tried again behind another turn."""
        try:
            result = await self._do(job)
        except RouterError as error:
            result = "failed"
            log.warning("a history was not cut", extra={"why": error.message, "code": error.code})
        self.results[result] += 1
        if result in COMMITTED:
            self._observe_lag(self._clock() - job.wanted_at)

    async def _do(self, job: CompactionJob) -> str:
        owner = job.ask.caller.rules.tenant
        history, _ = await self._histories.load(job.sid, owner)
        traits = self._views.traits(job.ask, history)
        result = "nothing"
        if traits.summarizes:
            result = await self._tell(job, history)
        elif (cut := _due_cut(job.view_plan, history)) is not None:
            result = "cut" if await self._histories.commit_view(history, cut_view(history, cut)) else "raced"
        if traits.recalls:
            await self._indexer.catch_up(history)
        return result

    async def _tell(self, job: CompactionJob, history: History) -> str:
        """Notes of what is to go; of what went without any, if nothing is to go."""
        rules, view_plan, settings = job.ask.caller.rules, job.view_plan, self._settings
        upto, question = history.view.cut, START
        if (cut := _due_cut(view_plan, history)) is not None:
            upto = place_of(history, cut)
            question = cut.question.place if cut.question is not None else START
        if upto <= history.view.told:
            return "nothing"
        summary_tokens = min(settings.summary_tokens, max(view_plan.low // LEAST_SHRINKING, LEAST_SUMMARY_TOKENS))
        room = min(settings.source_tokens, self._writer.room(job.ask, history, summary_tokens))
        source = source_of(history, upto, low_tokens=view_plan.low, max_tokens=room)
        if cut is not None and source.upto < upto:  # too much for one request: it is cut now, and told of part by part
            if not await self._histories.commit_view(history, cut_view(history, cut)):
                return "raced"
            source = source_of(history, source.upto, low_tokens=view_plan.low, max_tokens=room)
        price = source.tokens + summary_tokens
        left = self.budget.left(rules)
        if left is not None and left < price:
            return "over_budget"
        work = await self._begin(history, source.upto)
        if work is None:
            return "raced"
        self.budget.spend(rules, price)  # before anybody else looks
        written = await self._write(job, history, source, summary_tokens)
        self.budget.spend(rules, (0 if isinstance(written, str) else written.prompt_tokens + written.tokens) - price)
        if isinstance(written, str):
            await self._give_up(job, history, work)
            return written
        segment = Segment(source.since, source.upto, written.text, written.tokens, source.head)
        return await self._commit(history, segment, question)

    async def _begin(self, history: History, upto: LogPosition) -> Work | None:
        """Tell all replicas who writes. None: another does, or what came of it last time is too near."""
        now, before = self._wall_clock(), history.view.work
        if before is not None and now < before.until:
            return None
        failures = before.failures if before is not None else 0
        work = Work(secrets.token_hex(8), upto, now + self._settings.work_s, failures)
        return work if await self._histories.commit_view(history, replace(history.view, work=work)) else None

    async def _write(self, job: CompactionJob, history: History, source: Source, summary_tokens: int) -> Written | str:
        """Or why there are no notes."""
        try:
            async with asyncio.timeout(self._settings.work_s):
                max_tokens = min(summary_tokens, max(source.tokens // LEAST_SHRINKING, LEAST_SUMMARY_TOKENS))
                written = await self._writer.write(job.ask, history, source, max_tokens)
        except (RouterError, TimeoutError) as error:
            log.warning("notes were not written", extra={"why": str(error) or "they took too long"})
            return "failed"
        self.tokens["prompt"] += written.prompt_tokens
        self.tokens["notes"] += written.tokens
        why = reject(written.text, written.tokens, source.tokens, is_whole=written.is_whole)
        return f"rejected_{why}" if why else written

    async def _give_up(self, job: CompactionJob, history: History, work: Work) -> None:
        """Leave the view as it is, and say when to try again."""
        failures = work.failures + 1
        until = self._wall_clock() + self._settings.retry_s * 2.0 ** min(failures - 1, 10)
        for _ in range(ATTEMPTS):
            view = history.view
            if view.work is None or view.work.token != work.token:
                return  # another took over, or the session is another
            if await self._histories.commit_view(
                history, replace(view, work=replace(work, until=until, failures=failures))
            ):
                return
            history, _ = await self._histories.load(job.sid, history.owner)

    async def _commit(self, history: History, segment: Segment, question: LogPosition) -> str:
        generation = history.generation
        for _ in range(ATTEMPTS):
            view: View | None = with_notes(history, segment, question)
            if view is None or history.generation != generation:
                return "stale"
            if await self._histories.commit_view(history, view):
                return "pending" if view.pending else "told"
            history, _ = await self._histories.load(Sid(history.sid), history.owner)
        return "raced"


def _due_cut(view_plan: ViewPlan, history: History) -> Cut | None:
    """Another may have cut it since the turn behind which somebody looks."""
    return find_cut(history, view_plan.low) if history.tokens >= view_plan.high else None


COMMITTED = frozenset(("cut", "told", "pending"))
RESULTS = (
    "cut",
    "told",
    "pending",
    "nothing",
    "raced",
    "stale",
    "dropped",
    "failed",
    "over_budget",
    "rejected_empty",
    "rejected_refusal",
    "rejected_longer",
    "rejected_unfinished",
)
"""What comes of a chore: labels of the compaction counter."""
