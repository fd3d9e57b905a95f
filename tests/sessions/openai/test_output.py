from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.openai.messages import read_items
from router.sessions.openai.output import failed, translate
from router.sessions.openai.shapes import failure
from tests.sessions.openai.answers import call, completion, messages
from tests.sessions.openai.official import check_response, make_head


def answer(message: dict[str, Any], finish_reason: str = "stop", **members: Any) -> dict[str, Any]:
    outcome = translate(completion(message, finish_reason, **members), make_head(), 105)
    check_response(outcome.response)
    return outcome.response


def kept(message: dict[str, Any]) -> list[Any]:
    return [json.loads(each) for each in translate(completion(message), make_head(), 105).messages]


def test_text_is_a_message() -> None:
    told = answer({"content": "hi", "tool_calls": []})
    assert told["output"] == [
        {
            "id": "item_0",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
        }
    ]
    assert (told["status"], told["created_at"], told["completed_at"]) == ("completed", 100, 105)
    assert check_response(told).output_text == "hi"


def test_usage_says_what_was_cached_and_what_was_thought() -> None:
    assert answer({"content": "hi"})["usage"] == {
        "input_tokens": 64,
        "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 16},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 68,
    }


@pytest.mark.parametrize("usage", [None, {}])
def test_usage_that_was_not_counted_is_null(usage: Any) -> None:
    assert answer({"content": "hi"}, usage=usage)["usage"] is None


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": None}, {"completion_tokens": "9"}, {"prompt_tokens_details": []}, {"x": -1}]
)
def test_counts_that_are_odd_are_none(usage: Any) -> None:
    assert answer({"content": "hi"}, usage=usage)["usage"]["total_tokens"] == 0


def test_reasoning_text_and_calls_follow_each_other_under_ids_of_their_own() -> None:
    told = answer({"reasoning": "hm", "content": "hi", "tool_calls": [call(1, "{}"), call(2, "{}")]}, "tool_calls")
    assert [(item["type"], item["id"]) for item in told["output"]] == [
        ("reasoning", "item_-1"),
        ("message", "item_0"),
        ("function_call", "item_1"),
        ("function_call", "item_2"),
    ]
    assert told["output"][2]["call_id"] == "c1"


def test_reasoning_is_read_under_its_older_name_too() -> None:
    assert answer({"reasoning_content": "hm"})["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]


def test_a_refusal_is_a_part_of_the_message() -> None:
    content = answer({"content": "so", "refusal": "no"})["output"][0]["content"]
    assert [part["type"] for part in content] == ["output_text", "refusal"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    told = answer({"content": None})
    assert check_response(told).output_text == ""
    assert len(told["output"]) == 1
    assert kept({"content": None}) == [{"role": "assistant", "content": ""}]


def test_reasoning_alone_is_no_message() -> None:
    assert [item["type"] for item in answer({"reasoning": "hm"}, "length")["output"]] == ["reasoning"]
    assert kept({"reasoning": "hm"}) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_what_was_cut_off_is_incomplete_and_says_why(reason: str, told: str) -> None:
    whole = answer({"reasoning": "hm", "content": "h"}, reason)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": told})
    assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    assert whole["completed_at"] is None


def test_what_is_kept_has_no_nulls_but_content_beside_calls_and_reasoning_beside_calls_only() -> None:
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
    assert kept({**nulls, "content": "hi", "reasoning": "hm"}) == [{"role": "assistant", "content": "hi"}]
    assert kept({**nulls, "content": None, "reasoning": "hm", "tool_calls": [call(1, "{}")]}) == [
        {"role": "assistant", "content": None, "tool_calls": [call(1, "{}")], "reasoning": "hm"}
    ]


@given(messages())
def test_items_sent_back_become_the_message_that_was_kept(message_and_reason: tuple[dict[str, Any], str]) -> None:
    message, reason = message_and_reason
    outcome = translate(completion(message, reason), make_head(), 105)
    only_thought = [item["type"] for item in outcome.response["output"]] == ["reasoning"]
    assert read_items(outcome.response["output"], None) == ([] if only_thought else outcome.messages)


def test_log_probabilities_are_told_where_they_are_wanted() -> None:
    entry = {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "e", "logprob": -1.0}]}
    choice = {"index": 0, "message": {"content": "é"}, "logprobs": {"content": [entry]}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    part = translate(body, make_head(wants_logprobs=True), 105).response["output"][0]["content"][0]
    assert part["logprobs"] == [
        {
            "token": "é",
            "bytes": [195, 169],
            "logprob": -0.5,
            "top_logprobs": [{"token": "e", "bytes": [101], "logprob": -1.0}],
        }
    ]
    assert translate(body, make_head(), 105).response["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": "\\ud83d"}}]}',
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'{"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}',
        b"[" * 100_000,
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_is_no_answer_fails_without_a_quotation(body: bytes) -> None:
    outcome = translate(body, make_head(), 105)
    model = check_response(outcome.response)
    assert model.status == "failed"
    assert model.error is not None
    assert model.error.code == "server_error"
    assert outcome.messages == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"index": null, "message": {"tool_calls": null}, "finish_reason": null}], "usage": null}',
        b'{"choices": [{"message": {"tool_calls": [{}]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f"}}]}}]}',
        b'{"choices": [{"message": {"content": "\\ud83d\\ude00"}}]}',
    ],
)
def test_what_is_missing_is_borne(body: bytes) -> None:
    assert check_response(translate(body, make_head(), 105).response).status == "completed"


@given(st.binary(max_size=60))
def test_no_bytes_of_a_worker_raise(body: bytes) -> None:
    check_response(translate(body, make_head(), 105).response)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "invalid_prompt", "too long"),
        (429, "rate_limit_exceeded", "too long"),
        (503, "server_error", "the worker failed"),
    ],
)
def test_a_worker_s_own_faults_are_not_quoted(status: int, code: str, message: str) -> None:
    told = check_response(failed(make_head(), failure(status, "too long")).response)
    assert told.error is not None
    assert (told.error.code, told.error.message) == (code, message)
