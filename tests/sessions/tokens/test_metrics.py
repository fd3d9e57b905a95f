"""What is counted, by whom and how well, shows in a router that serves: each metric moves with what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.app.serve import Running
from router.sessions.tokens import build
from router.sessions.tokens.local import LocalCounter, guarded
from router.sessions.tokens.metrics import CAUSES, MEANS
from tests.e2e.faults import metric
from tests.e2e.routed import until
from tests.sessions.api.test_metrics import by_label, say, saying, serving
from tests.sessions.tokens.test_local import offline as offline
from tests.sessions.tokens.test_local import tokenizer_json as tokenizer_json
from tests.sessions.tokens.test_local import vocabulary_dir as vocabulary_dir
from tests.upstream.scripted import Asked, Peer, answer

FIVE = answer(b'{"count": 5}')


class Tokenizing:
    """A worker that answers turns as ``saying`` does, and /tokenize by ``reply``; None: never."""

    def __init__(self, reply: bytes | None = FIVE) -> None:
        self.reply = reply
        self.say = saying()

    async def __call__(self, asked: Asked, peer: Peer) -> None:
        if asked.path != "/tokenize":
            await self.say(asked, peer)
        elif self.reply is None:
            await peer.gone()
        else:
            await peer.send(self.reply)


async def counted(router: Running) -> Mapping[str, float]:
    """Tokens by who counted them, of those that counted any."""
    found = await by_label(router, "counted_tokens_total", "counter", *MEANS)
    return {means: tokens for means, tokens in found.items() if tokens}


async def fallbacks(router: Running) -> Mapping[str, float]:
    found = await by_label(router, "token_count_fallbacks_total", "cause", *CAUSES)
    return {cause: times for cause, times in found.items() if times}


async def test_tokens_that_a_worker_counted_are_counted_as_its_and_then_as_remembered() -> None:
    async with serving(Tokenizing(), tokens__tokenizer="worker") as (_, router):
        await say(router)
        assert await counted(router) == {"worker": 5}
        assert await metric(router, "warmroute_token_count_seconds_count", counter="worker") == 1
        assert 0 < await metric(router, "warmroute_token_count_seconds_sum") < 10
        assert await metric(router, "warmroute_known_token_counts") == 1
        await say(router)
        assert await counted(router) == {"worker": 5, "cache": 5}
        assert await metric(router, "warmroute_token_count_seconds_count") == 1
        assert await fallbacks(router) == {}


async def test_what_is_remembered_of_counts_is_bounded() -> None:
    async with serving(Tokenizing(), tokens__tokenizer="worker", tokens__max_known_counts=2) as (_, router):
        assert await metric(router, "warmroute_max_known_token_counts") == 2
        for number in range(5):
            await say(router, messages=[{"role": "user", "content": f"question {number}"}])
        assert await metric(router, "warmroute_known_token_counts") == 2


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("counter", ["tokenizer_json", "tiktoken"])
async def test_tokens_that_the_router_counted_are_counted_as_its_tokenizers(
    counter: str, tokenizer_json: Path, vocabulary_dir: Path
) -> None:
    tokenizer = str(tokenizer_json) if counter == "tokenizer_json" else "tiktoken:o200k_base"
    settings = {"tokens__tokenizer": tokenizer, "tokens__vocabulary_dir": str(vocabulary_dir)}
    async with serving(**settings) as (_, router):
        await say(router)
        assert 0 < (await counted(router))[counter] < 10
        assert len(await counted(router)) == 1
        assert await metric(router, "warmroute_token_count_seconds_count", counter=counter) == 1
        assert await metric(router, "warmroute_token_count_seconds_count") == 1


@pytest.mark.parametrize(
    ("cause", "reply", "settings"),
    [
        ("worker", answer(b"{}", 500), {}),
        ("timeout", None, {"tokens__worker_timeout_s": 0.05}),
        ("too_large", FIVE, {"tokens__max_exact_bytes": 3}),
    ],
    ids=["worker", "timeout", "too_large"],
)
async def test_what_could_not_be_counted_is_estimated_and_told_why(
    cause: str, reply: bytes | None, settings: dict[str, Any]
) -> None:
    async with serving(Tokenizing(reply), tokens__tokenizer="worker", **settings) as (_, router):
        assert (await say(router)).status == 200
        assert await fallbacks(router) == {cause: 1}
        assert await counted(router) == {"estimate": 1}
        assert await metric(router, "warmroute_token_count_seconds_count") == 0


async def test_where_no_worker_is_up_that_is_why_tokens_were_estimated() -> None:
    async with serving(Tokenizing(), tokens__tokenizer="worker") as (worker, router):
        worker.is_ill = True
        await until(lambda: router.fleet.catalog.eligible("m").panic)
        await say(router)
        assert await fallbacks(router) == {"no_worker": 1}


async def test_a_tokenizer_that_fails_is_why_tokens_were_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_text: str) -> int:
        raise ValueError

    monkeypatch.setattr(
        build,
        "_load",
        lambda _name, config, threads: LocalCounter(
            "tiktoken", guarded(fail), threads, max_loop_bytes=config.tokens.max_loop_bytes
        ),
    )
    async with serving(tokens__tokenizer="tiktoken:o200k_base") as (_, router):
        await say(router)
        assert await fallbacks(router) == {"tokenizer": 1}


async def test_how_far_a_prompts_tokens_were_from_its_workers_count_is_observed_by_model() -> None:
    async with serving(Tokenizing(), tokens__tokenizer="worker") as (_, router):
        assert await metric(router, "warmroute_prompt_tokens_error_ratio_count") == 0
        for _ in range(2):
            await say(router)
        assert await metric(router, "warmroute_prompt_tokens_error_ratio_count", model="m") == 2
        assert await metric(router, "warmroute_prompt_tokens_error_ratio_count") == 2
        errors = await metric(router, "warmroute_prompt_tokens_error_ratio_sum")
        assert 0.5 < errors < 2, "the worker counts 100, where a few were counted"
