"""The routes over real sockets: shapes, errors, faults and departures; time runs so fast that nothing need be awaited."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from router.simulator import Fault, SimulatorSettings, start_fleet
from tests.simulator.serving import Client, serving, text_of

WORDS = "the fleet keeps what it has seen and the router knows where " * 40
MESSAGES = [{"role": "user", "content": WORDS}]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(adapters=("tuned",)) as client:
        yield client


async def test_a_stream_opens_with_the_role_and_ends_with_a_reason_usage_and_done(client: Client) -> None:
    usage = {"include_usage": True}
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=9, stream_options=usage)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[1]["choices"][0]["delta"]["content"]
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 9
    assert [at for at, event in enumerate(events[:-1]) if "system_fingerprint" in event] == [len(events) - 2]
    assert events[-1] == "[DONE]"
    assert [event["choices"][0]["finish_reason"] for event in events[:-3]] == [None] * (len(events) - 3)


async def test_usage_is_not_streamed_unless_asked_for(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=2)
    assert all("usage" not in event for event in events[:-1])
    assert "system_fingerprint" in events[-2]


async def test_the_streamed_text_is_the_unstreamed_one(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=50)
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=50)
    assert text_of(events) == reply["choices"][0]["message"]["content"]
    assert reply["usage"]["completion_tokens"] == 50


async def test_an_answer_without_a_limit_ends_by_itself(client: Client) -> None:
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert 16 <= reply["usage"]["completion_tokens"] <= 128


async def test_without_an_interval_every_token_has_its_event() -> None:
    async with serving(stream_interval_ms=0.0) as client:
        events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=40, return_token_ids=True)
    ids = [event["choices"][0].get("token_ids") for event in events[1:-1]]
    assert [len(each) for each in ids] == [1] * 40


async def test_an_equal_prompt_is_cached_and_another_worker_is_cold() -> None:
    async with serving(workers=2) as client:
        seen = []
        for worker in (0, 0, 1):
            _, reply = await client.post("/v1/chat/completions", worker, messages=MESSAGES, max_tokens=1)
            seen.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        prompt_tokens = reply["usage"]["prompt_tokens"]
        assert seen == [0, (prompt_tokens - 1) // 32 * 32, 0]
        assert await client.metric("vllm:prefix_cache_hits_total") == seen[1]
        assert await client.metric("vllm:prefix_cache_queries_total") == 2 * prompt_tokens


async def test_salts_and_adapters_do_not_share_blocks(client: Client) -> None:
    async def cached(**changes: Any) -> int:
        _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1, **changes)
        tokens: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    assert [await cached(cache_salt="a"), await cached(cache_salt="b"), await cached(), await cached(model="tuned")] == [
        0, 0, 0, 0,
    ]  # fmt: skip
    assert min(await cached(cache_salt="a"), await cached(), await cached(model="tuned"), await cached(model="sim")) > 0


async def test_the_next_turn_hits_the_answer_too(client: Client) -> None:
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=100)
    answer = reply["choices"][0]["message"]
    turn = [*MESSAGES, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "and then?"}]
    _, second = await client.post("/v1/chat/completions", messages=turn, max_tokens=1)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reply["usage"]["prompt_tokens"] + 64 <= cached <= reply["usage"]["total_tokens"]


@pytest.mark.parametrize("kept", [1, 2, 17])
async def test_a_stream_is_continued_by_its_token_ids(client: Client, kept: int) -> None:
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=60, return_token_ids=True)
    ids = [number for event in events[1:-1] for number in event["choices"][0]["token_ids"]]
    prompt = events[0]["prompt_token_ids"] + ids[:kept]
    _, rest = await client.post("/v1/completions", prompt=prompt, max_tokens=60 - kept, return_token_ids=True)
    assert rest["choices"][0]["token_ids"] == ids[kept:]
    assert rest["choices"][0]["prompt_token_ids"] == prompt
    assert text_of(events).endswith(rest["choices"][0]["text"])
    assert rest["usage"]["prompt_tokens"] == len(prompt)
    assert rest["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_stream_is_continued_by_its_text(client: Client) -> None:
    _, whole = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=60)
    _, first = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=21)
    said = first["choices"][0]["message"]["content"]
    messages = [*MESSAGES, {"role": "assistant", "content": said}]
    go_on = {"continue_final_message": True, "add_generation_prompt": False}
    _, rest = await client.post("/v1/chat/completions", messages=messages, max_tokens=39, **go_on)
    assert said + rest["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]


async def test_several_choices_differ_and_are_numbered(client: Client) -> None:
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=5, n=3)
    last = {e["choices"][0]["index"]: e["choices"][0]["finish_reason"] for e in events[:-1]}
    assert last == {0: "length", 1: "length", 2: "length"}
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=5, n=3)
    assert len({choice["message"]["content"] for choice in reply["choices"]}) == 3
    assert reply["usage"]["completion_tokens"] == 15


async def test_several_prompts_are_answered_in_order(client: Client) -> None:
    _, reply = await client.post("/v1/completions", prompt=["one", "two"], max_tokens=3)
    _, alone = await client.post("/v1/completions", prompt="two", max_tokens=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert reply["choices"][1]["text"] == alone["choices"][0]["text"]


async def test_a_stop_string_ends_the_answer_before_it(client: Client) -> None:
    _, whole = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=60)
    text = whole["choices"][0]["message"]["content"]
    stop = text[30:40]
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=60, stop=stop)
    assert reply["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    events = await client.stream("/v1/chat/completions", messages=MESSAGES, max_tokens=60, stop=[stop])
    assert text_of(events) == text[: text.index(stop)]


async def test_message_streams_have_their_events_in_order(client: Client) -> None:
    events = await client.stream("/v1/messages", messages=MESSAGES, max_tokens=5)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    again = await client.stream("/v1/messages", messages=MESSAGES, max_tokens=5)
    _, counted = await client.post("/v1/messages/count_tokens", messages=MESSAGES)
    assert again[0]["message"]["usage"] == {"input_tokens": counted["input_tokens"], "output_tokens": 0}
    for usage, key in ((events[-2]["usage"], "cache_creation"), (again[-2]["usage"], "cache_read")):
        assert usage["input_tokens"] < 32
        assert usage["input_tokens"] + usage[f"{key}_input_tokens"] == counted["input_tokens"]


async def test_tokenize_counts_what_a_chat_is_charged(client: Client) -> None:
    _, tokens = await client.post("/tokenize", messages=MESSAGES)
    _, reply = await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1)
    assert tokens["count"] == len(tokens["tokens"]) == reply["usage"]["prompt_tokens"]
    _, text = await client.post("/detokenize", tokens=tokens["tokens"])
    assert WORDS in text["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": MESSAGES}, 404, "NotFoundError", "model"),
        ("/v1/chat/completions", {"messages": MESSAGES, "cache_salt": ""}, 400, "BadRequestError", "cache_salt"),
        ("/v1/chat/completions", {"messages": "x"}, 400, "Bad Request", None),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES * 9}, 400, "BadRequestError", "input_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4_000}, 400, "BadRequestError", "max_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "continue_final_message": True}, 400, "BadRequestError", None),
        ("/v1/chat/completions", {"messages": []}, 400, "BadRequestError", None),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "stream_options": {"include_usage": True}},
            *(400, "BadRequestError", "stream_options"),
        ),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 0}, 400, "Bad Request", "body.max_tokens"),
        ("/v1/messages", {"messages": MESSAGES}, 400, "Bad Request", "body.max_tokens"),
        (
            "/v1/messages",
            {"messages": MESSAGES, "max_tokens": 1, "cache_salt": ""},
            *(400, "Bad Request", "body.cache_salt"),
        ),
        ("/v1/completions", {"prompt": []}, 400, "BadRequestError", None),
        ("/v1/completions", {"prompt": [1, -1]}, 400, "BadRequestError", "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
    ],
)
async def test_a_bad_request_is_told_why(path: str, body: Any, status: int, kind: str, param: str | None) -> None:
    async with serving(max_model_len=4_096) as client:
        got, reply = await client.post(path, **body)
    assert (got, reply["error"]["code"], reply["error"]["type"], reply["error"]["param"]) == (
        status,
        status,
        kind,
        param,
    )
    assert reply["error"]["message"]


async def test_messages_are_refused_in_their_own_shape(client: Client) -> None:
    status, reply = await client.post("/v1/messages", messages=MESSAGES, max_tokens=1, model="other")
    assert (status, reply["type"], reply["error"]["type"]) == (404, "error", "NotFoundError")
    status, reply = await client.post("/v1/messages", max_tokens=1)
    assert (status, reply["error"]["code"]) == (400, 400)


async def test_a_request_larger_than_the_cache_is_refused_at_once() -> None:
    async with serving(cache_blocks=4) as client:
        status, reply = await client.post("/v1/chat/completions", messages=MESSAGES)
    assert (status, reply["error"]["param"]) == (400, "input_tokens")


async def test_broken_json_unknown_routes_and_wrong_methods(client: Client) -> None:
    url = client.fleet.urls[0]
    async with client.session.post(url + "/v1/chat/completions", data=b'{"messages": [') as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, 400)
    assert await client.post("/v1/embeddings", input="x") == (404, {"detail": "Not Found"})
    assert (await client.get("/v1/chat/completions"))[0] == 405


async def test_only_v1_needs_the_key() -> None:
    async with serving(api_key="secret") as client:
        assert await client.post("/v1/chat/completions", messages=MESSAGES) == (401, {"error": "Unauthorized"})
        assert (await client.get("/v1/models"))[0] == 401
        assert (await client.get("/metrics"))[0] == (await client.get("/health"))[0] == 200
        headers = {"Authorization": "Bearer secret"}
        async with client.session.get(client.fleet.urls[0] + "/v1/models", headers=headers) as response:
            assert response.status == 200


async def test_models_and_adapters_are_listed(client: Client) -> None:
    models = json.loads((await client.get("/v1/models"))[1])["data"]
    assert [(m["id"], m["owned_by"], m["root"], m["parent"], m["max_model_len"]) for m in models] == [
        ("sim", "vllm", "sim", None, 1_000_000),
        ("tuned", "vllm", "tuned", "sim", None),
    ]


async def test_a_request_id_is_echoed(client: Client) -> None:
    for sent in ({"X-Request-Id": "abc-1"}, {}):
        async with client.session.post(
            client.fleet.urls[0] + "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1}, headers=sent
        ) as response:
            got, body = response.headers["X-Request-Id"], await response.json()
        assert body["id"] == f"chatcmpl-{got}"
        assert got == sent.get("X-Request-Id", got)


async def test_pooling_routes_exist_when_served() -> None:
    async with serving(serves_pooling=True) as client:
        _, embeddings = await client.post("/v1/embeddings", input=["one", "two", "one"])
        vectors = [each["embedding"] for each in embeddings["data"]]
        assert vectors[0] == vectors[2] != vectors[1]
        _, ranked = await client.post("/v1/rerank", query="q", documents=["a", "b", "c"], top_n=2)
        scores = [each["relevance_score"] for each in ranked["results"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 2
        _, scored = await client.post("/v1/score", text_1="q", text_2=["a", "b"])
        assert [each["index"] for each in scored["data"]] == [0, 1]
        assert await client.metric("vllm:request_success_total", finished_reason="stop") == 8


async def test_metrics_parse_and_tell_the_cache(client: Client) -> None:
    await client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=7)
    assert await client.metric("vllm:cache_config_info", num_gpu_blocks="3000", block_size="32") == 1
    assert await client.metric("vllm:generation_tokens_total", engine="0", model_name="sim") == 7
    assert await client.metric("vllm:time_to_first_token_seconds_bucket", le="+Inf") == 1
    assert await client.metric("vllm:time_to_first_token_seconds_count") == 1
    assert await client.metric("vllm:num_requests_running") == 0
    assert await client.metric("process_start_time_seconds") > 0


async def until(holds: Callable[[], Any]) -> None:
    """Let the loop run until something holds; the test's own time-out bounds it."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


async def test_a_client_that_goes_is_forgotten_at_once_in_every_phase() -> None:
    async with serving(max_num_seqs=1, time_scale=1.0, prefill_rate=1e6) as client:
        engine = client.fleet._servers[0].worker.engine
        url = client.fleet.urls[0] + "/v1/chat/completions"
        endless = {"messages": MESSAGES, "max_tokens": 50_000, "stream": True}
        decoding = await client.session.post(url, json=endless)
        await decoding.content.readany()
        waiting = await client.session.post(url, json=endless)
        whole = asyncio.ensure_future(client.session.post(url, json={**endless, "stream": False}))
        await until(lambda: (engine.running, engine.waiting) == (1, 2))
        waiting.close()
        await until(lambda: (engine.running, engine.waiting) == (1, 1))
        whole.cancel()
        await until(lambda: (engine.running, engine.waiting) == (1, 0))
        decoding.close()
        await until(lambda: (engine.running, engine.cache.held_blocks) == (0, 0))
        assert await client.metric("vllm:request_success_total", finished_reason="abort") == 3


async def test_the_head_of_a_stream_comes_before_prefill_ends() -> None:
    async with serving(time_scale=0.001) as client:
        url = client.fleet.urls[0] + "/v1/chat/completions"
        async with (
            asyncio.timeout(10),
            client.session.post(url, json={"messages": MESSAGES, "stream": True}) as response,
        ):
            assert response.status == 200
            assert client.fleet._servers[0].worker.engine.running == 1


async def test_a_draining_worker_is_healthy_refuses_and_ends_what_runs() -> None:
    async with serving(time_scale=100.0) as client:
        worker = client.fleet._servers[0].worker
        running = asyncio.ensure_future(client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=200))
        await until(lambda: worker.engine.running)
        draining = asyncio.ensure_future(client.fleet.drain(10.0))
        await until(lambda: worker.fault is Fault.DRAIN)
        status, reply = await client.post("/v1/chat/completions", messages=MESSAGES)
        assert (status, reply["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
        assert (await client.get("/health"))[0] == 200
        assert not draining.done()
        assert (await running)[0] == 200
        await draining


async def test_faults_are_set_by_request_and_taken_back(client: Client) -> None:
    assert (await client.post("/simulator/fault", fault="error"))[1] == {"fault": "error"}
    assert (await client.post("/v1/chat/completions", messages=MESSAGES))[0] == 500
    assert (await client.post("/simulator/fault", fault="nonsense"))[0] == 400
    assert (await client.post("/simulator/fault", fault="none"))[1] == {"fault": "none"}
    assert (await client.post("/v1/chat/completions", messages=MESSAGES))[0] == 200


async def test_a_hung_worker_never_answers_and_forgets_who_left() -> None:
    async with serving(fault=Fault.HANG) as client:
        asking = asyncio.ensure_future(client.post("/v1/chat/completions", messages=MESSAGES))
        assert (await client.get("/health"))[0] == 200
        assert not asking.done()
        asking.cancel()
        assert await client.metric("vllm:num_requests_running") == 0


async def test_a_dead_engine_ends_its_streams_with_an_error_and_done() -> None:
    async with serving(time_scale=100.0) as client:
        url = client.fleet.urls[0] + "/v1/chat/completions"
        async with client.session.post(
            url, json={"messages": MESSAGES, "max_tokens": 9_000, "stream": True}
        ) as response:
            await response.content.readany()
            client.fleet.set_fault(0, Fault.DEAD)
            rest = await response.text()
        assert rest.count("data: [DONE]\n\n") == 1
        assert rest.endswith("data: [DONE]\n\n")
        assert '"type":"InternalServerError"' in rest
        assert 'finish_reason":"' not in rest
        assert (await client.get("/health"))[0] == 503


async def test_a_cut_stream_breaks_without_a_terminator() -> None:
    async with serving(time_scale=100.0) as client:
        url = client.fleet.urls[0] + "/v1/chat/completions"
        async with client.session.post(
            url, json={"messages": MESSAGES, "max_tokens": 9_000, "stream": True}
        ) as response:
            await response.content.readany()
            client.fleet.set_fault(0, Fault.CUT)
            with pytest.raises(aiohttp.ClientError):
                await response.text()
        engine = client.fleet._servers[0].worker.engine
        await until(lambda: engine.running == 0)
        with pytest.raises(aiohttp.ClientError):
            await client.post("/v1/chat/completions", messages=MESSAGES)


async def test_a_killed_worker_refuses_and_comes_back_cold_on_its_port() -> None:
    async with serving(time_scale=1.0) as client:
        url, started = client.fleet.urls[0], await client.metric("process_start_time_seconds")
        response = await client.session.post(
            url + "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 9_000, "stream": True}
        )
        await client.fleet.kill(0)
        with pytest.raises(aiohttp.ClientError):
            await response.text()
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/health")
        await client.fleet.restart(0)
        assert client.fleet.urls == [url]
        assert await client.metric("process_start_time_seconds") > started
        assert await client.metric("vllm:prefix_cache_queries_total") == 0


async def test_a_large_prompt_is_taken_and_a_too_large_body_is_not() -> None:
    async with serving(max_body_bytes=400_000) as client:
        large = [{"role": "user", "content": WORDS * 150}]
        status, reply = await client.post("/v1/chat/completions", messages=large, max_tokens=1)
        assert status == 200
        assert reply["usage"]["prompt_tokens"] > 70_000
        assert (await client.post("/v1/chat/completions", messages=large * 2))[0] == 413


async def test_ports_follow_the_base_port() -> None:
    async with serving() as client:
        taken = int(client.fleet.urls[0].rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"):
            await start_fleet(SimulatorSettings(workers=1, base_port=taken))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("request_work_ms", -1.0), ("tokenize_us_per_token", -1.0),
        ("workers", 0), ("base_port", 65_530), ("cache_blocks", 0), ("prefill_rate", 0.0), ("itl_ms", -1.0),
        ("max_num_batched_tokens", 64), ("models", ()), ("adapters", ("sim",)), ("time_scale", 0.0),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_name_themselves(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        SimulatorSettings(**{key: value})
