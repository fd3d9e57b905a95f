"""Chat completions, and the chunks of streamed ones, as workers send them: what a response needs of them. Pure.

Whatever may be missing or null is; what has a wrong type makes the whole a BadAnswer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.sessions.openai.values import JsonObject


class BadAnswer(Exception):
    """What the worker sent is no answer. The message quotes nothing of it."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """A message, or a piece of one."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class Logprob(msgspec.Struct):
    token: str = ""
    logprob: float = -9999.0
    bytes: list[int] | None = None
    top_logprobs: list[Logprob] | None = None


class Logprobs(msgspec.Struct):
    content: list[Logprob] | None = None


class Choice(msgspec.Struct):
    index: int | None = None
    message: Said | None = None
    delta: Said | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Chat(msgspec.Struct):
    """A completion or a chunk."""

    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None

    @property
    def choice(self) -> Choice | None:
        """The first: there is never a second one that somebody asked for."""
        return next((choice for choice in self.choices or () if not choice.index), None)


_decoder = msgspec.json.Decoder(Chat)


def read_chat(data: bytes) -> Chat:
    """Raises BadAnswer."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("the worker's answer is no chat completion") from None


def whole_message(chat: Chat) -> tuple[Choice, Said]:
    """Of a completion, which is whole even where it does not say why it ended. Raises BadAnswer."""
    choice = chat.choice
    if choice is None or choice.message is None:
        raise BadAnswer("the worker's answer has no message")
    choice.finish_reason = choice.finish_reason or "stop"
    return choice, choice.message


def public_logprobs(logprobs: Logprobs | None) -> list[JsonObject]:
    return [
        {**_logprob(each), "top_logprobs": [_logprob(other) for other in each.top_logprobs or ()]}
        for each in (logprobs.content if logprobs else None) or ()
    ]


def _logprob(each: Logprob) -> JsonObject:
    spelled = list(each.token.encode()) if each.bytes is None else each.bytes
    return {"token": each.token, "bytes": spelled, "logprob": each.logprob}
