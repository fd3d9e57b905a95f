"""The texts of a message that are its own. Pure. A chat template's text is not among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec


class OwnText(NamedTuple):
    """``media``: parts that are no text, such as images. No text tokenizer can count them."""

    text: str
    media: int = 0


def own_text(message: Mapping[str, Any]) -> OwnText:
    """The message's content, and the names and arguments of its function calls. Encodable as UTF-8."""
    content = message.get("content")
    texts: list[str] = []
    media = 0
    if isinstance(content, str):
        texts.append(content)
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
            else:
                media += 1
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        texts += map(_call_text, calls)
    return OwnText(_encodable("".join(texts)), media)


def _call_text(call: Any) -> str:
    """A call as most templates write it: an object with name and arguments."""
    function = call.get("function", call) if isinstance(call, dict) else call
    try:
        return msgspec.json.encode(function).decode()
    except UnicodeEncodeError:
        return repr(function)


def _encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
