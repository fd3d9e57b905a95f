from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from router.sessions.openai.items import items_of
from router.sessions.openai.messages import read_items
from router.sessions.openai.output import translate
from tests.sessions.openai.answers import call, completion, messages
from tests.sessions.openai.official import check_item, make_head

DATA = "data:image/png;base64,AA=="


def show(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    numbered = ((number, json.dumps(message).encode()) for number, message in enumerate(messages, 1))
    items = items_of(numbered, lambda number, part: f"item_{number}_{part}")
    for item in items:
        check_item(item)
    return items


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_a_message_shows_its_text_as_a_part(role: str) -> None:
    assert show({"role": role, "content": "hé"}) == [
        {
            "id": "item_1_0",
            "type": "message",
            "status": "completed",
            "role": role,
            "content": [{"type": "input_text", "text": "hé"}],
        }
    ]


def test_parts_are_shown_as_they_were_sent() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}]
    assert show({"role": "user", "content": content})[0]["content"] == [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "detail": "low", "file_id": None, "image_url": DATA},
    ]


def test_an_answer_shows_each_of_its_items() -> None:
    items = show({"role": "assistant", "content": "a", "reasoning": "hm", "tool_calls": [call(1, "{}"), call(2, "{}")]})
    assert [(item["type"], item["id"]) for item in items] == [
        ("reasoning", "item_1_-1"),
        ("message", "item_1_0"),
        ("function_call", "item_1_1"),
        ("function_call", "item_1_2"),
    ]


def test_calls_alone_show_no_message() -> None:
    items = show({"role": "assistant", "content": None, "tool_calls": [call(1, "{}")]})
    assert [item["type"] for item in items] == ["function_call"]


def test_a_tool_s_answer_is_an_output() -> None:
    assert show({"role": "tool", "tool_call_id": "c1", "content": "4"})[0] == {
        "id": "item_1_0",
        "type": "function_call_output",
        "status": "completed",
        "call_id": "c1",
        "output": "4",
    }


@given(messages())
def test_an_answer_and_what_was_kept_of_it_show_the_same_items(
    message_and_reason: tuple[dict[str, Any], str],
) -> None:
    message, _ = message_and_reason
    outcome = translate(completion(message), make_head(), 105)
    listed = items_of([(1, outcome.messages[0])], lambda _number, part: f"item_{part}")
    answered = [item for item in outcome.response["output"] if item["type"] != "reasoning"]
    assert [item for item in listed if item["type"] != "reasoning"] == answered or not answered


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA, "detail": "auto"}}]},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "", "refusal": "no"},
        {"role": "assistant", "content": "a", "refusal": "no"},
        {"role": "assistant", "content": "a", "tool_calls": [call(1, "{}")], "reasoning": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ],
    ids=str,
)
def test_items_that_are_sent_back_are_the_message_again(message: dict[str, Any]) -> None:
    assert [json.loads(each) for each in read_items(show(message), None)] == [message]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "user"},
        {"role": "user", "content": 7},
        {"role": "user", "content": ["x", {"type": "input_audio"}, {"type": "text"}, {"type": "image_url"}]},
        {"role": "odd", "content": "x"},
        {"role": "function", "name": "f", "content": "x"},
        {"role": "tool", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, 7]},
        {"role": "assistant", "tool_calls": [{}]},
    ],
    ids=str,
)
def test_whatever_a_session_holds_can_be_shown(message: dict[str, Any]) -> None:
    assert show(message)
