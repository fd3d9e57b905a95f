from __future__ import annotations

from typing import Any

import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from openai.types.responses import ResponseItemList

from router.core.errors import InvalidRequest
from router.sessions.openai.items import items_of
from router.sessions.openai.objects import (
    conversation,
    conversation_deleted,
    item_list,
    read_changed_metadata,
    read_new_conversation,
    read_new_items,
    response_deleted,
)
from tests.sessions.openai.official import check

EASY = {"role": "user", "content": "a"}
KEPT = b'{"role":"user","content":"a"}'


def test_conversations_are_what_the_client_takes_them_for() -> None:
    check(Conversation, conversation("conv_1", 100, {"a": "b"}))
    check(ConversationDeletedResource, conversation_deleted("conv_1"))
    assert response_deleted("resp_1") == {"id": "resp_1", "object": "response", "deleted": True}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_page_names_its_first_and_last_item(count: int) -> None:
    items = items_of(((number, KEPT) for number in range(count)), lambda number, _: f"item_{number}")
    page = item_list(items, has_more=count > 1)
    check(ConversationItemList, page)
    check(ResponseItemList, page)
    assert (page["first_id"], page["last_id"]) == (("item_0", f"item_{count - 1}") if count else ("", ""))


def test_a_conversation_begins_with_items_or_without() -> None:
    assert read_new_conversation({}) == ([], {})
    assert read_new_conversation({"items": [EASY], "metadata": {"a": "b"}}) == ([KEPT], {"a": "b"})
    assert read_new_items({"items": [EASY, EASY]}) == [KEPT, KEPT]
    assert read_changed_metadata({"metadata": None}) == {}


@pytest.mark.parametrize(
    ("read", "members", "param"),
    [
        (read_new_conversation, {"items": [EASY] * 21}, "items"),
        (read_new_conversation, {"items": "x"}, "items"),
        (read_new_conversation, {"metadata": []}, "metadata"),
        (read_new_items, {}, "items"),
        (read_new_items, {"items": []}, "items"),
        (read_new_items, {"items": [{"type": "item_reference"}]}, "items[0]"),
        (read_changed_metadata, {}, "metadata"),
    ],
)
def test_a_body_that_is_wrong_is_refused_by_its_member(read: Any, members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(members)
    assert refused.value.param == param
