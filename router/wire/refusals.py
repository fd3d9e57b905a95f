"""What workers refuse, in words that clients know."""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.errors import ContextTooLong


class _Refusal(msgspec.Struct):
    error: dict[str, Any]


MAX_REFUSAL_BYTES = 64 << 10
"""Of an answer that is read for whether it says that a model is not there."""


class _Missing(msgspec.Struct):
    """The error is a member, or with older releases the whole answer."""

    error: _Missing | None = None
    message: str = ""
    param: str | None = None


def says_no_model(body: bytes, model: str) -> bool:
    """An answer of status 404: is it for want of the model? vLLM names the parameter, or says it in these words alone."""
    if len(body) > MAX_REFUSAL_BYTES:
        return False
    try:
        answer = msgspec.json.decode(body, type=_Missing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    said = answer.error or answer
    return said.param == "model" or f"The model `{model}` does not exist" in said.message


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
