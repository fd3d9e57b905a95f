"""The objects of answers in the Responses API: response, output items, usage, errors. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.sessions.openai.values import JsonObject

MESSAGE, REASONING = 0, -1
"""The part of an assistant's message that an item is: text, reasoning, and from 1 on tool calls. So an item has the same id in
an answer and in a later list."""

_FAILED = frozenset({"abort", "error"})
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Head:
    """The part of a response that precedes its answer. ``created_at``: Unix seconds. ``echo``: from its request. ``item_id``:
    makes the id of a part of the assistant's message; parts of no stored message have numbers below ``REASONING``."""

    id: str
    created_at: int
    echo: Mapping[str, Any]
    item_id: Callable[[int], str]
    wants_logprobs: bool = False


def response(
    head: Head,
    status: str,
    output: Sequence[JsonObject] = (),
    *,
    usage: JsonObject | None = None,
    error: JsonObject | None = None,
    incomplete: str | None = None,
    completed_at: int | None = None,
) -> JsonObject:
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created_at,
        "status": status,
        "completed_at": completed_at,
        "error": error,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        **head.echo,
        "output": list(output),
        "usage": usage,
    }


def ending(finish_reason: str) -> tuple[str, str | None]:
    """The status, and why it is incomplete, from a chat completion's reason for finishing."""
    if finish_reason in _FAILED:
        return "failed", None
    reason = _INCOMPLETE.get(finish_reason)
    return ("incomplete" if reason else "completed"), reason


def message_item(item_id: str, parts: Sequence[JsonObject], status: str = "completed") -> JsonObject:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def reasoning_item(item_id: str, parts: Sequence[JsonObject], status: str = "completed") -> JsonObject:
    return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": list(parts)}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> JsonObject:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def text_part(text: str, logprobs: Sequence[JsonObject] = ()) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def refusal_part(refusal: str) -> JsonObject:
    return {"type": "refusal", "refusal": refusal}


def reasoning_part(text: str) -> JsonObject:
    return {"type": "reasoning_text", "text": text}


def usage_of(counted: Mapping[str, Any] | None) -> JsonObject | None:
    """From a chat completion's usage; None where the worker counted nothing."""
    if not counted:
        return None
    taken, given = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    prompt, completion = counted.get("prompt_tokens_details"), counted.get("completion_tokens_details")
    return {
        "input_tokens": taken,
        "input_tokens_details": {
            "cached_tokens": _count(prompt, "cached_tokens"),
            "cache_write_tokens": _count(prompt, "created_cache_tokens"),
        },
        "output_tokens": given,
        "output_tokens_details": {"reasoning_tokens": _count(completion, "reasoning_tokens")},
        "total_tokens": taken + given,
    }


def _count(counted: object, name: str) -> int:
    value = counted.get(name) if isinstance(counted, Mapping) else None
    return value if type(value) is int and value >= 0 else 0


def failure(status: int, message: str) -> JsonObject:
    """A response's error, with a code that clients know. ``status``: HTTP's. A worker's words about its own faults are not for
    clients."""
    if status == 429:
        return {"code": "rate_limit_exceeded", "message": message}
    if 400 <= status < 500:
        return {"code": "invalid_prompt", "message": message}
    return {"code": "server_error", "message": "the worker failed"}
