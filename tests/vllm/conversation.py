"""Conversations with a fleet of real workers through the router, and what the workers themselves say of them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.vllm.lab import MODEL, VllmWorker

SYSTEM = "You read the standard library aloud. "
WORDS = ("import", "return", "class", "self", "value", "error", "name", "path", "while", "yield", "none", "list", "int")


@dataclass(frozen=True, slots=True)
class Turn:
    """``prompt_tokens`` and ``cached_tokens`` as the worker's usage says; ``worker`` is the router's name for it."""

    worker: str
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class Conversation:
    """A client that resends the whole history with each turn, as chat clients do."""

    draw: random.Random
    words_per_turn: int
    max_tokens: int = 8
    messages: list[dict[str, str]] = field(default_factory=lambda: [{"role": "system", "content": SYSTEM}])
    turns: list[Turn] = field(default_factory=list)

    async def take_turn(self, session: aiohttp.ClientSession) -> Turn:
        self.messages.append({"role": "user", "content": prose(self.draw, self.words_per_turn)})
        body = {
            "model": MODEL,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = time.perf_counter()
        ttft_s, text = 0.0, ""
        usage: dict[str, Any] = {}
        async with session.post("/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            worker = answer.headers.get("x-warmroute-worker", "")
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                ttft_s = ttft_s or time.perf_counter() - sent
                event = json.loads(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                usage = event.get("usage") or usage
        self.messages.append({"role": "assistant", "content": text})
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.turns.append(Turn(worker, ttft_s, usage["prompt_tokens"], cached))
        return self.turns[-1]


def prose(draw: random.Random, words: int) -> str:
    """Words that begin with a number of their own, so that no two texts share a prefix."""
    return f"{draw.getrandbits(64)} " + " ".join(draw.choices(WORDS, k=words))


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """A worker's own count, in tokens, of what prompts asked of its prefix cache and what it had."""

    queries: float
    hits: float

    def __sub__(self, earlier: CacheCounters) -> CacheCounters:
        return CacheCounters(self.queries - earlier.queries, self.hits - earlier.hits)


async def read_counters(workers: Sequence[VllmWorker]) -> list[CacheCounters]:
    counters = []
    async with aiohttp.ClientSession() as session:
        for worker in workers:
            async with session.get(f"{worker.url}/metrics") as answer:
                page = await answer.text()
            samples = {s.name: s.value for family in text_string_to_metric_families(page) for s in family.samples}
            queries, hits = samples["vllm:prefix_cache_queries_total"], samples["vllm:prefix_cache_hits_total"]
            counters.append(CacheCounters(queries, hits))
    return counters
