"""The body that creates a response → chat messages, members of a chat body, and what the response repeats. Pure; raises
InvalidRequest, which names the parameter.

A parameter that the API does not know is the worker's own (``top_k``, ``chat_template_kwargs``, …), and is passed on. A
parameter that the API knows and this router cannot serve is refused, unless clients could not notice the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from router.sessions.openai.messages import read_items, user_message
from router.sessions.openai.tools import read_text_options, read_tool_choice, read_tools
from router.sessions.openai.values import (
    JsonObject,
    read_choice,
    read_flag,
    read_integer,
    read_list,
    read_metadata,
    read_number,
    read_object,
    read_text,
    refuse,
)
from router.wire.body_limits import MAX_TOKENS, BodyLimits, check_body

MAX_MODEL_CHARS = 256
MAX_ID_CHARS = 256

INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
"""Values of ``include`` that change nothing: most belong to tools that are refused, and reasoning is always text."""

_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
_SUMMARIES = frozenset({"auto", "concise", "detailed"})
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``messages``: added to the log. ``params``: of the chat body, without messages and tools. ``instructions``: this turn's
    system message, which is not stored. ``echo``: members of the response."""

    model: str
    messages: list[bytes]
    params: JsonObject
    tools: bytes | None
    instructions: str | None
    stream: bool
    store: bool
    previous_response_id: str | None
    conversation: str | None
    truncation: str | None
    """``auto``: drop what does not fit; ``disabled``: refuse it; None: as configured."""
    context_management: list[JsonObject]
    wants_logprobs: bool
    metadata: dict[str, str]
    echo: JsonObject


def read_create(members: Mapping[str, Any], limits: BodyLimits | None = None) -> ResponsesRequest:
    """``members``: the decoded body, without duplicate keys, and checked for depth. ``limits``: None: anything that the worker
    takes."""
    given = {name: value for name, value in members.items() if value is not None}
    _refuse_unsupported(given)
    known = {name: read(given[name], name) for name, read in _READERS.items() if name in given}
    tools, chat_tools = known.get("tools", ([], []))
    text, response_format = known.get("text", ({"format": {"type": "text"}}, None))
    choice, chat_choice = read_tool_choice(given.get("tool_choice", "auto"), has_tools=bool(tools))
    wants_logprobs = "message.output_text.logprobs" in known.get("include", ()) or bool(known.get("top_logprobs"))
    if "model" not in known:
        refuse("model is required", "model")
    params: JsonObject = {name: value for name, value in given.items() if name not in _READERS and name not in _OURS}
    params |= {theirs: known[ours] for ours, theirs in _RENAMED.items() if ours in known}
    ours = {
        "tool_choice": chat_choice if "tool_choice" in given else None,
        "response_format": response_format,
        "reasoning_effort": known.get("reasoning", {}).get("effort"),
        "stream_options": {"include_usage": True} if known.get("stream") else None,
    }
    params |= {name: value for name, value in ours.items() if value is not None}
    if wants_logprobs:
        params |= {"logprobs": True, "top_logprobs": known.get("top_logprobs", 0)}
    if limits is not None:
        check_body(params, b"", limits)
    return ResponsesRequest(
        model=known["model"],
        messages=_messages(given, limits),
        params=params,
        tools=msgspec.json.encode(chat_tools) if chat_tools else None,
        instructions=known.get("instructions") or None,
        stream=known.get("stream", False),
        store=known.get("store", True),
        previous_response_id=known.get("previous_response_id"),
        conversation=known.get("conversation"),
        truncation=known.get("truncation"),
        context_management=known.get("context_management", []),
        wants_logprobs=wants_logprobs,
        metadata=known.get("metadata", {}),
        echo=_echo(known) | {"tools": tools, "tool_choice": choice, "text": text},
    )


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        if name in given and given[name] is not False:
            refuse(f"{name} {why}", name)
    if "conversation" in given and "previous_response_id" in given:
        refuse("previous_response_id and conversation exclude each other", "previous_response_id")


def _messages(given: Mapping[str, Any], limits: BodyLimits | None) -> list[bytes]:
    value = given.get("input", [])
    if isinstance(value, str):
        return [user_message(value)]
    if not isinstance(value, list):
        refuse("input must be a string or a list of items", "input")
    if not value and not {"conversation", "previous_response_id"} & given.keys():
        refuse("input is required where there is no previous_response_id or conversation", "input")
    if limits is not None and len(value) > limits.max_messages:
        refuse(f"input may have at most {limits.max_messages} items", "input")
    return read_items(value, limits.media if limits else None)


def _echo(known: Mapping[str, Any]) -> JsonObject:
    """Every member of a response that repeats its request, with defaults."""
    conversation, reasoning = known.get("conversation"), known.get("reasoning", {})
    echo = {name: known.get(name) for name in _ECHOED}
    return echo | {
        "background": False,
        "conversation": {"id": conversation} if conversation else None,
        "metadata": known.get("metadata", {}),
        "parallel_tool_calls": known.get("parallel_tool_calls", True),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "service_tier": known.get("service_tier", "default"),
        "store": known.get("store", True),
        "top_logprobs": known.get("top_logprobs", 0),
        "truncation": known.get("truncation", "disabled"),
    }


def _model(value: object, param: str) -> str:
    return _short(value, param, MAX_MODEL_CHARS)


def _short(value: object, param: str, most: int = MAX_ID_CHARS) -> str:
    text = read_text(value, param)
    if not 0 < len(text) <= most:
        refuse(f"{param} must have 1 to {most} characters", param)
    return text


def _conversation(value: object, param: str) -> str:
    return _short(value.get("id"), f"{param}.id") if isinstance(value, dict) else _short(value, param)


def _reasoning(value: object, param: str) -> JsonObject:
    options = read_object(value, param)
    summary = options.get("summary") or options.get("generate_summary")
    effort = options.get("effort")
    return {
        "effort": None if effort is None else read_choice(effort, f"{param}.effort", _EFFORTS),
        "summary": None if summary is None else read_choice(summary, f"{param}.summary", _SUMMARIES),
    }


def _include(value: object, param: str) -> frozenset[str]:
    return frozenset(read_choice(each, f"{param}[{at}]", INCLUDABLE) for at, each in enumerate(read_list(value, param)))


def _objects(value: object, param: str) -> list[JsonObject]:
    return [read_object(each, f"{param}[{at}]") for at, each in enumerate(read_list(value, param))]


_READERS: Mapping[str, Callable[[Any, str], Any]] = MappingProxyType(
    {
        "context_management": _objects,
        "conversation": _conversation,
        "include": _include,
        "instructions": read_text,
        "max_output_tokens": partial(read_integer, least=1, most=MAX_TOKENS),
        "max_tool_calls": partial(read_integer, least=1, most=MAX_TOKENS),
        "metadata": read_metadata,
        "model": _model,
        "parallel_tool_calls": read_flag,
        "previous_response_id": _short,
        "prompt_cache_key": read_text,
        "prompt_cache_retention": partial(read_choice, allowed=frozenset({"in_memory", "24h"})),
        "reasoning": _reasoning,
        "safety_identifier": read_text,
        "service_tier": partial(read_choice, allowed=_TIERS),
        "store": read_flag,
        "stream": read_flag,
        "temperature": partial(read_number, least=0, most=2),
        "text": lambda value, _: read_text_options(value),
        "tools": lambda value, _: read_tools(value),
        "top_logprobs": partial(read_integer, least=0, most=20),
        "top_p": partial(read_number, least=0, most=1),
        "truncation": partial(read_choice, allowed=frozenset({"auto", "disabled"})),
        "user": read_text,
    }
)
_OURS = frozenset({"background", "input", "prompt_cache_options", "stream_options", "tool_choice"})
"""Parameters that are read elsewhere, or mean nothing here, such as obfuscation."""

_RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "max_output_tokens": "max_completion_tokens",
        **{name: name for name in ("model", "parallel_tool_calls", "prompt_cache_key", "stream", "temperature")},
        **{name: name for name in ("top_p", "user")},
    }
)
_ECHOED = (
    *("instructions", "max_output_tokens", "max_tool_calls", "model", "previous_response_id", "prompt_cache_key"),
    *("prompt_cache_retention", "safety_identifier", "temperature", "top_p", "user"),
)
_UNSUPPORTED = "is not supported here"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "background": "is not supported here: a response lives as long as its request",
        "prompt": "is not supported here: this router keeps no templates",
        **dict.fromkeys(("access_programs", "background_options", "image", "moderation"), _UNSUPPORTED),
        "messages": "belongs to chat completions: use input",
        "max_tokens": "belongs to chat completions: use max_output_tokens",
        "max_completion_tokens": "belongs to chat completions: use max_output_tokens",
        "response_format": "belongs to chat completions: use text.format",
        "reasoning_effort": "belongs to chat completions: use reasoning.effort",
        "logprobs": "belongs to chat completions: use top_logprobs",
        **dict.fromkeys(("functions", "function_call", "n"), "belongs to chat completions"),
    }
)
