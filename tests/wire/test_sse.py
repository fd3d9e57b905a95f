"""What ends a stream, what fails it, what it counted; and what in its text must not."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request.routes import Route
from router.wire.dialects import DIALECTS
from router.wire.events import cut_ids, each_event, take_events
from router.wire.framing import CHUNK_SIZE, frame
from router.wire.sse import StreamFilter
from router.wire.transcript import Transcript, TranscriptBudget
from router.wire.usage import Usage, read_usage
from tests.wire.cuts import cut, cuts

CHAT = DIALECTS[Route.CHAT]
MESSAGES = DIALECTS[Route.MESSAGES]
TRAPS = [
    "word",
    "\ndata: [DONE]\n\n",
    'data: {"error": {"message": "no"}}',
    '"finish_reason":"stop"',
    '"choices":[]',
    "event: error\n\nevent: message_stop\n\n",
    '"stop_reason": "end_turn"',
    '"usage":{"prompt_tokens":999}',
]


def event(value: object, *, compact: bool = True, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':') if compact else None)}{end}".encode()


def delta(text: str, finish: str | None = None, *, compact: bool = True, end: str = "\n\n") -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"id": "c", "choices": [choice]}, compact=compact, end=end)


def usage(prompt: int = 10, cached: int | None = 4, output: int = 2) -> bytes:
    details = None if cached is None else {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}
    return event({"id": "c", "choices": [], "usage": counts, "system_fingerprint": "vllm-1"})


def named(name: str, value: dict[str, object]) -> bytes:
    return f"event: {name}\n".encode() + event({"type": name, **value})


DONE = b"data: [DONE]\n\n"
STREAM = delta("a") + delta("b") + delta("", "stop") + usage() + DONE


def follow(pieces: list[bytes], *, hides_usage: bool = False, route: Route = Route.CHAT) -> tuple[bytes, StreamFilter]:
    """As a connection follows a stream: whole events to the watch, unless all is plain and nothing is held back."""
    watch, held, seen = StreamFilter(DIALECTS[route], hides_usage=hides_usage), bytearray(), b""
    for piece in pieces:
        if not held and piece.endswith(b"\n\n") and watch.is_plain(frame(piece)):
            seen += piece
            continue
        if whole := take_events(held, piece):
            seen += watch.take(whole)
    return seen, watch


@given(
    st.lists(st.sampled_from(TRAPS), max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    cuts(),
)
def test_a_stream_is_the_same_however_it_is_cut_and_its_text_fools_nobody(
    texts: list[str], compact: bool, hides: bool, end: str, places: list[int]
) -> None:
    content = b"".join(delta(text, compact=compact, end=end) for text in texts)
    last = delta("", "stop", compact=compact, end=end)
    seen, watch = follow(cut(content + last + usage() + DONE, places), hides_usage=hides)
    assert (watch.closed, watch.finished, watch.failed) == (True, True, False)
    assert watch.usage == Usage(10, 4, 2)
    if hides:
        assert seen.startswith(content)
        assert b'"usage":{"prompt_tokens":10' not in seen
        assert seen.endswith(DONE)
    else:
        assert seen == content + last + usage() + DONE


@given(st.lists(st.sampled_from(TRAPS), max_size=4), st.booleans(), cuts())
def test_text_that_looks_like_an_end_is_no_end(texts: list[str], compact: bool, places: list[int]) -> None:
    content = b"".join(delta(text, compact=compact) for text in texts)
    seen, watch = follow(cut(content, places))
    assert seen == content
    assert (watch.closed, watch.finished, watch.failed, watch.usage) == (False, False, False, None)


def test_the_hidden_usage_leaves_its_fingerprint_where_a_client_without_usage_would_find_it() -> None:
    seen, _ = follow([STREAM], hides_usage=True)
    events = seen.decode().split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["system_fingerprint"] == "vllm-1"
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(events) == 5


def test_a_stream_of_several_choices_loses_none_of_their_ends() -> None:
    ends = [event({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]}) for i in range(3)]
    seen, watch = follow([delta("a"), ends[0], delta("b"), ends[1], ends[2], usage(), DONE], hides_usage=True)
    assert watch.closed
    assert seen.count(b'"finish_reason":"stop"') == 3
    assert seen.count(b'"usage"') == 0


def test_a_worker_that_counts_nothing_still_ends_well() -> None:
    seen, watch = follow([delta("a") + delta("", "stop") + DONE], hides_usage=True)
    assert watch.closed
    assert seen == delta("a") + delta("", "stop") + DONE


@pytest.mark.parametrize("closing", [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
def test_done_without_a_reason_for_finishing_is_a_failure_and_is_not_given(closing: bytes) -> None:
    for pieces in ([delta("a") + closing], [delta("a"), closing]):
        seen, watch = follow(pieces)
        assert (watch.closed, watch.failed) == (False, True)
        assert seen == delta("a")


@pytest.mark.parametrize(
    "error", [b'data: {"error":{"message":"died"}}\n\n', b'data: {"error": {"message": "died"}}\n\n']
)
def test_an_error_event_is_a_failure_and_nothing_from_it_on_is_given(error: bytes) -> None:
    seen, watch = follow([delta("a") + error + delta("", "stop") + DONE])
    assert watch.failed
    assert seen == delta("a")


def test_a_final_event_that_waited_for_the_usage_is_not_given_once_the_stream_failed() -> None:
    seen, watch = follow([delta("a"), delta("", "stop"), event({"error": {"message": "died"}})], hides_usage=True)
    assert watch.failed
    assert seen == delta("a")


def test_every_event_that_ends_fails_or_counts_is_looked_at() -> None:
    for mark in (
        delta("", "stop"),
        delta("", "stop", compact=False),
        DONE,
        usage(),
        event({"choices": [], "usage": {}}, compact=False),
        event({"error": {"message": "x"}}),
        named("message_start", {}),
        named("message_delta", {}),
        named("message_stop", {}),
        named("error", {"error": {"message": "x"}}),
    ):
        assert not StreamFilter(DIALECTS[Route.CHAT], hides_usage=False).is_plain(frame(mark)), mark
    assert StreamFilter(DIALECTS[Route.CHAT], hides_usage=False).is_plain(frame(delta("hello")))


class TestMessages:
    START = named("message_start", {"message": {"stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 0}}})
    TEXT = named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hi"}})
    LAST = named(
        "message_delta",
        {
            "delta": {"stop_reason": "end_turn"},
            "usage": {
                "input_tokens": 3,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 2,
                "output_tokens": 7,
            },
        },
    )
    STOP = named("message_stop", {})

    @given(places=cuts(), traps=st.lists(st.sampled_from(TRAPS), max_size=3))
    def test_the_other_dialect_ends_with_its_own_event_however_it_is_cut(
        self, places: list[int], traps: list[str]
    ) -> None:
        text = b"".join(named("content_block_delta", {"delta": {"text": trap}}) for trap in traps)
        stream = self.START + text + self.LAST + self.STOP
        seen, watch = follow(cut(stream, places), route=Route.MESSAGES)
        assert seen == stream
        assert (watch.closed, watch.failed) == (True, False)
        assert watch.usage == Usage(10, 5, 7)

    def test_a_stop_without_a_reason_is_a_failure(self) -> None:
        seen, watch = follow([self.START + self.TEXT + self.STOP], route=Route.MESSAGES)
        assert watch.failed
        assert seen == self.START + self.TEXT

    def test_its_error_event_is_a_failure(self) -> None:
        error = named("error", {"error": {"type": "api_error", "message": "died"}})
        seen, watch = follow([self.START + error + self.LAST + self.STOP], route=Route.MESSAGES)
        assert watch.failed
        assert seen == self.START


@given(
    st.lists(st.sampled_from([b"data: a\n\n", b"data: b\r\n\r\n", b": comment\n\n", b"\n\n", b"data: c\ndata: d\n\n"])),
    st.binary(max_size=9),
)
def test_events_are_cut_off_whole_and_no_byte_is_lost(events: list[bytes], rest: bytes) -> None:
    rest = rest.replace(b"\n", b"x")
    held = bytearray()
    whole = take_events(held, b"".join(events) + b"data: " + rest)
    assert whole + held == b"".join(events) + b"data: " + rest
    assert held.endswith(b"data: " + rest)


@pytest.mark.parametrize(
    "begin",
    [
        b"event:message_stop\n",
        b"event: message_stop\n",
        b"event:message_delta\n",
        b"event: error\n",
        b"event:error\n",
        b"event: content_block_delta\n\nevent: message_stop\n",
        b": comment\n\n",
        b"id: 1\n",
        b"garbage\n",
        b"data: [DONE]\n\n",
    ],
)
def test_an_event_that_may_mean_something_is_never_passed_unseen(begin: bytes) -> None:
    watch = StreamFilter(DIALECTS[Route.MESSAGES], hides_usage=False)
    assert not watch.is_plain(frame(begin + event({"type": "x"})))
    assert watch.is_plain(frame(named("content_block_delta", {"delta": {"text": "a"}})))
    assert watch.is_plain(frame(event({"type": "x"})))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"{}", None),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}', Usage(5, None, 1)),
        (b'{"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}}', Usage(5, 3, 0)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}', Usage(5, None, 0)),
        (b'{"usage":{"input_tokens":5,"cache_read_input_tokens":3,"output_tokens":2}}', Usage(8, 3, 2)),
        (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":9}","usage":{"prompt_tokens":5}}', Usage(5, None, 0)),
    ],
)
def test_usage_is_read_as_it_was_counted_and_unknown_is_not_zero(text: bytes, found: Usage | None) -> None:
    assert read_usage(text) == found


SOUND = [b": a comment\n\n", b"\n\n", b'data:{"a":1}\n\n', b'data: {"a":\ndata: 1}\n\n', b"id: 5\ndata: {}\r\n\r\n"]
UNSOUND = [
    b"data: {half\n\n",
    b'data: {"a":"\xff"}\n\n',
    b'data: {"a":"\xc3"}\n\n',
    b"data: 5\n\n",
    b"data: \n\n",
    b"retry: 5\n\n",
    b"event: ping\n\n",
    b"\x00\x01\n\n",
]


@pytest.mark.parametrize("odd", SOUND)
def test_what_clients_can_parse_or_pass_over_is_given(odd: bytes) -> None:
    seen, watch = follow([delta("a") + odd + delta("b")])
    assert not watch.failed
    assert seen == delta("a") + odd + delta("b")


@pytest.mark.parametrize("odd", UNSOUND)
def test_an_event_that_no_client_could_parse_is_a_failure_and_nothing_from_it_on_is_given(odd: bytes) -> None:
    watch = StreamFilter(DIALECTS[Route.CHAT], hides_usage=False)
    assert not watch.is_plain(frame(odd))
    assert watch.take(delta("a") + odd + delta("b")) == delta("a")
    assert (watch.failed, watch.error) == (True, b"")


def with_ids(text: str, ids: list[int] | None, prompt_ids: list[int] | None = None) -> dict[str, object]:
    """As vLLM writes them: behind the choice's text, and the prompt's behind all choices."""
    choice: dict[str, object] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    if ids is not None:
        choice["token_ids"] = ids
    prompt = {} if prompt_ids is None else {"prompt_token_ids": prompt_ids, "prompt_text": None}
    return {"id": "c", "choices": [choice], **prompt}


ID_TRAPS = ["word", ',"token_ids":[1]', ',"prompt_token_ids":[1,2],"prompt_text":null', "]", "token_ids"]
CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(ID_TRAPS),
        st.none() | st.lists(st.integers(0, 99), max_size=3),
        st.none() | st.lists(st.integers(0, 99), max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def hiding() -> tuple[StreamFilter, Transcript]:
    transcript = Transcript(1 << 20, TranscriptBudget(1 << 20))
    return StreamFilter(CHAT, hides_usage=False, hides_ids=True, transcript=transcript), transcript


@given(CHUNKS, cuts())
def test_ids_are_cut_out_and_nothing_else_however_the_stream_is_cut(
    chunks: list[tuple[str, list[int] | None, list[int] | None]], places: list[int]
) -> None:
    stream = b"".join(event(with_ids(*chunk)) for chunk in chunks)
    bare = b"".join(event(with_ids(text, None)) for text, _, _ in chunks)
    watch, transcript = hiding()
    held, seen = bytearray(), b""
    for piece in cut(stream, places):
        seen += watch.take(take_events(held, piece))
    assert seen == bare
    delivered = transcript.delivered()
    assert delivered.ids.tolist() == [token for _, ids, _ in chunks for token in ids or ()]
    assert delivered.text == "".join(text for text, _, _ in chunks)


@given(CHUNKS)
def test_a_plain_frame_is_passed_as_its_events_would_be(
    chunks: list[tuple[str, list[int] | None, list[int] | None]],
) -> None:
    """Also one that brings the prompt's ids later than in the first event."""
    payload = b"".join(event(with_ids(*chunk)) for chunk in chunks)
    bare = b"".join(event(with_ids(text, None)) for text, _, _ in chunks)
    data = frame(payload)
    size = CHUNK_SIZE.match(data)
    assert size is not None
    watch, transcript = hiding()
    assert watch.pass_frame(data, size.end()) == frame(bare)
    assert transcript.delivered().ids.tolist() == [token for _, ids, _ in chunks for token in ids or ()]
    shown = StreamFilter(CHAT, hides_usage=False)
    assert shown.pass_frame(data, size.end()) is data


def test_a_plain_frame_without_ids_is_not_copied() -> None:
    data = frame(delta("word"))
    assert hiding()[0].pass_frame(data, data.index(b"d")) is data


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_a_prompts_hundred_thousand_ids_are_cut_out_and_kept(end: str) -> None:
    ids = list(range(100_000, 200_000))
    watch, transcript = hiding()
    begin = event(with_ids("", None, ids), end=end)
    assert watch.take(begin + delta("a", end=end)) == event(with_ids("", None), end=end) + delta("a", end=end)
    assert transcript.delivered().prompt_ids == ids


def test_what_waited_for_the_usage_is_the_rest_of_a_stream_that_broke() -> None:
    seen, watch = follow([delta("a") + delta("", "stop")], hides_usage=True)
    assert (seen, watch.finished, watch.closed) == (delta("a"), True, False)
    assert watch.rest() == delta("", "stop")
    assert watch.rest() == b""


def test_an_event_that_was_never_shown_because_the_stream_failed_is_not_kept_as_text() -> None:
    watch, transcript = hiding()
    watch.take(delta("a") + event({"error": {"message": "x"}}) + delta("b"))
    assert transcript.delivered().text == "a"


def test_an_event_without_ids_stays_as_it_is() -> None:
    assert cut_ids(delta("word")) == delta("word")
    assert cut_ids(b": ping\n\n") == b": ping\n\n"


def test_ids_that_nothing_closes_are_no_reason_to_fall_over() -> None:
    broken = b'data: {"choices":[{"delta":{},"token_ids":[1,2}]\n\n'.replace(b"]", b"")
    watch = StreamFilter(DIALECTS[Route.CHAT], hides_usage=False, hides_ids=True)
    assert cut_ids(broken) == broken
    assert watch.take(broken) == b""
    assert watch.failed
    framed = b"%x\r\n%b\r\n" % (len(broken), broken)
    assert watch.pass_frame(framed, framed.index(b"\r\n") + 2) == framed


def test_a_message_that_is_left_midway_has_the_tokens_that_were_seen_and_not_those_that_its_first_event_counts() -> (
    None
):
    begin = named("message_start", {"message": {"usage": {"input_tokens": 10, "output_tokens": 0}}})
    word = named("content_block_delta", {"delta": {"text": "word"}})
    end = named("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 30}})
    watch = StreamFilter(MESSAGES, hides_usage=False)
    watch.take(begin + word * 50)
    assert watch.tokens(4.0) >= 50
    watch.take(end)
    assert watch.tokens(4.0) == 30


def test_a_stream_whose_worker_counted_no_answer_has_the_tokens_that_were_seen() -> None:
    watch = StreamFilter(CHAT, hides_usage=False)
    watch.take(delta("word") * 50 + delta("", "stop") + usage(output=0) + DONE)
    assert watch.tokens(4.0) >= 50


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"data: x", b"\n\n", b"\n\r\n"]), max_size=12))
def test_events_end_at_the_first_blank_line(pieces: list[bytes]) -> None:
    events = b"".join(pieces)
    assert list(each_event(events)) == [each for each in re.findall(rb"(?s).*?\n\r?\n|.+\Z", events) if each]


def test_an_event_with_very_many_lists_of_ids_is_refused_before_they_are_cut() -> None:
    watch = StreamFilter(DIALECTS[Route.CHAT], hides_usage=True, hides_ids=True)
    watch.take(b'data: {"a":[' + b'{"b":1,"token_ids":[]},' * 100_000 + b"1]}\n\n")
    assert watch.failed
