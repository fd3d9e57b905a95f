"""A simulated worker answers as a real one does: what holds against the simulator holds against vLLM."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.simulator.fleet import start_fleet
from router.simulator.settings import SimulatorSettings
from tests.vllm import lab
from tests.vllm.shapes import ask

pytestmark = pytest.mark.vllm

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
TURNS = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say it again, and again. " * 40}]
ONE_TURN = [{"role": "user", "content": "Say it again, and again. " * 40}]
LONG = "so " * 200_000
INPUT_PARTS = ("", "cache_creation_", "cache_read_")
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "chat": (CHAT, {"messages": TURNS}),
    "chat, streamed": (CHAT, {"messages": TURNS, "stream": True}),
    "chat, streamed, usage": (CHAT, {"messages": TURNS, **USAGE}),
    "chat, token ids": (CHAT, {"messages": TURNS, "return_token_ids": True}),
    "chat, streamed, token ids": (CHAT, {"messages": TURNS, "return_token_ids": True, **USAGE}),
    "chat, unknown model": (CHAT, {"messages": TURNS, "model": "nobody"}),
    "chat, streamed, unknown model": (CHAT, {"messages": TURNS, "model": "nobody", "stream": True}),
    "chat, too long": (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
    "chat, empty salt": (CHAT, {"messages": TURNS, "cache_salt": ""}),
    "chat, no messages": (CHAT, {"messages": []}),
    "chat, several choices": (CHAT, {"messages": TURNS, "n": 2}),
    "chat, no tokens": (CHAT, {"messages": TURNS, "max_tokens": 0}),
    "chat, options without stream": (CHAT, {"messages": TURNS, "stream_options": {"include_usage": True}}),
    "completions": (COMPLETIONS, {"prompt": LONG[:900]}),
    "completions, streamed": (COMPLETIONS, {"prompt": LONG[:900], "stream": True}),
    "completions, streamed, usage": (COMPLETIONS, {"prompt": LONG[:900], **USAGE}),
    "completions, token ids": (COMPLETIONS, {"prompt": LONG[:900], "return_token_ids": True}),
    "completions, streamed, token ids": (COMPLETIONS, {"prompt": LONG[:900], "return_token_ids": True, **USAGE}),
    "completions, unknown model": (COMPLETIONS, {"prompt": "so", "model": "nobody"}),
    "completions, too long": (COMPLETIONS, {"prompt": LONG}),
    "completions, empty list": (COMPLETIONS, {"prompt": []}),
    "completions, options without stream": (COMPLETIONS, {"prompt": "so", "stream_options": {"include_usage": True}}),
    "completions, empty options without stream": (COMPLETIONS, {"prompt": "so", "stream_options": {}}),
    "completions, empty salt": (COMPLETIONS, {"prompt": "so", "cache_salt": ""}),
    "messages": (MESSAGES, {"messages": ONE_TURN}),
    "messages, streamed": (MESSAGES, {"messages": ONE_TURN, "stream": True}),
    "messages, unknown model": (MESSAGES, {"messages": ONE_TURN, "model": "nobody"}),
    "messages, empty salt": (MESSAGES, {"messages": ONE_TURN, "cache_salt": ""}),
    "messages, no tokens": (MESSAGES, {"messages": ONE_TURN, "max_tokens": 0}),
    "messages, no messages": (MESSAGES, {"messages": []}),
    "messages, too long": (MESSAGES, {"messages": [{"role": "user", "content": LONG}]}),
    "count tokens": (COUNT_TOKENS, {"messages": ONE_TURN}),
}


@pytest.fixture
async def simulated() -> AsyncIterator[str]:
    settings = SimulatorSettings(
        workers=1,
        base_port=0,
        models=(lab.MODEL,),
        cache_blocks=lab.CACHE_BLOCKS,
        block_tokens=lab.BLOCK_TOKENS,
        max_num_seqs=lab.MAX_NUM_SEQS,
        max_num_batched_tokens=lab.MAX_NUM_BATCHED_TOKENS,
        max_model_len=lab.MAX_MODEL_LEN,
        stream_interval_ms=0,
    )
    async with await start_fleet(settings) as fleet:
        yield fleet.urls[0]


@pytest.mark.parametrize("case", CASES)
async def test_simulated_answer_has_the_real_ones_shape(case: str, worker: lab.VllmWorker, simulated: str) -> None:
    path, body = CASES[case]
    body = {"model": lab.MODEL, "max_tokens": 4, "ignore_eos": True} | body
    if path == COUNT_TOKENS:
        del body["max_tokens"]
    async with aiohttp.ClientSession(worker.url) as to_real, aiohttp.ClientSession(simulated) as to_simulated:
        # Twice: the second answer has hits to tell of.
        for _ in range(2):
            real, ours = await ask(to_real, path, body), await ask(to_simulated, path, body)
            assert ours.lines() == real.lines()


async def test_usage_of_messages_tells_cached_and_new_tokens_apart(worker: lab.VllmWorker, simulated: str) -> None:
    content = f"{random.getrandbits(64)} {LONG[:900]}"
    question = {"model": lab.MODEL, "messages": [{"role": "user", "content": content}]}
    for url in (worker.url, simulated):
        async with aiohttp.ClientSession(url) as session:
            async with session.post(COUNT_TOKENS, json=question) as answer:
                total = (await answer.json())["input_tokens"]
            for key in ("cache_creation_input_tokens", "cache_read_input_tokens"):  # cold, and then warm
                async with session.post(MESSAGES, json=question | {"max_tokens": 2}) as answer:
                    usage = (await answer.json())["usage"]
                in_blocks = (total - 1) // lab.BLOCK_TOKENS * lab.BLOCK_TOKENS
                assert usage[key] in (in_blocks, total // lab.BLOCK_TOKENS * lab.BLOCK_TOKENS), (url, usage)
                assert sum(usage[f"{part}input_tokens"] for part in INPUT_PARTS) == total, (url, usage)


async def test_metrics_that_the_router_reads_are_on_both(worker: lab.VllmWorker, simulated: str) -> None:
    wanted = {
        "vllm:num_requests_running": ("engine", "model_name"),
        "vllm:num_requests_waiting": ("engine", "model_name"),
        "vllm:num_requests_waiting_by_reason": ("engine", "model_name", "reason"),
        "vllm:kv_cache_usage_perc": ("engine", "model_name"),
        "vllm:prefix_cache_queries_total": ("engine", "model_name"),
        "vllm:prefix_cache_hits_total": ("engine", "model_name"),
        "vllm:prompt_tokens_total": ("engine", "model_name"),
        "vllm:generation_tokens_total": ("engine", "model_name"),
        "vllm:request_success_total": ("engine", "model_name", "finished_reason"),
        "vllm:time_to_first_token_seconds_bucket": ("engine", "model_name", "le"),
        "vllm:cache_config_info": ("engine", "block_size", "num_gpu_blocks", "kv_cache_size_tokens"),
        "process_start_time_seconds": (),
    }
    for url in (worker.url, simulated):
        labels = await _labels_by_sample(url)
        missing = {name: set(keys) - labels.get(name, {"absent"}) for name, keys in wanted.items()}
        assert not {name: keys for name, keys in missing.items() if name not in labels or keys}, url


async def test_first_token_buckets_are_the_real_ones(worker: lab.VllmWorker, simulated: str) -> None:
    name = "vllm:time_to_first_token_seconds_bucket"
    real, ours = await _bounds(worker.url, name), await _bounds(simulated, name)
    assert ours == real


async def _labels_by_sample(url: str) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(await _page(url)):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


async def _bounds(url: str, name: str) -> list[float]:
    families = text_string_to_metric_families(await _page(url))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sorted(float(sample.labels["le"]) for sample in samples)


async def _page(url: str) -> str:
    async with aiohttp.ClientSession(url) as session, session.get("/metrics") as answer:
        return await answer.text()
