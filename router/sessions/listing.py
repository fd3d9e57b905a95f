"""Lists as the official API has them: pages of ``data`` behind an ``after``, in an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from router.core.errors import InvalidRequest
from router.wire.responses.objects import item_list

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


def list_page(items: Sequence[dict[str, Any]], paging: Paging) -> bytes:
    """``items``: all of them, oldest first, each with an id. Raises InvalidRequest for an ``after`` that is none of them."""
    ordered = items[::-1] if paging.is_descending else items
    begin = 0
    if paging.after:
        begin = next((at for at, item in enumerate(ordered, 1) if item["id"] == paging.after), 0)
        if not begin:
            raise InvalidRequest("after names no item of this list", param="after")
    end = begin + paging.limit
    return msgspec.json.encode(item_list(ordered[begin:end], has_more=end < len(ordered)))
