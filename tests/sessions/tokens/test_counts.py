"""Messages are counted by their model's counter, remembered, and estimated where that fails."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from router.sessions.tokens import counts as module
from router.sessions.tokens.counter import CannotCount
from router.sessions.tokens.template_overhead import BELIEVED, NO_OVERHEAD
from tests.sessions.tokens.desk import Notes, Words, make_counts


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


async def test_each_message_has_the_tokens_of_its_own_text() -> None:
    words, notes = Words(), Notes()
    counts = make_counts(lambda _: words, notes)
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "a b c"}}
    messages = [
        user("one two"),
        user([{"type": "text", "text": "one "}, {"type": "text", "text": "two three"}]),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        user(""),
    ]
    assert await counts.count("m", messages) == [2, 3, 3, 0]
    assert notes.tokens == {"tiktoken": 8}
    assert words.asked[2] == '{"name":"f","arguments":"a b c"}'


async def test_what_is_no_text_is_taken_for_what_was_configured_and_shown_to_no_tokenizer() -> None:
    words = Words()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    counted = await make_counts(lambda _: words).count("m", [user([{"type": "text", "text": "what is it"}, image])])
    assert counted == [1003]
    assert words.asked == ["what is it"]


@pytest.mark.parametrize(
    "message",
    [
        {},
        user(None),
        user(7),
        user({"a": 1}),
        user([None, 7, {"text": 7}]),
        {"tool_calls": 3},
        {"tool_calls": [None, 3, "x", {"function": None}, {"function": {"arguments": "\ud800"}}]},
        user("lone \ud800 surrogate"),
    ],
)
async def test_whatever_a_message_is_it_has_a_count(message: dict[str, Any]) -> None:
    words = Words()
    for counts in (make_counts(lambda _: None), make_counts(lambda _: words)):
        (tokens,) = await counts.count("m", [message])
        assert tokens >= 0
    for text in words.asked:
        text.encode()


async def test_without_a_counter_tokens_follow_from_bytes() -> None:
    notes = Notes()
    counts = make_counts(lambda _: None, notes)
    assert await counts.count("m", [user("é" * 20), user("x"), user("")]) == [10, 1, 0]
    assert (counts.estimate("m", 400), counts.estimate("m", 1), counts.estimate("m", 0)) == (100, 1, 0)
    assert notes.tokens == {"estimate": 11}
    assert not notes.fallbacks


async def test_a_counter_that_fails_costs_exactness_and_is_told_once_for_each_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words, notes = Words(), Notes()
    words.mistake = CannotCount("timeout", "too late")
    counts = make_counts(lambda _: words, notes)
    with caplog.at_level(logging.WARNING):
        for model in ("m1", "m1", "m2"):
            assert await counts.count(model, [user("x" * 40), user("y" * 8)]) == [10, 2]
    assert notes.fallbacks == {"timeout": 3}
    told = [(record.model, record.cause) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [("m1", "timeout"), ("m2", "timeout")]


async def test_names_that_clients_make_up_reach_no_counter_and_leave_nothing_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []
    notes = Notes()
    counts = make_counts(asked.append, notes)
    assert await counts.count("unknown", [user("x" * 40)]) == [10]
    counts.learn("unknown", 10, 1, 17)
    assert counts.overhead("unknown") == NO_OVERHEAD
    assert (asked, notes.errors, caplog.records) == ([], [], [])


async def test_a_text_that_came_before_is_counted_once_for_each_model() -> None:
    words, notes = Words(), Notes()
    counts = make_counts(lambda _: words, notes)
    for model in ("m1", "m1", "m2"):
        assert await counts.count(model, [user("a b"), user("a b c")]) == [2, 3]
    assert words.asked == ["a b", "a b c"] * 2
    assert notes.tokens == {"tiktoken": 10, "cache": 5}


async def test_what_is_remembered_is_bounded_and_the_least_recent_goes() -> None:
    words = Words()
    counts = make_counts(lambda _: words, max_known=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await counts.count("m", [user(text)])
        assert len(counts.known) <= 2
    assert words.asked == ["a", "b", "c", "b"]


async def test_an_estimate_is_not_remembered_as_a_count() -> None:
    words = Words()
    words.mistake = CannotCount("worker", "gone")
    counts = make_counts(lambda _: words)
    assert await counts.count("m", [user("x" * 400)]) == [100]
    words.mistake = None
    assert await counts.count("m", [user("x" * 400)]) == [1]


async def test_beyond_a_bound_texts_of_one_call_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EXACT_BYTES", 10)
    words, notes = Words(), Notes()
    counts = make_counts(lambda _: words, notes)
    assert await counts.count("m", [user("a b c d"), user("e f g h"), user("i j")]) == [4, 2, 2]
    assert words.asked == ["a b c d", "i j"]
    assert notes.fallbacks == {"too_large": 1}


async def test_the_templates_overhead_is_learnt_and_shown_to_be_right() -> None:
    notes = Notes()
    counts = make_counts(lambda _: Words(), notes)
    assert counts.overhead("m") == BELIEVED
    for turn in range(100):
        messages = 1 + 2 * (turn % 20)
        counts.learn("m", 50 * messages, messages, 54 * messages + 11)
    overhead = counts.overhead("m")
    assert overhead.per_message == pytest.approx(4.0, rel=0.05)
    assert overhead.fixed == pytest.approx(11.0, rel=0.05)
    assert counts.total("m", 500, 10) == 551
    assert [model for model, _ in notes.errors] == ["m"] * 100
    assert notes.errors[0][1] == pytest.approx(8 / 65)
    assert notes.errors[-1][1] == 0.0
    assert counts.overhead("m2") == BELIEVED


async def test_an_estimate_has_the_template_in_it_already() -> None:
    notes = Notes()
    counts = make_counts(lambda _: None, notes)
    for _ in range(100):
        counts.learn("m", 100, 2, 125)
    assert (counts.overhead("m"), counts.total("m", 100, 2)) == (NO_OVERHEAD, 100)
    assert notes.errors[-1] == ("m", 0.2)


async def test_what_no_worker_reported_teaches_nothing() -> None:
    notes = Notes()
    counts = make_counts(lambda _: Words(), notes)
    counts.learn("m", 100, 2, 0)
    counts.learn("m", 100, 0, 125)
    assert (counts.overhead("m"), notes.errors) == (BELIEVED, [])
