"""Pages of a log: what is on them, and that a page costs what is on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.errors import InvalidRequest
from router.sessions.api.items import ShownItem, item_id, show
from router.sessions.api.pagination import list_page, read_paging
from router.sessions.context.item import Item
from router.sessions.stores.contract import Sid

SID = Sid("a" * 32)


def marked(number: int, calls: int) -> ShownItem:
    message: dict[str, Any] = {"role": "assistant", "content": f"{number}"}
    called = [{"id": f"{at}", "function": {"name": "f", "arguments": "{}"}} for at in range(calls)]
    body = msgspec.json.encode({**message, "tool_calls": called} if calls else message)
    parts = tuple(range(calls + 1))
    return ShownItem(Item(number, 1, 0.0, 1, body, 0, "assistant", body, parts=parts))


def page(messages: list[ShownItem], **query: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(list_page(SID, messages, read_paging(query)))
    return found


@given(st.lists(st.integers(0, 3), max_size=8), st.integers(1, 5), st.sampled_from(["asc", "desc"]))
def test_pages_have_every_item_once_in_order(calls: list[int], limit: int, order: str) -> None:
    messages = [marked(number, count) for number, count in enumerate(calls, 1)]
    wanted = [item["id"] for each in messages for item in show(SID, each)]
    seen: list[str] = []
    pages = [page(messages, limit=str(limit), order=order)]
    while pages[-1]["has_more"]:
        pages.append(page(messages, limit=str(limit), order=order, after=pages[-1]["last_id"]))
    for each in pages:
        seen += [item["id"] for item in each["data"]]
    assert seen == (wanted if order == "asc" else wanted[::-1])
    assert all(len(before["data"]) == limit for before, _ in pairwise(pages))


@pytest.mark.parametrize("number", [1, 500, 1000])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_reads_its_own_messages_only(number: int, order: str) -> None:
    unreadable = ShownItem(marked(1, 0).item._replace(body=b"{"))
    messages = [ShownItem(unreadable.item._replace(number=at)) for at in range(1, 1001)]
    messages[number - 1] = marked(number, 0)
    at = number if order == "asc" else 1001 - number
    if at > 1:
        before = messages[number - 2 if order == "asc" else number].item.number
        messages[before - 1] = marked(before, 0)
    query = {"after": item_id(SID)(before, 0)} if at > 1 else {}
    after = messages[number if order == "asc" else number - 2].item.number if at < 1000 else 0
    if after:
        messages[after - 1] = marked(after, 0)
    found = page(messages, limit="1", order=order, **query)
    assert [item["id"] for item in found["data"]] == [item_id(SID)(number, 0)]
    assert found["has_more"] is bool(after)


@pytest.mark.parametrize("name", ["msg_x", item_id(SID)(3, 0), item_id(SID)(1, 7), item_id(Sid("b" * 32))(1, 0)])
def test_what_is_no_item_has_nothing_after_it(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        page([marked(1, 1), marked(2, 1)], after=name)
    assert refused.value.param == "after"
