"""What a collector and a worker see of requests: trees of spans, ids, and nothing that is nobody's business."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from router.app.serve import Running
from router.wire.framing import LAST_CHUNK, frame
from tests.e2e.faults import metric
from tests.e2e.routed import Broken, connected, post, routed, until
from tests.e2e.streams import CHAT, DONE, LAST, STREAMED, TEXT, USAGE, answering, drop, hang, stream
from tests.server.keys import ACME, bearer, keyed
from tests.tracing.collector import CLIENT, INTERNAL, SERVER, Collector, Tree, collecting
from tests.upstream.scripted import STREAM_HEAD, Asked, Peer, ScriptedWorker, scripted, unused_url

PATH = "/v1/chat/completions"
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"traceparent: 00-{TRACE_ID}-{PARENT_ID}-01", f"traceparent: 00-{TRACE_ID}-{PARENT_ID}-00"
COUNTED = b'{"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}'
ID = "X-Request-Id: r1"
SAID_HI = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


def tracing(collector: Collector, **settings: Any) -> dict[str, Any]:
    quick = {"tracing__interval_s": 0.01, "tracing__sample_ratio": 1.0}
    return {"tracing__endpoint": collector.url, **quick, **settings}


def parents_at(*workers: ScriptedWorker) -> list[str]:
    """The spans that workers were told to be below, in the order of ``workers``."""
    return [asked.headers["traceparent"].split("-")[2] for worker in workers for asked in worker.asked]


def require_whole(tree: Tree) -> None:
    """Every span is in the root's trace and time, and below another."""
    ids = {span.span_id for span in tree.spans}
    assert len(ids) == len(tree.spans)
    for span in tree.spans:
        assert span.began_ns <= span.ended_ns
        if span is not tree.root:
            assert span.parent_id in ids
            assert tree.root.began_ns <= span.began_ns
            assert span.ended_ns <= tree.root.ended_ns
    assert abs(tree.root.ended_ns - time.time_ns()) < 60e9


async def test_a_plain_request_is_a_server_span_with_its_phases_and_one_attempt() -> None:
    async with (
        collecting() as collector,
        scripted(answering(COUNTED)) as worker,
        routed(worker.url, **tracing(collector)) as router,
    ):
        assert (await post(router, PATH, CHAT, ID)).status == 200
        tree = await collector.tree("r1")
        require_whole(tree)
        assert (tree.root.name, tree.root.kind, tree.root.parent_id) == (f"POST {PATH}", SERVER, "")
        assert tree.names() == ["receive", "decide", "chat m"]
        assert [span.kind for span in tree.below()] == [INTERNAL, INTERNAL, CLIENT]
        (attempt,) = tree.attempts()
        assert tree.below(attempt) == []
        assert parents_at(worker) == [attempt.span_id]
        assert worker.asked[0].headers["traceparent"] == f"00-{tree.root.trace_id}-{attempt.span_id}-01"
        assert not any(span.is_error for span in tree.spans)


async def test_attributes_follow_the_conventions() -> None:
    async with (
        collecting() as collector,
        scripted(answering(COUNTED)) as worker,
        routed(worker.url, **tracing(collector, tracing__service_name="mine")) as router,
    ):
        await post(router, PATH, CHAT, ID)
        tree = await collector.tree("r1")
        (attempt,) = tree.attempts()
        (member,) = router.fleet.members()
        told = attempt.attributes
        assert told["gen_ai.operation.name"] == "chat"
        assert told["gen_ai.provider.name"] == "vllm"
        assert told["gen_ai.request.model"] == "m"
        assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (9, 3)
        assert told["gen_ai.usage.cache_read.input_tokens"] == 4
        assert f"http://{told['server.address']}:{told['server.port']}" == worker.url
        assert told["warmroute.worker"] == member.name
        root = tree.root.attributes
        assert root["http.request.method"] == "POST"
        assert root["http.route"] == PATH
        assert root["http.response.status_code"] == 200
        assert root["warmroute.policy"] == "cache_aware"
        assert root["warmroute.outcome"] == "ok"
        assert collector.resources[0]["service.name"] == "mine"
        assert {"service.version", "service.instance.id"} <= set(collector.resources[0])


async def test_a_streams_attempt_has_its_first_token_and_its_relay_below_it() -> None:
    async with (
        collecting() as collector,
        scripted(stream) as worker,
        routed(worker.url, **tracing(collector)) as router,
    ):
        assert (await post(router, PATH, STREAMED, ID)).status == 200
        tree = await collector.tree("r1")
        require_whole(tree)
        (attempt,) = tree.attempts()
        first, relay = tree.below(attempt)
        assert (first.name, relay.name) == ("first token", "relay")
        assert (first.began_ns, relay.ended_ns) == (attempt.began_ns, attempt.ended_ns)
        assert first.ended_ns == relay.began_ns
        assert attempt.attributes["gen_ai.usage.input_tokens"] == 9


async def test_a_request_that_went_to_another_worker_shows_both_and_each_worker_its_own_span() -> None:
    async with (
        collecting() as collector,
        scripted(drop) as one,
        scripted(drop) as two,
        routed(one.url, two.url, **tracing(collector)) as router,
    ):
        one.script = two.script = _drop_first([one, two])
        assert (await post(router, PATH, CHAT, ID)).status == 200
        tree = await collector.tree("r1")
        require_whole(tree)
        failed, answered = tree.attempts()
        assert failed.is_error
        assert failed.attributes["error.type"] == "died"
        assert not answered.is_error
        assert not tree.root.is_error
        assert tree.root.attributes["warmroute.retries"] == ["died"]
        assert set(parents_at(one, two)) == {failed.span_id, answered.span_id}


@pytest.mark.parametrize(("script", "why"), [(drop, "died"), (answering(b" " * 5000), "too_large")])
async def test_an_attempt_says_how_it_failed_also_where_the_request_ended_with_it(script: Any, why: str) -> None:
    bounds = {"retries__max_deaths": 1, "timeouts__max_reply_bytes": 4096}
    async with (
        collecting() as collector,
        scripted(script) as worker,
        routed(worker.url, **tracing(collector, **bounds)) as router,
    ):
        assert (await post(router, PATH, CHAT, ID)).status == 502
        (attempt,) = (await collector.tree("r1")).attempts()
        assert attempt.attributes["error.type"] == why


async def leave_unanswered(_asked: Asked, _peer: Peer) -> None:
    await asyncio.Event().wait()


async def leave_midway(_asked: Asked, peer: Peer) -> None:
    await peer.send(STREAM_HEAD, frame(TEXT))
    await asyncio.Event().wait()


@pytest.mark.parametrize("path", [PATH, "/v1/sessions/s/chat/completions"])
@pytest.mark.parametrize(("script", "status"), [(leave_unanswered, 499), (leave_midway, 200)])
async def test_a_request_whose_client_left_is_one_whole_trace(path: str, script: Any, status: int) -> None:
    async with (
        collecting() as collector,
        scripted(script) as worker,
        routed(worker.url, **tracing(collector)) as router,
        connected(router) as client,
    ):
        await client.post(path, STREAMED, ID)
        await until(lambda: worker.asked)
        if status == 200:
            await client.head()
        client.leave()
        tree = await collector.tree("r1")
        require_whole(tree)
        (attempt,) = tree.attempts()
        assert tree.root.attributes["http.response.status_code"] == status
        assert tree.names(attempt) == (["first token", "relay"] if status == 200 else [])
        assert not any(span.is_error for span in tree.spans)
        assert collector.spans == tree.spans


async def test_a_resumed_stream_shows_the_attempt_that_broke_and_the_one_that_went_on() -> None:
    async with (
        collecting() as collector,
        scripted() as one,
        scripted() as two,
        routed(one.url, two.url, **tracing(collector)) as router,
    ):
        one.script = two.script = _break_first([one, two])
        found = await post(router, PATH, STREAMED, ID)
        assert found.body.endswith(DONE)
        tree = await collector.tree("r1")
        require_whole(tree)
        broke, went_on = tree.attempts()
        assert broke.is_error
        assert broke.attributes["error.type"] == "broken"
        assert "warmroute.resumes" not in broke.attributes
        assert went_on.attributes["warmroute.resumes"] is True
        assert not went_on.is_error
        assert tree.names(broke) == tree.names(went_on) == ["first token", "relay"]
        assert tree.root.attributes["warmroute.resumptions"] == ["died:text"]
        assert set(parents_at(one, two)) == {broke.span_id, went_on.span_id}


async def test_a_request_that_waits_in_vain_shows_the_wait_and_no_attempt() -> None:
    limits = {"admission__max_worker_requests": 1, "admission__max_wait_s": 0.05}
    async with (
        collecting() as collector,
        scripted(hang) as worker,
        routed(worker.url, **tracing(collector, **limits)) as router,
        connected(router) as first,
    ):
        await first.post(PATH, CHAT)
        await until(lambda: worker.asked)
        assert (await post(router, PATH, CHAT, ID)).status == 503
        tree = await collector.tree("r1")
        require_whole(tree)
        assert tree.names() == ["receive", "wait"]
        assert tree.root.is_error
        assert tree.root.attributes["error.type"] == "503"
        first.leave()


async def test_a_request_without_a_key_is_one_span(tmp_path: Path) -> None:
    settings = keyed(tmp_path / "keys.toml")
    async with collecting() as collector, scripted() as w, routed(w.url, **tracing(collector, **settings)) as router:
        assert (await post(router, PATH, CHAT, ID)).status == 401
        tree = await collector.tree("r1")
        assert tree.spans == [tree.root]
        assert tree.root.attributes["http.response.status_code"] == 401
        assert not tree.root.is_error


async def test_a_sessions_turn_shows_claim_prompt_and_save() -> None:
    async with (
        collecting() as collector,
        scripted(answering(SAID_HI)) as worker,
        routed(worker.url, **tracing(collector)) as router,
    ):
        body = {"model": "m", "input": "hello"}
        assert (await post(router, "/v1/responses", body, ID)).status == 200
        tree = await collector.tree("r1")
        require_whole(tree)
        assert tree.names() == ["receive", "claim", "prompt", "decide", "save", "chat m"]
        assert tree.root.name == "POST /v1/responses"
        (attempt,) = tree.attempts()
        save = next(span for span in tree.below() if span.name == "save")
        assert attempt.ended_ns <= save.began_ns
        assert parents_at(worker) == [attempt.span_id]


async def test_a_streamed_turn_whose_worker_was_well_and_whose_client_got_an_error_has_failed() -> None:
    async def answer_nonsense(_asked: Asked, peer: Peer) -> None:
        nonsense = b'data: {"choices":[{"index":0,"delta":{"content":5}}]}\n\n'
        await peer.send(STREAM_HEAD, *map(frame, (nonsense, LAST, USAGE, DONE)), LAST_CHUNK)

    async with (
        collecting() as collector,
        scripted(answer_nonsense) as worker,
        routed(worker.url, **tracing(collector)) as router,
        connected(router) as client,
    ):
        await client.post("/v1/sessions/s/chat/completions", STREAMED, ID)
        with pytest.raises(Broken, match="cannot be understood"):
            await client.answer()
        tree = await collector.tree("r1")
        require_whole(tree)
        assert tree.root.is_error
        assert tree.root.attributes["error.type"] == "worker_error"
        assert not tree.attempts()[0].is_error


async def test_a_turn_that_is_answered_again_from_the_log_asks_no_worker_and_has_its_status() -> None:
    async with (
        collecting() as collector,
        scripted(answering(SAID_HI)) as worker,
        routed(worker.url, **tracing(collector)) as router,
    ):
        for request_id in ("r1", "r2"):
            lines = (f"X-Request-Id: {request_id}", "Idempotency-Key: k")
            assert (await post(router, "/v1/sessions/s/chat/completions", CHAT, *lines)).status == 200
        tree = await collector.tree("r2")
        require_whole(tree)
        assert tree.names() == ["receive", "claim"]
        assert tree.root.attributes["http.response.status_code"] == 200


async def test_a_workers_refusal_is_the_requests_status_and_the_attempts_failure() -> None:
    async with (
        collecting() as collector,
        scripted(answering(b'{"error":{}}', 400)) as worker,
        routed(worker.url, **tracing(collector)) as router,
    ):
        assert (await post(router, PATH, CHAT, ID)).status == 400
        tree = await collector.tree("r1")
        assert tree.root.attributes["http.response.status_code"] == 400
        assert not tree.root.is_error
        assert tree.attempts()[0].attributes["error.type"] == "client_error"


async def test_a_method_that_is_not_well_known_is_not_named() -> None:
    async with collecting() as collector, scripted() as worker, routed(worker.url, **tracing(collector)) as router:
        async with connected(router) as client:
            await client.send(f"PROPFIND {PATH} HTTP/1.1\r\nHost: r\r\n{ID}\r\n\r\n".encode())
            assert (await client.answer()).status == 405
        tree = await collector.tree("r1")
        assert (tree.root.name, tree.root.attributes["http.request.method"]) == (f"HTTP {PATH}", "_OTHER")


async def test_a_clients_trace_goes_on_and_its_state_reaches_the_worker() -> None:
    async with collecting() as collector, scripted() as worker, routed(worker.url, **tracing(collector)) as router:
        await post(router, PATH, CHAT, ID, SAMPLED, "tracestate: a=b,c@d=e")
        tree = await collector.tree("r1")
        assert (tree.root.trace_id, tree.root.parent_id) == (TRACE_ID, PARENT_ID)
        (asked,) = worker.asked
        assert asked.headers["traceparent"] == f"00-{TRACE_ID}-{tree.attempts()[0].span_id}-01"
        assert asked.headers["tracestate"] == "a=b,c@d=e"


@pytest.mark.parametrize("given", ["00-x", SAMPLED[13:].upper(), f"00-{'0' * 32}-{PARENT_ID}-01", f"ff{SAMPLED[15:]}"])
async def test_a_bad_trace_is_left_out_and_a_new_one_begins(given: str) -> None:
    async with collecting() as collector, scripted() as worker, routed(worker.url, **tracing(collector)) as router:
        await post(router, PATH, CHAT, ID, f"traceparent: {given}", "tracestate: a=b")
        tree = await collector.tree("r1")
        assert tree.root.parent_id == ""
        assert tree.root.trace_id not in given.lower()
        assert worker.asked[0].headers["traceparent"].split("-")[1] == tree.root.trace_id
        assert "tracestate" not in worker.asked[0].headers


async def test_what_is_not_sampled_is_not_sent_and_its_context_goes_on_with_the_flag_down() -> None:
    async with collecting() as collector, scripted() as worker:
        async with routed(worker.url, **tracing(collector, tracing__sample_ratio=0)) as router:
            await post(router, PATH, CHAT, UNSAMPLED)
            await post(router, PATH, CHAT)
            await post(router, PATH, CHAT, ID, SAMPLED)
            tree = await collector.tree("r1")
        theirs, ours, sampled = (asked.headers["traceparent"].split("-") for asked in worker.asked)
        assert (theirs[1], theirs[3]) == (TRACE_ID, "00")
        assert ours[1] != TRACE_ID
        assert ours[3] == "00"
        assert sampled[3] == "01"
        assert collector.spans == tree.spans


async def test_what_is_no_inference_is_not_traced() -> None:
    async with collecting() as collector, scripted() as worker:
        async with routed(worker.url, **tracing(collector)) as router:
            for path in ("/health", "/v1/nothing"):
                async with connected(router) as client:
                    await client.send(f"GET {path} HTTP/1.1\r\nHost: r\r\n\r\n".encode())
                    await client.answer("GET")
        assert collector.raw == []


async def test_nothing_that_clients_write_is_exported_but_the_request_id(tmp_path: Path) -> None:
    canary = "caNary5ecret"
    lines = (
        ID,
        bearer(ACME),
        f"X-Session-ID: {canary}",
        f"Idempotency-Key: {canary}",
        f"tracestate: a={canary}",
        f"User-Agent: {canary}",
        SAMPLED,
    )
    reply = json.dumps(
        {"id": canary, "choices": [{"index": 0, "message": {"role": "assistant", "content": canary}}]}
    ).encode()
    body = {**CHAT, "messages": [{"role": "user", "content": canary}], "user": canary}
    async with collecting() as collector, scripted(answering(reply)) as worker:
        async with routed(worker.url, **tracing(collector, **keyed(tmp_path / "keys.toml"))) as router:
            await post(router, PATH, body, *lines)
            await post(router, PATH, {**body, "stream": True}, *lines)
            await post(router, PATH, {**body, "model": canary}, *lines)
            await post(router, f"/v1/sessions/{canary}/chat/completions", body, *lines)
            await post(router, f"/v1/responses/{canary}/cancel?a={canary}", body, *lines)
            async with connected(router) as client:
                await client.send(f"{canary.upper()} {PATH} HTTP/1.1\r\nHost: r\r\n{ID}\r\n\r\n".encode())
                await client.answer()
            await collector.tree("r1")
        routes = {span.attributes.get("http.route") for span in collector.spans}
        assert {PATH, "/v1/sessions/{}/chat/completions", "/v1/responses/{}/cancel"} <= routes
        assert {"save", "relay"} & {span.name for span in collector.spans}
        sent = b"".join(collector.raw).lower()
        assert canary.lower().encode() not in sent
        assert b"acme" not in sent


async def test_a_collector_that_never_answers_slows_no_request_and_holds_up_no_end() -> None:
    settings = {"tracing__timeout_s": 30, "tracing__flush_s": 0.1, "tracing__max_queue": 3}
    async with collecting(hangs=asyncio.Event()) as collector, scripted() as worker:
        async with routed(worker.url, **tracing(collector, **settings)) as router:
            await post(router, PATH, CHAT)
            await until(lambda: collector.raw)  # the thread is held from here on
            for _ in range(5):
                assert (await post(router, PATH, CHAT)).status == 200
            assert await metric(router, "warmroute_waiting_traces") == 3
            assert await metric(router, "warmroute_dropped_traces_total", cause="full") == 2
            assert await metric(router, "warmroute_max_waiting_traces") == 3
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 10


async def test_what_a_collector_refuses_is_counted_and_later_traces_reach_it() -> None:
    async with collecting(status=400) as collector, scripted() as w, routed(w.url, **tracing(collector)) as router:
        await post(router, PATH, CHAT)
        await _until_metric(router, "warmroute_dropped_traces_total", 1)
        collector.status = 200
        await post(router, PATH, CHAT, ID)
        await collector.tree("r1")
        await _until_metric(router, "warmroute_sent_traces_total", 1)


async def test_a_collector_that_is_not_there_costs_its_traces_alone() -> None:
    nowhere = Collector(url=f"{await unused_url()}/v1/traces")
    async with scripted() as worker, routed(worker.url, **tracing(nowhere, tracing__timeout_s=0.2)) as router:
        assert (await post(router, PATH, CHAT)).status == 200
        await _until_metric(router, "warmroute_dropped_traces_total", 1)


async def test_the_collector_gets_its_headers_and_the_last_traces_at_the_end() -> None:
    async with collecting() as collector, scripted() as worker:
        settings = {"tracing__headers": ["x-tenant=a=b"], "tracing__interval_s": 60}
        async with routed(worker.url, **{**tracing(collector), **settings}) as router:
            await post(router, PATH, CHAT)
            assert collector.raw == []
        assert len(collector.spans) == 4
        assert collector.headers[0]["x-tenant"] == "a=b"


async def test_a_collector_that_sends_elsewhere_is_not_followed() -> None:
    async with collecting() as elsewhere, collecting(status=307, location=elsewhere.url) as collector:
        async with scripted() as worker, routed(worker.url, **tracing(collector)) as router:
            await post(router, PATH, CHAT)
            await _until_metric(router, "warmroute_dropped_traces_total", 1)
        assert collector.raw
        assert elsewhere.raw == []


async def _until_metric(router: Running, name: str, value: float) -> None:
    async with asyncio.timeout(10):
        while await metric(router, name) != value:
            await asyncio.sleep(0.01)


def _drop_first(workers: list[ScriptedWorker]) -> Any:
    """Whichever worker is asked first drops each connection, for one that was idle may be tried again."""

    async def script(asked: Asked, peer: Peer) -> None:
        if sum(bool(worker.asked) for worker in workers) == 1:
            peer.drop()
        else:
            await answering(COUNTED)(asked, peer)

    return script


def _break_first(workers: list[ScriptedWorker]) -> Any:
    async def script(asked: Asked, peer: Peer) -> None:
        if sum(len(worker.asked) for worker in workers) == 1:
            await peer.send(STREAM_HEAD, frame(TEXT))
            peer.drop()
        else:
            await peer.send(STREAM_HEAD, *map(frame, (TEXT, LAST, USAGE, DONE)), LAST_CHUNK)

    return script
