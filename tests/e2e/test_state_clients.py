"""Responses and conversations, judged by OpenAI's own clients: what they parse, when their streams end, what they raise."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from router.app.serve import Running
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.routed import connected, get, post, routed, until
from tests.e2e.test_clients import node_packages, openai_client
from tests.server.keys import ACME, BETA, bearer, entry, keyed
from tests.sessions.openai.official import check_item, check_response
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, ScriptedWorker, answer, scripted

TENANTS = "[tenants.acme]\n[tenants.beta]\n" + entry("a", "acme", ACME) + entry("b", "beta", BETA)
TOOL: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": False}
SCHEMA: Any = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
CALL_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


def deltas_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Looks up what asks for it, where there are tools; else says "to " and the newest message."""
    newest = body["messages"][-1]
    if body.get("tools") and newest["role"] == "user":
        calls = [
            {"index": 0, "id": f"call_{len(body['messages'])}", "function": {"name": "look_up", "arguments": '{"of":'}},
            {"index": 0, "function": {"arguments": '"it"}'}},
        ]
        return [{"tool_calls": [{"type": "function", **call}]} for call in calls]
    return [{"content": "to "}, {"content": str(newest["content"])}]


def message_of(body: dict[str, Any]) -> dict[str, Any]:
    deltas = deltas_of(body)
    if "content" in deltas[0]:
        return {"role": "assistant", "content": "".join(delta["content"] for delta in deltas)}
    calls = [delta["tool_calls"][0] for delta in deltas]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    call = {"id": calls[0]["id"], "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def chunk(choices: list[Any], **more: Any) -> bytes:
    members = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return frame(b"data: %b\n\n" % json.dumps(members).encode())


async def speak(asked: Asked, peer: Peer) -> None:
    body = json.loads(asked.body)
    if body.get("stream"):
        deltas = [chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas_of(body)]
        end = [chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]), chunk([], usage=USAGE)]
        await peer.send(STREAM_HEAD, *deltas, *end, frame(b"data: [DONE]\n\n"), LAST_CHUNK)
    else:
        choice = {"index": 0, "message": message_of(body), "finish_reason": "stop"}
        whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        await peer.send(answer(json.dumps({**whole, "usage": USAGE}).encode()))


@asynccontextmanager
async def speaking(**settings: Any) -> AsyncIterator[tuple[ScriptedWorker, Running, openai.AsyncOpenAI]]:
    async with (
        scripted(speak) as worker,
        routed(worker.url, **settings) as router,
        openai_client(router) as client,
    ):
        yield worker, router, client


def sent(worker: ScriptedWorker, at: int = -1) -> list[Any]:
    """What the worker read: each message's content."""
    return [message.get("content") for message in json.loads(worker.asked[at].body)["messages"]]


def has_been_asked(worker: ScriptedWorker, times: int) -> bool:
    return len(worker.asked) >= times


def held(worker: ScriptedWorker) -> asyncio.Event:
    """From now on the worker says nothing until this is set."""
    go_on = asyncio.Event()

    async def wait(asked: Asked, peer: Peer) -> None:
        await go_on.wait()
        await speak(asked, peer)

    worker.script = wait
    return go_on


def ids(items: Any) -> list[str]:
    return [item.id for item in items]


def first_texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


async def texts(client: openai.AsyncOpenAI, conversation: str) -> list[str]:
    found: list[str] = []
    async for item in client.conversations.items.list(conversation, order="asc"):
        found += [part.text for part in getattr(item, "content", ())]
    return found


# Responses


async def test_a_response_is_the_same_object_when_it_is_made_and_when_it_is_read() -> None:
    async with speaking() as (worker, router, client):
        made = await client.responses.create(model="m", input="hello", instructions="be brief", metadata={"a": "b"})
        assert (made.status, made.output_text, made.instructions) == ("completed", "to hello", "be brief")
        assert made.usage is not None
        assert made.usage.total_tokens == 12
        assert await client.responses.retrieve(made.id) == made
        check_response((await get(router, f"/v1/responses/{made.id}")).json)
        assert sent(worker) == ["be brief", "hello"]


@pytest.mark.parametrize(("tools", "order"), [([], TEXT_EVENTS), ([TOOL], CALL_EVENTS)])
async def test_a_stream_has_the_official_events_in_order_and_ends(tools: list[Any], order: list[str]) -> None:
    async with speaking() as (_, _, client), client.responses.stream(model="m", input="hello", tools=tools) as stream:
        events = [event async for event in stream]
        assert [event.type for event in events] == order
        assert [event.sequence_number for event in events] == list(range(len(events)))
        final = await stream.get_final_response()
        kept = await client.responses.retrieve(final.id)
        assert (kept.status, kept.output_text, kept.usage) == ("completed", final.output_text, final.usage)
        assert ids(kept.output) == ids(final.output)


async def test_the_next_response_sees_the_history_and_not_the_instructions() -> None:
    async with speaking() as (worker, _, client):
        first = await client.responses.create(model="m", input="one", instructions="only now")
        second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert second.instructions is None
        assert sent(worker) == ["one", "to one", "two"]


async def test_branches_of_one_response_know_nothing_of_each_other() -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        left = await client.responses.create(model="m", input="left", previous_response_id=root.id)
        await client.responses.create(model="m", input="right", previous_response_id=root.id)
        assert sent(worker) == ["root", "to root", "right"]
        await client.responses.create(model="m", input="deeper", previous_response_id=left.id)
        assert sent(worker) == ["root", "to root", "left", "to left", "deeper"]
        await client.responses.create(model="m", input="third", previous_response_id=root.id)
        assert sent(worker) == ["root", "to root", "third"]


async def test_branches_that_begin_at_once_are_answered_at_once() -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        go_on = held(worker)
        names = [f"branch {number}" for number in range(5)]
        asked = [
            asyncio.create_task(client.responses.create(model="m", input=name, previous_response_id=root.id))
            for name in names
        ]
        await until(lambda: len(worker.asked) == 6)
        assert sorted(sent(worker, at) for at in range(1, 6)) == [["root", "to root", name] for name in names]
        go_on.set()
        branches = await asyncio.gather(*asked)
        assert [each.output_text for each in branches] == [f"to {name}" for name in names]
        worker.script = speak
        for each, name in zip(branches, names, strict=True):
            await client.responses.create(model="m", input="next", previous_response_id=each.id)
            assert sent(worker) == ["root", "to root", name, f"to {name}", "next"]


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_kept_of_a_response_that_is_not_to_be_stored(stream: bool) -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        for before, history in ((None, []), (root.id, ["root", "to root"])):
            options: Any = {"previous_response_id": before} if before else {}
            if stream:
                events = [
                    event
                    async for event in await client.responses.create(
                        model="m", input="aside", store=False, stream=True, **options
                    )
                ]
                assert [event.type for event in events] == TEXT_EVENTS
                assert events[-1].type == "response.completed"
                aside = events[-1].response
            else:
                aside = await client.responses.create(model="m", input="aside", store=False, **options)
            assert (aside.output_text, aside.status) == ("to aside", "completed")
            assert sent(worker) == [*history, "aside"]
            for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
                with pytest.raises(openai.NotFoundError):
                    await call(aside.id)
            with pytest.raises(openai.BadRequestError) as missing:
                await client.responses.create(model="m", input="on", previous_response_id=aside.id)
            assert missing.value.code == "previous_response_not_found"
        await client.responses.create(model="m", input="next", previous_response_id=root.id)
        assert sent(worker) == ["root", "to root", "next"]


async def test_an_older_response_is_followed_without_being_stored_as_it_was_then() -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        await client.responses.create(model="m", input="later", previous_response_id=root.id)
        await client.responses.create(model="m", input="aside", previous_response_id=root.id, store=False)
        assert sent(worker) == ["root", "to root", "aside"]


async def test_a_response_that_is_not_stored_fails_as_others_do() -> None:
    async def die(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, chunk([{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]))
        peer.drop()

    async with speaking(resumption__max_attempts=0) as (worker, _, client):
        worker.script = die
        stream = await client.responses.create(model="m", input="hi", stream=True, store=False)
        assert [event.type async for event in stream][-1] == "response.failed"
        worker.script = speak
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="m", input=[], store=False)


async def test_a_response_under_way_is_in_progress_and_one_whose_worker_died_has_failed() -> None:
    go_on = asyncio.Event()

    async def half(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, chunk([{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]))
        await go_on.wait()
        peer.drop()

    async with speaking(resumption__max_attempts=0) as (worker, _, client):
        worker.script = half
        stream = await client.responses.create(model="m", input="hi", stream=True)
        created = await anext(stream)
        assert created.type == "response.created"
        name = created.response.id
        assert (await client.responses.retrieve(name)).status == "in_progress"
        with pytest.raises(openai.BadRequestError) as early:
            await client.responses.create(model="m", input="on", previous_response_id=name)
        assert early.value.param == "previous_response_id"
        go_on.set()
        last = [event async for event in stream][-1]
        assert last.type == "response.failed"
        failed = await client.responses.retrieve(name)
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == "server_error"
        assert [item.type async for item in client.responses.input_items.list(name)] == ["message"]
        worker.script = speak
        for store in (True, False):
            with pytest.raises(openai.BadRequestError) as late:
                await client.responses.create(model="m", input="on", previous_response_id=name, store=store)
            assert late.value.param == "previous_response_id"


async def test_a_deleted_response_is_gone_and_what_followed_it_stays() -> None:
    async with speaking() as (worker, _, client):
        first = await client.responses.create(model="m", input="one")
        second = await client.responses.create(model="m", input="two", previous_response_id=first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(first.id)
        await client.responses.create(model="m", input="three", previous_response_id=second.id)
        assert sent(worker) == ["one", "to one", "two", "to two", "three"]


async def test_with_the_last_response_of_a_chain_all_that_was_said_in_it_is_deleted(tmp_path: Path) -> None:
    async with speaking(**{"sessions.store": f"sqlite://{tmp_path}/state/sessions.db"}) as (_, _, client):
        first = await client.responses.create(model="m", input="a secret word", instructions="another secret word")
        second = await client.responses.create(model="m", input="and", previous_response_id=first.id)
        branch = await client.responses.create(model="m", input="or", previous_response_id=first.id)
        other = await client.responses.create(model="m", input="something else")
        for made in (second, first):
            await client.responses.delete(made.id)
        assert await said_on_disk(tmp_path, b"secret word")
        assert (await client.responses.retrieve(branch.id)).id == branch.id
        await client.responses.delete(branch.id)
        while await said_on_disk(tmp_path, b"secret word"):  # until it is overwritten
            await asyncio.sleep(0.05)
        assert (await client.responses.retrieve(other.id)).id == other.id


async def said_on_disk(directory: Path, words: bytes) -> bool:
    def search() -> bool:
        return any(words in path.read_bytes() for path in directory.rglob("*") if path.is_file())

    return await asyncio.to_thread(search)


async def test_only_what_runs_in_the_background_could_be_cancelled() -> None:
    async with speaking() as (_, _, client):
        made = await client.responses.create(model="m", input="one")
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await client.responses.cancel(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.cancel("resp_none")


async def test_input_items_are_those_of_the_request_in_pages() -> None:
    async with speaking() as (_, router, client):
        first = await client.responses.create(model="m", input="before")
        given: Any = [{"role": "user", "content": text} for text in "abcde"]
        made = await client.responses.create(model="m", input=given, previous_response_id=first.id)
        items = client.responses.input_items
        forward = first_texts([item async for item in items.list(made.id, order="asc", limit=2)])
        backward = first_texts([item async for item in items.list(made.id, limit=3)])
        assert (forward, backward) == (list("abcde"), list("edcba"))
        page = await items.list(made.id, order="asc", limit=2)
        assert page.has_more
        rest = await items.list(made.id, order="asc", after=page.data[-1].id)
        assert first_texts(rest.data) == ["c", "d", "e"]
        for item in (await get(router, f"/v1/responses/{made.id}/input_items")).json["data"]:
            check_item(item)
        with pytest.raises(openai.BadRequestError):
            await items.list(made.id, limit=101)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_function_is_called_and_its_output_follows(is_kept: bool) -> None:
    """By the client's own history, or by the router's."""
    async with speaking() as (worker, _, client):
        asked: Any = [{"role": "user", "content": "look it up"}]
        first = await client.responses.create(model="m", input=asked, tools=[TOOL], store=is_kept)
        call = first.output[0]
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("look_up", '{"of":"it"}')
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
        if is_kept:
            second = await client.responses.create(
                model="m", input=[output], tools=[TOOL], previous_response_id=first.id
            )
        else:
            second = await client.responses.create(model="m", input=[*asked, call, output], tools=[TOOL], store=False)  # type: ignore[list-item]
        assert second.output_text == "to found"
        messages = json.loads(worker.asked[-1].body)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
        assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == call.call_id


async def test_a_format_reaches_the_worker_as_it_knows_it() -> None:
    async with speaking() as (worker, _, client):
        made = await client.responses.create(model="m", input="one", text={"format": SCHEMA}, max_output_tokens=7)
        body = json.loads(worker.asked[-1].body)
        assert body["response_format"]["json_schema"] == {
            "name": "answer",
            "schema": {"type": "object"},
            "strict": True,
        }
        assert body["max_completion_tokens"] == 7
        assert made.text is not None
        assert made.text.format is not None
        assert made.text.format.type == "json_schema"


async def test_a_retry_with_an_idempotency_key_is_the_same_response() -> None:
    async with speaking() as (worker, _, client):
        headers = {"Idempotency-Key": "once"}
        first = await client.responses.create(model="m", input="one", extra_headers=headers)
        again = await client.responses.create(model="m", input="one", extra_headers=headers)
        assert again == first
        follows: Any = {"previous_response_id": first.id, "extra_headers": {"Idempotency-Key": "twice"}}
        await client.responses.create(model="m", input="other branch", previous_response_id=first.id)
        second = await client.responses.create(model="m", input="two", **follows)
        assert await client.responses.create(model="m", input="two", **follows) == second
        assert len(worker.asked) == 3
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="m", input="another", extra_headers=headers)


async def test_a_key_that_failed_in_one_place_brings_nothing_of_it_to_another() -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        await client.responses.create(model="m", input="goes on", previous_response_id=root.id)

        async def refuse(_: Asked, peer: Peer) -> None:
            await peer.send(answer(b'{"error":{"message":"no"}}', status=400))

        headers = {"Idempotency-Key": "once"}
        speaks, worker.script = worker.script, refuse
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(
                model="m", input="branch", previous_response_id=root.id, extra_headers=headers
            )
        worker.script = speaks
        await client.responses.create(model="m", input="alone", extra_headers=headers)
        assert sent(worker) == ["alone"]


async def test_a_retry_while_the_first_is_under_way_waits_for_it() -> None:
    async with speaking() as (worker, _, client):
        root = await client.responses.create(model="m", input="root")
        go_on = held(worker)
        for before in (None, root.id):
            asked = len(worker.asked)
            options: Any = {"extra_headers": {"Idempotency-Key": "once"}}
            options |= {"previous_response_id": before} if before else {}
            go_on.clear()
            both = [asyncio.create_task(client.responses.create(model="m", input="one", **options)) for _ in "ab"]
            await until(partial(has_been_asked, worker, asked + 1))
            go_on.set()
            first, second = await asyncio.gather(*both)
            assert first == second
            assert len(worker.asked) == asked + 1


# Errors


async def test_the_client_raises_its_own_errors() -> None:
    async with speaking() as (_, _, client):
        create = client.responses.create
        with pytest.raises(openai.BadRequestError) as missing:
            await create(model="m", input="x", previous_response_id="resp_none")
        assert (missing.value.code, missing.value.param) == ("previous_response_not_found", "previous_response_id")
        with pytest.raises(openai.BadRequestError) as background:
            await create(model="m", input="x", background=True)
        assert background.value.param == "background"
        with pytest.raises(openai.NotFoundError, match="conversation 'conv_none'") as absent:
            await create(model="m", input="x", conversation="conv_none")
        assert absent.value.param == "conversation"
        with pytest.raises(openai.NotFoundError) as model:
            await create(model="other", input="x")
        assert model.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_none")
        with pytest.raises(openai.BadRequestError) as both:
            await create(model="m", input="x", conversation="conv_none", previous_response_id="resp_none")
        assert both.value.param == "previous_response_id"


@pytest.mark.parametrize("rest", ["", "/items", "/items/msg_none"])
async def test_what_is_said_of_a_missing_conversation_names_it(rest: str) -> None:
    async with speaking() as (_, router, _):
        for method in ("GET", "DELETE") if rest != "/items" else ("GET",):
            found = await get(router, f"/v1/conversations/conv_none{rest}", method=method)
            assert (found.status, found.error["message"]) == (404, "there is no conversation 'conv_none'")
    async with speaking() as (_, router, _):
        added = await post(router, "/v1/conversations/conv_none/items", {"items": [{"role": "user", "content": "a"}]})
        assert (added.status, added.error["message"]) == (404, "there is no conversation 'conv_none'")


async def test_text_that_is_none_is_the_clients_fault() -> None:
    lone = b'{"model":"m","input":"\\ud800"}'
    async with speaking() as (_, router, _):
        for path, body in (
            ("/v1/responses", lone),
            ("/v1/conversations", b'{"items":[{"role":"user","content":"\\ud800"}]}'),
            ("/v1/conversations", b'{"metadata":{"a":"\\ud800"}}'),
            ("/v1/responses", b'{"model":"m","input":"a","metadata":{"a":"\\ud800"}}'),
            ("/v1/responses", b'{"model":"m","input":"a","instructions":"\\ud800"}'),
            ("/v1/responses", b'{"model":"m","input":"a","store":false,"user":"\\ud800"}'),
        ):
            assert (await post(router, path, body)).status == 400, body


# Conversations


async def test_a_conversation_is_made_read_changed_and_deleted() -> None:
    async with speaking() as (_, _, client):
        made = await client.conversations.create(
            items=[{"type": "message", "role": "user", "content": "remember 7"}], metadata={"a": "b"}
        )
        assert await client.conversations.retrieve(made.id) == made
        changed = await client.conversations.update(made.id, metadata={"x": "y"})
        assert (changed.id, changed.metadata, changed.created_at) == (made.id, {"x": "y"}, made.created_at)
        deleted = await client.conversations.delete(made.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="m", input="on", conversation=made.id)


@pytest.mark.parametrize("store", [True, False])
async def test_a_response_goes_on_in_its_conversation(store: bool) -> None:
    async with speaking() as (worker, _, client):
        talk = await client.conversations.create(items=[{"type": "message", "role": "user", "content": "seven"}])
        made = await client.responses.create(model="m", input="what?", conversation=talk.id, store=store)
        assert made.conversation is not None
        assert made.conversation.id == talk.id
        assert sent(worker) == ["seven", "what?"]
        assert await texts(client, talk.id) == ["seven", "what?", "to what?"]
        if not store:
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_without_input_answers_what_its_conversation_has(stream: bool) -> None:
    async with speaking() as (worker, _, client):
        talk = await client.conversations.create(items=[{"role": "user", "content": "asked before"}])
        if stream:
            events = await client.responses.create(model="m", conversation=talk.id, stream=True)
            (made,) = [event.response async for event in events if event.type == "response.completed"]
        else:
            made = await client.responses.create(model="m", conversation=talk.id)
        assert made.output_text == "to asked before"
        assert sent(worker) == ["asked before"]
        assert await texts(client, talk.id) == ["asked before", "to asked before"]
        assert (await client.responses.input_items.list(made.id)).data == []
        await client.responses.create(model="m", previous_response_id=made.id)
        assert sent(worker) == ["asked before", "to asked before"]
        empty = await client.conversations.create()
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="m", conversation=empty.id)


@pytest.mark.parametrize("store", [True, False])
async def test_what_follows_a_conversations_response_outside_of_it_leaves_it_as_it_is(store: bool) -> None:
    async with speaking() as (worker, _, client):
        talk = await client.conversations.create()
        made = await client.responses.create(model="m", input="one", conversation=talk.id)
        aside = await client.responses.create(model="m", input="aside", previous_response_id=made.id, store=store)
        assert sent(worker) == ["one", "to one", "aside"]
        assert aside.conversation is None
        assert await texts(client, talk.id) == ["one", "to one"]
        if store:
            await client.responses.create(model="m", input="on", previous_response_id=aside.id)
            assert sent(worker) == ["one", "to one", "aside", "to aside", "on"]
        await client.conversations.delete(talk.id)
        with pytest.raises(openai.BadRequestError) as gone:
            await client.responses.create(model="m", input="more", previous_response_id=made.id, store=store)
        assert gone.value.code == "previous_response_not_found"
        for call in (client.responses.retrieve, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError, match=made.id):
                await call(made.id)


async def test_a_conversation_that_is_busy_is_locked_for_those_who_do_not_wait() -> None:
    async with speaking() as (worker, _, client):
        talk = await client.conversations.create()
        go_on = held(worker)
        slow = asyncio.create_task(client.responses.create(model="m", input="slow", conversation=talk.id))
        await until(lambda: worker.asked)
        reject = {"x-warmroute-on-busy": "reject"}
        with pytest.raises(openai.BadRequestError) as locked:
            await client.responses.create(model="m", input="x", conversation=talk.id, extra_headers=reject)
        assert (locked.value.code, locked.value.type) == ("conversation_locked", "invalid_request_error")
        waits = asyncio.create_task(client.responses.create(model="m", input="next", conversation=talk.id))
        go_on.set()
        await asyncio.gather(slow, waits)
        assert sent(worker) == ["slow", "to slow", "next"]


async def test_items_are_added_listed_read_and_deleted() -> None:
    async with speaking() as (_, _, client):
        talk = await client.conversations.create()
        items = client.conversations.items
        added = await items.create(
            talk.id, items=[{"type": "message", "role": "user", "content": text} for text in "abc"]
        )
        assert [item.id for item in added.data] == [item.id async for item in items.list(talk.id, order="asc", limit=2)]
        assert [item.id async for item in items.list(talk.id)] == [item.id for item in reversed(added.data)]
        second = added.data[1]
        assert second.id
        assert await items.retrieve(second.id, conversation_id=talk.id) == second
        assert (await items.delete(second.id, conversation_id=talk.id)).id == talk.id
        assert await texts(client, talk.id) == ["a", "c"]
        with pytest.raises(openai.NotFoundError):
            await items.retrieve(second.id, conversation_id=talk.id)
        with pytest.raises(openai.NotFoundError):
            await items.delete(second.id, conversation_id=talk.id)
        empty = await client.conversations.create()
        page = await items.list(empty.id)
        assert (page.data, page.has_more) == ([], False)
        assert isinstance(page.last_id, str)


async def test_a_key_that_deleted_one_item_deletes_no_other_and_says_so() -> None:
    async with speaking() as (_, _, client):
        items = client.conversations.items
        talk = await client.conversations.create(items=[{"role": "user", "content": text} for text in "ab"])
        first, second = [item async for item in items.list(talk.id, order="asc")]
        headers = {"Idempotency-Key": "once"}
        assert first.id
        assert second.id
        await items.delete(first.id, conversation_id=talk.id, extra_headers=headers)
        with pytest.raises(openai.BadRequestError):
            await items.delete(second.id, conversation_id=talk.id, extra_headers=headers)
        assert await texts(client, talk.id) == ["b"]


async def test_deleting_a_text_leaves_the_calls_that_were_made_with_it() -> None:
    async with speaking() as (worker, _, client):
        items = client.conversations.items
        call: Any = {"type": "function_call", "name": "f", "arguments": "{}"}
        given: Any = [
            {"role": "user", "content": "do"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
            {"role": "assistant", "content": "I do"},
            *({**call, "call_id": name} for name in "xyz"),
            *({"type": "function_call_output", "call_id": name, "output": name} for name in "xyz"),
        ]
        talk = await client.conversations.create(items=given)
        before = [item async for item in items.list(talk.id, order="asc")]
        kinds = [item.type for item in before]
        assert kinds == ["message", "reasoning", "message", *["function_call"] * 3, *["function_call_output"] * 3]
        for gone in (before[2], before[1], before[3]):
            assert gone.id
            await items.delete(gone.id, conversation_id=talk.id)
        after = [item async for item in items.list(talk.id, order="asc")]
        assert [item.id for item in after] == [before[at].id for at in (0, 4, 5, 6, 7, 8)]
        assert after[1:3] == before[4:6]
        await client.responses.create(model="m", input="on", conversation=talk.id)
        said = json.loads(worker.asked[-1].body)["messages"][1]
        assert [call["id"] for call in said["tool_calls"]] == ["y", "z"]
        assert said.keys() == {"role", "tool_calls"}


# Tenants


async def test_what_another_tenant_has_is_as_absent_as_what_never_was(tmp_path: Path) -> None:
    async with scripted(speak) as worker, routed(worker.url, **keyed(tmp_path / "keys", TENANTS)) as router:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=ACME, max_retries=0) as client:
            made = (await client.responses.create(model="m", input="a secret")).id
            talk = await client.conversations.create(items=[{"type": "message", "role": "user", "content": "secret"}])
            item = (await client.conversations.items.list(talk.id)).data[0].id

        async def probe(response: str, conversation: str) -> list[tuple[int, bytes]]:
            one = f"/v1/conversations/{conversation}"
            new = {"items": [{"role": "user", "content": "mine"}]}
            lines = bearer(BETA)
            follow = {"model": "m", "input": "x"}
            answers = [
                await get(router, f"/v1/responses/{response}", lines),
                await get(router, f"/v1/responses/{response}/input_items", lines),
                await post(router, f"/v1/responses/{response}/cancel", b"", lines),
                await get(router, f"/v1/responses/{response}", lines, method="DELETE"),
                await post(router, "/v1/responses", {**follow, "previous_response_id": response}, lines),
                await post(
                    router, "/v1/responses", {**follow, "previous_response_id": response, "store": False}, lines
                ),
                await post(router, "/v1/responses", {**follow, "conversation": conversation}, lines),
                await get(router, one, lines),
                await post(router, one, {"metadata": {}}, lines),
                await get(router, f"{one}/items", lines),
                await post(router, f"{one}/items", new, lines),
                await get(router, f"{one}/items/{item}", lines),
                await get(router, f"{one}/items/{item}", lines, method="DELETE"),
                await get(router, one, lines, method="DELETE"),
            ]
            asked = (response.encode(), conversation.encode())
            return [(each.status, each.body.replace(asked[0], b"ONE").replace(asked[1], b"ONE")) for each in answers]

        foreign, absent = await probe(made, talk.id), await probe("resp_none", "conv_none")
        assert foreign == absent
        assert {status for status, _ in foreign} == {404, 400}
        assert [at for at, (status, _) in enumerate(foreign) if status == 400] == [4, 5]
        assert len(worker.asked) == 1
        assert (await get(router, f"/v1/responses/{made}", bearer(ACME))).status == 200


# Bounds


async def test_large_bodies_are_taken_and_those_under_way_are_bounded_together() -> None:
    async with speaking(limits__max_held_bytes=7 << 20) as (worker, router, client):
        large = "x" * (2 << 20)
        go_on = held(worker)
        slow = asyncio.create_task(client.responses.create(model="m", input=large))
        await until(lambda: worker.asked)
        with pytest.raises(openai.InternalServerError) as full:
            await client.responses.create(model="m", input=large)
        assert (full.value.status_code, full.value.code) == (503, "overloaded")
        go_on.set()
        assert len((await slow).output_text) == len(large) + 3
        assert router.data.memory.bytes == 0
        async with connected(router) as refused:
            await refused.post("/v1/responses", b"{")
            assert (await refused.answer()).status == 400
        assert router.data.memory.bytes == 0


# JavaScript


async def test_the_javascript_client_reads_and_raises_alike() -> None:
    folder = await asyncio.to_thread(node_packages)
    async with speaking() as (_, router, _):
        process = await asyncio.create_subprocess_exec(
            *("node", "state.mjs", router.url),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert output.decode().strip().endswith("ok")


async def test_what_is_stored_spoilt_says_so_and_others_are_well(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    async with speaking(sessions__store=f"sqlite:///{file}") as (_, router, client):
        talk = await client.conversations.create(metadata={"a": "b"})
        made = await client.responses.create(model="m", input="one")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE attributes SET body = X'00'")
            connection.execute("UPDATE document SET body = X'00'")
        for where in (f"/v1/conversations/{talk.id}", f"/v1/responses/{made.id}"):
            spoilt = await get(router, where)
            assert (spoilt.status, spoilt.error["code"]) == (500, "session_corrupt")
        again = await client.responses.create(model="m", input="two")
        assert await client.responses.retrieve(again.id) == again
