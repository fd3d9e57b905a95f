"""Writes summaries of what leaves a prompt. Either the session's own model is asked after the whole conversation, which is
cached but for the question, or another model of the fleet reads a transcript."""

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
from router.sessions.context.summaries import ask_after, ask_for_summary, without_thoughts, words_of
from router.sessions.context.view import LogPosition
from router.sessions.openai.chat_answers import ChatAnswer, read_answer
from router.sessions.planner import Planner, TurnRequest, request_of
from router.sessions.session_ids import affinity_key
from router.sessions.stores.contract import Sid
from router.wire.completion import BadAnswer

FRAME_TOKENS = 300
"""Tokens of the instruction and of chat templates, about."""

TRANSCRIPT_SHARE = 0.8
"""Share of a window that a transcript may fill. Its tokens were counted by another model's tokenizer, or estimated."""


MAX_BYTES_PER_TOKEN = 6
"""Bytes per token that no tokenizer exceeds on average. A model that counts fewer tokens of its summary is not believed."""


class Written(NamedTuple):
    """``prompt_tokens``: what the model read. ``is_whole``: the model ended by itself."""

    text: str
    tokens: int
    prompt_tokens: int
    is_whole: bool = True


class SummaryWriter(Protocol):
    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        """``request``: the turn after which it is written. Raises RouterError."""
        ...

    def room(self, request: TurnRequest, history: History, max_tokens: int) -> int:
        """Most tokens of a source for one summary of ``max_tokens``."""
        ...


@dataclass(frozen=True, slots=True)
class FleetSummaryWriter:
    """``model``: empty for each session's own. ``window``: a model's, in tokens; 0: unknown."""

    planner: Planner
    dispatch: Dispatch
    clock: Callable[[], float]
    model: str
    window: Callable[[str], int]

    async def write(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        model = self._model(request)
        if not source.summaries and self._may_ask_after(request, history, source.since, max_tokens):
            is_cached = model == request.incoming.model
            if is_cached or source.tokens > self._room_for_transcript(model, max_tokens):
                return await self._write_after(request, history, source, max_tokens)
        messages = ask_for_summary(source.summaries, source.items, max_tokens)
        incoming = Incoming(model=model, messages=messages, params=summary_params(max_tokens))
        apart = History(f"{history.sid}notes", history.owner, "")
        return await self._ask(request, apart, incoming, "")

    def room(self, request: TurnRequest, history: History, max_tokens: int) -> int:
        if self._may_ask_after(request, history, history.view.summarized_upto, max_tokens):
            return ANY
        return self._room_for_transcript(self._model(request), max_tokens)

    def _model(self, request: TurnRequest) -> str:
        return request.caller.rules.summary_model or self.model or request.incoming.model

    def _room_for_transcript(self, model: str, max_tokens: int) -> int:
        window = self.window(model)
        return max(round(window * TRANSCRIPT_SHARE) - max_tokens - FRAME_TOKENS, 1) if window else ANY

    def _may_ask_after(self, request: TurnRequest, history: History, since: LogPosition, max_tokens: int) -> bool:
        """True if the prompt has the whole source, ends with an answer, and leaves room for a question and a summary."""
        last = msgspec.json.decode(history.items[-1].body) if history.items else {}
        if since < history.view.cut or last.get("role") != "assistant" or last.get("tool_calls"):
            return False
        window = self.window(request.incoming.model)
        size = history.tokens + history.log.system.tokens + history.log.tools.tokens + max_tokens + FRAME_TOKENS
        return not window or size <= window

    async def _write_after(self, request: TurnRequest, history: History, source: Source, max_tokens: int) -> Written:
        left = [item for item in history.items if item.place > source.upto]
        incoming = Incoming(
            model=request.incoming.model,
            messages=[ask_after(left, max_tokens)],
            params=summary_params(max_tokens) | _salt(request),
            turn_system=request.incoming.turn_system,
            turn_tools=request.incoming.turn_tools,
        )
        return await self._ask(request, history, incoming, history.sid)

    async def _ask(self, request: TurnRequest, history: History, incoming: Incoming, sid: str) -> Written:
        own = TurnRequest(
            api=request.api,
            sid=request.sid,
            caller=request.caller,
            incoming=incoming,
            headers={},
            request_id=f"summary_{secrets.token_hex(12)}",
            started_at=self.clock(),
            lifetime_s=0.0,
        )
        plan = self.planner.plan(own, history, history.turns + 1)
        client = InternalClient()
        worker_request = request_of(own, affinity_key(Sid(sid)) if sid else None, plan)
        await self.dispatch.dispatch(worker_request, client, own.started_at, LOW_PRIORITY)
        return _written(client)


def _written(client: InternalClient) -> Written:
    """Raises WorkerError."""
    if client.reply is None or client.reply.status != 200 or client.record is None:
        raise WorkerError("no model wrote a summary")
    try:
        return read_summary(read_answer(client.reply.body), client.record.prompt_tokens)
    except BadAnswer:
        raise WorkerError("the summary cannot be understood") from None


def read_summary(answer: ChatAnswer, prompt_tokens: int) -> Written:
    """``prompt_tokens``: what the model read."""
    text = without_thoughts(words_of({**answer.message, "tool_calls": None}))
    tokens = max(answer.completion_tokens, len(text.encode()) // MAX_BYTES_PER_TOKEN)
    return Written(text, tokens, max(prompt_tokens, 0), is_whole=answer.finish_reason != "length")


def summary_params(max_tokens: int) -> dict[str, object]:
    """Parameters of a chat body that asks for a summary."""
    return {"max_tokens": max_tokens, "temperature": 0}


def _salt(request: TurnRequest) -> dict[str, str]:
    return {"cache_salt": request.incoming.cache_salt} if request.incoming.cache_salt else {}
