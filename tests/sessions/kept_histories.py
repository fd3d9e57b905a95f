"""Upkeep for turns under test: nothing is recalled, and notes are what a script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router.config.context import ContextConfig
from router.core.request.request import Tenant
from router.sessions.compactor import Compactor
from router.sessions.context.compaction import Source
from router.sessions.context.history import History
from router.sessions.context_window import ContextWindow, Counts
from router.sessions.histories import Histories
from router.sessions.planner import TurnRequest
from router.sessions.recall.index import IndexUnavailable, Passage, RecallIndex
from router.sessions.recall.null_index import NullIndex
from router.sessions.recaller import Recaller
from router.sessions.stores.contract import Sid
from router.sessions.summaries import SummaryWriter, Written
from router.sessions.tokens.texts import own_text
from router.sessions.views import Lookups, Views


class FakeWriter:
    """``texts``: what it writes, one after another; then always the last. An exception is raised."""

    def __init__(self, texts: Sequence[str | Exception] = ("notes",)) -> None:
        self.texts = list(texts)
        self.sources: list[Source] = []

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        self.sources.append(source)
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, Exception):
            raise text
        return Written(text, max(len(text) // 4, 1), source.tokens)

    def room(self, request: TurnRequest, history: History, max_tokens: int) -> int:
        return 1 << 40


class SlowWriter(FakeWriter):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        self.asked.set()
        await self.go.wait()
        return await super().write(request, history, source, max_tokens)


class WordIndex:
    """Finds items that have a word of the query; newest first."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[int, str]] = {}
        self.is_away = False

    async def newest(self, sid: Sid, owner: Tenant) -> int:
        if self.is_away:
            raise IndexUnavailable("as the test wished")
        return max(self.kept.get((sid, owner), {0: ""}))

    async def add(self, sid: Sid, owner: Tenant, passages: Sequence[Passage]) -> None:
        self.kept.setdefault((sid, owner), {}).update(passages)

    async def search(self, sid: Sid, owner: Tenant, query: str, *, upto: int, limit: int) -> Sequence[int]:
        if self.is_away:
            raise IndexUnavailable("as the test wished")
        texts = self.kept.get((sid, owner), {})
        found = [at for at, text in texts.items() if at <= upto and set(query.split()) & set(text.split())]
        return sorted(found, reverse=True)[:limit]

    async def forget(self, sid: Sid, owner: Tenant) -> None:
        self.kept.pop((sid, owner), None)

    async def close(self) -> None: ...


class Estimates:
    def is_exact(self, model: str) -> bool:
        return False

    async def count(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        return [len(own_text(message).text) // 4 for message in messages]

    def learn(self, model: str, counted_tokens: int, messages: int, prompt_tokens: int) -> None: ...


def context_window_of(
    histories: Histories,
    clock: Callable[[], float],
    *,
    writer: SummaryWriter | None = None,
    index: RecallIndex | None = None,
    counts: Counts | None = None,
    total: Callable[[str, int, int], int] = lambda _model, counted, _messages: counted,
    bytes_per_token: Callable[[str], float] = lambda _model: 4.0,
    window: int = 0,
    **overrides: Any,
) -> ContextWindow:
    """``overrides``: everybody's; without any, histories are sent whole."""
    config = ContextConfig(
        **{"strategy": "none", **overrides},
        answer_tokens=0,
        summary_tokens=20,
        recall_tokens=100,
        recall_timeout_s=5.0,
    )
    views = Views(config, histories, Lookups(lambda _model: window, total, lambda _model: True))
    recaller = Recaller(config, index or NullIndex(), bytes_per_token, clock, lambda _seconds: None)
    histories.on_deleted = recaller.forget
    compactor = Compactor(
        config, views, histories, writer or FakeWriter(), recaller, clock, clock, lambda _seconds: None
    )
    return ContextWindow(views, recaller, compactor, counts or Estimates())
