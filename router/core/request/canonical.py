"""A prompt's canonical bytes, which are fingerprinted: equal prompts give equal bytes, however their JSON was written.

Tools come first, then the messages in order, as chat templates have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


def tools_segments(tools: Sequence[Any] | None) -> list[bytes]:
    return [msgspec.json.encode(tools)] if tools else []


def message_segments(message: Mapping[str, Any]) -> list[bytes]:
    """Role, content, and other members of the message such as tool calls. Raises UnicodeEncodeError for lone surrogates."""
    segments = [f"\n{message.get('role')}\n".encode(), text_bytes(message.get("content"))]
    if len(message) > 2 or "content" not in message:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        segments.append(msgspec.json.encode(rest, order="sorted"))
    return segments


def text_bytes(content: Any) -> bytes:
    """A string as it is; a list of text parts as their texts; anything else as JSON."""
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, list):
        return b"".join(
            part["text"].encode()
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            else msgspec.json.encode(part, order="sorted")
            for part in content
        )
    return b"" if content is None else msgspec.json.encode(content, order="sorted")
