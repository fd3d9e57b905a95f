"""Chat completions as sessions store them, from a whole reply or from a stream's events. Pure.

The assistant's message is stored, since the next turn sends it. Its reasoning is stored beside tool calls only, where models
use it; elsewhere chat templates drop it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from router.sessions.openai.messages import assistant_message, tool_call
from router.sessions.openai.values import JsonObject
from router.wire.completion import BadAnswer, Choice, Completion, Message, read_chunks, read_whole


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message of the first choice, and what else clients are sent with it."""

    message: dict[str, Any]
    id: str
    created: int
    model: str
    finish_reason: str
    usage: dict[str, Any] | None
    completion_tokens: int
    """As the worker counted; 0 where it did not say."""


class AnswerReader:
    """``feed`` whole events in any groups; ``answer`` at the end. About 2 µs a chunk."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, JsonObject] = {}
        self._id = self._model = self._finish_reason = ""
        self._created = 0
        self._usage: dict[str, Any] | None = None

    def feed(self, events: bytes) -> None:
        """Raises BadAnswer."""
        for chunk in read_chunks(events):
            choice = chunk.choice
            self.take(chunk, choice, choice.delta if choice else None)

    def answer(self) -> ChatAnswer:
        """Raises BadAnswer if there was no reason for finishing."""
        if not self._finish_reason:
            raise BadAnswer("the stream gave no reason for finishing")
        calls = [self._calls[index] for index in sorted(self._calls)]
        reasoning, refusal = "".join(self._reasoning), "".join(self._refusal)
        return ChatAnswer(
            message=assistant_message("".join(self._content), calls, reasoning=reasoning, refusal=refusal),
            id=self._id,
            created=self._created,
            model=self._model,
            finish_reason=self._finish_reason,
            usage=self._usage,
            completion_tokens=completion_tokens(self._usage),
        )

    def take(self, completion: Completion, choice: Choice | None, message: Message | None) -> None:
        """``message``: the choice's message, or a delta of it."""
        self._id = self._id or completion.id or ""
        self._created = self._created or completion.created or 0
        self._model = self._model or completion.model or ""
        self._usage = completion.usage or self._usage
        if choice is not None:
            self._finish_reason = choice.finish_reason or self._finish_reason
        if message is not None:
            self._take_message(message)

    def _take_message(self, message: Message) -> None:
        self._content.append(message.content or "")
        self._reasoning.append(message.reasoning or message.reasoning_content or "")
        self._refusal.append(message.refusal or "")
        for call in message.tool_calls or ():
            whole = self._calls.setdefault(call.index or 0, tool_call("", "", ""))
            whole["id"] = whole["id"] or call.id or ""
            if call.function is not None:
                function = whole["function"]
                function["name"] = function["name"] or call.function.name or ""
                function["arguments"] += call.function.arguments or ""


def read_answer(body: bytes) -> ChatAnswer:
    """Reads a whole reply. Raises BadAnswer."""
    reader = AnswerReader()
    reader.take(*read_whole(body))
    return reader.answer()


def completion_tokens(usage: Mapping[str, Any] | None) -> int:
    tokens = (usage or {}).get("completion_tokens")
    return tokens if isinstance(tokens, int) else 0


def write_completion(answer: ChatAnswer) -> bytes:
    """The stored answer as one reply, for a client that repeats a turn."""
    return msgspec.json.encode(
        {
            "id": answer.id,
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [
                {"index": 0, "message": answer.message, "logprobs": None, "finish_reason": answer.finish_reason}
            ],
            "usage": answer.usage,
        }
    )


def write_events(answer: ChatAnswer, *, wants_usage: bool) -> bytes:
    """The stored answer as a stream, all at once."""
    calls = answer.message.get("tool_calls")
    delta = {
        **answer.message,
        **({"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]} if calls else {}),
    }
    head = {"id": answer.id, "object": "chat.completion.chunk", "created": answer.created, "model": answer.model}
    events = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": answer.finish_reason}]},
    ]
    if wants_usage:
        events.append({**head, "choices": [], "usage": answer.usage})
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events) + b"data: [DONE]\n\n"
