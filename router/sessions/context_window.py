"""What keeps histories within their windows, as a turn meets it: before it is sent, beside its question, and behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from router.core.request.record import Record
from router.sessions.compactor import Compactor
from router.sessions.context.history import History
from router.sessions.context.messages import has_media
from router.sessions.planner import Ask, Plan
from router.sessions.recaller import Recaller
from router.sessions.stores.contract import Sid
from router.sessions.views import Views


class Counts(Protocol):
    """How many tokens messages are; see ``router.sessions.tokens``."""

    def is_exact(self, model: str) -> bool: ...

    async def count(self, model: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[int]: ...

    def learn(self, model: str, counted_tokens: int, messages: int, prompt_tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class ContextWindow:
    views: Views
    recaller: Recaller
    compactor: Compactor
    counts: Counts

    async def count(self, ask: Ask) -> Ask:
        """With the tokens of its messages and tools, where they can be told and not only estimated by their bytes, which says
        nothing of an image; and of what is of this turn alone."""
        incoming, is_exact = ask.incoming, self.counts.is_exact(ask.incoming.model)
        own = list(incoming.messages) if is_exact or any(map(has_media, incoming.messages)) else []
        tools = _as_messages(incoming.tools) if is_exact else []
        turn = [*incoming.turn_system, *_as_messages(incoming.turn_tools)]
        if not (own or tools or turn):
            return ask
        counts = await self.counts.count(incoming.model, [*own, *tools, *turn])
        behind = len(own) + len(tools)
        incoming = msgspec.structs.replace(
            incoming,
            counts=counts[: len(own)],
            tools_tokens=sum(counts[len(own) : behind]),
            turn_tokens=sum(counts[behind:]),
        )
        return replace(ask, incoming=incoming)

    async def recall(self, ask: Ask, history: History) -> Ask:
        """With what a search finds of what left the prompt, if the session recalls and nobody has searched yet."""
        if not history.start or ask.has_searched:
            return ask
        if not self.views.traits(ask, history).recalls:
            return ask
        recalled = await self.recaller.recall(ask, history)
        if recalled is not None and self.counts.is_exact(ask.incoming.model):
            text = msgspec.json.decode(recalled.body, type=str)
            (tokens,) = await self.counts.count(ask.incoming.model, [{"content": text}])
            recalled = recalled._replace(tokens=tokens)
        return replace(ask, recalled=recalled, has_searched=True)

    def fits(self, ask: Ask, history: History, plan: Plan) -> bool:
        """False: cut it first, or refuse it."""
        return self.views.needs_cut(ask, history, plan) is None and not self.views.is_too_long(ask, plan.prompt)

    async def fit(self, ask: Ask, history: History, plan: Plan) -> bool:
        """Cut it, if need be. True: it fits, or cannot be made to. Raises StateUnavailable, SessionNotFound, SessionCorrupt."""
        low_tokens = self.views.needs_cut(ask, history, plan)
        return low_tokens is None or not await self.views.cut(history, low_tokens)

    def fit_aside(self, ask: Ask, history: History, plan: Plan) -> History:
        """For a turn that leaves nothing behind, not even a cut: the history, or a copy that is cut."""
        low_tokens = self.views.needs_cut(ask, history, plan)
        return history if low_tokens is None else self.views.cut_aside(history, low_tokens)

    def on_end(self, sid: Sid, ask: Ask, history: History, plan: Plan, record: Record | None) -> None:
        """The turn has ended."""
        if record is not None and record.prompt_tokens:
            prompt = plan.prompt
            self.counts.learn(ask.incoming.model, prompt.tokens, len(prompt.messages), record.prompt_tokens)
        if (view_plan := self.views.on_end(ask, history, plan, record)) is not None:
            self.compactor.submit(sid, ask, view_plan)


def _as_messages(tools: Sequence[Any] | None) -> list[Mapping[str, Any]]:
    """What counts as much as they do: templates write them as JSON."""
    return [{"content": msgspec.json.encode(tools).decode()}] if tools else []
