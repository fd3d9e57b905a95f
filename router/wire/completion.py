"""Reads completions and the chunks of streamed ones, as workers send them. Pure.

A member may be missing or null. A wrong type makes the whole a BadAnswer.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec


class BadAnswer(Exception):
    """The worker sent no usable completion. The message quotes nothing of the answer."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """An assistant's message, or a delta of one."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The older name of ``reasoning``."""
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    function_call: Any = None


class Choice(msgspec.Struct):
    """Chat completions have ``message`` or ``delta``, text completions have ``text``."""

    index: int | None = None
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: Any = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None

    @property
    def content(self) -> str:
        """The text of a chunk."""
        return (self.delta and self.delta.content) or self.text or ""

    @property
    def is_plain(self) -> bool:
        """True for a chunk of the first choice that has nothing but text."""
        delta = self.delta or Message()
        odd = (delta.tool_calls, delta.function_call, delta.reasoning, delta.reasoning_content, delta.refusal)
        return not (any(odd) or self.logprobs or self.index)


class Completion(msgspec.Struct):
    """A whole completion, or one chunk of a stream."""

    id: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    prompt_token_ids: list[int] | None = None
    system_fingerprint: str | None = None

    @property
    def choice(self) -> Choice | None:
        """The first choice: sessions and resumptions ask for one only."""
        return next((choice for choice in self.choices or () if not choice.index), None)


_decoder = msgspec.json.Decoder(Completion)
_DATA = re.compile(rb"(?m)^data:(?! ?\[DONE\])(.*)")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_chunks(events: bytes) -> list[Completion]:
    """The chunks of whole events. Size lines of the chunked coding may stand between events. Raises BadAnswer."""
    try:
        return _decoder.decode_lines(b"\n".join(_DATA.findall(events)))
    except _UNREADABLE:
        raise BadAnswer("the worker's answer is no stream of chunks") from None


def read_whole(body: bytes) -> tuple[Completion, Choice, Message]:
    """A completion with its first choice and message, whose calls are numbered. Raises BadAnswer."""
    try:
        completion = _decoder.decode(body)
    except _UNREADABLE:
        raise BadAnswer("the worker's answer is no completion") from None
    choice = completion.choice
    if choice is None or choice.message is None:
        raise BadAnswer("the worker's answer has no message")
    for index, call in enumerate(choice.message.tool_calls or ()):
        call.index = index
    choice.finish_reason = choice.finish_reason or "stop"
    return completion, choice, choice.message
