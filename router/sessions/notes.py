"""Who writes notes on what leaves a prompt: a small model of the fleet, or the session's own behind the whole conversation,
where all but the instruction is cached.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from router.context.compaction import Source
from router.context.history import History
from router.context.prompt import Incoming
from router.context.summaries import ask_about, ask_behind, words_of
from router.core.errors import WorkerError
from router.core.tenant import TenantRules
from router.own_client import OwnClient
from router.sessions.names import affinity_key
from router.sessions.plans import Ask, Planner, request_of
from router.sessions.store import Sid
from router.sides import Dispatch
from router.wire.answers import Answer, BadAnswer, read_completion

PRIORITY = -100
"""Nobody waits for notes."""


class Written(NamedTuple):
    """``prompt_tokens``: read for it."""

    text: str
    tokens: int
    prompt_tokens: int


class NoteWriter(Protocol):
    async def write(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        """``ask``: the turn behind which they are written. Raises RouterError."""
        ...


@dataclass(frozen=True, slots=True)
class FleetWriter:
    """``model``: empty for each session's own. ``price``: of one of its tokens, over one of the session's own model;
    ``cached_price``: of one that is cached."""

    planner: Planner
    dispatch: Dispatch
    clock: Callable[[], float]
    model: str
    price: float
    cached_price: float

    async def write(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        rules = ask.caller.rules
        model = rules.notes_model or self.model or ask.incoming.model
        price = self.price if model != ask.incoming.model else 1.0
        if not source.notes and self.cached_price * history.tokens < price * source.tokens:
            return await self._write_behind(ask, history, source, max_tokens)
        messages = ask_about(source.notes, source.items, max_tokens)
        incoming = Incoming(model=model, messages=messages, params=note_params(max_tokens))
        apart = History(f"{history.sid}notes", history.owner, "")
        return await self._ask(ask, apart, incoming, "")

    async def _write_behind(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        left = [item for item in history.items if item.place > source.upto]
        incoming = Incoming(
            model=ask.incoming.model,
            messages=[ask_behind(left, max_tokens)],
            params=note_params(max_tokens) | _salt(ask),
            turn_system=ask.incoming.turn_system,
            turn_tools=ask.incoming.turn_tools,
        )
        return await self._ask(ask, history, incoming, history.sid)

    async def _ask(self, ask: Ask, history: History, incoming: Incoming, sid: str) -> Written:
        own = Ask(
            door=ask.door,
            sid=ask.sid,
            caller=ask.caller,
            incoming=incoming,
            headers={},
            request_id=f"notes_{secrets.token_hex(12)}",
            started_at=self.clock(),
            lifetime_s=0.0,
        )
        plan = self.planner.plan(own, history, history.turns + 1)
        client = OwnClient()
        rules: TenantRules = msgspec.structs.replace(ask.caller.rules, priority=PRIORITY)
        request = request_of(own, affinity_key(Sid(sid)) if sid else None, plan)
        await self.dispatch.dispatch(request, client, own.started_at, rules)
        return _written(client)


def _written(client: OwnClient) -> Written:
    """Raises WorkerError."""
    if client.reply is None or client.reply.status != 200 or client.record is None:
        raise WorkerError("no model wrote notes")
    try:
        return read_notes(read_completion(client.reply.body), client.record.prompt_tokens)
    except BadAnswer:
        raise WorkerError("the notes cannot be understood") from None


def read_notes(answer: Answer, prompt_tokens: int) -> Written:
    """``prompt_tokens``: what the model read for them."""
    text = words_of({**answer.message, "tool_calls": None}).strip()
    return Written(text, answer.completion_tokens or len(text) // 4, prompt_tokens)


def note_params(max_tokens: int) -> dict[str, object]:
    """Of a chat body that asks for notes."""
    return {"max_tokens": max_tokens, "temperature": 0}


def _salt(ask: Ask) -> dict[str, str]:
    return {"cache_salt": ask.incoming.cache_salt} if ask.incoming.cache_salt else {}
