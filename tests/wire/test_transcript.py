"""What is kept of a stream is what the client has of it, folded or not, and within its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import transcript as module
from router.wire.completion import BadAnswer, read_chunks
from router.wire.framing import frame
from router.wire.transcript import Delivered, Transcript, TranscriptBudget
from tests.wire.engine import event

PROMPT_IDS = [1, 2, 3]


def chunk(text: str, ids: list[int] | None, **more: Any) -> bytes:
    return event(
        {"id": "c", "created": 7, "model": "m", "choices": [{"index": 0, "text": text, "token_ids": ids, **more}]}
    )


def first(text: str = "", ids: list[int] | None = None) -> bytes:
    return chunk(text, ids, prompt_token_ids=PROMPT_IDS)


def role() -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}}
    return event({"id": "c", "created": 7, "model": "m", "choices": [choice], "prompt_token_ids": PROMPT_IDS})


def keep(events: list[bytes], max_bytes: int = 1 << 20, kept: TranscriptBudget | None = None) -> Transcript:
    transcript = Transcript(max_bytes, kept or TranscriptBudget(1 << 30))
    for piece in events:
        transcript.keep(piece)
    return transcript


TOKENS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "bc", "\ufffd", "é\ufffd", "🙂"]), st.lists(st.integers(0, 9), min_size=1, max_size=3)
    ),
    min_size=1,
    max_size=12,
)


@given(TOKENS, st.sampled_from([role(), None]), st.integers(1, 400), st.booleans())
def test_folding_changes_nothing(
    tokens: list[tuple[str, list[int]]], begin: bytes | None, fold_bytes: int, framed: bool
) -> None:
    events = [begin] if begin else []
    events += [(chunk if at or begin else first)(text, ids) for at, (text, ids) in enumerate(tokens)]
    pieces = [frame(piece) for piece in events] if framed else events
    whole = keep(pieces).delivered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FOLD_BYTES", fold_bytes)
        folded = keep(pieces).delivered()
    assert whole.text == folded.text == "".join(text for text, _ in tokens)
    assert whole.ids.tolist() == [i for _, ids in tokens for i in ids]
    assert folded == whole
    assert folded.prompt_ids == PROMPT_IDS
    assert (folded.id, folded.created, folded.model) == ("c", 7, "m")


def test_lines_of_the_framing_between_events_are_no_events() -> None:
    data = frame(role() + chunk("a", [4])) + frame(chunk("data: b\n\n", [5]).replace(b"\n\n", b"\r\n\r\n"))
    delivered = keep([data, b"data: [DONE]\n\n", b"data:[DONE]\n\n", b": ping\n\n"]).delivered()
    assert (delivered.text, delivered.ids.tolist(), delivered.chunks) == ("adata: b\n\n", [4, 5], 2)


def test_the_mark_lies_behind_the_last_whole_character() -> None:
    delivered = keep([first("a", [4]), chunk("", [5]), chunk("\ufffd", [6]), chunk("", [7])]).delivered()
    assert (delivered.whole_ids, delivered.whole_chars, delivered.chars) == (1, 1, 2)
    assert not delivered.is_grouped
    assert keep([first("a", [4, 5])]).delivered().is_grouped


def test_text_without_ids_is_noticed() -> None:
    assert keep([first("a", [4]), chunk("", None)]).delivered().has_ids
    assert not keep([first("a", [4]), chunk("b", None)]).delivered().has_ids
    assert not keep([chunk("a", [4])]).delivered().has_ids


@pytest.mark.parametrize(
    "more",
    [
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"function_call": {"name": "f"}}},
        {"delta": {"reasoning": "hm"}},
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"refusal": "no"}},
        {"logprobs": {"tokens": ["a"]}},
        {"index": 1},
    ],
    ids=str,
)
def test_what_is_more_than_text_is_not_plain(more: dict[str, Any]) -> None:
    assert not keep([first("a", [4]), chunk("", [5], **more)]).delivered().is_plain
    assert keep([first("a", [4]), chunk("", [5], logprobs=None, delta={"tool_calls": []})]).delivered().is_plain


def test_what_grows_leaves_its_original_alone() -> None:
    delivered = keep([first("a", [4])]).delivered()
    copy = delivered.copy()
    copy.add_tokens("b", [5])
    copy.cut(1, 1)
    assert (delivered.text, delivered.ids.tolist(), delivered.whole_ids) == ("a", [4], 1)
    assert (copy.text, copy.ids.tolist(), copy.whole_ids, copy.whole_chars) == ("ab", [4], 1, 1)


def test_a_transcript_may_be_read_twice_and_go_on() -> None:
    transcript = keep([first("a", [4])])
    assert transcript.delivered().text == "a"
    transcript.keep(chunk("b", [5]))
    assert (transcript.delivered().text, transcript.delivered().prompt_ids) == ("ab", PROMPT_IDS)


def test_a_long_answer_takes_a_fraction_of_its_events() -> None:
    kept = TranscriptBudget(1 << 30)
    keep([first("a", [4])] + [chunk("word ", [5], logprobs=None, finish_reason=None)] * 10_000, kept=kept)
    assert 100_000 < kept.bytes < 200_000


def test_a_large_prompt_is_read_only_when_the_stream_breaks() -> None:
    """Its ids stay as they were written: a stream that ends well pays nothing for them."""
    ids = list(range(100_000, 200_000))
    kept = TranscriptBudget(1 << 30)
    transcript = keep([chunk("a", [4], prompt_token_ids=ids)], kept=kept)
    assert kept.bytes > 700_000
    delivered = transcript.delivered()
    assert (delivered.prompt_ids, delivered.text) == (ids, "a")


def test_beyond_its_bound_a_transcript_is_lost_and_keeps_nothing() -> None:
    kept = TranscriptBudget(1 << 30)
    transcript = keep([first("a", [4])] + [chunk("word ", [5])] * 10_000, max_bytes=65_536, kept=kept)
    assert (transcript.is_lost, kept.bytes) == (True, 0)
    transcript.keep(chunk("b", [5]))
    assert transcript.delivered() == Delivered()


def test_all_transcripts_together_are_bounded_and_the_bound_is_given_back() -> None:
    kept = TranscriptBudget(150_000)
    long = [first("a", [4])] + [chunk("word ", [5])] * 8_000
    one = keep(long, kept=kept)
    two = keep(long, kept=kept)
    assert (one.is_lost, two.is_lost) == (False, True)
    assert 0 < kept.bytes <= 150_000
    two.clear()
    assert kept.bytes > 0
    one.clear()
    assert kept.bytes == 0
    assert not keep(long, kept=kept).is_lost


def test_a_cleared_transcript_begins_anew() -> None:
    transcript = keep([first("a", [4])])
    transcript.clear()
    transcript.keep(first("b", [5]))
    delivered = transcript.delivered()
    assert (delivered.text, delivered.ids.tolist()) == ("b", [5])


def test_events_that_are_no_json_are_noticed_at_once_or_when_they_are_folded() -> None:
    bad = b"data: {nonsense}\n\n"
    with pytest.raises(BadAnswer):
        keep([first("a", [4]), bad]).delivered()
    kept = TranscriptBudget(1 << 30)
    assert keep([bad, *[chunk("a", [4])] * 2_000], kept=kept).is_lost
    assert kept.bytes == 0


def test_an_error_event_holds_no_text() -> None:
    assert read_chunks(event({"error": {"message": "x", "code": 500}}))[0].choices is None
