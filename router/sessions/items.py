"""A session's items as clients meet them, each with an id that tells where in the log it stands."""

from __future__ import annotations

from typing import Any

import msgspec

from router.context.history import History, Item
from router.context.prompt import Incoming
from router.core.errors import InvalidRequest
from router.sessions.chat_requests import require_text
from router.wire.body_limits import BodyLimits, check_body
from router.wire.strict_json import decode_object


def public_items(history: History, *, with_unfinished: bool = False) -> list[dict[str, Any]]:
    """Oldest first. ``with_unfinished``: those of turns that have not ended, too, which no prompt has in it."""
    items = [_public(history, item, "completed") for item in history.items]
    if with_unfinished:
        items += [_public(history, item, "incomplete") for item in history.unfinished()]
        items.sort(key=lambda item: (item["turn"], item["number"]))
    return items


def _public(history: History, item: Item, status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{history.sid[:16]}{item.number:08x}",
        "type": "message",
        "status": status,
        "turn": item.turn,
        "number": item.number,
        **msgspec.json.decode(item.body),
    }


def read_items(body: bytes, limits: BodyLimits) -> Incoming:
    """``{"items": [message, …]}``. Raises InvalidJson, InvalidRequest."""
    members = decode_object(body)
    messages = members.get("items")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest("items must be a list of at least one message", param="items")
    check_body({"messages": messages}, body, limits)
    require_text(messages)
    return Incoming(model="", messages=messages, params={})
