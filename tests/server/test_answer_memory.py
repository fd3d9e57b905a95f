"""Answers that are held, or that clients do not read, count against one budget; and nothing follows an answer's end."""

from __future__ import annotations

import pytest

from router.app.serve import Running
from router.core.fleet.health import WorkerState
from router.core.tenants.memory import REPLY, UNREAD
from tests.e2e.routed import connected, post, routed, until
from tests.e2e.streams import CHAT, STREAMED, stream_without_end
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, answer, scripted

PATH = "/v1/chat/completions"
LARGE = b'{"usage":null,"text":"%b"}' % (b"x" * (4 << 20))


def held(router: Running) -> dict[str, int]:
    return dict(+router.data.memory.by_kind)


async def answer_large(_asked: Asked, peer: Peer) -> None:
    await peer.send(answer(LARGE))


async def test_a_whole_answer_is_counted_until_its_client_has_read_it() -> None:
    async with scripted(answer_large) as worker, routed(worker.url) as router:
        async with connected(router, receive_bytes=4096) as client:
            await client.post(PATH, CHAT)
            await client.reader.readuntil(b"\r\n\r\n")
            await until(lambda: not any(router.fleet.figures.in_flight))
            assert held(router)[REPLY] == len(LARGE)
            assert await client.reader.readexactly(len(LARGE)) == LARGE
            await until(lambda: not router.data.memory.bytes)
        assert (await post(router, PATH, CHAT)).body == LARGE
        await until(lambda: not router.data.memory.bytes)


async def test_an_answer_for_which_there_is_no_room_is_refused_asked_of_nobody_else_and_held_against_no_worker() -> (
    None
):
    async with (
        scripted(answer_large) as one,
        scripted(answer_large) as other,
        routed(one.url, other.url, limits__max_held_bytes=1 << 20) as router,
    ):
        refused = await post(router, PATH, CHAT)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.headers["x-should-retry"] == "false", "it never fits"
        assert len(one.asked) + len(other.asked) == 1
        assert all(member.health.state is WorkerState.UP for member in router.fleet.members())
        assert router.data.memory.refusals[REPLY] == 1
        await until(lambda: not router.data.memory.bytes)


async def test_an_attempt_that_came_to_nothing_is_not_counted_on() -> None:
    async def err(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b"x" * 900_000, status=500))

    async def well(_asked: Asked, peer: Peer) -> None:
        await peer.send(answer(b"{}" + b" " * 900_000))

    async with (
        scripted(err) as one,
        scripted(err) as two,
        scripted(well) as three,
        routed(one.url, two.url, three.url, limits__max_held_bytes=1 << 20) as router,
    ):
        assert (await post(router, PATH, CHAT)).status == 200
        await until(lambda: not router.data.memory.bytes)


@pytest.mark.parametrize("has_room", [True, False])
async def test_what_a_slow_client_leaves_of_a_stream_is_counted_and_cut_where_there_is_no_room(has_room: bool) -> None:
    budget = 1 << 24 if has_room else 1024
    async with (
        scripted(stream_without_end) as worker,
        routed(worker.url, limits__max_held_bytes=budget) as router,
    ):
        async with connected(router, receive_bytes=4096) as client:
            await client.post(PATH, STREAMED)
            if has_room:
                await until(lambda: router.data.memory.by_kind[UNREAD] > 0)
                assert held(router).keys() == {UNREAD}
            else:
                await until(lambda: router.data.memory.refusals[UNREAD])
                await until(lambda: not router.data.live)
        await until(lambda: not router.data.memory.bytes)


@pytest.mark.parametrize(
    "behind",
    [b"garbage\n\n", b'data: {"error":{"message":"x"}}\n\n', b'data: {"choices":[]}\n\ndata: [DONE]\n\n'],
    ids=repr,
)
async def test_the_next_answer_on_a_connection_is_the_next_answer_whatever_a_worker_sent_behind_the_last(
    behind: bytes,
) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":%b}]}\n\n'

    async def stream(_asked: Asked, peer: Peer) -> None:
        last = event % b'"stop"' + b"data: [DONE]\n\n" + behind
        first = event % b"null"
        await peer.send(
            STREAM_HEAD, b"%x\r\n%b\r\n" % (len(first), first), b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
        )

    async with scripted(stream) as worker, routed(worker.url) as router, connected(router) as client:
        for _ in range(3):
            await client.post(PATH, STREAMED)
            whole = await client.answer()
            assert whole.body.endswith(b"data: [DONE]\n\n")
            assert whole.body.count(b"[DONE]") == 1
            await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
            assert (await client.answer()).body == b"ok\n"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("text/plain", "text/plain"),
        ("text/html", "application/octet-stream"),
        ("application/json" + "x" * 60_000, None),
        ("application/json;" + "x" * 1000, "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
    ids=lambda text: repr(text)[:40],
)
async def test_a_workers_kind_of_content_is_one_that_no_browser_runs(given: str, shown: str | None) -> None:
    async def send(_asked: Asked, peer: Peer) -> None:
        head = f"HTTP/1.1 400 X\r\nContent-Type: {given}\r\nRetry-After: {'1' * 200}\r\nContent-Length: 2\r\n\r\n{{}}"
        await peer.send(head.encode())

    async with scripted(send) as worker, routed(worker.url) as router:
        told = await post(router, PATH, CHAT)
        if shown is None:
            assert told.status in (502, 503)
            return
        assert told.headers["content-type"] == shown
        assert told.headers["x-content-type-options"] == "nosniff"
        assert "retry-after" not in told.headers
