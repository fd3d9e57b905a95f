"""A broken stream is continued by ids on another worker as a real one continues it, and punishes the same mistakes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.simulator.serving import Client, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SECRET = "SECRET-SYSTEM-PROMPT"
MESSAGES = [{"role": "system", "content": SECRET}, {"role": "user", "content": "say it in all scripts " * 8}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "return_token_ids": True}
LIMIT = 90


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(workers=2, answers="bytes", stream_interval_ms=0.0) as client:
        yield client


class Streamed:
    """A stream with ids: its prompt, and for each later event its ids, its text and its choice."""

    def __init__(self, events: list[Any]) -> None:
        first = events[0]
        self.prompt_ids: list[int] = first.get("prompt_token_ids") or first["choices"][0]["prompt_token_ids"]
        choices = [event["choices"][0] for event in events if event != "[DONE]" and event["choices"]]
        self.choices = [choice for choice in choices if "token_ids" in choice]
        self.ids = [number for choice in self.choices for number in choice["token_ids"]]
        self.texts = [choice["text"] if "text" in choice else choice["delta"]["content"] for choice in self.choices]
        self.text = "".join(self.texts)
        self.end = (self.choices[-1]["finish_reason"], self.choices[-1]["stop_reason"])


async def ask(client: Client, worker: int = 0, **changes: Any) -> Streamed:
    return Streamed(await client.stream(CHAT, worker, **{**ASKED, "max_tokens": LIMIT, **changes}))


async def resume(client: Client, whole: Streamed, kept: int, **changes: Any) -> Streamed:
    body = {"prompt": whole.prompt_ids + whole.ids[:kept], "return_token_ids": True, "max_tokens": LIMIT - kept}
    return Streamed(await client.stream(COMPLETIONS, 1, **{**body, **changes}))


async def test_cut_at_every_id_the_rest_has_the_same_ids_and_the_same_text_unless_a_character_was_cut(
    client: Client,
) -> None:
    whole = await ask(client)
    leaks = 0
    for kept in range(LIMIT):
        rest = await resume(client, whole, kept)
        assert rest.ids == whole.ids[kept:]
        _, said = await client.post("/detokenize", 1, tokens=whole.ids[:kept])
        if said["prompt"].endswith("\ufffd"):
            leaks += 1
            assert SECRET in rest.text or not rest.text
            assert "<|im_start|>" not in rest.text
            continue
        assert said["prompt"] + rest.text == whole.text
        assert "".join(whole.texts[:kept]) == said["prompt"]
    assert LIMIT // 5 < leaks < LIMIT * 4 // 5


async def test_a_wrong_cut_leaks_into_a_reply_that_is_not_streamed_too(client: Client) -> None:
    whole = await ask(client)
    kept = next(at for at, text in enumerate(whole.texts) if not text) + 1
    _, reply = await client.post(COMPLETIONS, prompt=whole.prompt_ids + whole.ids[:kept], max_tokens=20)
    assert reply["choices"][0]["text"].startswith(f"system\n{SECRET}\nuser\n")


async def test_text_that_is_not_streamed_is_the_streamed_one_and_its_json_is_sound(client: Client) -> None:
    whole = await ask(client)
    _, reply = await client.post(CHAT, **ASKED, max_tokens=LIMIT)
    assert reply["choices"][0]["message"]["content"] == whole.text
    assert reply["choices"][0]["token_ids"] == whole.ids
    assert "\ufffd" not in whole.text


async def test_ids_are_told_where_a_real_worker_tells_them(client: Client) -> None:
    events = await client.stream(CHAT, **ASKED, max_tokens=5)
    assert events[0]["prompt_text"] is None
    assert "token_ids" not in events[0]["choices"][0]
    assert all(len(event["choices"][0]["token_ids"]) == 1 for event in events[1:-1])
    events = await client.stream(COMPLETIONS, prompt=events[0]["prompt_token_ids"], return_token_ids=True, max_tokens=3)
    given = [event["choices"][0]["prompt_token_ids"] for event in events[:-1]]
    assert given[1:] == [None, None]


async def test_tokens_without_text_have_a_chunk_only_with_their_ids(client: Client) -> None:
    whole = await ask(client)
    assert len(whole.choices) == LIMIT
    assert "" in whole.texts
    bare = await client.stream(CHAT, messages=MESSAGES, max_tokens=LIMIT)
    contents = [event["choices"][0]["delta"]["content"] for event in bare[1:-1]]
    assert contents[:-1] == [text for text in whole.texts[:-1] if text]


@pytest.mark.parametrize("each", [2, 5])
async def test_several_ids_share_a_chunk_after_the_first(each: int) -> None:
    async with serving(answers="bytes", stream_interval_ms=0.0, tokens_per_event=each) as client:
        many = await ask(client)
        counts = [len(choice["token_ids"]) for choice in many.choices]
        assert counts[0] == 1
        assert set(counts[1:-1]) == {each}
        assert sum(counts) == LIMIT
    async with serving(answers="bytes", stream_interval_ms=0.0) as client:
        single = await ask(client)
        assert (many.ids, many.text) == (single.ids, single.text)
        asked = await ask(client, stream_interval=each)
        assert [len(choice["token_ids"]) for choice in asked.choices] == counts


async def test_an_answer_without_a_limit_ends_in_an_id_without_text_wherever_it_was_resumed(client: Client) -> None:
    events = await client.stream(CHAT, **ASKED)
    whole = Streamed(events)
    assert whole.end == ("stop", None)
    assert whole.texts[-1] == ""
    room = 1_000_000 - len(whole.prompt_ids)
    for kept in (1, len(whole.ids) // 2, len(whole.ids) - 1):
        rest = await resume(client, whole, kept, max_tokens=room - kept)
        assert (rest.ids, rest.end) == (whole.ids[kept:], ("stop", None))


async def test_a_plain_answer_without_a_limit_ends_where_it_would_have_when_resumed() -> None:
    async with serving(workers=2, stream_interval_ms=0.0) as client:
        whole = Streamed(await client.stream(CHAT, **ASKED))
        rest = await resume(client, whole, 9, max_tokens=1_000_000 - len(whole.prompt_ids) - 9)
        assert (rest.ids, rest.end) == (whole.ids[9:], ("stop", None))


async def test_least_tokens_put_the_end_off_by_as_much_when_resumed(client: Client) -> None:
    whole = await ask(client, min_tokens=200, max_tokens=None)
    assert len(whole.ids) == 200
    room = 1_000_000 - len(whole.prompt_ids)
    rest = await resume(client, whole, 33, min_tokens=200 - 33, max_tokens=room - 33)
    assert rest.ids == whole.ids[33:]
    assert (await client.post(CHAT, messages=MESSAGES, min_tokens=9, max_tokens=8))[0] == 400


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stop_string_is_held_back_and_told(client: Client, path: str) -> None:
    whole = await ask(client)
    asked: dict[str, Any]
    stop, asked = (
        whole.text[20:26],
        {"return_token_ids": True, "max_tokens": LIMIT, "stop": ["\0" * 9, whole.text[20:26]]},
    )
    asked |= {"messages": MESSAGES} if path == CHAT else {"prompt": whole.prompt_ids}
    stopped = Streamed(await client.stream(path, **asked))
    at = whole.text.index(stop)
    assert (stopped.text, stopped.end) == (whole.text[:at], ("stop", stop))
    assert stopped.ids == whole.ids[: len(stopped.ids)]
    for upto in range(len(stopped.ids)):
        assert len("".join(stopped.texts[:upto])) <= max(0, len("".join(whole.texts[:upto])) - 8)
    _, reply = await client.post(path, **asked, include_stop_str_in_output=True)
    choice = reply["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == whole.text[: at + len(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


async def test_a_stop_id_ends_the_answer_and_is_told(client: Client) -> None:
    whole = await ask(client)
    stopped = await ask(client, stop_token_ids=[whole.ids[30]])
    assert (stopped.ids, stopped.end) == (whole.ids[:31], ("stop", whole.ids[30]))
    assert whole.text.startswith(stopped.text)


async def test_messages_tell_the_stop_sequence() -> None:
    async with serving(answers="bytes") as client:
        _, whole = await client.post("/v1/messages", messages=MESSAGES[1:], max_tokens=60)
        stop = whole["content"][0]["text"][9:12]
        asked: dict[str, Any] = {"messages": MESSAGES[1:], "max_tokens": 60, "stop_sequences": [stop]}
        _, reply = await client.post("/v1/messages", **asked)
        assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)
        events = await client.stream("/v1/messages", **asked)
        assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}


async def test_a_resumption_is_charged_all_given_ids_and_hits_what_its_worker_holds(client: Client) -> None:
    whole = await ask(client)
    prompt = whole.prompt_ids + whole.ids[:70]
    for worker, cached in ((0, (len(prompt) - 1) // 32 * 32), (1, 0)):
        _, reply = await client.post(COMPLETIONS, worker, prompt=prompt, max_tokens=1)
        usage = reply["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), 1)
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached


async def test_plain_completions_have_sixteen_tokens_and_know_no_other_limit(client: Client) -> None:
    _, reply = await client.post(COMPLETIONS, prompt="go on", max_completion_tokens=3)
    assert reply["usage"]["completion_tokens"] == 16


async def test_detokenize_gives_back_the_text_and_replaces_a_broken_end(client: Client) -> None:
    whole = await ask(client)
    for upto in range(LIMIT):
        _, reply = await client.post("/detokenize", tokens=whole.ids[:upto])
        told = "".join(whole.texts[:upto])
        assert reply["prompt"].startswith(told)
        assert reply["prompt"].endswith("\ufffd") == (bool(upto) and whole.texts[upto - 1] == "")
        assert reply["prompt"] == told or reply["prompt"].endswith("\ufffd")


@pytest.mark.parametrize("answers", ["plain", "bytes"])
async def test_a_worker_of_another_process_goes_on_with_the_same_ids(answers: str) -> None:
    async with (
        serving(answers=answers, stream_interval_ms=0.0) as one,
        serving(answers=answers, stream_interval_ms=0.0) as other,  # with a vocabulary of its own
    ):
        whole = await ask(one)
        _, rest = await other.post(
            COMPLETIONS, prompt=whole.prompt_ids + whole.ids[:20], max_tokens=LIMIT - 20, return_token_ids=True
        )
        assert rest["choices"][0]["token_ids"] == whole.ids[20:]
