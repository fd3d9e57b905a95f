"""Who writes notes on what leaves a prompt: a small model of the fleet, or the session's own behind the whole conversation,
where all but the instruction is cached.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from router.core.errors import WorkerError
from router.proxy.internal_client import LOW_PRIORITY, InternalClient
from router.proxy.ports import Dispatch
from router.sessions.context.compaction import ANY, Source
from router.sessions.context.history import History
from router.sessions.context.prompt import Incoming
from router.sessions.context.summaries import ask_about, ask_behind, without_thoughts, words_of
from router.sessions.context.view import LogPosition
from router.sessions.names import affinity_key
from router.sessions.openai.chat_answers import ChatAnswer, read_answer
from router.sessions.planner import Ask, Planner, request_of
from router.sessions.stores.contract import Sid
from router.wire.completion import BadAnswer

FRAME_TOKENS = 300
"""Of what is asked for, and of templates."""

OF_WINDOW = 0.8
"""Of a model's window, what a transcript may fill: its tokens were counted by another's tokenizer, or not at all."""


LEAST_BYTES_PER_TOKEN = 6
"""Of notes, more than any tokenizer reaches on average: a model that says they are fewer tokens is not believed."""


class Written(NamedTuple):
    """``prompt_tokens``: read for it. ``is_whole``: the model had said all when it ended."""

    text: str
    tokens: int
    prompt_tokens: int
    is_whole: bool = True


class SummaryWriter(Protocol):
    async def write(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        """``ask``: the turn behind which they are written. Raises RouterError."""
        ...

    def room(self, ask: Ask, history: History, max_tokens: int) -> int:
        """Of a source that one request can tell of, tokens; ``max_tokens``: of the notes."""
        ...


@dataclass(frozen=True, slots=True)
class FleetSummaryWriter:
    """``model``: empty for each session's own. ``window``: a model's, in tokens; 0: unknown."""

    planner: Planner
    dispatch: Dispatch
    clock: Callable[[], float]
    model: str
    window: Callable[[str], int]

    async def write(self, ask: Ask, history: History, source: Source, max_tokens: int) -> Written:
        model = self._model(ask)
        if not source.notes and self._may_go_behind(ask, history, source.since, max_tokens):
            is_cached = model == ask.incoming.model
            if is_cached or source.tokens > self._room_for_transcript(model, max_tokens):
                return await self._write_behind(ask, history, source, max_tokens)
        messages = ask_about(source.notes, source.items, max_tokens)
        incoming = Incoming(model=model, messages=messages, params=note_params(max_tokens))
        apart = History(f"{history.sid}notes", history.owner, "")
        return await self._ask(ask, apart, incoming, "")

    def room(self, ask: Ask, history: History, max_tokens: int) -> int:
        if self._may_go_behind(ask, history, history.view.told, max_tokens):
            return ANY
        return self._room_for_transcript(self._model(ask), max_tokens)

    def _model(self, ask: Ask) -> str:
        return ask.caller.rules.summary_model or self.model or ask.incoming.model

    def _room_for_transcript(self, model: str, max_tokens: int) -> int:
        window = self.window(model)
        return max(round(window * OF_WINDOW) - max_tokens - FRAME_TOKENS, 1) if window else ANY

    def _may_go_behind(self, ask: Ask, history: History, since: LogPosition, max_tokens: int) -> bool:
        """All that is to be told of stands in the prompt, nothing is open there, and there is room behind it."""
        last = msgspec.json.decode(history.items[-1].body) if history.items else {}
        if since < history.view.cut or last.get("role") != "assistant" or last.get("tool_calls"):
            return False
        window = self.window(ask.incoming.model)
        size = history.tokens + history.log.system.tokens + history.log.tools.tokens + max_tokens + FRAME_TOKENS
        return not window or size <= window

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
            api=ask.api,
            sid=ask.sid,
            caller=ask.caller,
            incoming=incoming,
            headers={},
            request_id=f"notes_{secrets.token_hex(12)}",
            started_at=self.clock(),
            lifetime_s=0.0,
        )
        plan = self.planner.plan(own, history, history.turns + 1)
        client = InternalClient()
        request = request_of(own, affinity_key(Sid(sid)) if sid else None, plan)
        await self.dispatch.dispatch(request, client, own.started_at, LOW_PRIORITY)
        return _written(client)


def _written(client: InternalClient) -> Written:
    """Raises WorkerError."""
    if client.reply is None or client.reply.status != 200 or client.record is None:
        raise WorkerError("no model wrote notes")
    try:
        return read_notes(read_answer(client.reply.body), client.record.prompt_tokens)
    except BadAnswer:
        raise WorkerError("the notes cannot be understood") from None


def read_notes(answer: ChatAnswer, prompt_tokens: int) -> Written:
    """``prompt_tokens``: what the model read for them."""
    text = without_thoughts(words_of({**answer.message, "tool_calls": None}))
    tokens = max(answer.completion_tokens, len(text.encode()) // LEAST_BYTES_PER_TOKEN)
    return Written(text, tokens, max(prompt_tokens, 0), is_whole=answer.finish_reason != "length")


def note_params(max_tokens: int) -> dict[str, object]:
    """Of a chat body that asks for notes."""
    return {"max_tokens": max_tokens, "temperature": 0}


def _salt(ask: Ask) -> dict[str, str]:
    return {"cache_salt": ask.incoming.cache_salt} if ask.incoming.cache_salt else {}
