"""What workers refuse, in words that clients know."""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.errors import ContextTooLong


class _Refusal(msgspec.Struct):
    error: dict[str, Any]


def with_known_code(body: bytes) -> bytes:
    """An answer of status 400. vLLM names the status where OpenAI names the reason, and of a prompt that is too long the
    parameter ``input_tokens``; anything else, and what cannot be read, stays as it is."""
    if b"input_tokens" not in body:
        return body
    try:
        error = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.DecodeError:
        return body
    if error.get("param") != "input_tokens":
        return body
    return msgspec.json.encode({"error": error | {"type": "invalid_request_error", "code": ContextTooLong.code}})
