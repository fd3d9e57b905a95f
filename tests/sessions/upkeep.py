"""Upkeep for turns under test: nothing is recalled, and notes are what a script says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router.context.compaction import Source
from router.context.economy import Economy
from router.context.history import History
from router.context.view import Wishes
from router.recall.index import RecallIndex
from router.recall.nothing import NoIndex
from router.sessions.histories import Histories
from router.sessions.janitor import Janitor, JanitorSettings
from router.sessions.notes import NoteWriter, Written
from router.sessions.plans import Ask
from router.sessions.recaller import Recaller, RecallRules
from router.sessions.upkeep import Upkeep
from router.sessions.views import ContextRules, Lookups, Views


class FakeWriter:
    """``texts``: what it writes, one after another; then always the last. An exception is raised."""

    def __init__(self, texts: Sequence[str | Exception] = ("notes",)) -> None:
        self.texts = list(texts)
        self.sources: list[Source] = []

    async def write(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        self.sources.append(source)
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, Exception):
            raise text
        return Written(text, max(len(text) // 4, 1), source.tokens)


class Estimates:
    def is_exact(self, model: str) -> bool:
        return False

    async def count(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        raise AssertionError(model)

    def total(self, model: str, counted_tokens: int, messages: int) -> int:
        return counted_tokens

    def learn(self, model: str, counted_tokens: int, messages: int, prompt_tokens: int) -> None: ...


def upkeep_of(
    histories: Histories,
    clock: Callable[[], float],
    *,
    writer: NoteWriter | None = None,
    index: RecallIndex | None = None,
    window: int = 0,
    cached: float = 1e9,
    idle_s: float = 60.0,
    max_waiting: int = 100,
    **wishes: Any,
) -> Upkeep:
    """``wishes``: everybody's; without any, histories are sent whole."""
    rules = ContextRules(Wishes(**wishes), answer_tokens=0, idle_s=idle_s, notes_tokens=20, notes_price=0.5)
    lookups = Lookups(
        window=lambda _model: window,
        total=lambda _model, counted, _messages: counted,
        is_exact=lambda _model: True,
        cached=lambda _model, _prompt: cached,
    )
    views = Views(rules, histories, lookups, Economy(0.1), clock)
    recall = RecallRules(max_tokens=100, limit=5, deadline_s=5.0)
    recaller = Recaller(recall, index or NoIndex(), lambda _model: 4.0, clock, lambda _seconds: None)
    histories.on_deleted = recaller.forget
    settings = JanitorSettings(max_waiting=max_waiting, work_s=60.0, retry_s=10.0, notes_tokens=20, tokens_per_day=0)
    janitor = Janitor(settings, views, histories, writer or FakeWriter(), recaller, clock, clock, lambda _seconds: None)
    return Upkeep(views, recaller, janitor, Estimates())
