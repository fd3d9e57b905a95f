"""Which streams another worker may go on with, and with which request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request.routes import Route
from router.wire.continuation import (
    MAX_STEPS_BACK,
    Asked,
    Seam,
    SeamFinder,
    Unsafe,
    exact_body,
    has_one_answer,
    may_resume,
    read_asked,
    require_plain,
    text_body,
)
from router.wire.transcript import Delivered
from tests.wire.cuts import cut, cuts
from tests.wire.engine import FIRST, PROMPT_IDS, Engine, Relay

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0}
PARTS = [{"type": "text", "text": "hi"}]


def read(route: Route = Route.CHAT, **members: Any) -> Asked:
    body = CHAT if route is Route.CHAT else {"model": "m", "prompt": "hi", "stream": True}
    return read_asked(route, json.dumps({**body, **members}).encode(), wants_usage=False, hides_ids=True)


def had(text: str = "one two", ids: list[int] | None = None) -> Delivered:
    delivered = Delivered(prompt_ids=PROMPT_IDS)
    for word, token in zip(text.split(" "), ids or range(FIRST, 99), strict=False):
        delivered.add_tokens(word, [token])
    return delivered


def exact(delivered: Delivered | None = None, route: Route = Route.CHAT, **members: Any) -> Any:
    delivered = delivered or had()
    return json.loads(exact_body(read(route, **members), delivered, Seam(len(delivered.ids)), 100))


def by_text(delivered: Delivered | None = None, route: Route = Route.CHAT, **members: Any) -> Any:
    return json.loads(text_body(read(route, **members), delivered or had()))


CARRIED: list[dict[str, Any]] = [
    {"logit_bias": {"5": 1}},
    {"ignore_eos": True},
    {"allowed_token_ids": [1, 2]},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"skip_special_tokens": False},
    {"stop_token_ids": [7]},
    {"repetition_penalty": 1.2},
    {"cache_salt": "s"},
    {"priority": 5},
    {"model": "adapter"},
]


@pytest.mark.parametrize("members", CARRIED, ids=str)
def test_what_means_the_same_for_the_rest_is_carried_over(members: dict[str, Any]) -> None:
    assert exact(**members).items() >= members.items()


@pytest.mark.parametrize(
    "members",
    [
        {"n": 1},
        {"n": None},
        {"presence_penalty": 0},
        {"presence_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"bad_words": []},
        {"echo": False},
        {"seed": 1},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tools": []},
        {"repetition_detection": None},
        {"include_reasoning": True},
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": None}]},
    ],
    ids=str,
)
def test_what_changes_nothing_is_left_out(members: dict[str, Any]) -> None:
    body = exact(**members)
    assert not members.keys() & body.keys()
    assert body["prompt"] == [*PROMPT_IDS, 10, 11]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"presence_penalty": 0.5}, "parameters"),
        ({"bad_words": ["two words"]}, "parameters"),
        ({"repetition_detection": {"max_pattern_size": 3}}, "parameters"),
        ({"temperature": 1, "seed": 5}, "parameters"),
        ({"temperature": None, "seed": 5}, "parameters"),
        ({"logprobs": True}, "parameters"),
        ({"top_logprobs": 2}, "parameters"),
        ({"n": 2}, "parameters"),
        ({"best_of": 2}, "parameters"),
        ({"response_format": {"type": "json_object"}}, "parameters"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "parameters"),
        ({"structured_outputs": {"regex": "a+"}}, "parameters"),
        ({"guided_choice": ["a"]}, "parameters"),
        ({"use_beam_search": True}, "parameters"),
        ({"include_reasoning": False}, "parameters"),
        ({"echo": True}, "parameters"),
        ({"min_tokens": 3, "stop": "x"}, "parameters"),
        ({"something_new": 1}, "parameters"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
        (
            {"messages": [{"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}]}]},
            "media",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "media"),
    ],
    ids=str,
)
def test_what_may_make_the_rest_another_answer_is_unsafe(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsafe) as raised:
        read(**members)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "members", [{"logprobs": 0}, {"suffix": "end"}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}]
)
def test_completions_have_unsafe_members_of_their_own(members: dict[str, Any]) -> None:
    with pytest.raises(Unsafe, match="parameters"):
        read(Route.COMPLETIONS, **members)


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2], [[1, 2]], None])
def test_one_prompt_has_one_answer(prompt: Any) -> None:
    assert has_one_answer({"prompt": prompt})
    assert may_resume({"prompt": prompt})


@pytest.mark.parametrize("members", [{"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}])
def test_several_answers_are_not_kept(members: dict[str, Any]) -> None:
    assert not has_one_answer(members)
    assert not may_resume(members)


@pytest.mark.parametrize("members", [{"tools": [{}]}, {"echo": True}])
def test_most_that_cannot_be_gone_on_with_are_not_kept(members: dict[str, Any]) -> None:
    assert not may_resume(members)


def test_only_plain_text_is_gone_on_with() -> None:
    require_plain(Delivered())
    with pytest.raises(Unsafe, match="parsed"):
        require_plain(Delivered(is_plain=False))


# The request


def test_the_request_begins_with_what_was_said_and_never_echoes() -> None:
    body = exact(max_tokens=10, min_tokens=5)
    assert body == {
        "model": "m",
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": [*PROMPT_IDS, 10, 11],
        "max_tokens": 8,
        "min_tokens": 3,
        "return_token_ids": True,
    }


def test_no_more_is_asked_for_than_is_left() -> None:
    assert exact(min_tokens=1)["min_tokens"] == 0
    assert exact(max_completion_tokens=9, max_tokens=5)["max_tokens"] == 7
    assert exact(max_tokens=5)["max_tokens"] == 3
    assert exact(route=Route.COMPLETIONS)["max_tokens"] == 14
    assert exact(route=Route.COMPLETIONS, max_completion_tokens=5)["max_tokens"] == 14
    assert exact()["max_tokens"] == 100 - 3 - 2


def test_an_answer_of_unknown_or_no_length_is_unsafe() -> None:
    for limit, longest in ((None, None), (2, 100), (None, 5)):
        with pytest.raises(Unsafe, match="length"):
            exact_body(read(max_tokens=limit), had(), Seam(2), longest)


def test_a_frequency_penalty_goes_on_counting() -> None:
    body = exact(had("a b c", [10, 11, 10]), frequency_penalty=0.5, logit_bias={"10": 2, "7": 1})
    assert body["frequency_penalty"] == 0.5
    assert body["logit_bias"] == {"10": 1.0, "11": -0.5, "7": 1}
    assert exact(had("a b c", [10, 11, 10]), frequency_penalty=0.5)["logit_bias"] == {"10": -1.0, "11": -0.5}


def test_stop_strings_stay_with_the_router() -> None:
    assert read(stop="x").stops == ("x",)
    assert read(stop=["x", "yz"]).stops == ("x", "yz")
    assert read(stop="").stops == read(stop=[""]).stops == ()
    assert read(stop=["x"], include_stop_str_in_output=True).keeps_stop
    assert "stop" not in exact(stop="x")
    assert exact(stop_token_ids=[5], include_stop_str_in_output=True)["include_stop_str_in_output"], "of an id, too"
    assert "stop" not in by_text(stop="x")


def test_who_asked_for_ids_is_known_from_who_did_not() -> None:
    body = json.dumps({**CHAT, "return_token_ids": True}).encode()
    assert read_asked(Route.CHAT, body, wants_usage=True, hides_ids=False).wants_ids
    assert not read_asked(Route.CHAT, body, wants_usage=True, hides_ids=True).wants_ids


def test_by_text_the_answer_so_far_becomes_the_last_message() -> None:
    body = by_text(max_completion_tokens=10, cache_salt="s")
    assert body["messages"] == [*CHAT["messages"], {"role": "assistant", "content": "onetwo"}]  # type: ignore[misc]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["max_tokens"], body["cache_salt"], body["stream_options"]) == (8, "s", {"include_usage": True})
    assert "max_completion_tokens" not in body


def test_by_text_a_message_that_was_to_be_continued_grows() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so "}]
    body = by_text(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert body["messages"] == [messages[0], {"role": "assistant", "content": "so onetwo"}]
    messages[1]["content"] = PARTS  # type: ignore[assignment]
    with pytest.raises(Unsafe, match="parameters"):
        by_text(messages=messages, continue_final_message=True)


def test_by_text_a_prompt_grows() -> None:
    body = by_text(route=Route.COMPLETIONS, prompt="so ")
    assert (body["prompt"], body["max_tokens"]) == ("so onetwo", 14)
    with pytest.raises(Unsafe, match="parameters"):
        by_text(route=Route.COMPLETIONS, prompt=[1, 2])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"frequency_penalty": 0.5}, "parameters"),
        ({"min_tokens": 2}, "parameters"),
        ({"truncate_prompt_tokens": 50}, "parameters"),
        ({"max_tokens": 2}, "length"),
    ],
    ids=str,
)
def test_by_text_nothing_that_counts_tokens_is_gone_on_with(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsafe, match=reason):
        by_text(**members)


# The seam


@given(st.text("ab é漢🙂", min_size=1, max_size=25), cuts(30), st.integers(1, 5), st.booleans(), st.data())
def test_the_seam_lies_at_a_whole_character_and_the_texts_join(
    text: str, places: list[int], group: int, stops: bool, data: st.DataObject
) -> None:
    engine = Engine(cut(text.encode(), places))
    relay = Relay(engine, Route.CHAT, {"max_tokens": 500, "stop": ["@@@"] if stops else None}, group=group)
    delivered = relay.first(data.draw(st.integers(1, len(engine.run(group=group)))))
    seam = relay.seam(delivered)
    kept = engine.text_of(delivered.ids[: seam.kept_ids])
    assert not kept.endswith("\ufffd")
    assert text.startswith(kept)
    assert kept + seam.skipped == delivered.text + seam.held


def test_where_each_chunk_has_one_id_nobody_is_asked() -> None:
    assert SeamFinder(read(), had()).question is None
    assert SeamFinder(read(), had()).seam == Seam(2)


def test_a_mark_between_two_ids_of_a_chunk_is_asked_for_and_stepped_back_from() -> None:
    delivered = Delivered(prompt_ids=PROMPT_IDS)
    delivered.add_tokens("ab", [10, 11, 12])
    finder = SeamFinder(read(), delivered)
    assert finder.question == [10, 11, 12]
    finder.hear("ab\ufffd")
    assert finder.question == [10, 11]
    finder.hear("a")
    assert finder.seam == Seam(2, skipped="b")


def test_a_character_of_too_many_ids_is_unsafe() -> None:
    delivered = Delivered(prompt_ids=PROMPT_IDS)
    delivered.add_tokens("a", list(range(10, 100)))
    finder = SeamFinder(read(), delivered)
    for _ in range(MAX_STEPS_BACK + 1):
        assert finder.question
        finder.hear("\ufffd")
    with pytest.raises(Unsafe, match="seam"):
        _ = finder.question


def test_where_no_id_is_whole_the_answer_begins_anew_behind_the_prompt() -> None:
    delivered = Delivered(prompt_ids=PROMPT_IDS)
    delivered.add_tokens("a", [10, 11])
    finder = SeamFinder(read(), delivered)
    finder.hear("\ufffd")
    finder.hear("\ufffd")
    assert finder.question is None
    assert finder.seam == Seam(0, skipped="a")


def test_ids_whose_text_is_not_the_clients_are_unsafe() -> None:
    finder = SeamFinder(read(stop="x"), had())
    finder.hear("<special>one")
    with pytest.raises(Unsafe, match="seam"):
        _ = finder.seam


def test_a_completion_whose_limit_is_null_may_take_what_the_window_leaves() -> None:
    assert read(Route.COMPLETIONS).max_tokens == 16
    assert read(Route.COMPLETIONS, max_tokens=None).max_tokens is None
