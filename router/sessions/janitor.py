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

from router.context.compaction import Source, cut_view, find_cut, place_of, source_of, with_notes
from router.context.history import History
from router.context.summaries import reject
from router.context.view import START, Place, Segment, View, Work
from router.core.errors import RouterError
from router.core.request import Tenant
from router.core.tenant import TenantRules
from router.sessions.histories import Histories
from router.sessions.notes import NoteWriter, Written
from router.sessions.plans import Ask
from router.sessions.store import Sid
from router.sessions.views import Look, Views

log = logging.getLogger("warmroute.sessions")

ATTEMPTS = 4
"""To commit notes, while turns cut the history and others wish things of the session."""

DAY_S = 86_400.0

LEAST_SHRINKING, LEAST_NOTES_TOKENS = 4, 16
"""Notes are asked to be a quarter of what they stand for, at the most: longer ones are refused, or spare little."""


@dataclass(frozen=True, slots=True)
class JanitorSettings:
    """``max_waiting``: sessions; beyond, one is looked at behind its next turn. ``work_s``: how long notes may take before
    others may try. ``retry_s``: after notes that came to nothing; twice as long each time. ``tokens_per_day``: of prompts and
    notes, for a tenant that has no bound of its own; 0: any number."""

    max_waiting: int
    work_s: float
    retry_s: float
    notes_tokens: int
    tokens_per_day: int


class Chore(NamedTuple):
    """A session to be looked at, behind a turn. ``sid``: its own, where the turn went on in a copy."""

    sid: Sid
    ask: Ask
    look: Look
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
        bound = rules.notes_tokens_per_day or self._default
        return bound - self._spent[rules.tenant] if bound else None

    def spend(self, rules: TenantRules, tokens: int) -> None:
        self._spent[rules.tenant] += tokens


class Janitor:
    """One for the process; ``run`` may run several times at once."""

    def __init__(
        self,
        settings: JanitorSettings,
        views: Views,
        histories: Histories,
        writer: NoteWriter,
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
        self._waiting: dict[Sid, Chore] = {}
        self._at_work: set[Sid] = set()
        self._news = asyncio.Event()
        self.budget = Budget(settings.tokens_per_day, wall_clock)
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self.tokens: Counter[str] = Counter({"prompt": 0, "notes": 0})

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def want(self, sid: Sid, ask: Ask, look: Look) -> None:
        if sid not in self._waiting and len(self._waiting) >= self._settings.max_waiting:
            self.results["dropped"] += 1
            return
        self._waiting[sid] = Chore(sid, ask, look, self._clock())
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            sid = next((sid for sid in self._waiting if sid not in self._at_work), None)
            if sid is None:
                self._news.clear()
                continue
            chore = self._waiting.pop(sid)
            self._at_work.add(sid)
            try:
                await self.do(chore)
            finally:
                self._at_work.discard(sid)
                self._news.set()

    async def do(self, chore: Chore) -> None:
        """One chore, wholly. What goes wrong is counted, and tried again behind another turn."""
        try:
            result = await self._do(chore)
        except RouterError as error:
            result = "failed"
            log.warning("a history was not cut", extra={"why": error.message, "code": error.code})
        self.results[result] += 1
        if result in COMMITTED:
            self._observe_lag(self._clock() - chore.wanted_at)

    async def _do(self, chore: Chore) -> str:
        owner = chore.ask.caller.rules.tenant
        history, _ = await self._histories.load(chore.sid, owner)
        traits = self._views.traits(chore.ask, history)
        result = "nothing"
        if traits.tells:
            result = await self._tell(chore, history)
        elif chore.look.cuts and (cut := find_cut(history, chore.look.low)) is not None:
            result = "cut" if await self._histories.commit_view(history, cut_view(history, cut)) else "raced"
        if traits.recalls:
            await self._indexer.catch_up(history)
        return result

    async def _tell(self, chore: Chore, history: History) -> str:
        """Notes of what is to go; of what went without any, if nothing is to go."""
        upto, question = history.view.cut, START
        if chore.look.cuts and (cut := find_cut(history, chore.look.low)) is not None:
            upto = place_of(history, cut)
            question = cut.question.place if cut.question is not None else START
        if upto <= history.view.told:
            return "nothing"
        source = source_of(history, upto)
        left = self.budget.left(chore.ask.caller.rules)
        if left is not None and left < source.tokens + self._settings.notes_tokens:
            return "over_budget"
        work = await self._begin(history, upto)
        if work is None:
            return "raced"
        written = await self._write(chore, history, source)
        if isinstance(written, str):
            await self._give_up(chore, history, work)
            return written
        segment = Segment(source.since, upto, written.text, written.tokens, source.head)
        return await self._commit(history, segment, question)

    async def _begin(self, history: History, upto: Place) -> Work | None:
        """Tell all replicas who writes. None: another does, or what came of it last time is too near."""
        now, before = self._wall_clock(), history.view.work
        if before is not None and now < before.until:
            return None
        failures = before.failures if before is not None else 0
        work = Work(secrets.token_hex(8), upto, now + self._settings.work_s, failures)
        return work if await self._histories.commit_view(history, replace(history.view, work=work)) else None

    async def _write(self, chore: Chore, history: History, source: Source) -> Written | str:
        """Or why there are no notes."""
        try:
            async with asyncio.timeout(self._settings.work_s):
                max_tokens = min(self._settings.notes_tokens, max(source.tokens // LEAST_SHRINKING, LEAST_NOTES_TOKENS))
                written = await self._writer.write(chore.ask, history, source, max_tokens)
        except (RouterError, TimeoutError) as error:
            log.warning("notes were not written", extra={"why": str(error) or "they took too long"})
            return "failed"
        self.budget.spend(chore.ask.caller.rules, written.prompt_tokens + written.tokens)
        self.tokens["prompt"] += written.prompt_tokens
        self.tokens["notes"] += written.tokens
        why = reject(written.text, written.tokens, source.tokens)
        return f"rejected_{why}" if why else written

    async def _give_up(self, chore: Chore, history: History, work: Work) -> None:
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
            history, _ = await self._histories.load(chore.sid, history.owner)

    async def _commit(self, history: History, segment: Segment, question: Place) -> str:
        generation = history.generation
        for _ in range(ATTEMPTS):
            view: View | None = with_notes(history, segment, question)
            if view is None or history.generation != generation:
                return "stale"
            if await self._histories.commit_view(history, view):
                return "pending" if view.pending else "told"
            history, _ = await self._histories.load(Sid(history.sid), history.owner)
        return "raced"


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
)
"""What comes of a chore: labels of the compaction counter."""
