"""Keeps histories within their windows: before a turn, beside its question, and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from router.core.request.record import Record
from router.sessions.compactor import Compactor
from router.sessions.context.history import History
from router.sessions.context.messages import has_media
from router.sessions.planner import Plan, TurnRequest
from router.sessions.recaller import Recaller
from router.sessions.stores.contract import Sid
from router.sessions.views import Views


class Counts(Protocol):
    """Counts the tokens of messages; see ``router.sessions.tokens``."""

    def is_exact(self, model: str) -> bool: ...

    async def count(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]: ...

    def learn(self, model: str, counted_tokens: int, messages: int, prompt_tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class ContextWindow:
    views: Views
    recaller: Recaller
    compactor: Compactor
    counts: Counts

    async def count(self, request: TurnRequest) -> TurnRequest:
        """The request with the tokens of its messages and tools, where they can be counted, and of what is of this turn alone.
        Images are counted in any case, since their bytes say nothing."""
        incoming, is_exact = request.incoming, self.counts.is_exact(request.incoming.model)
        own = list(incoming.messages) if is_exact or any(map(has_media, incoming.messages)) else []
        tools = _as_messages(incoming.tools) if is_exact else []
        turn = [*incoming.turn_system, *_as_messages(incoming.turn_tools)]
        if not (own or tools or turn):
            return request
        counts = await self.counts.count(incoming.model, [*own, *tools, *turn])
        end = len(own) + len(tools)
        incoming = msgspec.structs.replace(
            incoming,
            counts=counts[: len(own)],
            tools_tokens=sum(counts[len(own) : end]),
            turn_tokens=sum(counts[end:]),
        )
        return replace(request, incoming=incoming)

    async def recall(self, request: TurnRequest, history: History) -> TurnRequest:
        """The request with what a search finds in the cut part of the history, if the session recalls and no search was made
        yet."""
        if not history.start or request.has_searched:
            return request
        if not self.views.traits(request, history).recalls:
            return request
        recalled = await self.recaller.recall(request, history)
        if recalled is not None and self.counts.is_exact(request.incoming.model):
            text = msgspec.json.decode(recalled.body, type=str)
            (tokens,) = await self.counts.count(request.incoming.model, [{"content": text}])
            recalled = recalled._replace(tokens=tokens)
        return replace(request, recalled=recalled, has_searched=True)

    def fits(self, request: TurnRequest, history: History, plan: Plan) -> bool:
        """False: the history must be cut first, or the turn refused."""
        return self.views.needs_cut(request, history, plan) is None and not self.views.is_too_long(request, plan.prompt)

    async def fit(self, request: TurnRequest, history: History, plan: Plan) -> bool:
        """Cuts the history if need be. True: it fits, or cannot be made to. Raises StateUnavailable, SessionNotFound,
        SessionCorrupt."""
        low_tokens = self.views.needs_cut(request, history, plan)
        return low_tokens is None or not await self.views.cut(history, low_tokens)

    def fit_aside(self, request: TurnRequest, history: History, plan: Plan) -> History:
        """The history, or a copy that is cut, for a turn that leaves nothing behind."""
        low_tokens = self.views.needs_cut(request, history, plan)
        return history if low_tokens is None else self.views.cut_aside(history, low_tokens)

    def on_end(self, sid: Sid, request: TurnRequest, history: History, plan: Plan, record: Record | None) -> None:
        """The turn has ended."""
        if record is not None and record.prompt_tokens:
            prompt = plan.prompt
            self.counts.learn(request.incoming.model, prompt.tokens, len(prompt.messages), record.prompt_tokens)
        if (view_plan := self.views.on_end(request, history, plan, record)) is not None:
            self.compactor.submit(sid, request, view_plan)


def _as_messages(tools: Sequence[Any] | None) -> list[Mapping[str, Any]]:
    """Messages that have as many tokens as the tools: templates write tools as JSON."""
    return [{"content": msgspec.json.encode(tools).decode()}] if tools else []
