"""A session's items as clients see them. An item's id has its place in the log, so that nothing must be searched."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple, overload

from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.view import LogPosition
from router.sessions.openai.items import items_of
from router.sessions.openai.shapes import MESSAGE, REASONING
from router.sessions.stores.contract import Sid

SID_CHARS = 16
"""Characters of the session's key in an id: ids of two sessions do not meet."""

MAX_INSERTED = 100
"""Unfinished messages up to so many are inserted one by one; more are sorted."""

_ID = re.compile(r"(?:msg|fc|rs)_([a-z2-7]{16})([0-9a-f]{8})(?:_(-?[0-9]{1,4}))?")


def item_id(sid: Sid) -> Callable[[int, int], str]:
    """Makes ids from a message's number in the log and the part's number."""
    stem = sid[:SID_CHARS]

    def name(number: int, part: int) -> str:
        kind = "msg" if part == MESSAGE else "fc" if part > 0 else "rs"
        return f"{kind}_{stem}{number:08x}" + ("" if part in (MESSAGE, REASONING) else f"_{part}")

    return name


def place_of(sid: Sid, name: str) -> tuple[int, int] | None:
    """The message's number and the part's; None for an id that is no item's of this session."""
    match = _ID.fullmatch(name)
    if match is None or match[1] != sid[:SID_CHARS]:
        return None
    part = int(match[3]) if match[3] else REASONING if name.startswith("rs") else MESSAGE
    return int(match[2], 16), part


def public_items(sid: Sid, items: Sequence[Item]) -> list[dict[str, Any]]:
    name = item_id(sid)
    return [public for item in items for public in items_of([(item.number, item.body)], _as_written(name, item.calls))]


def _as_written(name: Callable[[int, int], str], calls: Sequence[int]) -> Callable[[int, int], str]:
    """A tool call keeps its id when an earlier one is deleted."""
    return lambda number, part: name(number, calls[part - 1] if part > MESSAGE else part)


class ShownItem(NamedTuple):
    """A message, and extra members for its items."""

    item: Item
    more: Mapping[str, Any] = MappingProxyType({})


class ShownItems(Sequence[ShownItem]):
    """Messages with extra members, made on access: a page of a long log costs no more than one of a short log."""

    def __init__(self, items: Sequence[Item], members_of: Callable[[Item], Mapping[str, Any]]) -> None:
        self._items = items
        self._members_of = members_of

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> ShownItem: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ShownItem]: ...
    def __getitem__(self, at: int | slice) -> ShownItem | Sequence[ShownItem]:
        if isinstance(at, slice):
            return ShownItems(self._items[at], self._members_of)
        return ShownItem(self._items[at], self._members_of(self._items[at]))


def plain_items(items: Sequence[Item]) -> Sequence[ShownItem]:
    return ShownItems(items, lambda _: ShownItem._field_defaults["more"])


def shown_items(history: History) -> Sequence[ShownItem]:
    """Oldest first, each with its turn. Has those of unfinished turns, too, which no prompt has."""
    unfinished = {item.number: item for item in history.log.unfinished()}
    items = history.items
    if len(unfinished) > MAX_INSERTED:
        items = sorted([*items, *unfinished.values()], key=_place)
    elif unfinished:
        items = items.copy()
        for item in unfinished.values():
            insort(items, item, key=_place)
    return ShownItems(
        items,
        lambda item: {"status": "incomplete" if item.number in unfinished else "completed", "turn": item.turn},
    )


def items_of_turn(history: History, turn: int) -> list[Item]:
    """The items of a turn that has ended. O(items since)."""
    newest = takewhile(lambda item: item.turn >= turn, reversed(history.items))
    return [item for item in newest if item.turn == turn][::-1]


def position(items: Sequence[ShownItem], number: int) -> int:
    """The index of the message of that number; len(items): there is none. O(log n), unless a turn's late end is among them."""
    at = bisect_left(items, number, key=lambda marked: marked.item.number)
    if at < len(items) and items[at].item.number == number:
        return at
    return next((at for at, marked in enumerate(items) if marked.item.number == number), len(items))


def _place(item: Item) -> LogPosition:
    return item.place


def show(sid: Sid, marked: ShownItem) -> list[dict[str, Any]]:
    return [{**public, **marked.more} for public in public_items(sid, [marked.item])]


def find_item(sid: Sid, items: Sequence[Item], name: str) -> dict[str, Any] | None:
    """Reads one message only."""
    place = place_of(sid, name)
    found = [item for item in items if place is not None and item.number == place[0]]
    return next((public for public in public_items(sid, found) if public["id"] == name), None)
