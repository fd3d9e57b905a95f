"""Clients that tie the router up: with heads, bodies and answers that never end, and with mere numbers."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from itertools import count
from pathlib import Path

import pytest

from router.app.serve import Running
from router.config.schema import LimitsConfig
from router.server.bodies import next_due_at
from tests.e2e.routed import Answer, RawClient, connected, get_admin, post, routed, until
from tests.e2e.streams import CHAT, STREAMED, answering, stream_without_end
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import scripted

PATH = "/v1/chat/completions"
HEALTH = b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n"
PARTS = [b"", b"G", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: r\r\n", HEALTH[:-1], b"\r\n"]


async def cuts(router: Running, cause: str) -> float:
    text = (await get_admin(router, "/metrics")).body.decode()
    (line,) = (
        line for line in text.splitlines() if line.startswith(f'warmroute_cut_connections_total{{cause="{cause}"}}')
    )
    return float(line.split()[-1])


async def trickle(client: RawClient, data: bytes) -> None:
    """A byte now and then, until the router has enough of it."""
    for at in count():
        client.writer.write(data[at % len(data) :][:1])
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("part", PARTS)
async def test_a_head_that_does_not_come_whole_is_given_up_unanswered(part: bytes) -> None:
    async with scripted() as worker, routed(worker.url, limits__head_timeout_s=0.1) as router:
        async with connected(router) as client:
            await client.send(part)
            assert await client.is_closed()
        assert await cuts(router, "head_timeout") == 1
        assert router.data.live == 0


async def test_a_head_that_comes_byte_by_byte_is_given_up_too() -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__head_timeout_s=0.1) as router,
        connected(router) as client,
    ):
        await client.send(b"GET /health HTTP/1.1\r\n")
        trickling = asyncio.create_task(trickle(client, b"x-more: y\r\n"))
        assert await client.is_closed()
        trickling.cancel()


async def test_a_connection_that_rests_between_requests_stays_and_one_that_begins_another_does_not() -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__head_timeout_s=0.1) as router,
        connected(router) as resting,
        connected(router) as beginning,
    ):
        for client in (resting, beginning):
            await client.send(HEALTH)
            assert (await client.answer()).status == 200
        await beginning.send(b"GET /hea")
        assert await beginning.is_closed()
        await resting.send(HEALTH)
        assert (await resting.answer()).status == 200


async def test_a_client_that_never_begins_with_tls_is_given_up(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = {"server__tls_cert": str(cert), "server__tls_key": str(key)}
    async with scripted() as worker, routed(worker.url, limits__head_timeout_s=0.1, **tls) as router:
        async with connected(router) as silent:
            assert await silent.is_closed()
        async with connected(router, ssl.create_default_context(cafile=cert)) as silent:
            assert await silent.is_closed()


async def test_a_resting_connection_is_closed_in_its_own_time() -> None:
    async with scripted() as worker, routed(worker.url, limits__keepalive_s=0.1) as router, connected(router) as client:
        await client.send(HEALTH)
        assert (await client.answer()).status == 200
        assert await client.is_closed()
        assert await cuts(router, "head_timeout") == 0


async def test_a_request_under_way_is_not_cut_for_the_next_ones_head() -> None:
    async with (
        scripted(stream_without_end) as worker,
        routed(worker.url, limits__head_timeout_s=0.1) as router,
        connected(router) as streaming,
        connected(router) as silent,
    ):
        await streaming.post(PATH, STREAMED)
        await streaming.head()
        await streaming.send(b"POST /v1")
        silenced = asyncio.create_task(silent.is_closed())
        while not silenced.done():
            assert await streaming.chunk()
        assert await streaming.chunk()


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_trickles_is_given_up_long_before_its_last_second(framing: str) -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__body_grace_s=0.2, limits__min_body_bytes_per_s=10_000) as router,
        connected(router) as client,
    ):
        await client.send(f"POST {PATH} HTTP/1.1\r\nHost: r\r\n{framing}\r\n\r\n".encode())
        trickling = asyncio.create_task(trickle(client, b"1\r\nx\r\n"))
        assert (await client.answer()).status == 408
        trickling.cancel()
        assert await client.is_closed()
        assert await cuts(router, "body_timeout") == 1
        assert worker.asked == []


async def test_a_body_that_trickles_is_given_up_however_much_of_it_came_at_once() -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__body_timeout_s=0.2, limits__min_body_bytes_per_s=10) as router,
        connected(router) as client,
    ):
        await client.send(
            f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 1000000\r\n\r\n".encode() + b"x" * 500_000
        )
        assert (await client.answer()).status == 408
        assert await client.is_closed()
        assert await cuts(router, "body_timeout") == 1


def cut_at(limits: LimitsConfig, body_bytes: int, bytes_per_s: float, *, burst_bytes: int = 0) -> float | None:
    """After how many seconds a body is cut that comes ten times a second, behind a burst; None: it comes through."""
    due_at = min(limits.body_grace_s, limits.body_timeout_s)
    now, received, piece_bytes = 0.0, 0, burst_bytes
    while received + piece_bytes < body_bytes:
        if piece_bytes:
            due_at = next_due_at(due_at, now, piece_bytes, limits)
        received += piece_bytes
        piece_bytes = int((now + 0.1) * bytes_per_s) - int(now * bytes_per_s)
        now += 0.1
        if now > due_at:
            return due_at
    return None


def test_the_largest_body_comes_through_however_long_it_takes_at_a_steady_pace() -> None:
    limits = LimitsConfig()
    for bytes_per_s in (2_000, 16_000, 150_000):
        assert cut_at(limits, limits.max_body_bytes, bytes_per_s) is None


def test_a_body_that_drips_is_cut_within_seconds() -> None:
    limits = LimitsConfig()
    assert cut_at(limits, 1 << 20, 0) == limits.body_grace_s
    dripped_s = cut_at(limits, 1 << 20, 100)
    assert dripped_s is not None
    assert dripped_s < 6
    for burst_bytes in (100_000, 30 << 20):
        rested_s = cut_at(limits, limits.max_body_bytes, 10, burst_bytes=burst_bytes)
        assert rested_s is not None
        assert rested_s < 1.1 * limits.body_timeout_s


async def test_a_slow_body_that_keeps_its_rate_is_served() -> None:
    data = b'{"model":"m","messages":[]}'
    async with (
        scripted() as worker,
        routed(worker.url, limits__body_grace_s=0.05, limits__min_body_bytes_per_s=10) as router,
        connected(router) as client,
    ):
        await client.send(f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: {len(data)}\r\n\r\n".encode())
        for byte in data:
            await client.send(b"%c" % byte)
            await asyncio.sleep(0.005)
        assert (await client.answer()).status == 200


async def test_the_newest_connection_beyond_the_bound_is_turned_away_and_room_is_used_again() -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__max_connections=2) as router,
        connected(router) as first,
        connected(router) as second,
    ):
        for client in (first, second):
            await client.send(HEALTH)
            assert (await client.answer()).status == 200
        async with connected(router) as third:
            answer = await third.answer()
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-request-id"]
            assert await third.is_closed()
        assert await cuts(router, "too_many") == 1
        assert b"warmroute_client_connections 2.0\n" in (await get_admin(router, "/metrics")).body
        first.leave()
        await until(lambda: router.open_connections() == 1)
        async with connected(router) as fourth:
            await fourth.send(HEALTH)
            assert (await fourth.answer()).status == 200


@pytest.mark.parametrize("body", [CHAT, STREAMED], ids=["whole", "stream"])
async def test_a_client_that_does_not_read_its_answer_is_cut(body: dict[str, object]) -> None:
    script = stream_without_end if body is STREAMED else answering(b"x" * 16_000_000)
    async with (
        scripted(script) as worker,
        routed(worker.url, limits__write_stall_s=0.1) as router,
        connected(router, receive_bytes=4096) as client,
    ):
        await client.post(PATH, body)
        await client.reader.readexactly(12)
        await until(lambda: router.open_connections() == 0)
        assert not any(router.fleet.figures.in_flight)


async def test_a_client_that_does_not_read_the_routers_own_answers_is_cut_too() -> None:
    async with (
        scripted() as worker,
        routed(worker.url, limits__write_stall_s=0.1) as router,
        connected(router, receive_bytes=4096) as client,
    ):
        await client.send(b"GET /openapi.json HTTP/1.1\r\nHost: r\r\n\r\n" * 400)
        await client.reader.readexactly(12)
        await until(lambda: router.open_connections() == 0)
        assert await cuts(router, "write_stall") == 1


async def test_a_router_that_stops_adds_nothing_to_an_answer_that_is_whole_and_unread() -> None:
    body = b"x" * 4_000_000
    async with (
        scripted(answering(body)) as worker,
        routed(worker.url) as router,
        connected(router, receive_bytes=4096) as client,
    ):
        await client.post(PATH, CHAT)
        status, headers = await client.head()
        await until(lambda: not any(router.fleet.figures.in_flight))
        router.data.cut_short()
        assert await client.reader.readexactly(int(headers["content-length"])) == body
        await client.send(HEALTH)
        assert (status, (await client.answer()).status) == (200, 200)


LARGE = 100 << 20


@pytest.mark.parametrize("framing", [f"Content-Length: {LARGE}", "Transfer-Encoding: chunked"])
async def test_of_a_body_that_is_far_too_large_little_is_taken_in(framing: str) -> None:
    piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    sent = 0

    async def pour(client: RawClient) -> None:
        nonlocal sent
        while sent < LARGE:
            await client.send(piece)
            sent += len(piece)

    async with (
        scripted() as worker,
        routed(worker.url, limits__max_body_bytes=1 << 20) as router,
        connected(router) as client,
    ):
        await client.send(f"POST {PATH} HTTP/1.1\r\nHost: r\r\n{framing}\r\n\r\n".encode())
        pouring = asyncio.create_task(pour(client))
        assert (await client.answer()).status == 413
        await asyncio.wait((pouring,))
        assert isinstance(pouring.exception(), ConnectionError)
        assert sent < LARGE / 4


async def test_a_body_a_little_too_large_hears_why_also_where_it_is_sent_before_anything_is_read() -> None:
    async with scripted() as worker, routed(worker.url, limits__max_body_bytes=1 << 20) as router:
        answer: Answer = await post(router, PATH, b"x" * (3 << 19))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", ""])
async def test_a_compressed_body_is_refused_unexpanded(coding: str) -> None:
    bomb = gzip.compress(bytes(16 << 20), 1)
    async with scripted() as worker, routed(worker.url) as router:
        answer = await post(router, PATH, bomb, f"Content-Encoding: {coding}")
        assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")
        assert worker.asked == []
