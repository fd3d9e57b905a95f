"""What clients make the router hold, and how long they hold others up: bounded while it grows, and given back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.config.serving import LimitsConfig
from router.core.request.request import NO_TENANT
from router.server.parsing.pool import BASE_MEMORY_BYTES, MEMORY_RATIO
from router.server.protocol import PIECE_BYTES
from tests.e2e.faults import metric
from tests.e2e.routed import connected, get, post, routed, until
from tests.e2e.streams import CHAT, answering, hang
from tests.server.keys import ACME, BETA, bearer, entry, keyed
from tests.upstream.scripted import scripted

PATH = "/v1/chat/completions"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"
FIELD = b"x-%d: " + b"a" * 8000 + b"\r\n"


ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


def said(size: int) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": "a" * size}]}


async def test_a_body_counts_while_it_comes_and_no_longer_than_its_client_stays() -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(f"{HEAD}Content-Length: 1000000\r\n\r\n".encode() + b"a" * 700_000)
        await until(lambda: router.data.memory.bytes == 1_000_000)
        assert await metric(router, "warmroute_held_bytes") == 1_000_000, "with what may come before it is taken"
        client.leave(reset=True)
        await until(lambda: router.data.memory.bytes == 0)


async def test_bodies_that_are_not_whole_are_refused_together_before_they_are_too_much(tmp_path: Path) -> None:
    settings = {**keyed(tmp_path / "keys.toml"), "limits__max_held_bytes": 2 << 20}
    async with scripted(answering(), models=("m", "n")) as worker, routed(worker.url, **settings) as router:
        async with connected(router) as first, connected(router) as second, connected(router) as third:
            part = f"{HEAD}{bearer(ACME)}\r\nContent-Length: 400000\r\n\r\n".encode() + b"a" * 200_000
            for number, client in enumerate((first, second), 1):
                await client.send(part)
                await until(lambda: router.data.memory.bytes == number * 400_000)  # noqa: B023
            await third.send(part)
            refused = await third.answer()
            assert (refused.status, refused.error["code"]) == (503, "overloaded")
            assert "your other requests" in refused.error["message"]
            assert (await post(router, PATH, {**said(100_000), "model": "n"}, bearer(BETA))).status == 200
            assert router.data.memory.bytes == 800_000
        await until(lambda: router.data.memory.bytes == 0)


async def test_strangers_have_a_part_and_not_the_tenants(tmp_path: Path) -> None:
    settings = {**keyed(tmp_path / "keys.toml"), "limits__max_held_bytes": 1 << 20}
    async with scripted(answering()) as worker, routed(worker.url, **settings) as router:
        budget = router.data.memory
        strangers = budget.hold(NO_TENANT)
        strangers.grow("unread", 512 << 10)
        with pytest.raises(Exception, match="your other requests"):
            budget.hold(NO_TENANT).grow("unread", 1 << 10)
        assert (await post(router, PATH, said(100_000), bearer(ACME))).status == 200
        strangers.release()


async def test_decoded_values_of_a_turn_count_until_it_ends() -> None:
    body = json.dumps({**said(10), "x": [{"a": 1}] * 5000}, separators=(",", ":")).encode()
    async with scripted(hang) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post("/v1/sessions/s/chat/completions", body)
        await until(lambda: worker.asked)
        assert await metric(router, "warmroute_held_bytes", kind="decoded") > 10 * len(body)
        client.leave(reset=True)
        await until(lambda: router.data.memory.bytes == 0)


@pytest.mark.parametrize("costly", [b"[[],[]]" + b",[]" * 300_000, b'["",""' + b',""' * 300_000 + b"]"])
async def test_a_turn_with_more_values_than_may_be_kept_is_refused(costly: bytes) -> None:
    members = b'"model":"m","messages":[{"role":"user","content":"hi"}]'
    body = b'{%b,"x":[%b]}' % (members, costly)
    async with scripted() as worker, routed(worker.url) as router:
        answer = await post(router, "/v1/sessions/s/chat/completions", body)
        assert (answer.status, answer.error["code"]) == (400, "invalid_request_error")
        assert "values" in answer.error["message"]
        assert router.data.memory.bytes == 0


LARGEST = LimitsConfig().max_body_bytes


@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/v1/sessions/s/chat/completions"])
@pytest.mark.parametrize("text", ["A", "\U0001f600"], ids=["as base64", "emoji"])
async def test_the_largest_body_by_default_is_served_where_its_tenant_is_alone(
    path: str, text: str, tmp_path: Path
) -> None:
    head, tail = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"', b'"}]}'
    assert LARGEST > 9_000_000, "three screenshots"
    piece = text.encode()
    body = head + piece * ((LARGEST - len(head) - len(tail)) // len(piece)) + tail
    settings = {**keyed(tmp_path / "keys.toml"), "timeout_s": 60.0}
    async with scripted(answering(ANSWER)) as worker, routed(worker.url, **settings) as router:
        served = await post(router, path, body, bearer(ACME))
        assert served.status == 200, served.body
        assert len(worker.asked[0].body) > LARGEST - 100
        refused = await post(router, path, body + b" " * 100, bearer(ACME))
        assert refused.status == 413
        await until(lambda: router.data.memory.bytes == 0)


def test_a_process_that_reads_the_largest_body_by_default_has_a_gigabyte_at_the_most() -> None:
    assert BASE_MEMORY_BYTES + MEMORY_RATIO * LARGEST <= 1 << 30


# Heads


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_head_that_is_too_large_in_all_is_refused_also_where_each_field_is_small(at_once: bool) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: r\r\n" + b"".join(FIELD % number for number in range(10))
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        pieces = [head + b"\r\n"] if at_once else [head[at : at + 999] for at in range(0, 40_000, 999)]
        await client.send(*pieces)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert await client.is_closed()
        await until(lambda: router.open_connections() == 0)
        assert await metric(router, "warmroute_head_bytes") == 0
        assert await metric(router, "warmroute_cut_connections_total", cause="head_size") == 1


async def test_heads_that_do_not_end_are_bounded_together_and_whole_ones_are_served_meanwhile() -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: r\r\n" + FIELD % 1
    settings = {"limits__max_total_head_bytes": 20_000}
    async with (
        scripted() as worker,
        routed(worker.url, **settings) as router,
        connected(router) as first,
        connected(router) as second,
        connected(router) as third,
    ):
        for client in (first, second):
            await client.send(head)
        await until(lambda: router.head_bytes() == 2 * len(head))
        await third.send(head)
        answer = await third.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await get(router, "/v1/models")).status == 200
        await first.send(b"\r\n")
        assert (await first.answer("GET")).status == 200
        await until(lambda: router.head_bytes() == len(head))
        assert await metric(router, "warmroute_head_bytes") == len(head)


async def test_heads_of_a_usual_size_are_served_however_they_are_cut() -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: r\r\n" + b"".join(FIELD % number for number in range(3)) + b"\r\n"
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        for size in (1000, PIECE_BYTES, len(head)):
            await client.send(*(head[at : at + size] for at in range(0, len(head), size)))
            assert (await client.answer("GET")).status == 200


# Chunks


def chunked(size: int, payload: bytes, extension: bytes = b"") -> bytes:
    pieces = (payload[at : at + size] for at in range(0, len(payload), size))
    return b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(("size", "extension"), [(1, b""), (20, b""), (1000, b";x=" + b"y" * 500)])
async def test_a_body_that_is_mostly_framing_is_refused_and_its_connection_closed(size: int, extension: bytes) -> None:
    body = json.dumps(said(100_000)).encode()
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        head = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
        with_body = asyncio.ensure_future(client.send(head + chunked(size, body, extension)))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_request_error")
        assert "chunks" in answer.error["message"]
        with_body.cancel()
        assert worker.asked == []


@pytest.mark.parametrize("size", [128, 5000, 1 << 20])
async def test_a_body_in_chunks_as_clients_send_them_is_read_whole(size: int) -> None:
    body = json.dumps(said(300_000)).encode()
    async with scripted(answering()) as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked(size, body))
        assert (await client.answer()).status == 200
        assert json.loads(worker.asked[0].body)["messages"] == said(300_000)["messages"]


async def test_requests_behind_a_large_body_on_one_connection_are_answered_in_order() -> None:
    body = json.dumps(said(300_000)).encode()
    one = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with scripted(answering()) as worker, routed(worker.url) as router, connected(router) as client:
        sending = asyncio.ensure_future(client.send(one * 3 + b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n"))
        for _ in range(3):
            assert (await client.answer()).status == 200
        assert (await client.answer("GET")).body == b"ok\n"
        await sending


# Answers that are not read


async def test_a_body_that_no_answer_needs_is_thrown_away_and_its_connection_goes_on() -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        for _ in range(3):
            await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\nContent-Length: 100000\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers.get("connection")) == (200, None)
            await client.send(b"a" * 100_000)


@pytest.mark.parametrize("framing", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
async def test_a_client_with_a_body_that_nobody_will_read_is_told_that_its_connection_ends(framing: str) -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(f"GET /health HTTP/1.1\r\nHost: r\r\n{framing}\r\n\r\n".encode())
        answer = await client.answer()
        assert (answer.status, answer.headers.get("connection")) == (200, "close")
        assert await client.is_closed()


async def test_an_answer_of_the_routers_own_counts_until_it_is_read() -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router, receive_bytes=4096) as client:
        await client.send(b"GET /openapi.json HTTP/1.1\r\nHost: r\r\n\r\n" * 8)
        await until(lambda: router.data.memory.by_kind["unread"] > 0)
        for _ in range(8):
            await client.answer("GET")
        await until(lambda: router.data.memory.bytes == 0)


# What a tenant may


async def test_routes_that_keep_state_pass_the_tenants_limits(tmp_path: Path) -> None:
    listed = "[tenants.acme]\nrequests_per_minute = 3\n"
    settings = keyed(tmp_path / "keys.toml", listed + entry("acme-1", "acme", ACME))
    async with scripted() as worker, routed(worker.url, **settings) as router:
        body: dict[str, Any] = {"metadata": {}}
        statuses = [(await post(router, "/v1/conversations", body, bearer(ACME))).status for _ in range(2)]
        statuses.append((await get(router, "/v1/sessions/s", bearer(ACME))).status)
        refused = await post(router, "/v1/conversations", body, bearer(ACME))
        assert statuses == [200, 200, 404]
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert (await get(router, "/v1/sessions/s", bearer(ACME))).status == 429


async def test_what_the_engine_does_with_others_is_not_for_a_client_to_set() -> None:
    async with scripted(answering()) as worker, routed(worker.url) as router:
        await post(router, PATH, {**CHAT, "priority": -1_000_000, "stream_interval": 500})
        await post(router, "/v1/sessions/s/chat/completions", {**CHAT, "priority": -9})
        sent = [json.loads(asked.body) for asked in worker.asked]
        assert [body.get("priority") for body in sent] == [0, 0]
        assert sent[0]["stream_interval"] == 1


async def test_nobody_can_foresee_a_request_id() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        ids = [(await get(router, "/nowhere")).headers["x-request-id"] for _ in range(3)]
        assert len(set(ids)) == 3
        assert len({each[:6] for each in ids}) == 3


async def test_a_broken_connection_gives_everything_back_at_each_phase() -> None:
    async with scripted(hang) as worker, routed(worker.url) as router:
        whole = f"{HEAD}Content-Length: 100\r\n\r\n".encode() + json.dumps(said(10)).encode().ljust(100)
        for at in (5, len(HEAD) - 5, len(whole) - 50, len(whole)):
            async with connected(router) as client:
                await client.send(whole[:at])
                await until(lambda: router.open_connections() == 1)
                client.leave(reset=True)
                await until(lambda: router.open_connections() == 0)
        await until(lambda: router.data.memory.bytes == 0)
        assert await metric(router, "warmroute_head_bytes") == 0
