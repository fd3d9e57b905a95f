"""Kinds of clients, and what the router says of itself."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.app.serve import Running
from tests.e2e.routed import Answer, RawClient, connected, get, get_admin, post, routed, until
from tests.e2e.streams import CHAT, STREAMED, TEXT, WHOLE, answering, stream
from tests.upstream.certificates import make_certificate
from tests.upstream.scripted import Asked, Peer, answer, scripted

PATH = "/v1/chat/completions"
METRICS = {
    "warmroute_requests": ("route", "model", "status"),
    "warmroute_request_duration_seconds": ("route", "model"),
    "warmroute_time_to_first_token_seconds": ("model", "policy"),
    "warmroute_inter_chunk_seconds": ("model",),
    "warmroute_router_overhead_seconds": ("phase",),
    "warmroute_prompt_tokens": ("model",),
    "warmroute_predicted_cached_tokens": ("model",),
    "warmroute_actual_cached_tokens": ("model",),
    "warmroute_routing_decisions": ("policy", "reason"),
    "warmroute_retries": ("cause",),
    "warmroute_worker_state": ("worker", "state"),
    "warmroute_worker_in_flight": ("worker",),
    "warmroute_worker_queued_prefill_tokens": ("worker",),
    "warmroute_worker_prefill_rate": ("worker",),
    "warmroute_worker_ejections": ("worker", "cause"),
    "warmroute_prefix_index_blocks": ("worker",),
    "warmroute_prefix_index_max_blocks": ("worker",),
    "warmroute_build_info": ("version", "policy"),
}
"""Families as the parser names them (a counter's without ``_total``), and their labels."""


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-Request_1", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("a\xe9", False), (None, False)],
)
async def test_a_request_id_is_kept_if_it_is_one_and_made_otherwise(given: str | None, kept: bool) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        lines = [] if given is None else [f"X-Request-Id: {given}"]
        ids = []
        for body in (CHAT, STREAMED, b"{"):
            worker.script = stream if body is STREAMED else answering()
            ids.append((await post(router, PATH, body, *lines)).headers["x-request-id"])
        sent = [asked.headers["x-request-id"] for asked in worker.asked]
        assert [each.rpartition("-")[0] for each in sent] == ids[:2]
        assert len(set(sent)) == 2, "a worker never sees two requests of one id"
        if kept:
            assert set(ids) == {given}
        else:
            assert len({*ids, given}) == 4


async def test_what_a_client_sends_reaches_the_worker_byte_for_byte_and_its_key_does_not() -> None:
    body = (
        b' {"messages" : [ {"role":"user","content":"\xc3\xa9\\u00e9"} ],\n"model":"m", "x": 1.50, "stream": true }\n'
    )
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    lines = ("Authorization: Bearer client", "x-api-key: client", "Cookie: a=b", f"traceparent: {trace}", "X-Other: y")
    async with scripted(stream) as worker, routed(worker.url, fleet__worker_key="s3cret") as router:
        assert (await post(router, PATH, body, *lines)).body == WHOLE
        asked = worker.asked[0]
        added = b',"stream_options":{"include_usage":true},"return_token_ids":true'
        at = body.rindex(b"}")
        assert asked.body == body[:at] + added + body[at:]
        assert asked.headers["authorization"] == "Bearer s3cret"
        assert asked.headers["traceparent"] == trace
        assert not {"x-api-key", "cookie", "x-other"} & set(asked.headers)
        worker.script = answering()
        plain = body.replace(b"true", b"false")
        await post(router, PATH, plain, *lines)
        assert worker.asked[1].body == plain


async def test_of_a_workers_headers_only_a_few_reach_the_client() -> None:
    async def tell_much(_asked: Asked, peer: Peer) -> None:
        head = "HTTP/1.1 400 X\r\nSet-Cookie: a=b\r\nServer: uvicorn\r\nRetry-After: 3\r\nContent-Type: text/x\r\n"
        await peer.send(head.encode() + b"X-Secret: y\r\nContent-Length: 2\r\n\r\nno")

    async with scripted(tell_much) as worker, routed(worker.url) as router:
        answer = await post(router, PATH, CHAT)
        assert answer.status == 400
        assert set(answer.headers) == {
            "content-type",
            "retry-after",
            "content-length",
            "x-content-type-options",
            "x-request-id",
            "x-warmroute-worker",
        }
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-warmroute-worker"].startswith("w-")


@pytest.mark.parametrize("line", ["", "Connection: keep-alive"])
@pytest.mark.parametrize("body", [CHAT, STREAMED], ids=["whole", "stream"])
async def test_a_client_of_http_1_0_gets_bare_bytes_and_the_end_of_the_connection(
    line: str, body: dict[str, Any]
) -> None:
    script = stream if body is STREAMED else answering(b'{"a":1}')
    async with scripted(script) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(PATH, body, *([line] if line else []), version="1.0")
        answer = await client.answer()
        assert answer.body == (WHOLE if body is STREAMED else b'{"a":1}')
        assert "transfer-encoding" not in answer.headers
        assert await client.is_closed()


@pytest.mark.parametrize("body", [CHAT, STREAMED, b"{"], ids=["whole", "stream", "error"])
async def test_a_client_that_wants_to_close_is_closed_behind_its_whole_answer(body: Any) -> None:
    script = stream if body is STREAMED else answering()
    async with scripted(script) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(PATH, body, "Connection: close")
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert answer.body
        assert await client.is_closed()


async def test_a_kept_connection_serves_all_kinds_of_requests_in_turn() -> None:
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        for number in range(20):
            worker.script = stream if number % 2 else answering(b"[%d]" % number)
            await client.post(PATH, STREAMED if number % 2 else CHAT)
            assert (await client.answer()).body == (WHOLE if number % 2 else b"[%d]" % number)
            await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
            assert (await client.answer()).status == 200
            await client.post(PATH, b"{")
            assert (await client.answer()).status == 400


@pytest.mark.parametrize("count", [3, 40])
async def test_pipelined_requests_are_answered_in_their_order(count: int) -> None:
    async def echo(asked: Asked, peer: Peer) -> None:
        await (stream(asked, peer) if b"stream" in asked.body else peer.send(answer(asked.body)))

    bodies = [
        json.dumps({**(STREAMED if number % 3 == 2 else CHAT), "seed": number}).encode() for number in range(count)
    ]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n"
    async with scripted(echo) as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(b"".join(head % len(body) + body for body in bodies))
        for body in bodies:
            assert (await client.answer()).body == (WHOLE if b"stream" in body else body)


async def test_bytes_in_place_of_a_next_request_are_answered_behind_the_answer_under_way() -> None:
    async def wait(_asked: Asked, peer: Peer) -> None:
        asked.set()
        await garbled.wait()
        await peer.send(answer())

    asked, garbled = asyncio.Event(), asyncio.Event()
    async with scripted(wait) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(PATH, CHAT)
        await asked.wait()
        await client.send(b"garbage\r\n\r\n")
        garbled.set()
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400
        assert await client.is_closed()


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on() -> None:
    data = json.dumps(CHAT).encode()
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head.encode())
        assert (await client.answer()).status == 100
        await client.send(data)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("cuts", [[5], [60, 90, 140], [180, 181, 182]])
async def test_a_request_may_come_in_any_pieces(cuts: list[int]) -> None:
    data = json.dumps(CHAT).encode()
    whole = f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            await client.send(whole[start:end])
        assert (await client.answer()).status == 200
        assert worker.asked[0].body == data


async def test_a_chunked_request_reaches_the_worker_with_a_length() -> None:
    data = json.dumps(CHAT).encode()
    async with scripted() as worker, routed(worker.url) as router, connected(router) as client:
        await client.send(
            f"POST {PATH} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
            b"%x\r\n%b\r\n" % (10, data[:10]),
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(data) - 10, data[10:]),
        )
        assert (await client.answer()).status == 200
        assert worker.asked[0].body == data
        assert worker.asked[0].headers["content-length"] == str(len(data))


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models"])
async def test_head_is_get_without_a_body(path: str) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        whole, head = await get(router, path), await get(router, path, method="HEAD")
        assert (whole.status, head.status, head.body) == (200, 200, b"")
        assert head.headers["content-length"] == str(len(whole.body))


async def test_ready_means_that_a_worker_can_serve_and_health_that_the_process_lives() -> None:
    async with scripted(models=()) as worker, routed(worker.url) as router:
        assert (await get(router, "/health")).status == 200
        assert (await get(router, "/ready")).status == 503
        worker.models = ("m",)
        await until(router.fleet.catalog.is_ready)
        assert (await get(router, "/ready")).status == 200
        worker.is_ill = True
        await until(lambda: not router.fleet.catalog.is_ready())
        assert (await get(router, "/ready")).status == 503
        assert (await get(router, "/health")).status == 200


async def test_models_are_those_of_all_workers_once_each() -> None:
    async with (
        scripted(models=("b", "a")) as one,
        scripted(models=("c", "a")) as two,
        routed(one.url, two.url) as router,
    ):
        listed = (await get(router, "/v1/models")).json
        assert listed["object"] == "list"
        assert [card["id"] for card in listed["data"]] == ["a", "b", "c"]


async def test_the_data_port_serves_tls(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=cert)
    async with (
        scripted(stream) as worker,
        routed(worker.url, server__tls_cert=str(cert), server__tls_key=str(key)) as router,
    ):
        assert router.url.startswith("https://")
        async with connected(router, trusting) as client:
            for _ in range(2):
                await client.post(PATH, STREAMED)
                assert (await client.answer()).body == WHOLE
        async with connected(router, trusting) as client:
            worker.script = answering(b"x" * 3_000_000)
            await client.post(PATH, CHAT)
            assert len((await client.answer()).body) == 3_000_000


async def test_a_large_answer_arrives_whole() -> None:
    async with scripted(answering(b"x" * 8_000_000)) as worker, routed(worker.url) as router:
        assert len((await post(router, PATH, CHAT)).body) == 8_000_000


async def test_an_answer_larger_than_may_be_held_is_an_error_of_the_workers() -> None:
    async with scripted(answering(b"x" * 5000)) as worker, routed(worker.url, timeouts__max_reply_bytes=1024) as router:
        assert (await post(router, PATH, CHAT)).status == 502


async def test_a_large_body_is_read_off_the_loop_and_routed_alike() -> None:
    body = {**STREAMED, "messages": [{"role": "user", "content": "x" * 1_000_000}]}
    async with scripted(stream) as worker, routed(worker.url) as router:
        assert (await post(router, PATH, body)).body == WHOLE
        assert json.loads(worker.asked[0].body)["stream_options"] == {"include_usage": True}
        assert (await post(router, PATH, b"x" * 1_000_000)).status == 400


async def test_usage_is_shown_to_those_who_asked_for_it_and_to_nobody_else() -> None:
    asking = {**STREAMED, "stream_options": {"include_usage": True}}
    async with scripted(stream) as worker, routed(worker.url) as router:
        assert b'"usage"' in (await post(router, PATH, asking)).body
        assert b'"usage"' not in (await post(router, PATH, STREAMED)).body


async def test_decisions_are_told_in_headers_only_where_that_is_wanted() -> None:
    names = {"x-warmroute-reason", "x-warmroute-predicted-cached-tokens"}
    async with scripted() as worker, routed(worker.url) as router:
        assert not names & set((await post(router, PATH, CHAT)).headers)
    async with scripted() as worker, routed(worker.url, server__decision_headers=True) as router:
        assert names <= set((await post(router, PATH, CHAT)).headers)


async def _status_for_host(router: Running, path: str, host: str) -> int:
    url = urlsplit(router.admin_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    client = RawClient(reader, writer)
    await client.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = await client.answer()
    client.leave()
    return answer.status


class TestAdmin:
    async def test_the_metrics_are_what_prometheus_reads_and_have_the_promised_names(self) -> None:
        async with scripted(stream) as worker, routed(worker.url) as router:
            await post(router, PATH, STREAMED)
            await post(router, PATH, {**STREAMED, "model": "unheard-of"})
            await post(router, PATH, b"{")
            text = (await get_admin_text(router)).decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for name, labels in METRICS.items():
            for sample in families[name].samples:
                assert set(labels) == set(sample.labels) - {"le"}, name
        requests = {
            tuple(sample.labels[label] for label in ("route", "model", "status")): sample.value
            for sample in families["warmroute_requests"].samples
            if sample.value
        }
        assert requests == {(PATH, "m", "200"): 1.0, (PATH, "other", "404"): 1.0, (PATH, "other", "400"): 1.0}
        assert "unheard-of" not in text

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost:8081", 200),
            ("127.0.0.1", 200),
            ("[::1]:8081", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
        ],
    )
    async def test_without_a_token_no_name_of_somebody_elses_leads_to_it(self, host: str, status: int) -> None:
        for token, expected in (("", status), ("a token of the tests", 401)):
            async with scripted() as worker, routed(worker.url, admin__token=token) as router:
                assert await _status_for_host(router, "/workers", host) == expected
                assert await _status_for_host(router, "/health", host) == 200

    async def test_workers_and_decisions_are_shown_newest_first(self) -> None:
        async with scripted() as worker, routed(worker.url) as router:
            for name in ("first", "second"):
                await post(router, PATH, CHAT, f"X-Request-Id: {name}")
            decisions = (await get_admin(router, "/decisions")).json["decisions"]
            assert [decision["request_id"] for decision in decisions] == ["second", "first"]
            assert {decision["outcome"] for decision in decisions} == {"ok"}
            (shown,) = (await get_admin(router, "/workers")).json["workers"]
            assert (shown["url"], shown["state"], shown["models"], shown["in_flight"]) == (worker.url, "up", ["m"], 0)

    @pytest.mark.parametrize(
        ("line", "is_known"),
        [
            ("Authorization: Bearer s3cret", True),
            ("Authorization: Bearer wrong", False),
            ("Authorization: Bearer \xe9", False),
            ("X: y", False),
        ],
    )
    async def test_a_token_that_is_set_is_asked_for_wherever_something_is_told(self, line: str, is_known: bool) -> None:
        async with scripted() as worker, routed(worker.url, admin__token="s3cret") as router:
            for path in ("/metrics", "/workers", "/decisions", "/nothing"):
                status = (await get_admin(router, path, line)).status
                assert (status == 401) != is_known


async def test_whether_the_process_lives_can_be_asked_without_a_token_and_while_the_data_port_is_full() -> None:
    settings = {"admin__token": "s3cret", "limits__max_connections": 1}
    async with scripted() as worker, routed(worker.url, **settings) as router, connected(router) as client:
        await client.send(b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
        assert (await client.answer()).status == 200
        async with connected(router) as other:
            assert (await other.answer()).status == 503
        assert (await get_admin(router, "/health")).status == 200


async def get_admin_text(router: Any) -> bytes:
    found: Answer = await get_admin(router, "/metrics")
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/plain")
    return found.body


async def test_a_stream_reaches_its_client_event_by_event() -> None:
    async def step(_asked: Asked, peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        await peer.send(head)
        for _ in range(5):
            await peer.send(b"%x\r\n%b\r\n" % (len(TEXT), TEXT))
            await asyncio.wait_for(read.get(), 5)
        await peer.gone()

    read: asyncio.Queue[None] = asyncio.Queue()
    async with scripted(step) as worker, routed(worker.url) as router, connected(router) as client:
        await client.post(PATH, STREAMED)
        _, headers = await client.head()
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"
        for _ in range(5):
            assert await client.chunk() == TEXT
            read.put_nowait(None)
        client.leave()
