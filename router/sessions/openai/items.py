"""Chat messages of a log → items of conversations and input lists. Pure.

One message of an assistant gives several items: its reasoning, its text, and each tool call. An item's id is made of the
message's number and the part's, as ``shapes`` numbers parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from router.sessions.openai.shapes import (
    MESSAGE,
    REASONING,
    call_item,
    message_item,
    reasoning_item,
    reasoning_part,
    refusal_part,
    text_part,
)
from router.sessions.openai.values import JsonObject

ItemId = Callable[[int, int], str]
"""Makes an item's id of the message's number in its log and the part's."""

_OTHERS = frozenset({"user", "system", "developer"})


def items_of(messages: Iterable[tuple[int, bytes]], item_id: ItemId) -> list[JsonObject]:
    """``messages``: number and JSON of each, in order; so are the items."""
    return [item for number, body in messages for item in _items(number, msgspec.json.decode(body), item_id)]


def _items(number: int, message: JsonObject, item_id: ItemId) -> list[JsonObject]:
    role = message.get("role")
    if role == "assistant":
        return _assistant_items(number, message, item_id)
    content = message.get("content")
    if role in ("tool", "function"):
        return [
            {
                "id": item_id(number, MESSAGE),
                "type": "function_call_output",
                "status": "completed",
                "call_id": _string(message.get("tool_call_id") or message.get("name")),
                "output": content if isinstance(content, str) else _parts(content),
            }
        ]
    return [
        {
            "id": item_id(number, MESSAGE),
            "type": "message",
            "status": "completed",
            "role": role if role in _OTHERS else "user",
            "content": _parts(content),
        }
    ]


def _assistant_items(number: int, message: JsonObject, item_id: ItemId) -> list[JsonObject]:
    items = []
    calls = message.get("tool_calls") or ()
    if reasoning := _string(message.get("reasoning") or message.get("reasoning_content")):
        items.append(reasoning_item(item_id(number, REASONING), [reasoning_part(reasoning)]))
    text, refusal = _assistant_text(message.get("content")), _string(message.get("refusal"))
    if text or refusal or not calls:
        parts = [text_part(text)] if text or not refusal else []
        items.append(message_item(item_id(number, MESSAGE), parts + ([refusal_part(refusal)] if refusal else [])))
    for place, call in enumerate(calls, 1):
        function = call.get("function") or {}
        name, arguments = _string(function.get("name")), _string(function.get("arguments"))
        items.append(call_item(item_id(number, place), _string(call.get("id")), name, arguments))
    return items


def _parts(content: object) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [_part(part) for part in content] if isinstance(content, list) else []


def _part(part: Any) -> JsonObject:
    """A part without an item type is shown by its name."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "input_text", "text": _string(part.get("text"))}
    if kind == "image_url":
        image = part.get("image_url")
        image = image if isinstance(image, dict) else {"url": image}
        url, detail = _string(image.get("url")), image.get("detail") or "auto"
        return {"type": "input_image", "detail": detail, "file_id": None, "image_url": url}
    return {"type": "input_text", "text": f"[{kind}]"}


def _assistant_text(content: object) -> str:
    if isinstance(content, list):
        return "".join(_string(part.get("text")) for part in content if isinstance(part, dict))
    return _string(content)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
