from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState

from router.sessions.openai.output import translate
from router.sessions.openai.shapes import failure
from router.sessions.openai.stream import ResponseEvents
from tests.sessions.openai.answers import chunks, completion, event, last_events, messages
from tests.sessions.openai.official import EVENTS, make_head, read_events
from tests.wire.cuts import cuts


def stream(*events: bytes, **head: Any) -> list[dict[str, Any]]:
    """What a client gets for these events of a worker."""
    answer = ResponseEvents(make_head(**head))
    told = answer.begin() + b"".join(answer.feed(each) for each in events) + answer.finish(105)
    assert answer.outcome is not None
    return read_events(told)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [each["type"].removeprefix("response.") for each in events]


def called(index: int, arguments: str | None = None, **members: Any) -> bytes:
    return event({"tool_calls": [{"index": index, "function": {"arguments": arguments}, **members}]})


def begun(index: int, name: str = "look", arguments: str = "") -> bytes:
    return event(
        {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": name, "arguments": arguments}}]}
    )


def test_text_is_told_in_the_official_order() -> None:
    events = stream(
        event({"role": "assistant", "content": ""}), event({"content": "h"}), event({"content": "i"}), *last_events()
    )
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [each["delta"] for each in events if "delta" in each] == ["h", "i"]
    assert events[4] == {
        "type": "response.output_text.delta",
        "sequence_number": 4,
        "item_id": "item_0",
        "output_index": 0,
        "content_index": 0,
        "delta": "h",
        "logprobs": [],
    }
    assert events[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 32


def test_reasoning_ends_before_text_begins() -> None:
    events = stream(
        event({"reasoning": "h"}), event({"reasoning_content": "m"}), event({"content": "a"}), *last_events()
    )
    assert kinds(events)[2:9] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert events[6]["text"] == "hm"
    assert [each["output_index"] for each in events[9:13]] == [1, 1, 1, 1]


def test_calls_are_told_one_after_the_other() -> None:
    events = stream(
        begun(0), called(0, '{"a":'), called(0, "1}"), begun(1, "see"), called(1, "{}"), *last_events("tool_calls")
    )
    assert kinds(events)[2:-1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert events[2]["item"]["status"] == "in_progress"
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == ['{"a":1}', "{}"]


def test_calls_whose_pieces_are_mixed_come_out_whole() -> None:
    events = stream(
        begun(0), begun(1), called(0, '{"a"'), called(1, "{"), called(0, ":1}"), called(1, "}"), *last_events()
    )
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == ['{"a":1}', "{}"]
    told: dict[int, str] = {}
    for each in events:
        if each["type"] == "response.function_call_arguments.delta":
            told[each["output_index"]] = told.get(each["output_index"], "") + each["delta"]
    assert told == {0: '{"a":1}', 1: "{}"}


def test_arguments_that_come_before_the_name_are_told_after_it() -> None:
    events = stream(called(0, "{"), called(0, "}", function={"name": "look", "arguments": "}"}), *last_events())
    assert kinds(events)[2:6] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
    ]
    assert events[5]["arguments"] == "{}"


def test_a_call_that_was_whole_cannot_be_added_to() -> None:
    events = stream(begun(0, arguments="{}"), begun(1), called(0, " \n"), called(0, "{}"), *last_events())
    assert kinds(events)[-1] == "failed"


def test_a_refusal_is_told_as_a_part_of_its_own() -> None:
    events = stream(event({"content": "so"}), event({"refusal": "n"}), event({"refusal": "o"}), *last_events())
    assert kinds(events)[5:12] == [
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
    ]
    assert [each["content_index"] for each in events[7:12]] == [1] * 5
    assert events[10]["refusal"] == "no"


def test_text_that_goes_on_after_a_call_is_an_item_more_and_one_message() -> None:
    answer = ResponseEvents(make_head())
    told = answer.begin() + answer.feed(
        b"".join([event({"content": "a"}), begun(0, arguments="{}"), event({"content": "b"}), *last_events()])
    )
    events = read_events(told + answer.finish(105))
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert len({item["id"] for item in output}) == 3
    assert answer.outcome is not None
    assert json.loads(answer.outcome.messages[0])["content"] == "ab"


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    events = stream(event({"role": "assistant", "content": ""}), *last_events())
    assert kinds(events)[2:] == [
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_what_was_cut_off_is_incomplete() -> None:
    events = stream(event({"content": "a"}), *last_events("length"))
    assert kinds(events)[-1] == "incomplete"
    assert events[-2]["item"]["status"] == "incomplete"


def test_log_probabilities_go_with_their_text() -> None:
    entry = {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": "h"}, "logprobs": {"content": [entry]}}
    chunk = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    events = stream(chunk, chunk, *last_events(), wants_logprobs=True)
    assert events[4]["logprobs"] == [entry]
    assert events[6]["logprobs"] == [entry, entry]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [entry, entry]
    assert stream(chunk, *last_events())[4]["logprobs"] == []


def test_a_stream_without_a_reason_for_finishing_has_failed() -> None:
    events = stream(event({"content": "a"}), b"data: [DONE]\n\n")
    assert kinds(events)[-1] == "failed"
    assert events[-1]["response"]["output"][0]["status"] == "in_progress"


def test_a_failure_of_ours_ends_the_stream() -> None:
    answer = ResponseEvents(make_head())
    told = answer.begin() + answer.feed(event({"content": "a"}))
    told += answer.fail(failure(502, "")) + answer.feed(event({"content": "b"})) + answer.finish(105)
    events = read_events(told + answer.fail(failure(502, "")))
    assert kinds(events)[-2:] == ["output_text.delta", "failed"]
    assert answer.outcome is not None
    assert answer.outcome.messages == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ({"message": "died at 10.0.0.1", "code": 500}, "server_error", "the worker failed"),
        ({"message": "too long", "code": 400}, "invalid_prompt", "too long"),
        ({"message": ["odd"], "code": 400}, "invalid_prompt", "the worker refused the request"),
        ("odd", "server_error", "the worker failed"),
    ],
)
def test_an_error_of_the_worker_ends_the_stream(error: Any, code: str, message: str) -> None:
    data = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    last = stream(event({"content": "a"}), data, event({"content": "b"}), *last_events())[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": code, "message": message}


@pytest.mark.parametrize(
    "odd",
    [
        b"data: not json\n\n",
        b"data: []\n\n",
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "\xf0\x9f"}}]}\n\n',
        b'data: {"choices": [{"delta": {}, "finish_reason": "error"}]}\n\n',
    ],
)
def test_what_is_no_chunk_ends_the_stream(odd: bytes) -> None:
    assert kinds(stream(event({"content": "a"}), odd))[-1] == "failed"


@pytest.mark.parametrize(
    "bare",
    [
        b": ping\n\n",
        b"\n\n",
        b"event: ping\n\n",
        b"data: {}\n\n",
        b'data: {"choices": null}\n\n',
        b'data: {"choices": [{}]}\n\n',
        b'data: {"choices": [{"index": 1, "delta": {"content": "b"}}]}\n\n',
        b'data: {"choices": [{"delta": null, "finish_reason": null}]}\n\n',
        b'data: {"choices": [{"delta": {"content": null, "tool_calls": []}}]}\n\n',
    ],
)
def test_what_says_nothing_is_passed_over(bare: bytes) -> None:
    events = stream(bare, event({"content": "a"}), bare, *last_events(), bare)
    assert events == stream(event({"content": "a"}), *last_events())


def test_line_ends_may_be_of_two_characters() -> None:
    crlf = [each.replace(b"\n", b"\r\n") for each in (event({"content": "a"}), *last_events())]
    assert stream(*crlf) == stream(event({"content": "a"}), *last_events())


@given(messages(), st.integers(1, 5), cuts())
def test_a_stream_says_what_the_whole_answer_says(
    message_and_reason: tuple[dict[str, Any], str], size: int, places: list[int]
) -> None:
    message, reason = message_and_reason
    events = chunks(message, reason, size)
    answer = ResponseEvents(make_head())
    told = answer.begin()
    for begin, end in zip([0, *sorted(places)], [*sorted(places), len(events)], strict=True):
        told += answer.feed(b"".join(events[begin:end]))
    told += answer.finish(105)
    whole = translate(completion(message, reason), make_head(), 105)
    assert answer.outcome == whole
    assert read_events(told)[-1]["response"] == whole.response


@given(messages(), st.integers(1, 5))
def test_events_add_up_to_the_items_that_end_them(message_and_reason: tuple[dict[str, Any], str], size: int) -> None:
    items: dict[int, dict[str, Any]] = {}
    added: list[int] = []
    for each in stream(*chunks(*message_and_reason, size)):
        kind, place = each["type"].removeprefix("response."), each.get("output_index", -1)
        if kind == "output_item.added":
            items[place] = each["item"]
            added.append(place)
        elif kind == "content_part.added":
            assert each["content_index"] == len(items[place]["content"])
            items[place]["content"].append(each["part"])
        elif kind == "function_call_arguments.delta":
            items[place]["arguments"] += each["delta"]
        elif kind.endswith(".delta"):
            name = "refusal" if kind == "refusal.delta" else "text"
            items[place]["content"][each["content_index"]][name] += each["delta"]
        elif kind == "output_item.done":
            assert {**items[place], "status": each["item"]["status"]} == each["item"]
        elif kind in ("completed", "incomplete"):
            assert [item["id"] for item in each["response"]["output"]] == [items[at]["id"] for at in added]
    assert added == sorted(added)


@given(messages(), st.integers(1, 5))
def test_the_official_client_s_accumulator_takes_every_stream(
    message_and_reason: tuple[dict[str, Any], str], size: int
) -> None:
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    snapshots = [
        fired.snapshot
        for each in stream(*chunks(*message_and_reason, size))
        for fired in state.handle_event(EVENTS[each["type"]].model_validate(each))
        if fired.type == "response.output_text.delta"
    ]
    text = message_and_reason[0]["content"]
    assert (snapshots[-1] if snapshots else "") == (text or "")


def test_whole_stream_of_the_official_client_ends_with_its_response() -> None:
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    for each in stream(event({"content": "a"}), begun(0, arguments="{}"), *last_events("tool_calls")):
        last = state.handle_event(EVENTS[each["type"]].model_validate(each))
    assert last[0].response.output_text == "a"
    assert last[0].response.output[1].name == "look"


def test_the_official_client_reads_a_stream_to_its_end() -> None:
    answer = ResponseEvents(make_head())
    told = answer.begin() + answer.feed(
        event({"reasoning": "hm"}) + event({"content": "hé 🎈"}) + begun(0, "look", "{}")
    )
    told += answer.feed(b"".join(last_events("tool_calls"))) + answer.finish(105)
    reply = httpx2.Response(200, content=told, headers={"content-type": "text/event-stream"})
    transport = httpx2.MockTransport(lambda _: reply)
    with (
        openai.OpenAI(api_key="k", base_url="http://r/v1", http_client=httpx2.Client(transport=transport)) as client,
        client.responses.stream(model="m", input="x") as stream_of_client,
    ):
        events = [each.type for each in stream_of_client]
        final = stream_of_client.get_final_response()
    assert events[-1] == "response.completed"
    assert final.output_text == "hé 🎈"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
