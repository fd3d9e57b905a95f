"""Completions are read leniently where something is missing, and refused whole where a type is wrong."""

from __future__ import annotations

import pytest

from router.wire.completion import BadAnswer, read_chunks, read_whole

WRONG = [b"not json", b"[]", b'{"choices": [{"delta": {"content": 7}}]}', b'{"id": "\xff"}', b"[" * 100_000]


@pytest.mark.parametrize("data", WRONG, ids=lambda data: str(data)[:40])
def test_what_is_no_chunk_is_refused_without_a_quotation(data: bytes) -> None:
    with pytest.raises(BadAnswer) as refused:
        read_chunks(b"data: %b\n\n" % data)
    assert str(refused.value) == "the worker's answer is no stream of chunks"


def test_pings_ends_and_sizes_between_events_are_no_chunks() -> None:
    events = b'1f\r\n: ping\n\ndata: {"id": "a"}\r\n\r\ndata:{"id": null}\n\ndata:\n\ndata: [DONE]\n\n'
    assert [chunk.id for chunk in read_chunks(events)] == ["a", None]


def test_only_the_first_choice_is_taken() -> None:
    (chunk,) = read_chunks(b'data: {"choices": [{"index": 1, "text": "b"}, {"index": null, "text": "a"}]}\n\n')
    assert chunk.choice is not None
    assert chunk.choice.content == "a"
    assert read_chunks(b'data: {"choices": null}\n\n')[0].choice is None


def test_calls_of_a_whole_message_are_numbered_and_it_is_taken_to_have_stopped() -> None:
    _, choice, message = read_whole(b'{"choices": [{"message": {"tool_calls": [{"id": "x"}, {"id": "y"}]}}]}')
    assert [(call.index, call.id) for call in message.tool_calls or ()] == [(0, "x"), (1, "y")]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    "body", [*WRONG, b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'], ids=lambda body: str(body)[:40]
)
def test_a_completion_without_a_message_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_whole(body)
