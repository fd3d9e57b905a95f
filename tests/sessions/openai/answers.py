"""Completions and their chunks, as workers write them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

USAGE = {
    "prompt_tokens": 64,
    "total_tokens": 68,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 32, "created_cache_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ARGUMENTS = st.dictionaries(TEXT, TEXT, max_size=2).map(lambda value: json.dumps(value, ensure_ascii=False))
CUT_ARGUMENTS = st.just('{"a": "b')


def call(number: int, arguments: str, name: str = "look") -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def completion(message: dict[str, Any], finish_reason: str = "stop", **members: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE, **members}).encode()


def event(delta: dict[str, Any] | None, finish_reason: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    data = {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **members}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def last_events(finish_reason: str = "stop") -> list[bytes]:
    usage = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    return [event({}, finish_reason), usage, b"data: [DONE]\n\n"]


@st.composite
def messages(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """A message, and why it ended. Only what was cut off has arguments that are no whole object, and only at its end."""
    reason = draw(st.sampled_from(["stop", "length", "content_filter", "tool_calls"]))
    arguments = draw(st.lists(ARGUMENTS, max_size=3))
    if reason == "length" and draw(st.booleans()):
        arguments.append(draw(CUT_ARGUMENTS))
    message = {
        "reasoning": draw(st.none() | TEXT),
        "content": draw(st.none() | TEXT),
        "refusal": draw(st.none() | TEXT),
        "tool_calls": [call(number, each) for number, each in enumerate(arguments)],
    }
    return message, reason


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def chunks(message: dict[str, Any], reason: str, size: int) -> list[bytes]:
    """The message as a stream whose pieces have ``size`` characters."""
    events = [event({"role": "assistant", "content": ""})]
    for name in ("reasoning", "content", "refusal"):
        events += [event({name: piece}) for piece in pieces(message[name] or "", size)]
    for index, each in enumerate(message["tool_calls"]):
        begun = {**each, "index": index, "function": {"name": each["function"]["name"], "arguments": ""}}
        events.append(event({"tool_calls": [begun]}))
        for piece in pieces(each["function"]["arguments"], size):
            events.append(event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    return events + last_events(reason)
