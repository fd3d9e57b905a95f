"""Which of a client's messages a session has already."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sessions.context.messages import Overlap, digest, find_overlap, split_system
from tests.sessions.context.logs import said, user

A, B, C = user("a"), user("b"), user("c")
ONE, TWO = said("one"), said("two")
YES, DONE = user("yes"), said("done")

CASES: dict[str, tuple[list[Any], list[Any], Overlap]] = {
    "a new message": ([A, ONE], [B], Overlap(0)),
    "the whole history": ([A, ONE], [A, ONE, B], Overlap(2)),
    "the whole history and nothing new": ([A, ONE], [A, ONE], Overlap(2)),
    "the newest of the history": ([A, ONE, B, TWO], [B, TWO, C], Overlap(2)),
    "from an answer on": ([A, ONE, B, TWO], [TWO, C], Overlap(1)),
    "an answer that was edited": ([A, ONE], [A, said("won"), B], Overlap(0, differs=True)),
    "a question that was edited": ([A, ONE, B, TWO], [A, ONE, C], Overlap(0, differs=True)),
    "another conversation": ([A, ONE], [C, TWO, B], Overlap(0)),
    "the same question without its answer": ([A, ONE], [A], Overlap(0)),
    "yes again": ([A, ONE, YES, DONE], [YES], Overlap(0)),
    "yes behind a yes": ([YES, DONE, YES, DONE], [YES, DONE, YES], Overlap(2)),
    "all of the yeses": ([YES, DONE, YES, DONE], [YES, DONE, YES, DONE, YES], Overlap(4)),
    "messages that no model has answered yet": ([A, B], [A, B, C], Overlap(2)),
    "one such again": ([A, B], [B, C], Overlap(0)),
    "up to before the last answer": ([A, ONE, B, TWO], [A, ONE], Overlap(0, differs=True)),
    "nothing to overlap with": ([], [A, ONE, B], Overlap(0)),
    "what an agent added behind the answer": ([A, ONE, B], [A, ONE, B, C], Overlap(3)),
    "what an agent added, without the answer before it": ([A, ONE, B], [B, TWO, C], Overlap(0)),
    "all but what an agent added": ([A, ONE, B], [A, ONE, C], Overlap(0, differs=True)),
}


def overlap(history: list[Any], sent: list[Any]) -> Overlap:
    answers = [at for at, message in enumerate(history) if message["role"] == "assistant"]
    return find_overlap(
        list(map(digest, history)),
        answers[-1] if answers else -1,
        list(map(digest, sent)),
        sends_answers=any(message["role"] == "assistant" for message in sent),
    )


@pytest.mark.parametrize("case", CASES)
def test_what_a_client_sends_again_is_recognised(case: str) -> None:
    history, sent, wanted = CASES[case]
    assert overlap(history, sent) == wanted


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=8), st.integers(0, 7), st.lists(st.sampled_from("abc")))
def test_any_end_of_a_history_that_has_its_last_answer_is_recognised(
    talk: list[str], cut: int, more: list[str]
) -> None:
    history = [message for text in talk for message in (user(text), said(text))]
    start = min(cut, len(history) - 1)
    found = overlap(history, history[start:] + [user("new " + text) for text in more])
    assert not found.differs
    assert found.known >= len(history) - start


def test_long_repetitions_are_compared_in_linear_time() -> None:
    """Two thousand times the same, and at the end another: a comparison at each place would be millions of them."""
    same = [1] * 200_000
    assert find_overlap([*same, 2], 200_000, [*same, 3], sends_answers=True) == Overlap(0, differs=True)


@pytest.mark.parametrize(
    "again",
    [
        {"role": "assistant", "content": "x", "refusal": None, "audio": None, "tool_calls": None},
        {"role": "assistant", "content": "x", "tool_calls": [], "reasoning": "hm"},
        {"content": [{"type": "text", "text": "x"}], "role": "assistant", "name": ""},
    ],
)
def test_an_answer_is_recognised_as_clients_send_it_back(again: dict[str, Any]) -> None:
    assert digest(again) == digest(said("x"))


@pytest.mark.parametrize(
    "other",
    [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "name": "n"},
    ],
)
def test_messages_that_say_something_else_differ(other: dict[str, Any]) -> None:
    assert digest(other) != digest(said("x"))


def test_only_system_messages_that_come_first_stand_before_the_conversation() -> None:
    rules, more = {"role": "system", "content": "r"}, {"role": "developer", "content": "d"}
    assert split_system([rules, more, A, rules]) == ([rules, more], [A, rules])
    assert split_system([A]) == ([], [A])
    assert split_system([rules]) == ([rules], [])


def called(arguments: str, call_id: str = "a", **more: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize("again", [called('{ "b": [1], "a": "\\u00e9" }'), called('{"a":"é","b":[1]}', index=0)])
def test_a_call_that_a_client_wrote_anew_is_the_same_call(again: dict[str, Any]) -> None:
    """As clients do that keep arguments as objects."""
    assert digest(again) == digest(called('{"a":"é","b":[1]}'))


@pytest.mark.parametrize("other", [called('{"a":2}'), called('{"a":1}', "b"), called('{"a":1'), called("")])
def test_another_call_is_another(other: dict[str, Any]) -> None:
    assert digest(other) != digest(called('{"a":1}'))
