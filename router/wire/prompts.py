"""Bodies by the form of their prompt: what of each is typed, and which segments its prompt has. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from router.core.errors import InvalidRequest
from router.core.request.canonical import message_segments, text_bytes, tools_segments
from router.core.request.routes import PromptForm

JsonObject = dict[str, Any]
Shape = TypeVar("Shape", bound="Body")


class StreamOptions(Struct):
    include_usage: bool | None = None


class Body(Struct):
    """Members of every inference route."""

    model: Annotated[str, Meta(max_length=256)]
    stream: bool | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None


class ChatBody(Body, kw_only=True):
    messages: list[JsonObject]
    tools: list[JsonObject] | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Body, kw_only=True):
    prompt: str | list[Any] | None = None
    stream_options: StreamOptions | None = None


class MessagesBody(Body, kw_only=True):
    messages: list[JsonObject]
    system: str | list[JsonObject] | None = None
    tools: list[JsonObject] | None = None


class Prompt(Struct, frozen=True):
    """Segments in the order of the chat template; how many of them are the stable prefix, and how many an earlier turn had."""

    segments: Sequence[bytes] = ()
    anchor_segments: int = 0
    earlier_segments: int = 0


def convert(members: Mapping[str, Any], shape: type[Shape]) -> Shape:
    """Raises InvalidRequest, which names the member."""
    try:
        return msgspec.convert(members, shape)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        where = where.rstrip("`")
        raise InvalidRequest(f"{what}{' at ' + where if where else ''}", param=where or None) from None


def _chat(body: ChatBody | MessagesBody) -> Prompt:
    """The stable prefix ends with the first user turn; an earlier turn ends with the last assistant's message."""
    segments = tools_segments(body.tools)
    system = getattr(body, "system", None)
    if system:
        segments.append(text_bytes(system))
    anchor = earlier = 0
    for message in body.messages:
        segments += message_segments(message)
        role = message.get("role")
        if role == "assistant":
            earlier = len(segments)
        elif role == "user" and not anchor:
            anchor = len(segments)
    return Prompt(segments, anchor or len(segments), earlier)


def _completion(body: CompletionBody) -> Prompt:
    """Several prompts are routed by the first; their weight is that of all."""
    prompt = body.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        segments = [b"".join(token.to_bytes(4, "big", signed=True) for token in _token_ids(prompt))]
    elif isinstance(prompt, list):
        segments = list(map(text_bytes, prompt)) or [b""]
    else:
        segments = [text_bytes(prompt)]
    return Prompt(segments, 1, 0)


def _token_ids(prompt: list[Any]) -> list[int]:
    if not all(isinstance(token, int) and 0 <= token < 1 << 31 for token in prompt):
        raise InvalidRequest("a prompt of token ids must hold integers from 0 to 2147483647 only", param="prompt")
    return prompt


def _no_prompt(_: Body) -> Prompt:
    """For routes that read each input once: no prefix is worth keeping."""
    return Prompt()


PROMPTS: dict[PromptForm, tuple[type[Body], Callable[[Any], Prompt]]] = {
    PromptForm.MESSAGES: (ChatBody, _chat),
    PromptForm.ANTHROPIC: (MessagesBody, _chat),
    PromptForm.TEXT: (CompletionBody, _completion),
    PromptForm.NONE: (Body, _no_prompt),
}
