"""Conversations, lists and deletions, as the API writes them, and bodies that create or change conversations. Pure; reading
raises InvalidRequest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.sessions.openai.messages import read_items
from router.sessions.openai.values import JsonObject, read_list, read_metadata, refuse
from router.wire.body_limits import BodyLimits

MAX_NEW_ITEMS = 20
"""Most items of one request, as in the API."""


def conversation(conversation_id: str, created_at: int, metadata: Mapping[str, str]) -> JsonObject:
    """``created_at``: Unix seconds."""
    return {
        "id": conversation_id,
        "object": "conversation",
        "created_at": created_at,
        "metadata": dict(metadata),
    }


def conversation_deleted(conversation_id: str) -> JsonObject:
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def response_deleted(response_id: str) -> JsonObject:
    return {"id": response_id, "object": "response", "deleted": True}


def item_list(items: Sequence[JsonObject], *, has_more: bool) -> JsonObject:
    """One page. An empty one has empty ids, since clients expect strings."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": has_more}


def read_new_conversation(
    members: Mapping[str, Any], limits: BodyLimits | None = None
) -> tuple[list[bytes], dict[str, str]]:
    """The conversation's first messages and its metadata."""
    return _read_items(members.get("items") or [], limits), read_metadata(members.get("metadata"))


def read_new_items(members: Mapping[str, Any], limits: BodyLimits | None = None) -> list[bytes]:
    """The messages to add."""
    if not members.get("items"):
        refuse("items is required", "items")
    return _read_items(members["items"], limits)


def read_messages(members: Mapping[str, Any], limits: BodyLimits) -> list[bytes]:
    """The messages to add to a session, which may be a whole history."""
    items = read_list(members.get("items") or [], "items")
    if not 0 < len(items) <= limits.max_messages:
        refuse(f"items must have 1 to {limits.max_messages}", "items")
    return read_items(items, limits.media, "items")


def read_changed_metadata(members: Mapping[str, Any]) -> dict[str, str]:
    if "metadata" not in members:
        refuse("metadata is required", "metadata")
    return read_metadata(members["metadata"])


def _read_items(value: object, limits: BodyLimits | None) -> list[bytes]:
    items = read_list(value, "items")
    if len(items) > MAX_NEW_ITEMS:
        refuse(f"items may have at most {MAX_NEW_ITEMS}", "items")
    return read_items(items, limits.media if limits else None, "items")
