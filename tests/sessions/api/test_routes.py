"""Sessions over HTTP: any client of chat completions, a path with a name in it, and nobody else's session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from router.app.serve import Running
from router.simulator import Fault, SimulatedFleet, SimulatorSettings, start_fleet
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import listen, metric, number_of
from tests.e2e.routed import Answer, Broken, connected, get, post, routed, until
from tests.server.keys import ACME, BETA, bearer, entry, keyed
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, ScriptedWorker, answer, scripted

CHAT = "/chat/completions"
SIM = SimulatorSettings(
    workers=2,
    base_port=0,
    block_tokens=32,
    time_scale=10_000.0,
    answers="bytes",
    stream_interval_ms=0.0,
    tokens_per_event=1,
)
BOTH_MODELS = "[tenants.acme]\n[tenants.beta]\n" + entry("a", "acme", ACME) + entry("b", "beta", BETA)


def path(name: str = "user_99", rest: str = "") -> str:
    return f"/v1/sessions/{name}{rest}"


def says(text: str, **members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **members}


def event(**members: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"id": "c-1", "created": 1, "model": "m", **members}).encode()


def delta(text: str | None, reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}])


USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12})
DONE = b"data: [DONE]\n\n"


async def echo(asked: Asked, peer: Peer) -> None:
    """Says "to " and the newest message."""
    body = json.loads(asked.body)
    text = f"to {body['messages'][-1]['content']}"
    if body.get("stream"):
        events = (delta("to "), delta(text[3:]), delta(None, "stop"), USAGE, DONE)
        await peer.send(STREAM_HEAD, *map(frame, events), LAST_CHUNK)
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        await peer.send(answer(json.dumps(whole).encode()))


@asynccontextmanager
async def echoing(**settings: Any) -> AsyncIterator[tuple[ScriptedWorker, Running]]:
    async with scripted(echo) as worker, routed(worker.url, **settings) as router:
        yield worker, router


def sent(worker: ScriptedWorker, at: int = -1) -> list[str]:
    return [message["content"] for message in json.loads(worker.asked[at].body)["messages"]]


async def say(router: Running, text: str, *lines: str, name: str = "user_99", **members: Any) -> Answer:
    return await post(router, path(name, CHAT), says(text, **members), *lines)


async def items(router: Running, *lines: str, name: str = "user_99", query: str = "?order=asc") -> Any:
    found = await get(router, path(name, f"/items{query}"), *lines)
    assert found.status == 200, found.body
    return found.json


def text_of(item: Any) -> str:
    return "".join(part["text"] for part in item["content"])


async def contents(router: Running, *lines: str, name: str = "user_99") -> list[str]:
    return [text_of(item) for item in (await items(router, *lines, name=name))["data"]]


async def remove(router: Running, name: str, *lines: str) -> Answer:
    return await get(router, path(name), *lines, method="DELETE")


# Turns


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_sends_its_newest_message_and_the_worker_reads_all(stream: bool) -> None:
    async with echoing() as (worker, router):
        for text in ("one", "two", "three"):
            answered = await say(router, text, stream=stream)
            assert answered.status == 200
        assert sent(worker) == ["one", "to one", "two", "to two", "three"]
        if stream:
            assert answered.body == delta("to ") + delta("three") + delta(None, "stop") + DONE
            assert answered.headers["content-type"].startswith("text/event-stream")
        else:
            assert answered.json["choices"][0]["message"]["content"] == "to three"
        assert await contents(router) == ["one", "to one", "two", "to two", "three", "to three"]
        shown = (await get(router, path())).json
        assert (shown["id"], shown["object"], shown["turns"], shown["items"]) == ("user_99", "session", 3, 6)
        assert shown["is_busy"] is False


async def test_the_stateless_path_knows_nothing_of_sessions() -> None:
    async with echoing() as (worker, router):
        await say(router, "one")
        assert (await post(router, "/v1/chat/completions", says("two"), "X-Session-ID: user_99")).status == 200
        assert sent(worker) == ["two"]
        assert await contents(router) == ["one", "to one"]


async def test_usage_is_shown_to_those_who_asked_for_it() -> None:
    async with echoing() as (_, router):
        assert USAGE not in (await say(router, "one", stream=True)).body
        told = await say(router, "two", stream=True, stream_options={"include_usage": True})
        assert told.body.endswith(USAGE + DONE)


async def test_a_client_of_http_1_0_reads_to_the_connections_end() -> None:
    async with echoing() as (_, router):
        for stream in (True, False):
            async with connected(router) as client:
                await client.post(path(rest=CHAT), says("hi", stream=stream), version="1.0")
                told = await client.answer()
                assert told.status == 200
                assert "transfer-encoding" not in told.headers
                if stream:
                    assert told.body == delta("to ") + delta("hi") + delta(None, "stop") + DONE
                assert await client.is_closed()
        assert len(await contents(router)) == 4


async def test_requests_on_one_connection_follow_each_other() -> None:
    async with echoing() as (worker, router), connected(router) as client:
        for text in ("one", "two"):
            await client.post(path(rest=CHAT), says(text, stream=True))
            assert (await client.answer()).status == 200
        await client.send(b"GET /v1/sessions/user_99/items HTTP/1.1\r\nHost: r\r\n\r\n")
        assert len((await client.answer("GET")).json["data"]) == 4
        assert sent(worker) == ["one", "to one", "two"]


async def test_a_workers_refusal_is_passed_on_and_nothing_is_kept() -> None:
    async def refuse(asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b'{"error":{"message":"too long","code":400}}', 400))

    async with scripted(refuse) as worker, routed(worker.url) as router:
        refused = await say(router, "hi")
        assert (refused.status, refused.error["message"]) == (400, "too long")
        found = await items(router)
        assert [(text_of(item), item["status"]) for item in found["data"]] == [("hi", "incomplete")]
        assert (await get(router, path())).json["items"] == 0


@pytest.mark.parametrize("own", ["", "mine"])
async def test_no_cache_salt_reaches_the_client(tmp_path: Path, own: str) -> None:
    async def quote(asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b'{"error":{"message":"' + asked.body.replace(b'"', b"'") + b'"}}', 400))

    async with scripted(quote) as worker, routed(worker.url, **keyed(tmp_path / "keys", BOTH_MODELS)) as router:
        members = {"cache_salt": own} if own else {}
        refused = await say(router, "hi", bearer(ACME), **members)
        salt = json.loads(worker.asked[0].body)["cache_salt"]
        assert refused.status == 400
        assert len(salt) == 43
        assert salt.encode() not in refused.body
        worker.script = echo
        await say(router, "hi", bearer(ACME), **members)
        told = await get(router, path(rest="/turns/2/prompt"), bearer(ACME))
        assert told.json["messages"] == [{"role": "user", "content": "hi"}]
        assert "cache_salt" not in told.json


async def test_a_client_that_leaves_amid_its_stream_leaves_the_session_free() -> None:
    begun = asyncio.Event()

    async def begin_only(asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(delta("to ")))
        begun.set()
        await peer.gone()

    async with scripted(begin_only) as worker, routed(worker.url) as router:
        async with connected(router) as client:
            await client.post(path(rest=CHAT), says("lost", stream=True))
            assert (await client.head())[0] == 200
            assert b"to " in await client.chunk()
            client.leave(reset=True)
            await worker.ended.get()
        worker.script = echo
        await until(lambda: not router.data.live)
        assert (await say(router, "next", "x-warmroute-on-busy: reject")).status == 200
        assert sent(worker) == ["next"]


async def test_a_worker_that_dies_amid_a_stream_leaves_an_error_and_no_end() -> None:
    async def die(asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(delta("half ")))
        peer.drop()

    async with scripted(die) as worker, routed(worker.url, resumption__max_attempts=0) as router:
        async with connected(router) as client:
            await client.post(path(rest=CHAT), says("hi", stream=True))
            with pytest.raises(Broken) as broken:
                await client.answer()
        assert b"half " in broken.value.body
        assert b"worker_error" in broken.value.body
        assert b"[DONE]" not in broken.value.body
        worker.script = echo
        await until(lambda: not router.data.live)
        await say(router, "again")
        assert await contents(router) == ["hi", "again", "to again"]
        assert [item["status"] for item in (await items(router))["data"]] == ["incomplete", "completed", "completed"]


# Names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("user%5F99", "user_99"),
        ("a%2Fb%3Fc", "a/b?c"),
        ("%E7%9C%9F", "\u771f"),
        ("%2e%2e", ".."),
        ("a+b%20c", "a+b c"),
        ("x" * 256, "x" * 256),
        ("%E7%9C%9F" * 256, "\u771f" * 256),
        ("items", "items"),
    ],
)
async def test_any_printable_name_is_one(written: str, name: str) -> None:
    async with echoing() as (worker, router):
        assert (await say(router, "hi", name=written)).status == 200
        assert (await get(router, path(written))).json["id"] == name
        await say(router, "ho", name=written)
        assert sent(worker) == ["hi", "to hi", "ho"]
        if name == "user_99":
            assert await contents(router) == await contents(router, name=written)


@pytest.mark.parametrize("name", ["", "x" * 257, "%00", "a%0Ab", "%7F", "%E2%80%A8", "%FF", "%C3", "%ED%A0%80"])
async def test_what_cannot_be_printed_or_is_too_long_is_no_name(name: str) -> None:
    async with echoing() as (worker, router):
        refused = await say(router, "hi", name=name)
        assert refused.status == 400
        assert refused.error["code"] == "invalid_request_error"
        assert not worker.asked


@pytest.mark.parametrize(
    "wrong",
    [
        "/v1/sessions",
        "/v1/sessions/",
        "/v1/sessions/a/",
        "/v1/sessions/a/chat",
        "/v1/sessions/a/b/c/d/e",
        "/v2/sessions/a",
    ],
)
async def test_other_paths_are_absent(wrong: str) -> None:
    async with echoing() as (_, router):
        for method in ("GET", "DELETE"):
            assert (await get(router, wrong, method=method)).status == 404
        assert (await post(router, wrong, says("hi"))).status == 404


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", CHAT),
        ("DELETE", CHAT),
        ("PUT", ""),
        ("POST", ""),
        ("DELETE", "/items"),
        ("GET", "/fork"),
        ("DELETE", "/context"),
        ("POST", "/turns/1/prompt"),
    ],
)
async def test_a_path_takes_its_methods_only(method: str, rest: str) -> None:
    async with echoing() as (_, router):
        refused = await get(router, path(rest=rest), method=method)
        assert (refused.status, refused.error["code"]) == (405, "method_not_allowed")


# What is asked wrongly


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m"},
        {"model": "m", "messages": []},
        {"model": "m", "messages": "hi"},
        {"model": "m", "messages": [{"role": "user", "content": "\ud800"}]},
        {"model": "m", "messages": [{"role": "system", "content": "only"}]},
        {"model": "m", "messages": [{"role": ["system"], "content": "hi"}]},
        {"model": "m", "messages": [{"content": "hi"}]},
        *(
            {"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}, {"role": "user", "content": "hi"}]}
            for calls in (5, "f", {"id": "f"}, [5], [{"id": "a", "function": "f"}])
        ),
        {"messages": [{"role": "user", "content": "hi"}]},
        {**says("hi"), "n": 2},
        {**says("hi"), "stream": "yes"},
        {**says("hi"), "cache_salt": 7},
        {**says("hi"), "tools": {}},
        [1],
        b"{",
        b'{"model":"m","model":"m","messages":[]}',
    ],
)
async def test_what_is_wrong_with_a_request_is_the_clients_and_leaves_the_session_free(body: Any) -> None:
    async with echoing() as (worker, router):
        refused = await post(router, path(rest=CHAT), body)
        assert refused.status == 400
        assert not worker.asked
        assert (await say(router, "hi", "x-warmroute-on-busy: reject")).status == 200
        assert sent(worker) == ["hi"]


async def test_a_target_may_be_a_whole_url() -> None:
    async with echoing() as (_, router):
        answered = await post(router, f"http://router{path('a%2Fb', CHAT)}", says("hi"))
        assert answered.status == 200, answered.body
        assert await contents(router, name="a%2Fb") == ["hi", "to hi"]
        assert (await post(router, f"http://v1{path(rest='/none')}", says("hi"))).status == 404


async def test_headers_that_say_nothing_known_are_refused() -> None:
    async with echoing() as (_, router):
        for line in ("x-warmroute-on-busy: later", f"Idempotency-Key: {'k' * 256}", "Idempotency-Key: \xe4"):
            assert (await say(router, "hi", line)).status == 400


async def test_a_model_that_nobody_serves_is_absent_and_the_session_is_free() -> None:
    async with echoing() as (worker, router):
        missing = await say(router, "hi", model="other")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        assert (await say(router, "hi", "x-warmroute-on-busy: reject")).status == 200
        assert sent(worker) == ["hi"]


async def test_bodies_are_bounded() -> None:
    async with echoing(limits__max_body_bytes=4096) as (_, router):
        assert (await say(router, "x" * 5000)).status == 413
        assert (
            await post(router, path(rest="/items"), {"items": [{"role": "user", "content": "x" * 5000}]})
        ).status == 413


async def test_a_repeated_request_is_answered_again_over_http() -> None:
    async with echoing() as (worker, router):
        for stream in (True, False):
            first = await say(router, "hi", f"Idempotency-Key: k-{stream}", stream=stream)
            again = await say(router, "hi", f"Idempotency-Key: k-{stream}", stream=stream)
            assert first.status == again.status == 200
            if stream:
                assert b"to hi" in again.body
                assert again.body.endswith(DONE)
            else:
                assert again.json["choices"] == [{**first.json["choices"][0], "logprobs": None}]
        other = await say(router, "ho", "Idempotency-Key: k-True", stream=True)
        assert (other.status, other.error["param"]) == (400, "Idempotency-Key")
        assert len(worker.asked) == 2


# Items


async def test_items_are_paged_in_both_orders() -> None:
    async with echoing() as (_, router):
        for number in range(5):
            await say(router, f"{number}")
        wanted = [text for number in range(5) for text in (f"{number}", f"to {number}")]
        for order, expected in (("asc", wanted), ("desc", wanted[::-1])):
            seen: list[str] = []
            after = ""
            while True:
                page = await items(router, query=f"?order={order}&limit=3{after}")
                assert page["object"] == "list"
                assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
                seen += [text_of(item) for item in page["data"]]
                after = f"&after={page['last_id']}"
                if not page["has_more"]:
                    break
            assert seen == expected
        assert [text_of(item) for item in (await items(router, query=""))["data"]] == wanted[::-1]


@pytest.mark.parametrize("query", ["?limit=0", "?limit=101", "?limit=x", "?limit=-1", "?order=up", "?after=msg_none"])
async def test_pages_that_cannot_be_are_refused(query: str) -> None:
    async with echoing() as (_, router):
        await say(router, "hi")
        refused = await get(router, path(rest=f"/items{query}"))
        assert (refused.status, refused.error["param"]) == (400, query[1:].partition("=")[0])


async def test_an_agent_adds_items_without_a_model() -> None:
    async with echoing() as (worker, router):
        note = {"role": "assistant", "content": "noted"}
        added = await post(router, path(rest="/items"), {"items": [{"role": "user", "content": "look"}, note]})
        assert [text_of(item) for item in added.json["data"]] == ["look", "noted"]
        assert not worker.asked
        await say(router, "so?")
        assert sent(worker) == ["look", "noted", "so?"]
        wrong: list[Any] = [[], ["x"], {}, None, [{"role": "user", "content": "\ud800"}]]
        for items_ in wrong:
            assert (await post(router, path(rest="/items"), {"items": items_})).status == 400
        assert (await get(router, path(rest="/turns/1/prompt"))).status == 404


# Forks, prompts, ends


async def test_a_fork_goes_its_own_way() -> None:
    async with echoing() as (worker, router):
        await say(router, "one", messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "one"}])
        await say(router, "two")
        forked = await post(router, path(rest="/fork"), {"session_id": "a/b"})
        assert forked.json == {"id": "a/b", "object": "session"}
        await say(router, "aside", name="a%2Fb")
        assert sent(worker) == ["s", "one", "to one", "two", "to two", "aside"]
        assert await contents(router) == ["one", "to one", "two", "to two"]
        again = await post(router, path(rest="/fork"), {"session_id": "a/b"})
        assert (again.status, again.error["code"]) == (409, "session_busy")


async def test_a_fork_after_an_item_ends_with_it() -> None:
    async with echoing() as (worker, router):
        await say(router, "one")
        await say(router, "two")
        second = (await items(router))["data"][1]["id"]
        assert (await post(router, path(rest="/fork"), {"session_id": "early", "after": second})).status == 200
        await say(router, "other", name="early")
        assert sent(worker) == ["one", "to one", "other"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"session_id": ""},
        {"session_id": 7},
        {"session_id": "x" * 257},
        {"session_id": "\n"},
        {"session_id": "b", "after": "none"},
        {"session_id": "b", "after": 7},
    ],
)
async def test_a_fork_that_cannot_be_is_refused(body: Any) -> None:
    async with echoing() as (_, router):
        await say(router, "one")
        assert (await post(router, path(rest="/fork"), body)).status == 400
        assert (await get(router, path("b"))).status == 404


async def context_of(router: Running) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await get(router, path(rest="/context"))).body)
    return found


async def test_what_is_wished_of_a_sessions_context_holds_from_its_next_turn_on() -> None:
    long = "x" * 4000
    async with echoing(context__strategy="none") as (worker, router):
        for number in range(3):
            await say(router, f"{number} {long}")
        assert (await context_of(router))["strategy"] is None
        wished = {"strategy": "window", "max_tokens": 5000, "high_tokens": 4900, "low_tokens": 2500}
        answered = await post(router, path(rest="/context"), wished)
        shown = json.loads(answered.body)
        assert {name: shown[name] for name in wished} == wished
        assert (shown["items_left_out"], shown["items_sent"]) == (0, 6)
        await say(router, "next")
        assert sent(worker)[0].startswith("[4 earlier messages are left out")
        shown = await context_of(router)
        assert (shown["items_left_out"], shown["items_sent"]) == (4, 4)
        assert shown["tokens_left_out"] > 3000 > shown["tokens_sent"]
        assert (await post(router, path(rest="/context"), {"strategy": None})).status == 200
        assert (await context_of(router))["max_tokens"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"strategy": "oldest-first"},
        {"strategy": 7},
        {"high_tokens": -1},
        {"high_tokens": 1.5},
        {"max_tokens": 10**10},
        {"tokens": 5},
        {"high_tokens": 100, "low_tokens": 100},
        [],
        b"{",
    ],
)
async def test_wishes_that_cannot_be_are_refused_and_change_nothing(body: Any) -> None:
    async with echoing() as (_, router):
        await say(router, "one")
        refused = await post(router, path(rest="/context"), body)
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert (await context_of(router))["high_tokens"] is None


async def test_a_busy_sessions_turn_goes_on_in_a_copy_that_is_named() -> None:
    go_on = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await go_on.wait()
        await echo(asked, peer)

    async with echoing() as (worker, router):
        await say(router, "one", name="%E7%9C%9F")
        worker.script = wait
        slow = asyncio.create_task(say(router, "slow", name="%E7%9C%9F"))
        await until(lambda: len(worker.asked) == 2)
        worker.script = echo
        refused = await say(router, "aside", "x-warmroute-on-busy: reject", name="%E7%9C%9F")
        assert (refused.status, refused.error["code"]) == (409, "session_busy")
        assert refused.headers["retry-after"] == "1"
        told = await say(router, "aside", "x-warmroute-on-busy: fork", name="%E7%9C%9F")
        copy = told.headers["x-warmroute-session"]
        assert copy.startswith("%E7%9C%9F~")
        assert await contents(router, name=copy) == ["one", "to one", "aside", "to aside"]
        assert (await get(router, path("%E7%9C%9F"))).json["is_busy"] is True
        go_on.set()
        assert (await slow).status == 200


async def test_the_retry_of_a_turn_that_went_on_in_a_copy_is_answered_from_there() -> None:
    go_on = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await go_on.wait()
        await echo(asked, peer)

    forks = ("x-warmroute-on-busy: fork", "Idempotency-Key: k1")
    async with echoing() as (worker, router):
        await say(router, "one")
        worker.script = wait
        slow = asyncio.create_task(say(router, "slow"))
        await until(lambda: len(worker.asked) == 2)
        worker.script = echo
        first = await say(router, "aside", *forks)
        amid = await say(router, "aside", *forks)
        go_on.set()
        assert (await slow).status == 200
        free = await say(router, "aside", *forks)
        copy = first.headers["x-warmroute-session"]
        assert [told.headers["x-warmroute-session"] for told in (amid, free)] == [copy, copy]
        answers = [told.json["choices"][0]["message"] for told in (first, amid, free)]
        assert answers == [answers[0]] * 3
        assert await contents(router, name=copy) == ["one", "to one", "aside", "to aside"]
        assert await contents(router) == ["one", "to one", "slow", "to slow"]
        assert (await say(router, "another", *forks)).status == 400


async def test_a_session_that_is_full_says_so_and_keeps_what_it_has() -> None:
    async with echoing(**{"sessions.max_entries": 10}) as (worker, router):
        for number in range(5):
            assert (await say(router, f"{number}")).status == 200
        refused = await say(router, "too much")
        assert (refused.status, refused.error["code"]) == (400, "session_full")
        assert "10 entries" in refused.error["message"]
        assert len(worker.asked) == 5
        assert len(await contents(router)) == 10
        body = json.dumps({"items": [{"role": "user", "content": "x"}]}).encode()
        assert (await post(router, path(rest="/items"), body)).status == 400


async def test_a_turns_prompt_is_what_its_worker_read() -> None:
    async with echoing() as (worker, router):
        for text in ("one", "two"):
            await say(router, text, temperature=0.5)
        for number in (1, 2):
            told = await get(router, path(rest=f"/turns/{number}/prompt"))
            assert told.body == worker.asked[number - 1].body
        for absent in ("0", "3", "x", "-1", "1" * 30, "%C2%B2"):
            assert (await get(router, path(rest=f"/turns/{absent}/prompt"))).status == 404


async def test_a_deleted_session_is_gone_and_its_name_is_free() -> None:
    async with echoing() as (worker, router):
        await say(router, "one")
        assert (await remove(router, "user_99")).json == {"id": "user_99", "object": "session.deleted", "deleted": True}
        assert (await remove(router, "user_99")).status == 404
        assert (await get(router, path())).status == 404
        await say(router, "anew")
        assert sent(worker) == ["anew"]


# Tenants


async def test_another_tenants_session_is_as_absent_as_one_that_never_was(tmp_path: Path) -> None:
    async with echoing(**keyed(tmp_path / "keys", BOTH_MODELS)) as (worker, router):
        await say(router, "a secret", bearer(ACME), name="known")
        item = (await items(router, bearer(ACME), name="known"))["data"][0]["id"]
        fork = {"session_id": "stolen", "after": item}

        async def probe(name: str, *lines: str) -> list[tuple[Any, ...]]:
            rests = ("", "/items", "/turns/1/prompt", "/context")
            found = [await get(router, path(name, rest), *lines) for rest in rests]
            found.append(await post(router, path(name, "/fork"), fork, *lines))
            found.append(await post(router, path(name, "/context"), {}, *lines))
            found.append(await remove(router, name, *lines))
            return [(each.status, each.body, sorted(each.headers.keys() - {"date"})) for each in found]

        foreign, absent = await probe("known", bearer(BETA)), await probe("unknown", bearer(BETA))
        assert foreign == absent
        assert {status for status, _, _ in foreign} == {404}
        assert {status for status, _, _ in await probe("known")} == {401}
        assert (await say(router, "mine", bearer(BETA), name="known")).status == 200
        assert sent(worker) == ["mine"]
        assert await contents(router, bearer(ACME), name="known") == ["a secret", "to a secret"]


async def test_models_that_a_key_may_not_use_are_absent(tmp_path: Path) -> None:
    text = BOTH_MODELS.replace("[tenants.beta]\n", "[tenants.beta]\nmodels = ['n']\n")
    async with echoing(**keyed(tmp_path / "keys", text)) as (worker, router):
        assert (await say(router, "hi", bearer(BETA))).status == 404
        assert not worker.asked
        assert (await get(router, path(), bearer(BETA))).status == 404


# Around it


async def test_browsers_of_listed_origins_may_delete() -> None:
    async with echoing(server__cors_origins=["https://a.example"]) as (_, router):
        lines = ("Origin: https://a.example", "Access-Control-Request-Method: DELETE")
        told = await get(router, path(), *lines, method="OPTIONS")
        assert "DELETE" in told.headers["access-control-allow-methods"]
        shown = await say(router, "hi", lines[0])
        assert shown.headers["access-control-allow-origin"] == "https://a.example"
        assert (await get(router, path(), lines[0])).headers["access-control-allow-origin"] == "https://a.example"


async def test_a_router_that_drains_takes_no_turns_and_cuts_what_is_left() -> None:
    begun = asyncio.Event()

    async def begin_only(asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, frame(delta("to ")))
        begun.set()
        await peer.gone()

    async with scripted(begin_only) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(path(rest=CHAT), says("hi", stream=True))
        await begun.wait()
        assert (await client.head())[0] == 200
        assert b"to " in await client.chunk()
        router.data.phase = type(router.data.phase).DRAINING
        for refused in (await say(router, "no"), await get(router, path())):
            assert (refused.status, refused.error["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
        router.data.cut_short()
        told = await client.reader.read()
        assert b"draining" in told
        assert b"[DONE]" not in told


async def test_nothing_follows_a_whole_answer_that_its_client_has_yet_to_read() -> None:
    text = "x" * (8 << 20)

    async def say_much(asked: Asked, peer: Peer) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        await peer.send(answer(json.dumps({"choices": [choice]}).encode()))

    async with (
        scripted(say_much) as worker,
        routed(worker.url) as router,
        connected(router, receive_bytes=4096) as client,
    ):
        await client.post(path(rest=CHAT), says("hi"))
        assert (await client.head())[0] == 200
        assert (router.data.live, len(router.data._clients)) == (1, 0)
        router.data.cut_short()
        told = b""
        while len(told) < len(text) or not told.endswith(b"}"):
            told += await client.reader.read(1 << 16)
        assert json.loads(told)["choices"][0]["message"]["content"] == text


async def test_what_sessions_did_is_in_the_metrics() -> None:
    async with echoing() as (_, router):
        await say(router, "hi", "Idempotency-Key: k")
        await say(router, "hi", "Idempotency-Key: k")
        await say(router, "ho", messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "ho"}])
        assert await metric(router, "warmroute_turns_total", outcome="ok") == 2
        assert await metric(router, "warmroute_turns_total", outcome="repeated") == 1
        assert await metric(router, "warmroute_turn_overhead_seconds_count") == 2
        assert await metric(router, "warmroute_cached_sessions") == 1
        assert (
            0
            < await metric(router, "warmroute_session_cache_bytes")
            < await metric(router, "warmroute_max_session_cache_bytes")
        )
        assert await metric(router, "warmroute_spared_bytes_total") > 0
        assert await metric(router, "warmroute_live_turns") == 0
        for name in ("turn_conflicts", "prefix_breaks", "turn_prefixes", "fence_rejections", "resent_messages"):
            assert await metric(router, f"warmroute_{name}_total") == 0, name


async def test_a_request_is_counted_once() -> None:
    async def fail(asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b"{}", 500))

    async with scripted(fail) as worker, routed(worker.url) as router:
        assert (await say(router, "hi")).status == 502
        assert await metric(router, "warmroute_requests_total") == 1


# The vendor's client, and simulated workers


@asynccontextmanager
async def simulated(**settings: Any) -> AsyncIterator[tuple[SimulatedFleet, Running]]:
    async with await start_fleet(SIM) as fleet, routed(*fleet.urls, **settings) as router:
        yield fleet, router


async def test_the_openai_client_becomes_stateful_by_its_base_url() -> None:
    async with simulated() as (_, router):
        base = router.url + path()
        async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as client:
            whole = await client.chat.completions.create(
                model="sim", messages=[{"role": "user", "content": "one"}], max_tokens=8
            )
            stream = await client.chat.completions.create(
                model="sim", messages=[{"role": "user", "content": "two"}], max_tokens=8, stream=True
            )
            chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert await contents(router) == ["one", whole.choices[0].message.content, "two", text]


async def test_a_stream_that_another_worker_went_on_with_is_kept_whole() -> None:
    async with simulated() as (fleet, router):
        await until(lambda: len(router.fleet.catalog.eligible("sim").positions) == 2)
        body = {"model": "sim", "max_tokens": 40, "temperature": 0, "stream": True, "messages": says("hi")["messages"]}
        whole = await listen(router, path("whole", CHAT), body)
        for member in router.fleet.members():
            fleet.set_fault(number_of(router, fleet, member.name), Fault.CUT, after_events=7)
        cut = await listen(router, path("cut", CHAT), body)
        assert cut == whole
        assert await metric(router, "warmroute_resumptions_total", outcome="exact") >= 1
        for name in ("whole", "cut"):
            assert await contents(router, name=name) == ["hi", whole.text]
