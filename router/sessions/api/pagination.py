"""Lists as in the official API: pages of ``data``, in an order, after an item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from router.core.errors import InvalidRequest
from router.sessions.api.items import ShownItem, place_of, position, show
from router.sessions.openai.objects import item_list
from router.sessions.stores.contract import Sid

DEFAULT_LIMIT, MAX_LIMIT = 20, 100


class Paging(NamedTuple):
    limit: int
    is_descending: bool
    after: str


def read_paging(query: Mapping[str, str], *, default_order: str = "desc") -> Paging:
    """Raises InvalidRequest."""
    text = query.get("limit", str(DEFAULT_LIMIT))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be from 1 to {MAX_LIMIT}", param="limit")
    order = query.get("order", default_order)
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    return Paging(limit, order == "desc", query.get("after", ""))


def list_page(sid: Sid, messages: Sequence[ShownItem], paging: Paging) -> bytes:
    """``messages``: all, oldest first; only those of the page are read. Raises InvalidRequest if ``after`` is none of their
    items."""
    page = list(islice(_items_after(sid, messages, paging), paging.limit + 1))
    return msgspec.json.encode(item_list(page[: paging.limit], has_more=len(page) > paging.limit))


def _items_after(sid: Sid, messages: Sequence[ShownItem], paging: Paging) -> Iterator[dict[str, Any]]:
    place = place_of(sid, paging.after)
    step = -1 if paging.is_descending else 1
    begin, skips = len(messages) - 1 if paging.is_descending else 0, bool(paging.after)
    if skips:
        begin = position(messages, place[0]) if place else len(messages)
    for at in range(begin, -1 if paging.is_descending else len(messages), step) if begin < len(messages) else ():
        items = show(sid, messages[at])[::step]
        if skips:  # the item is among these, or nowhere
            names = [item["id"] for item in items]
            if paging.after not in names:
                break
            items, skips = items[names.index(paging.after) + 1 :], False
        yield from items
    if skips:
        raise InvalidRequest("after names no item of this list", param="after")
