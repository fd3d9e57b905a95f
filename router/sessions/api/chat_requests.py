"""Reads requests of sessions that speak chat completions. Raises ClientError."""

from __future__ import annotations

from typing import Any

from router.core.errors import InvalidRequest
from router.core.request.canonical import message_segments
from router.core.tenants.tenant import Caller
from router.sessions.context.prompt import Incoming
from router.wire.body_limits import BodyLimits, check_body, check_kept
from router.wire.media import forbid_names
from router.wire.prompts import ChatBody, convert
from router.wire.strict_json import decode_object

_WHOLE = ("messages", "tools", "model")


def read_chat(body: bytes, caller: Caller, limits: BodyLimits) -> Incoming:
    """Reads a chat body, whose messages are new ones. Raises InvalidJson, InvalidRequest."""
    members = decode_object(body)
    check_body(members, body, limits)
    check_kept(members, body, limits)
    if caller.salt_key and (b'"uuid"' in body or b"\\u" in body):
        forbid_names(members)
    typed = convert(members, ChatBody)
    if not typed.messages:
        raise InvalidRequest("messages must have at least one new message", param="messages")
    require_one_choice(members)
    require_shapes(typed.messages)
    require_text(typed.messages)
    return Incoming(
        model=typed.model,
        messages=typed.messages,
        params={name: value for name, value in members.items() if name not in _WHOLE},
        tools=typed.tools,
        resends=True,
    )


def require_one_choice(members: dict[str, Any]) -> None:
    """Raises InvalidRequest: a history has one answer to a message."""
    if members.get("n") not in (None, 1):
        raise InvalidRequest("a session keeps one answer: n must be 1", param="n")


def require_shapes(messages: list[dict[str, Any]]) -> None:
    """Checks what a session reads itself, since one unreadable message makes a whole session unreadable. The rest is the
    worker's to judge."""
    for at, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InvalidRequest("a message's role must be a string", param=f"messages[{at}].role")
        if not _are_calls(message.get("tool_calls")):
            raise InvalidRequest("tool_calls must be a list of calls", param=f"messages[{at}].tool_calls")


def _are_calls(value: object) -> bool:
    """True if a message's ``tool_calls`` can be sent again: None, or objects whose function, if any, is one."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(call, dict) and isinstance(call.get("function") or {}, dict) for call in value)
    )


def require_text(messages: list[dict[str, Any]]) -> None:
    """Raises InvalidRequest for a lone surrogate, which cannot be written."""
    try:
        for message in messages:
            message_segments(message)
    except UnicodeEncodeError:
        raise InvalidRequest("a message has a lone surrogate, which is not text", param="messages") from None


def wants_usage(incoming: Incoming) -> bool:
    options = incoming.params.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def streams(incoming: Incoming) -> bool:
    return bool(incoming.params.get("stream"))
