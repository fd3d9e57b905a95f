"""A chat completion as a session keeps it: read from a whole reply, or put together from a stream's events. Pure.

What is kept is what the next turn sends: the assistant's message. Its reasoning is kept only beside tool calls, where models
go on with it; elsewhere chat templates drop it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from router.wire.events import each_event


class BadAnswer(Exception):
    """The worker's answer is no chat completion that a session could keep."""


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message of the first choice, and what else a client is told of it."""

    message: dict[str, Any]
    id: str
    created: int
    model: str
    finish_reason: str
    usage: dict[str, Any] | None
    completion_tokens: int
    """As the worker counted; 0 where it did not say."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class AnswerReader:
    """``feed`` whole events, cut anyhow; ``answer`` at the end. About 2 µs a chunk."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._has_text = False
        self._id = self._model = self._finish_reason = ""
        self._created = 0
        self._usage: dict[str, Any] | None = None

    def feed(self, events: bytes) -> None:
        """Raises BadAnswer."""
        for event in each_event(events):
            data = event.partition(b"data:")[2].strip()
            if not data or data == b"[DONE]":
                continue
            try:
                self._take(_chunk.decode(data))
            except msgspec.DecodeError as error:
                raise BadAnswer(str(error)) from None

    def answer(self) -> ChatAnswer:
        """Raises BadAnswer where nothing finished."""
        if not self._finish_reason:
            raise BadAnswer("the stream gave no reason for finishing")
        calls = [self._calls[index] for index in sorted(self._calls)]
        return ChatAnswer(
            message=kept_message(
                "".join(self._content) if self._has_text else None,
                calls,
                reasoning="".join(self._reasoning),
                refusal="".join(self._refusal),
            ),
            id=self._id,
            created=self._created,
            model=self._model,
            finish_reason=self._finish_reason,
            usage=self._usage,
            completion_tokens=completion_tokens(self._usage),
        )

    def _take(self, chunk: _Chunk) -> None:
        self._id = self._id or chunk.id
        self._created = self._created or chunk.created
        self._model = self._model or chunk.model
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            if choice.index == 0:
                self._take_delta(choice.delta)
                self._finish_reason = choice.finish_reason or self._finish_reason

    def _take_delta(self, delta: _Delta) -> None:
        if delta.content is not None:
            self._has_text = True
            self._content.append(delta.content)
        if reasoning := delta.reasoning or delta.reasoning_content:
            self._reasoning.append(reasoning)
        if delta.refusal:
            self._refusal.append(delta.refusal)
        for call in delta.tool_calls or ():
            whole = self._calls.setdefault(
                call.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            whole["id"] = whole["id"] or call.id or ""
            whole["function"]["name"] = whole["function"]["name"] or call.function.name or ""
            whole["function"]["arguments"] += call.function.arguments or ""


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _WholeChoice(msgspec.Struct):
    message: _Message
    index: int = 0
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_WholeChoice]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: dict[str, Any] | None = None


def read_completion(body: bytes) -> ChatAnswer:
    """Of a whole reply. Raises BadAnswer."""
    try:
        whole = msgspec.json.decode(body, type=_Completion)
    except msgspec.DecodeError as error:
        raise BadAnswer(str(error)) from None
    if not whole.choices:
        raise BadAnswer("the completion has no choice")
    choice = whole.choices[0]
    message = choice.message
    if not are_calls(message.tool_calls):
        raise BadAnswer("the completion has a tool call that is none")
    return ChatAnswer(
        message=kept_message(
            message.content,
            message.tool_calls or [],
            reasoning=message.reasoning or message.reasoning_content or "",
            refusal=message.refusal or "",
        ),
        id=whole.id,
        created=whole.created,
        model=whole.model,
        finish_reason=choice.finish_reason or "stop",
        usage=whole.usage,
        completion_tokens=completion_tokens(whole.usage),
    )


def are_calls(value: object) -> bool:
    """Whether a message's ``tool_calls`` are some that can be told again: None, or objects whose function, if any, is one."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(call, dict) and isinstance(call.get("function") or {}, dict) for call in value)
    )


def kept_message(
    content: str | None, tool_calls: list[dict[str, Any]], *, reasoning: str = "", refusal: str = ""
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content if content is not None or tool_calls else ""}
    if refusal:
        message["refusal"] = refusal
    if tool_calls:
        message["tool_calls"] = tool_calls
        if reasoning:
            message["reasoning"] = reasoning
    return message


def completion_tokens(usage: Mapping[str, Any] | None) -> int:
    tokens = (usage or {}).get("completion_tokens")
    return tokens if isinstance(tokens, int) else 0


def write_completion(answer: ChatAnswer) -> bytes:
    """The answer again, as one reply: for a client that repeats a turn."""
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
    """The answer again, as a stream that is there at once."""
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
