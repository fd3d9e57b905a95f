from __future__ import annotations

import json
from typing import Any

import pytest

from router.core.errors import InvalidRequest
from router.sessions.openai.messages import read_items
from router.wire.media import MediaRule

DATA = "data:image/png;base64,AA=="


def read(*items: Any) -> list[Any]:
    return [json.loads(message) for message in read_items(items, MediaRule())]


def call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}


def chat_call(number: int) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": content}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
def test_an_easy_message_is_a_chat_message(role: str) -> None:
    assert read({"role": role, "content": "hé 🎈"}) == [{"role": role, "content": "hé 🎈"}]


def test_one_part_of_text_is_the_same_as_the_text() -> None:
    easy = {"role": "user", "content": "a"}
    parted = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    assert read_items([easy], None) == read_items([parted], None)


def test_an_image_is_a_part_of_its_message() -> None:
    content = [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "image_url": DATA, "detail": "low"},
        {"type": "input_image", "image_url": DATA, "detail": "original"},
    ]
    assert read({"role": "user", "content": content})[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": DATA}},
    ]


def test_what_was_said_in_one_breath_is_one_message() -> None:
    assert read(thought("hm"), said("a"), call(1), call(2)) == [
        {"role": "assistant", "content": "a", "tool_calls": [chat_call(1), chat_call(2)], "reasoning": "hm"}
    ]


def test_content_beside_calls_alone_is_null() -> None:
    assert read(call(1)) == [{"role": "assistant", "content": None, "tool_calls": [chat_call(1)]}]


def test_text_after_calls_begins_a_message() -> None:
    assert read(call(1), said("a"), said("b")) == [
        {"role": "assistant", "content": None, "tool_calls": [chat_call(1)]},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_reasoning_that_led_to_no_call_is_dropped() -> None:
    assert read(thought("hm"), said("a"), {"role": "user", "content": "b"}, thought("hm")) == [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]


def test_reasoning_without_text_of_its_own_gives_its_summary() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "x"}
    assert read(item, call(1))[0]["reasoning"] == "hm"


def test_a_refusal_is_kept_as_one() -> None:
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert read(item) == [{"role": "assistant", "content": "", "refusal": "no"}]


def test_an_output_answers_its_call() -> None:
    output = {"type": "function_call_output", "call_id": "c1", "output": "4"}
    parted = {**output, "output": [{"type": "input_text", "text": "4"}, {"type": "input_image", "image_url": DATA}]}
    assert read(call(1), output)[1] == {"role": "tool", "content": "4", "tool_call_id": "c1"}
    assert read(parted)[0]["content"] == [
        {"type": "text", "text": "4"},
        {"type": "image_url", "image_url": {"url": DATA}},
    ]


REFUSED: list[tuple[Any, str]] = [
    ("text", "input[1]"),
    ({"type": 7}, "input[1].type"),
    ({"type": "item_reference", "id": "x"}, "input[1]"),
    ({"type": "compaction", "encrypted_content": "x"}, "input[1]"),
    ({"type": "web_search_call"}, "input[1]"),
    ({"role": "tool", "content": "x"}, "input[1].role"),
    ({"content": "x"}, "input[1].role"),
    ({"role": "user"}, "input[1].content"),
    ({"role": "user", "content": [7]}, "input[1].content[0]"),
    ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
    ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input[1].content[0]"),
    *(
        ({"role": role, "content": [{"type": kind}]}, "input[1].content[0]")
        for role in ("user", "assistant")
        for kind in (["input_text"], {"type": "text"})
    ),
    ({"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}, "input[1].content[0].file_id"),
    ({"role": "user", "content": [{"type": "input_image"}]}, "input[1].content[0].image_url"),
    (
        {"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1/"}]},
        "input[1].content[0].image_url",
    ),
    ({"role": "assistant", "content": [{"type": "input_image", "image_url": DATA}]}, "input[1].content[0]"),
    ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[1].call_id"),
    ({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}, "input[1].arguments"),
    ({"type": "function_call_output", "output": "x"}, "input[1].call_id"),
    ({"type": "function_call_output", "call_id": "c"}, "input[1].output"),
    ({"type": "reasoning", "content": "x"}, "input[1].content"),
]


def test_a_detail_that_is_no_name_is_left_out() -> None:
    part = {"type": "input_image", "image_url": DATA, "detail": []}
    (message,) = read({"role": "user", "content": [part]})
    assert message["content"] == [{"type": "image_url", "image_url": {"url": DATA}}]


@pytest.mark.parametrize(("item", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_item_that_cannot_be_told_is_refused_by_its_place(item: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({"role": "user", "content": "x"}, item)
    assert refused.value.param == param
