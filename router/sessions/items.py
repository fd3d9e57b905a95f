"""A session's items as clients meet them. An item's id says where in the log it stands, so nothing has to be looked up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from router.context.history import History, Item
from router.sessions.store import Sid
from router.wire.responses.items import items_of
from router.wire.responses.shapes import MESSAGE, REASONING

SID_CHARS = 16
"""Of the session's key: enough that ids of two sessions do not meet."""

_ID = re.compile(r"(?:msg|fc|rs)_([a-z2-7]{16})([0-9a-f]{8})(?:_(-?[0-9]{1,4}))?")


def item_id(sid: Sid) -> Callable[[int, int], str]:
    """By number in the log and part of the message."""
    stem = sid[:SID_CHARS]

    def name(number: int, part: int) -> str:
        kind = "msg" if part == MESSAGE else "fc" if part > 0 else "rs"
        return f"{kind}_{stem}{number:08x}" + ("" if part in (MESSAGE, REASONING) else f"_{part}")

    return name


def place_of(sid: Sid, name: str) -> tuple[int, int] | None:
    """Number and part; None for what is no item's id of this session."""
    match = _ID.fullmatch(name)
    if match is None or match[1] != sid[:SID_CHARS]:
        return None
    part = int(match[3]) if match[3] else REASONING if name.startswith("rs") else MESSAGE
    return int(match[2], 16), part


def public_items(sid: Sid, items: Sequence[Item]) -> list[dict[str, Any]]:
    name = item_id(sid)
    return [public for item in items for public in items_of([(item.number, item.body)], _as_written(name, item.calls))]


def _as_written(name: Callable[[int, int], str], calls: Sequence[int]) -> Callable[[int, int], str]:
    """A tool call keeps its id when one before it was deleted."""
    return lambda number, part: name(number, calls[part - 1] if part > MESSAGE else part)


class Marked(NamedTuple):
    """A message, and what its items show besides."""

    item: Item
    more: Mapping[str, Any] = MappingProxyType({})


def marked_items(history: History) -> list[Marked]:
    """Oldest first, also those of turns that have not ended, which no prompt has in it; with their turns."""
    marked = [Marked(item, {"status": "completed", "turn": item.turn}) for item in history.items]
    marked += [Marked(item, {"status": "incomplete", "turn": item.turn}) for item in history.unfinished()]
    return sorted(marked, key=lambda each: (each.item.turn, each.item.number))


def show(sid: Sid, marked: Marked) -> list[dict[str, Any]]:
    return [{**public, **marked.more} for public in public_items(sid, [marked.item])]


def find_item(sid: Sid, items: Sequence[Item], name: str) -> dict[str, Any] | None:
    """Of one message only anything is read."""
    place = place_of(sid, name)
    found = [item for item in items if place is not None and item.number == place[0]]
    return next((public for public in public_items(sid, found) if public["id"] == name), None)
