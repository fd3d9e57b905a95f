"""Workers' refusals: recognised, and translated into codes that clients know."""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.errors import ContextTooLong


class _Refusal(msgspec.Struct):
    error: dict[str, Any]


MAX_REFUSAL_BYTES = 64 << 10
"""A longer answer is not searched for a missing model."""


class _Missing(msgspec.Struct):
    """The error is a member, or with older releases the whole answer."""

    error: _Missing | None = None
    message: str = ""
    param: str | None = None


def says_no_model(body: bytes, model: str) -> bool:
    """True if an answer of status 404 means that the model is missing. vLLM names the parameter, or only uses these words."""
    if len(body) > MAX_REFUSAL_BYTES:
        return False
    try:
        answer = msgspec.json.decode(body, type=_Missing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    said = answer.error or answer
    return said.param == "model" or f"The model `{model}` does not exist" in said.message


def with_known_code(body: bytes) -> bytes:
    """The body of a 400 answer, with OpenAI's code if the prompt is too long. vLLM writes the status as the code, and names the
    parameter ``input_tokens``. Any other body is returned unchanged."""
    if b"input_tokens" not in body:
        return body
    try:
        error = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.DecodeError:
        return body
    if error.get("param") != "input_tokens":
        return body
    return msgspec.json.encode({"error": error | {"type": "invalid_request_error", "code": ContextTooLong.code}})
