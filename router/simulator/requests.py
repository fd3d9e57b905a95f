"""The shapes of requests, and the prompt text that the model gets from them.

The fields that the simulator uses are decoded strictly, all others ignored, as vLLM does. Must never lose a byte that a
prompt depends on: different prompts give different texts.
"""

from typing import Any

import msgspec

from router.simulator.answers import GENERATION_HEADER
from router.simulator.faults import Fault


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    tool_call_id: str | None = None
    name: str | None = None


class GenerateRequest(msgspec.Struct):
    """Fields that chat and plain completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    stream_interval: int | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None


class ChatRequest(GenerateRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: msgspec.Raw = msgspec.Raw()
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionRequest(GenerateRequest, kw_only=True):
    prompt: Any


class MessagesRequest(msgspec.Struct, kw_only=True):
    """Anthropic's messages request. count_tokens has the same shape without max_tokens."""

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    cache_salt: str | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: msgspec.Raw = msgspec.Raw()


class TokenizeRequest(msgspec.Struct):
    model: str | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    tools: msgspec.Raw = msgspec.Raw()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


class FaultRequest(msgspec.Struct, omit_defaults=True):
    """The simulator's own request: a standing fault, or with `after_events` a strike that breaks one stream."""

    fault: Fault
    after_events: int | None = None


class PoolingRequest(msgspec.Struct):
    """Embeddings, rerank and score. Each route reads its own fields."""

    model: str | None = None
    input: Any = None
    query: str | None = None
    documents: list[str] | None = None
    top_n: int | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    cache_salt: str | None = None


_PART = msgspec.json.Encoder(order="sorted")


def _render_content(content: str | list[dict[str, Any]] | None) -> bytes:
    if content is None:
        return b""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    texts = []
    for part in content:
        text = part.get("text")
        texts.append(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else _PART.encode(part))
    return b"\n".join(texts)


def render_chat(
    messages: list[Message], tools: bytes = b"", *, add_generation_prompt: bool = True, continue_final: bool = False
) -> bytes:
    """The chat template: the tools, each message between its markers, the header of the answer."""
    parts = [b"<|im_start|>tools\n", tools, b"<|im_end|>\n"] if tools not in (b"", b"null", b"[]") else []
    for message in messages:
        parts += (b"<|im_start|>", message.role.encode(), b"\n", _render_content(message.content))
        if message.tool_call_id is not None:
            parts += (b"\n<tool_call_id>", message.tool_call_id.encode())
        if calls := bytes(message.tool_calls):
            parts += (b"\n<tool_calls>", calls)
        parts.append(b"<|im_end|>\n")
    if continue_final:
        parts.pop()
    elif add_generation_prompt:
        parts.append(GENERATION_HEADER)
    return b"".join(parts)


def render_messages(request: MessagesRequest) -> bytes:
    """The chat template for Anthropic's shape, in which the system prompt is a field beside the messages."""
    system = [Message(role="system", content=request.system)] if request.system else []
    return render_chat(system + request.messages, bytes(request.tools))
