from __future__ import annotations

import json
from typing import Any

import pytest

from router.core.errors import InvalidRequest
from router.sessions.openai.input import ResponsesRequest, read_create
from router.sessions.openai.shapes import response
from router.wire.body_limits import BodyLimits
from router.wire.media import MediaRule
from tests.sessions.openai.official import check_response, make_head

LIMITS = BodyLimits(
    max_json_depth=8, max_messages=4, max_inputs=4, max_choices=2, max_logprobs=5, max_stops=4, media=MediaRule()
)
FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def create(**members: Any) -> ResponsesRequest:
    return read_create({"model": "m", "input": "hello", **members})


def test_a_string_is_a_message_of_the_user() -> None:
    assert create().messages == [b'{"role":"user","content":"hello"}']


def test_what_was_not_given_has_the_defaults_of_the_api() -> None:
    request = create()
    assert request.params == {"model": "m"}
    assert (request.store, request.stream, request.truncation) == (True, False, None)
    assert (request.tools, request.instructions, request.conversation) == (None, None, None)


def test_parameters_take_the_names_that_chat_has_for_them() -> None:
    request = create(
        max_output_tokens=9,
        temperature=0.5,
        top_p=1,
        reasoning={"effort": "low"},
        parallel_tool_calls=False,
        user="u",
        prompt_cache_key="k",
        stop=["x"],
    )
    assert request.params == {
        "model": "m",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 1,
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "user": "u",
        "prompt_cache_key": "k",
        "stop": ["x"],
    }


def test_a_stream_asks_for_its_usage() -> None:
    params = create(stream=True, stream_options={"include_obfuscation": False}).params
    assert params == {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


def test_what_only_workers_know_goes_to_them_as_it_came() -> None:
    extras = {"top_k": 3, "chat_template_kwargs": {"a": [1]}, "min_p": 0.1}
    assert create(**extras).params == {"model": "m", **extras}


def test_null_is_not_given() -> None:
    nulls = dict.fromkeys(
        ("temperature", "tools", "conversation", "previous_response_id", "prompt", "metadata", "text")
    )
    assert create(**nulls) == create()


def test_tools_are_nested_for_chat_and_shown_flat() -> None:
    request = create(tools=[FUNCTION], tool_choice={"type": "function", "name": "look"})
    function = {name: value for name, value in FUNCTION.items() if name != "type"}
    assert request.tools is not None
    assert json.loads(request.tools) == [{"type": "function", "function": function}]
    assert request.params["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert request.echo["tools"] == [{**FUNCTION, "description": None}]
    assert request.echo["tool_choice"] == {"type": "function", "name": "look"}


def test_without_tools_no_choice_among_them_is_sent() -> None:
    request = create(tools=[], tool_choice="auto")
    assert request.tools is None
    assert request.params == {"model": "m"}


def test_a_schema_becomes_a_response_format() -> None:
    schema = {"name": "s", "schema": {"type": "object"}, "strict": True}
    request = create(text={"format": {"type": "json_schema", **schema}, "verbosity": "low"})
    assert request.params["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert request.echo["text"] == {"format": {"type": "json_schema", **schema}, "verbosity": "low"}


def test_json_mode_becomes_a_response_format() -> None:
    assert create(text={"format": {"type": "json_object"}}).params["response_format"] == {"type": "json_object"}


def test_log_probabilities_are_asked_for_where_they_are_included() -> None:
    assert create(include=["message.output_text.logprobs"]).params["logprobs"] is True
    request = create(top_logprobs=2)
    assert request.wants_logprobs
    assert request.params["top_logprobs"] == 2


def test_a_conversation_is_named_by_a_string_or_an_object() -> None:
    assert create(conversation="conv_1").conversation == "conv_1"
    request = create(conversation={"id": "conv_1"})
    assert request.conversation == "conv_1"
    assert request.echo["conversation"] == {"id": "conv_1"}


def test_input_may_be_missing_where_there_is_something_to_go_on_from() -> None:
    assert read_create({"model": "m", "previous_response_id": "resp_1"}).messages == []


def test_instructions_are_apart_from_the_messages() -> None:
    request = create(instructions="be brief")
    assert request.instructions == "be brief"
    assert len(request.messages) == 1


def test_everything_that_is_repeated_makes_a_valid_response() -> None:
    request = create(
        instructions="be brief",
        conversation={"id": "conv_1"},
        max_output_tokens=9,
        max_tool_calls=1,
        metadata={"a": "b"},
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        reasoning={"effort": "high", "summary": "auto"},
        safety_identifier="s",
        service_tier="flex",
        store=False,
        temperature=1,
        text={"format": {"type": "json_schema", "name": "s", "schema": {}}},
        tool_choice="required",
        tools=[FUNCTION],
        top_logprobs=1,
        top_p=0.5,
        truncation="auto",
        user="u",
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
    )
    model = check_response(response(make_head(echo=request.echo), "in_progress"))
    assert model.conversation is not None
    assert model.conversation.id == "conv_1"
    assert (model.service_tier, model.truncation, model.user) == ("flex", "auto", "u")
    assert request.context_management == [{"type": "compaction", "compact_threshold": 1000}]
    assert request.truncation == "auto"


def test_defaults_make_a_valid_response() -> None:
    check_response(response(make_head(echo=create().echo), "in_progress"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": ""}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": {}}, "input"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"messages": []}, "messages"),
    ({"n": 2}, "n"),
    ({"max_tokens": 2}, "max_tokens"),
    ({"response_format": {}}, "response_format"),
    ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
    ({"conversation": {}}, "conversation.id"),
    ({"conversation": ""}, "conversation"),
    ({"previous_response_id": 1}, "previous_response_id"),
    ({"include": ["everything"]}, "include[0]"),
    ({"include": "all"}, "include"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]"),
    ({"tools": [FUNCTION, {"type": "function"}]}, "tools[1].name"),
    ({"tools": [{"type": "function", "name": "x", "parameters": []}]}, "tools[0].parameters"),
    ({"tools": {}}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format.schema"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"reasoning": {"effort": "none at all"}}, "reasoning.effort"),
    ({"reasoning": "high"}, "reasoning"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": True}, "max_output_tokens"),
    ({"max_output_tokens": 9.0}, "max_output_tokens"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"store": "yes"}, "store"),
    ({"stream": 1}, "stream"),
    ({"truncation": "middle"}, "truncation"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"context_management": {}}, "context_management"),
    ({"instructions": ["x"]}, "instructions"),
]


@pytest.mark.parametrize(("members", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_its_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        create(**members)
    assert refused.value.param == param
    assert param.partition("[")[0].partition(".")[0] in refused.value.message


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"top_logprobs": 6}, "top_logprobs"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"input": [{"role": "user", "content": "x"}] * 5}, "input"),
    ],
)
def test_the_limits_of_chat_hold_here_too(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_create({"model": "m", "input": "x", **members}, LIMITS)
    assert refused.value.param == param
