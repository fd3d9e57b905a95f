"""Workers that are there and answer wrongly: errors, refusals, bytes that are not HTTP, events that are no events."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import openai
import pytest

from router.app.serve import Running
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import CHAT_PATH, broken_stream, decisions_of, ejections_of, faulted, metric
from tests.e2e.routed import Broken, connected, post
from tests.e2e.streams import CHAT, DONE, LAST, STREAMED, TEXT, WHOLE, answering, sending, stream
from tests.upstream.scripted import JSON_HEAD, STREAM_HEAD, Asked, Peer, answer, scripted

IN_TURN: dict[str, Any] = {"policy__name": "round_robin", "probes__ejection_s": 30.0, "probes__max_ejection_s": 60.0}
"""Each worker has its share, and one that is ejected stays so."""


async def ask_in_turn(router: Running, requests: int, body: dict[str, Any] = CHAT) -> Counter[int]:
    return Counter([(await post(router, CHAT_PATH, body)).status for _ in range(requests)])


@pytest.mark.parametrize("status", [500, 502, 504])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_worker_that_answers_errors_is_never_seen_and_soon_asked_no_more(status: int, is_stream: bool) -> None:
    good = stream if is_stream else answering()
    async with (
        scripted(answering(b"{}", status)) as bad,
        scripted(good) as well,
        faulted(bad.url, well.url, **IN_TURN) as router,
    ):
        assert await ask_in_turn(router, 30, STREAMED if is_stream else CHAT) == {200: 30}
        assert len(bad.asked) == 3
        assert await ejections_of(router) == 1


@pytest.mark.parametrize("status", [503, 429])
async def test_a_busy_worker_is_passed_over_and_never_taken_for_ill(status: int) -> None:
    async with (
        scripted(answering(b"{}", status)) as busy,
        scripted(answering()) as well,
        faulted(busy.url, well.url, **IN_TURN, admission__max_wait_s=0) as router,
    ):
        assert await ask_in_turn(router, 20) == {200: 20}
        assert len(busy.asked) == 10
        well.script = answering(b"{}", status)
        refused = await post(router, CHAT_PATH, CHAT)
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert await ejections_of(router) == 0


async def test_workers_that_are_all_busy_are_waited_for() -> None:
    async def answer_the_second_time(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b"{}", 503 if len(worker.asked) == 1 else 200))

    async with scripted(answer_the_second_time) as worker, faulted(worker.url) as router:
        assert (await post(router, CHAT_PATH, CHAT)).status == 200
        (decision,) = await decisions_of(router)
        assert (decision["attempts"], decision["outcome"]) == (2, "ok")
        assert decision["queued_s"] > 0.9
        assert await metric(router, "warmroute_busy_waits") == 0


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_an_error_event_that_is_the_clients_fault_ends_its_stream_and_costs_no_worker_its_health(
    status: int,
) -> None:
    told = b'data: {"error":{"message":"too long","type":"BadRequestError","param":null,"code":%d}}\n\n' % status
    script = sending(STREAM_HEAD, frame(TEXT), frame(told), frame(DONE), LAST_CHUNK)
    async with scripted(script) as worker, faulted(worker.url, **IN_TURN) as router:
        for _ in range(5):
            assert await broken_stream(router, CHAT_PATH, CHAT) == TEXT + told
        worker.script = sending(STREAM_HEAD, frame(told), frame(DONE), LAST_CHUNK)
        for _ in range(5):
            assert (await post(router, CHAT_PATH, STREAMED)).status == status
        assert len(worker.asked) == 10
        assert await ejections_of(router) == 0
        assert await metric(router, "warmroute_resumptions_total") == 0


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_clients_mistake_is_told_to_it_and_costs_no_worker_its_health(status: int) -> None:
    told = b'{"error":{"message":"no such thing","type":"BadRequestError","param":null,"code":%d}}' % status

    async def refuse(_asked: Asked, peer: Peer) -> None:
        head = b"HTTP/1.1 %d No\r\nserver: uvicorn\r\nx-worker-secret: s\r\ncontent-length: %d\r\n\r\n"
        await peer.send(head % (status, len(told)) + told)

    async with scripted(refuse) as one, scripted(refuse) as other, faulted(one.url, other.url, **IN_TURN) as router:
        for _ in range(8):
            found = await post(router, CHAT_PATH, CHAT)
            assert (found.status, found.body) == (status, told)
            assert "s" not in found.headers.values()
            assert "uvicorn" not in found.headers.values()
        assert len(one.asked) + len(other.asked) == 8
        assert await ejections_of(router) == 0


async def test_a_prompt_that_a_worker_finds_too_long_is_refused_with_the_code_that_clients_look_for() -> None:
    told = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'
    scripts = (
        answering(told, status=400),
        sending(STREAM_HEAD, frame(b"data: " + told + b"\n\n"), frame(DONE), LAST_CHUNK),
    )
    for script, body in zip(scripts, (CHAT, STREAMED), strict=True):
        async with scripted(script) as worker, faulted(worker.url) as router:
            found = await post(router, CHAT_PATH, body)
            error = json.loads(found.body)["error"]
            assert (found.status, error["code"]) == (400, "context_length_exceeded")
            assert (error["message"], error["type"]) == ("too long", "invalid_request_error")


@pytest.mark.parametrize("at_once", [1, 100])
async def test_a_fleet_that_fails_altogether_is_not_asked_much_more_than_clients_ask(at_once: int) -> None:
    failing = answering(status=500)
    async with (
        scripted(failing) as one,
        scripted(failing) as two,
        scripted(failing) as three,
        faulted(one.url, two.url, three.url, **IN_TURN) as router,
    ):
        for _ in range(100 // at_once):
            asking = [post(router, CHAT_PATH, CHAT) for _ in range(at_once)]
            assert {found.status for found in await asyncio.gather(*asking)} <= {502, 503}
        assert len(one.asked) + len(two.asked) + len(three.asked) <= 1.2 * 100 + 3 + 3


async def test_nobody_of_many_at_once_sees_that_one_of_three_workers_fails() -> None:
    async with (
        scripted(answering(b"{}")) as one,
        scripted(answering(b"{}")) as two,
        scripted(answering(b"{}")) as three,
        faulted(one.url, two.url, three.url, **IN_TURN) as router,
    ):
        for _ in range(60):
            assert (await post(router, CHAT_PATH, CHAT)).status == 200
        one.script = answering(status=500)
        found = await asyncio.gather(*[post(router, CHAT_PATH, CHAT) for _ in range(32)])
        assert {each.status for each in found} == {200}


NO_REPLY: dict[str, bytes] = {
    "garbage": b"\x00\xff garbage \r\n\r\n",
    "half a chunk": STREAM_HEAD + b"4\r\nda",
    "a chunk longer than its length": STREAM_HEAD + b"2\r\ndata: {}\n\n\r\n",
    "a length that is none": STREAM_HEAD + b"+5\r\nhello\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a body shorter than its length": JSON_HEAD % (200, 100) + b'{"half":',
    "half an event": STREAM_HEAD + frame(b"data: {half"),
}


@pytest.mark.parametrize("what", NO_REPLY)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_is_no_reply_is_never_seen_or_told_as_an_error_of_the_workers(what: str, is_stream: bool) -> None:
    async def break_off(_asked: Asked, peer: Peer) -> None:
        await peer.send(NO_REPLY[what])
        peer.close()

    body, good = (STREAMED, stream) if is_stream else (CHAT, answering(b'{"good":1}'))
    async with scripted(break_off) as bad, scripted(good) as well, faulted(bad.url, well.url, **IN_TURN) as router:
        for _ in range(4):
            found = await post(router, CHAT_PATH, body)
            assert (found.status, found.body) == (200, WHOLE if is_stream else b'{"good":1}')
        assert len(bad.asked) == 1
        well.script = break_off
        lost = await post(router, CHAT_PATH, body)
        assert lost.error["code"] in ("worker_error", "no_worker_available")
    assert b"half" not in lost.body


CUT_SHORT = [frame(TEXT)[:20], b"4\r\ndata", frame(b'data: {"choices":'), b"zz\r\n", frame(b"data: {half\n\n")]


@pytest.mark.parametrize("rest", CUT_SHORT)
async def test_of_an_event_that_is_not_whole_no_byte_is_forwarded(rest: bytes) -> None:
    async def break_off(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD + frame(TEXT))
        await read.wait()
        await peer.send(rest)
        peer.close()

    read = asyncio.Event()
    async with (
        scripted(break_off) as worker,
        faulted(worker.url, resumption__max_attempts=0) as router,
        connected(router) as client,
    ):
        await client.post(CHAT_PATH, STREAMED)
        await client.head()
        assert await client.chunk() == TEXT
        read.set()
        told = await client.chunk()
        assert told.startswith(b'data: {"error":')
        assert told.count(b"\n\n") == 1
        with pytest.raises(Broken):
            await client.chunk()


# What a vendor's own client makes of strange events


def event(content: bytes) -> bytes:
    return TEXT.replace(b"word", content)


ODD: dict[str, tuple[bytes, ...]] = {
    "bad JSON": (event(b"a"), b"data: {half\n\n"),
    "bad JSON first": (b"data: {half\n\n",),
    "bad UTF-8": (event(b"a"), event(b"\xff\xfe")),
    "half a code point": (event(b"a"), event("é".encode()[:1])),
    "CRLF": (event(b"a").replace(b"\n", b"\r\n"), event(b"b").replace(b"\n", b"\r\n")),
    "CR": (event(b"a").replace(b"\n", b"\r"),),
    "comments": (b": hello\n\n", event(b"a"), b": ping\n\n", event(b"b")),
    "no data": (event(b"a"), b"retry: 5\n\n"),
    "empty data": (event(b"a"), b"data:\n\n"),
    "no object": (event(b"a"), b"data: 5\n\n"),
    "control characters": (event(b"a"), b"\x00\x01\n\n"),
    "2 MB": (event(b"a"), event(b"x" * (2 << 20))),
    "20 MB": (event(b"a"), event(b"x" * (20 << 20))),
    "a character in two reads": (event("aé".encode()),),
}
TOLERATED = {"2 MB": "a" + "x" * (2 << 20), "CRLF": "ab", "comments": "ab", "a character in two reads": "aé"}


@pytest.mark.parametrize("what", ODD)
async def test_strange_events_are_tolerated_or_a_typed_error_and_no_client_fails_to_parse_them(what: str) -> None:
    events = b"".join((*ODD[what], LAST, DONE))
    pieces = (
        [frame(events)] if len(events) > 1 << 20 else [frame(events[at : at + 7]) for at in range(0, len(events), 7)]
    )

    async def send(_asked: Asked, peer: Peer) -> None:
        await peer.send(STREAM_HEAD, *pieces, LAST_CHUNK)

    async with (
        scripted(send) as worker,
        faulted(worker.url, resumption__max_attempts=0) as router,
        openai.AsyncOpenAI(base_url=router.url + "/v1", api_key="any", max_retries=0) as client,
    ):
        if what in TOLERATED:
            assert await said(client) == TOLERATED[what]
        else:
            with pytest.raises(openai.APIError):
                await said(client)


async def said(client: openai.AsyncOpenAI) -> str:
    messages: Any = CHAT["messages"]
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
