"""The rest of an answer by another worker: exact at every cut, and nothing in it that tells of the second worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.request.routes import Route
from router.wire.completion import Completion
from router.wire.continuation import Seam, read_asked
from router.wire.continued import ContinuedFilter, StopSearch, leaks, usage_event
from router.wire.transcript import Delivered
from router.wire.usage import Usage
from tests.wire.cuts import cut, cuts
from tests.wire.engine import EOS, FIRST, PROMPT_IDS, Engine, Relay, event, events_of

TEXT = "Ein Fuß, 🙂🙃 und naïve Übungen. STOP here, 漢字."
BYTES = Engine([bytes([byte]) for byte in TEXT.encode()])
WORDS = Engine([word.encode() + b" " for word in ["one", "two", "three", "four", "five", "six", "seven"]])

ROUTES = st.sampled_from([Route.CHAT, Route.COMPLETIONS])


@st.composite
def engines(draw: st.DrawFn) -> Engine:
    text = draw(st.text("ab é漢🙂", min_size=1, max_size=25)).encode()
    return Engine(cut(text, draw(cuts(30))))


def members(**given: Any) -> dict[str, Any]:
    return {"max_tokens": 500, **given}


@given(engines(), ROUTES, st.integers(1, 4), st.data())
def test_kept_text_and_resumed_text_are_the_whole_text_at_every_cut(
    engine: Engine, route: Route, group: int, data: st.DataObject
) -> None:
    whole = Relay(engine, route, members(), group=group)
    whole.first()
    relay = Relay(engine, route, members(), group=group)
    role = route is Route.CHAT
    delivered = relay.first(data.draw(st.integers(role, role + len(engine.run(group=group)) - 1)))
    delivered.prompt_ids = PROMPT_IDS
    seam = relay.seam(delivered)
    assert not engine.text_of(delivered.ids[: seam.kept_ids]).endswith("\ufffd")
    watch = relay.go_on(delivered)
    assert relay.text == whole.text == engine.text_of(range(FIRST, FIRST + len(engine.tokens)))
    assert relay.ends == [("stop", None)]
    assert watch.delivered.ids.tolist() == [*range(FIRST, FIRST + len(engine.tokens)), EOS]
    assert not leaks(watch.first_text, engine.text_of(watch.first_ids))


@given(engines(), ROUTES, st.integers(1, 4), st.booleans(), st.data())
def test_a_stop_string_is_found_wherever_the_stream_breaks(
    engine: Engine, route: Route, group: int, keeps: bool, data: st.DataObject
) -> None:
    text = engine.text_of(range(FIRST, FIRST + len(engine.tokens)))
    at = data.draw(st.integers(0, len(text) - 1))
    stop = text[at : at + data.draw(st.integers(1, 6))]
    given_members = members(stop=[stop], include_stop_str_in_output=keeps)
    whole = Relay(engine, route, given_members)
    whole.first()
    relay = Relay(engine, route, given_members, group=group)
    steps = len(engine.run(group=group, stops=[stop], keeps_stop=keeps))
    delivered = relay.first(data.draw(st.integers(1, steps)))
    if relay.watch is None or not relay.watch.finished:
        relay.go_on(delivered)
        assert (relay.text, relay.ends) == (whole.text, whole.ends)
        assert relay.ends == [("stop", stop)]


@given(
    engines(), ROUTES, st.integers(1, 3), st.sampled_from([None, "b ", "zz"]), st.lists(st.integers(1, 6), max_size=6)
)
def test_a_continued_stream_may_break_again_and_again(
    engine: Engine, route: Route, group: int, stop: str | None, lengths: list[int]
) -> None:
    given_members = members(stop=stop)
    whole = Relay(engine, route, given_members, wants_usage=True)
    whole.first()
    relay = Relay(engine, route, given_members, wants_usage=True, group=group)
    delivered = relay.first(2)
    watch = relay.watch
    for at, length in enumerate(lengths):
        if watch is not None and watch.finished:
            break
        watch = relay.go_on(delivered, length, f"worker-{at}")
        delivered = watch.delivered
    if watch is not None and not watch.finished:
        relay.go_on(delivered)
    elif watch is not None:
        relay.seen += watch.rest()
    assert (relay.text, relay.ends) == (whole.text, whole.ends)
    assert not relay.usages or relay.usages[0]["prompt_tokens"] == len(PROMPT_IDS)


@given(st.integers(1, 60), cuts())
def test_a_continued_stream_is_the_same_however_it_is_cut(upto: int, places: list[int]) -> None:
    def rest(pieces: list[bytes]) -> bytes:
        watch = ContinuedFilter(relay.asked, delivered.copy(), seam)
        held, out = b"", b""
        for piece in pieces:
            whole, _, held = (held + piece).rpartition(b"\n\n")
            out += watch.take(whole + b"\n\n") if whole else b""
        return out

    relay = Relay(BYTES, Route.CHAT, members(), wants_usage=True)
    delivered = relay.first(upto)
    seam = relay.seam(delivered)
    before = len(relay.seen)
    relay.go_on(delivered)
    told = relay.seen[before:]
    prompt = [*PROMPT_IDS, *delivered.ids[: seam.kept_ids]]
    stream = b"".join(events_of(BYTES.run(prompt), Route.COMPLETIONS, prompt, "second"))
    assert rest(cut(stream, places)) == rest([stream]) == told


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
@pytest.mark.parametrize("wants_usage", [True, False])
def test_nothing_tells_the_client_of_the_second_worker(route: Route, wants_usage: bool) -> None:
    relay = Relay(WORDS, route, members(), wants_usage=wants_usage)
    relay.go_on(relay.first(4))
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in relay.chunks} == {("first", 5, "m")}
    assert len({chunk["object"] for chunk in relay.chunks}) == 1
    assert sum("role" in choice.get("delta", {}) for choice in relay.choices) == (route is Route.CHAT)
    assert b"token_ids" not in relay.seen
    assert relay.ends == [("stop", None)]
    assert relay.seen.count(b"data: [DONE]") == 1
    assert relay.seen.endswith(b"data: [DONE]\n\n")
    counts = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert relay.usages == [counts] * wants_usage
    assert "system_fingerprint" in relay.chunks[-1]


def test_the_fingerprint_is_that_of_whoever_gave_one_last() -> None:
    relay = Relay(WORDS, Route.CHAT, members())
    delivered = relay.first(4)
    seam = relay.seam(delivered)
    delivered.fingerprint = "theirs"
    watch = ContinuedFilter(relay.asked, delivered, seam)
    assert b'"system_fingerprint":"theirs"' in watch.take(chunk("x", [99], "stop") + DONE)


def test_who_asked_for_ids_gets_each_once() -> None:
    relay = Relay(WORDS, Route.CHAT, members(return_token_ids=True, stop=["zzzz"]))
    delivered = relay.first(4)
    relay.go_on(relay.go_on(delivered, 2).delivered)
    assert relay.ids == [*range(FIRST, FIRST + 7), EOS]


def within_a_character() -> tuple[Relay, Delivered]:
    """Of a client that asked for ids, and has some of a character whose text it does not have."""
    relay = Relay(BYTES, Route.CHAT, members(return_token_ids=True))
    return relay, relay.first(TEXT.encode().index("🙂".encode()) + 3)


def test_ids_whose_text_was_still_held_are_drawn_anew_and_shown_once() -> None:
    relay, delivered = within_a_character()
    relay.go_on(delivered)
    assert relay.text == TEXT
    assert relay.ids == [*range(FIRST, FIRST + len(TEXT.encode())), EOS]


def test_ids_that_come_out_otherwise_than_the_client_saw_them_end_the_matter() -> None:
    relay, delivered = within_a_character()
    watch = ContinuedFilter(relay.asked, delivered, relay.seam(delivered))
    assert watch.take(chunk("x", [9])) == b""
    assert (watch.failed, watch.unsafe) == (True, "seam")


def test_nothing_is_sent_before_the_first_text_has_shown_whether_it_is_the_answers() -> None:
    relay = Relay(WORDS, Route.CHAT, members(return_token_ids=True))
    watch = ContinuedFilter(relay.asked, relay.first(3), Seam(2))
    assert watch.take(chunk("", [90]) + chunk("", [91])) == b""
    seen = watch.take(chunk("x", [92]))
    assert (watch.first_ids, watch.first_text) == ([90, 91, 92], "x")
    assert b'"token_ids":[90,91,92]' in seen


DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "died", "code": 500}})


def chunk(text: str, ids: list[int] | None, finish: str | None = None, **more: Any) -> bytes:
    return event(
        {"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": finish, "token_ids": ids, **more}]}
    )


def continued(seam: Seam | None = None, **given_members: Any) -> ContinuedFilter:
    relay = Relay(WORDS, Route.CHAT, members(**given_members), wants_usage=True)
    return ContinuedFilter(relay.asked, relay.first(3), seam)


def test_what_came_before_an_error_in_one_read_is_not_lost() -> None:
    watch = continued(Seam(2))
    assert b'"content":"three"' in watch.take(chunk("three", [12]) + ERROR)
    assert (watch.failed, watch.error, watch.unsafe) == (True, ERROR, "")
    assert watch.delivered.text == "one two three"
    assert watch.take(chunk("four", [13])) == b""


@pytest.mark.parametrize("error", [ERROR, ERROR.replace(b"data: ", b"data:")])
def test_an_error_event_fails_the_stream_and_is_not_shown(error: bytes) -> None:
    watch = continued(Seam(2))
    assert watch.take(error + DONE) == b""
    assert (watch.failed, watch.error) == (True, error)


def test_a_closing_event_without_a_reason_for_finishing_is_a_failure() -> None:
    watch = continued(Seam(2))
    assert DONE not in watch.take(chunk("three", [12]) + DONE)
    assert (watch.failed, watch.closed, watch.unsafe) == (True, False, "")


def test_text_that_looks_like_an_end_or_an_error_is_text() -> None:
    watch = continued(Seam(2))
    watch.take(chunk('data: {"error": "x"} [DONE]', [12]) + chunk("\ndata: [DONE]\n\n", [13]))
    assert (watch.failed, watch.closed) == (False, False)
    assert watch.delivered.text == 'one two data: {"error": "x"} [DONE]\ndata: [DONE]\n\n'


def test_what_the_client_has_is_skipped() -> None:
    watch = continued(Seam(1, skipped="two "))
    assert watch.take(chunk("tw", [11])) == b""
    assert b'"content":"three"' in watch.take(chunk("o three", [12]))
    assert watch.delivered.text == "one two three"
    assert watch.delivered.ids.tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    "events",
    [chunk("tzo", [11]), chunk("tw", [11]) + chunk("x", [12]), chunk("tw", [11], "stop")],
    ids=["at once", "later", "too short"],
)
def test_another_text_than_the_client_has_is_unsafe(events: bytes) -> None:
    watch = continued(Seam(1, skipped="two "))
    assert watch.take(events) == b""
    assert (watch.failed, watch.unsafe, watch.error) == (True, "seam", b"")


@pytest.mark.parametrize(
    "events",
    [
        chunk("x", None),
        b"data: {nonsense}\n\n",
        chunk("", [12], delta={"tool_calls": [{"index": 0}]}),
        chunk("", [12], delta={"reasoning": "hm"}),
        chunk("x", [12], logprobs={"tokens": []}),
    ],
    ids=["no ids", "no json", "tool call", "reasoning", "logprobs"],
)
def test_what_is_not_plain_text_with_ids_is_unsafe(events: bytes) -> None:
    watch = continued(Seam(2))
    assert watch.take(events) == b""
    assert (watch.failed, watch.unsafe) == (True, "parsed")


def test_a_stream_that_broke_behind_its_reason_for_finishing_is_whole() -> None:
    watch = continued(Seam(2))
    watch.take(chunk("three", [12], "length"))
    rest = watch.rest()
    assert b'"finish_reason":"length"' in rest
    assert b'"completion_tokens":3' in rest
    assert rest.endswith(DONE)
    assert watch.rest() == b""


def test_by_text_the_workers_counts_are_shared_out_anew() -> None:
    watch = continued(None)
    assert b'"content":"three"' in watch.take(chunk("three", None))
    usage = event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5}})
    rest = watch.take(chunk("", None, "stop") + usage + DONE)
    assert b'"usage":{"prompt_tokens":10,"total_tokens":17,"completion_tokens":7}' in rest
    assert watch.usage == Usage(10, None, 7)


def test_nobody_counts_what_no_ids_tell() -> None:
    delivered = Delivered()
    assert usage_event(Route.CHAT, delivered) == b""
    delivered.prompt_ids = [1]
    delivered.add_tokens("x", None)
    assert usage_event(Route.CHAT, delivered) == b""


def test_the_answer_ends_with_its_stop_string_and_the_worker_is_not_waited_for() -> None:
    relay = Relay(BYTES, Route.CHAT, members(stop="STOP"), wants_usage=True)
    watch = relay.go_on(relay.first(TEXT.encode().index(b"STOP") + 2))
    assert relay.text == TEXT[: TEXT.index("STOP")]
    assert relay.ends == [("stop", "STOP")]
    assert watch.closed
    assert relay.usages[0]["completion_tokens"] == TEXT.encode().index(b"STOP") + 4


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=2), st.data())
def test_a_stop_search_gives_the_text_up_to_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    search = StopSearch(tuple(stops), keeps_stop=False, sent="", held="")
    out = "".join(search.feed(character) for character in text[:at])
    out += "".join(search.feed(character) for character in text[at:]) + search.flush()
    ends = [(found + len(stop), found) for stop in stops if (found := text.find(stop)) >= 0]
    assert out == (text[: min(ends)[1]] if ends else text) or len(stops) > 1
    assert (search.found is None) == (not ends)
    assert not any(stop in out for stop in stops)


def test_a_stop_that_began_in_what_the_client_has_is_found_where_it_is_kept() -> None:
    search = StopSearch(("END",), keeps_stop=True, sent="the E", held="")
    assert search.feed("ND of it") == "ND"
    assert search.found == "END"


def test_no_stop_is_found_twice_in_what_the_client_has() -> None:
    search = StopSearch(("E", "ENDE"), keeps_stop=True, sent="the E", held="")
    assert search.feed("N") == "N"
    assert search.found is None


@pytest.mark.parametrize(
    ("first", "known", "leaked"),
    [
        ("word", "word", False),
        (" word", "word", False),
        ("\ufffd\ufffdword", "word", False),
        ("system SECRET user hi 🙂", "\ufffd", True),
        ("sys", "", True),
    ],
)
def test_more_text_than_the_ids_have_is_a_leak(first: str, known: str, leaked: bool) -> None:
    assert leaks(first, known) is leaked


def test_a_worker_that_began_inside_a_character_is_caught() -> None:
    relay = Relay(BYTES, Route.CHAT, members())
    inside = TEXT.encode().index("🙂".encode()) + 2
    steps = BYTES.run([*PROMPT_IDS, *range(FIRST, FIRST + inside)])
    watch = ContinuedFilter(relay.asked, relay.first(inside), Seam(inside))
    for step in steps:
        watch.take(chunk(step.text, step.ids))
    assert watch.first_text.startswith("SYSTEM PROMPT: ")
    assert leaks(watch.first_text, BYTES.text_of(watch.first_ids))


def test_the_answer_is_read_as_json_by_any_client() -> None:
    asked = read_asked(Route.COMPLETIONS, json.dumps({"prompt": "x"}).encode(), wants_usage=False, hides_ids=True)
    delivered = Delivered(prompt_ids=[1], id="i", created=1, model="m")
    delivered.add(Completion())
    watch = ContinuedFilter(asked, delivered, Seam(0))
    assert json.loads(watch.take(chunk('"\\\n\u2028', [5]))[6:])["choices"][0]["text"] == '"\\\n\u2028'


@pytest.mark.parametrize("keeps", [True, False])
def test_a_stop_string_that_straddles_the_seam_ends_the_answer(keeps: bool) -> None:
    for upto in range(TEXT.encode().index(b"STOP"), TEXT.encode().index(b"STOP") + 4):
        relay = Relay(BYTES, Route.CHAT, members(stop="STOP", include_stop_str_in_output=keeps))
        relay.go_on(relay.first(1 + upto))
        assert relay.text == TEXT[: TEXT.index("STOP")] + "STOP" * keeps
        assert relay.ends == [("stop", "STOP")]
